//! Holds `Snapshot::route` against an obvious reference that scans the world for every answer.

#![allow(clippy::unwrap_used)]

mod choice;
mod reference;
mod weights;
mod worlds;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use orlop_model::{Balance, Service, Snapshot, Transport, compile};
use proptest::prelude::*;

use reference::reference;
use worlds::{ADDRESSES, any_address, client, ip, namespace, port, settings, vip, world};

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn route_agrees_with_a_scan_of_the_world(
        world in world(), namespace in namespace(), address in any_address(), port in port(),
    ) {
        let destination = SocketAddr::new(address, port);
        let snapshot = compile(&world, &settings(), 1);
        let want = reference(&world, namespace, destination);
        let (mut found, mut refused) = (BTreeMap::new(), Vec::new());
        for (one, other) in draws() {
            let mut balance = Scripted { draws: vec![other, other, other, one], load: |_| 0, last: None };
            match snapshot.route(&client(namespace), destination, &mut balance) {
                Ok(route) => {
                    let name = route.workload.map(|workload| workload.name.clone());
                    // Pods that share their node's address can't be told apart by it.
                    let name = name.filter(|name| world.pods.get(name).is_none_or(|pod| !pod.host_network));
                    found.insert(route.upstream, (route.transport, name));
                }
                Err(reason) => refused.push(reason),
            }
        }
        match want {
            Ok(want) => {
                prop_assert_eq!(refused, vec![]);
                prop_assert_eq!(found, want);
            }
            // Endpoints may lead on to services, each of which may have its own reason.
            Err(reason) => prop_assert!(refused.contains(&reason), "{refused:?} instead of {reason:?}"),
        }
    }

    #[test]
    fn the_busiest_of_several_endpoints_is_never_picked(world in world(), vip in vip(), port in port()) {
        let destination = SocketAddr::new(vip, port);
        let snapshot = compile(&world, &settings(), 1);
        let load = |address: SocketAddr| ADDRESSES.iter().position(|a| ip(a) == address.ip()).unwrap_or(100);
        if let Ok(endpoints) = reference(&world, "default", destination) && endpoints.len() > 1 {
            let busiest = endpoints.keys().map(|&address| load(address)).max().unwrap();
            let alone = endpoints.keys().filter(|&&address| load(address) == busiest).count() == 1;
            // An endpoint that leads on to another service's was picked by its own load.
            let leads_on = leads_on(&snapshot, destination);
            for (one, other) in draws() {
                let mut balance = Scripted { draws: vec![other, other, other, one], load, last: None };
                let route = snapshot.route(&client("default"), destination, &mut balance).unwrap();
                prop_assert!(!alone || leads_on || load(route.upstream) < busiest);
            }
        }
    }

    #[test]
    fn a_client_goes_where_it_went_last_as_long_as_that_is_eligible(
        mut world in world(), vip in vip(), port in port(), last in (any_address(), port()),
    ) {
        for service in world.services.values_mut() {
            service.affinity = Some(Duration::from_secs(60));
        }
        let destination = SocketAddr::new(vip, port);
        let last = SocketAddr::new(last.0.to_canonical(), last.1);
        let snapshot = compile(&world, &settings(), 1);
        let mut balance = Scripted { draws: vec![], load: |_| 0, last: Some(last) };
        let route = snapshot.route(&client("default"), destination, &mut balance);
        let eligible = reference(&world, "default", destination);
        if let (Ok(route), Ok(eligible)) = (route, eligible) {
            // A ServiceEntry asks for no affinity.
            let asks = snapshot.service_to("default", vip).is_some_and(|service| service.affinity.is_some());
            let may_stay = asks && eligible.contains_key(&last) && !leads_on(&snapshot, destination);
            prop_assert!(!may_stay || route.upstream == last);
            prop_assert!(eligible.contains_key(&route.upstream));
        }
    }

    #[test]
    fn a_tunnelled_route_always_names_an_enrolled_workload_with_that_address(
        world in world(), address in any_address(), port in port(),
    ) {
        let snapshot = compile(&world, &settings(), 1);
        let mut balance = Scripted { draws: vec![], load: |_| 0, last: None };
        let route = snapshot.route(&client("default"), SocketAddr::new(address, port), &mut balance);
        if let Ok(route) = route && route.transport == Transport::Hbone {
            let workload = route.workload.unwrap();
            prop_assert!(workload.enrolled && workload.addresses.contains(&route.upstream.ip()));
        }
    }

    #[test]
    fn nothing_goes_in_clear_to_a_cluster_ip_or_to_an_enrolled_pod(
        world in world(), namespace in namespace(), address in any_address(), port in port(),
    ) {
        let snapshot = compile(&world, &settings(), 1);
        for (one, other) in draws() {
            let mut balance = Scripted { draws: vec![other, other, other, one], load: |_| 0, last: None };
            let route = snapshot.route(&client(namespace), SocketAddr::new(address, port), &mut balance);
            if let Ok(route) = route && route.transport == Transport::Plain {
                let address = route.upstream.ip();
                let is_vip = |service: &&Arc<Service>| service.vips.contains(&address);
                prop_assert!(snapshot.services().find(is_vip).is_none());
                prop_assert!(!snapshot.workload_at(address).is_some_and(|workload| workload.enrolled));
            }
        }
    }
}

/// Whether some endpoint of the service is itself the address of one.
fn leads_on(snapshot: &Snapshot, destination: SocketAddr) -> bool {
    let service_to = |address| snapshot.service_to("default", address);
    let port = service_to(destination.ip()).and_then(|service| service.port(destination.port()));
    port.is_some_and(|port| port.endpoints.iter().any(|endpoint| service_to(endpoint.address.ip()).is_some()))
}

struct Scripted<F> {
    draws: Vec<usize>,
    load: F,
    last: Option<SocketAddr>,
}

impl<F: Fn(SocketAddr) -> usize> Balance for Scripted<F> {
    fn random(&mut self, bound: usize) -> usize {
        self.draws.pop().unwrap_or(0) % bound
    }

    fn in_flight(&self, endpoint: SocketAddr) -> usize {
        (self.load)(endpoint)
    }

    fn last(&mut self, _: &Arc<Service>, _: u16, _: Duration) -> Option<SocketAddr> {
        self.last
    }
}

/// Enough to draw every pair of up to 14 endpoints.
fn draws() -> impl Iterator<Item = (usize, usize)> {
    (0..14).flat_map(|one| (0..14).map(move |other| (one, other)))
}
