//! What somebody else has chosen before.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use orlop_model::{Balance, Choice, LocalService, Service, Snapshot, Transport, compile};
use proptest::prelude::*;

use crate::reference::reference;
use crate::worlds::{HERE, client, port, settings, vip, world};

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn local_services_are_those_with_eligible_pods_of_this_node(world in world(), vip in vip(), port in port()) {
        let destination = SocketAddr::new(vip, port);
        let snapshot = compile(&world, &settings(), 1);
        if let (Some(found), Ok(eligible)) = (local_service(&snapshot, destination), reference(&world, "default", destination))
            && !crate::leads_on(&snapshot, destination)
        {
            prop_assert_eq!(found.eligible, eligible.len());
            for (address, (transport, name)) in &eligible {
                let pod = name.as_ref().and_then(|name| world.pods.get(name));
                let here = pod.is_some_and(|pod| pod.node.as_deref() == Some(HERE) && !pod.host_network);
                let local = found.local.contains(address);
                // Whatever its slice says.
                prop_assert!(!local || (here && *transport == Transport::Hbone && address.is_ipv4() == vip.is_ipv4()));
            }
            prop_assert!(found.local.iter().all(|address| eligible.contains_key(address)));
        }
    }

    #[test]
    fn a_choice_counts_as_long_as_it_is_eligible(world in world(), vip in vip(), port in port(), nth in 0usize..8) {
        let destination = SocketAddr::new(vip, port);
        let snapshot = compile(&world, &settings(), 1);
        let route = |choice| snapshot.route(&client("default"), destination, &mut Chosen(choice, nth));
        let nobody = SocketAddr::from(([192, 0, 2, 99], 9));
        let usual = route(Choice::Open);
        prop_assert_eq!(route(Choice::Endpoint(nobody)), usual);
        if let Some(found) = local_service(&snapshot, destination) && !crate::leads_on(&snapshot, destination) {
            for &local in &found.local {
                prop_assert_eq!(route(Choice::Endpoint(local)).unwrap().upstream, local);
            }
            let elsewhere = route(Choice::Elsewhere).unwrap().upstream;
            prop_assert!(found.eligible == found.local.len() || !found.local.contains(&elsewhere));
        }
    }
}

fn local_service(snapshot: &Snapshot, destination: SocketAddr) -> Option<LocalService> {
    let service = snapshot.service_at(destination.ip())?;
    snapshot.local_services(service).find(|found| found.address == destination)
}

/// Of those left, the nth.
struct Chosen(Choice, usize);

impl Balance for Chosen {
    fn random(&mut self, bound: usize) -> usize {
        self.1 % bound
    }

    fn in_flight(&self, _: SocketAddr) -> usize {
        0
    }

    fn last(&mut self, _: &Arc<Service>, _: u16, _: Duration) -> Option<SocketAddr> {
        None
    }

    fn choice(&self) -> Choice {
        self.0
    }
}
