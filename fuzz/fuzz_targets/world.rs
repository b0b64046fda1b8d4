//! A file of Kubernetes objects, as anybody may write who may write the world or, one day, ask the API server to.
#![no_main]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use orlop_model::{Balance, DEFAULT_ROOT_NAMESPACE, Service, Settings, Snapshot, compile};

fuzz_target!(|text: &str| {
    let world = match orlop_kube::fuzzing::world(text) {
        Ok(world) => world,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let snapshot = compile(&world, &settings(), 1);
    // The same world is the same snapshot to whoever looks.
    assert_eq!(compile(&world, &settings(), 1).findings(), snapshot.findings());
    for address in world.pods.values().flat_map(|pod| &pod.addresses) {
        route(&snapshot, *address);
    }
    for address in world.services.values().flat_map(|service| &service.cluster_ips) {
        route(&snapshot, *address);
    }
});

fn settings() -> Settings {
    Settings {
        node: "n1".into(),
        trust_domain: "cluster.local".parse().expect("it is one"),
        trust_domain_aliases: vec!["old.local".parse().expect("it is one")],
        root_namespace: DEFAULT_ROOT_NAMESPACE.into(),
        cluster: "Kubernetes".into(),
        cluster_domain: "cluster.local".into(),
        network: None,
    }
}

/// Where a connection there goes is an answer or a reason.
fn route(snapshot: &Snapshot, address: IpAddr) {
    for source in snapshot.workloads().take(3) {
        for port in [80, 8080, 15008] {
            let _ = snapshot.route(source, SocketAddr::new(address, port), &mut First);
        }
    }
}

struct First;

impl Balance for First {
    fn random(&mut self, bound: usize) -> usize {
        assert!(bound > 0, "there is nothing to choose from");
        0
    }

    fn in_flight(&self, _: SocketAddr) -> usize {
        0
    }

    fn last(&mut self, _: &Arc<Service>, _: u16, _: Duration) -> Option<SocketAddr> {
        None
    }
}
