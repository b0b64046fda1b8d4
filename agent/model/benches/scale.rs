//! What the size of the world costs the pure parts: compiling it, compiling it again after an endpoint or a policy has
//! changed, and one decision, which is to choose an endpoint of a service and to judge the connection there.
//!
//! `cargo bench -p orlop-model --bench scale -- SERVICES`, for `cargo xtask bench scale`: prints JSON, in seconds.

#![allow(clippy::unwrap_used, reason = "a bench that cannot go on should stop")]

mod harness;

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use harness::{median, shares, times};
use orlop_model::world::security::{Action, AuthorizationPolicy, Match, Rule, Source};
use orlop_model::world::{
    EndpointSlice, Labels, Namespace, Node, Owner, Pod, Port, Service, ServicePort, SliceEndpoint, TargetPort,
};
use orlop_model::{
    Balance, Connection, Hosts, NamespacedName, Service as Compiled, Settings, Snapshot, Text, World,
    compile, compile_after,
};

const ENDPOINTS: usize = 10;
/// Services of one namespace.
const NEIGHBOURS: usize = 10;
/// Workloads of one node.
const ON_A_NODE: usize = 50;
const COMPILATIONS: usize = 5;
const CHANGES: usize = 50;
const DECISIONS: usize = 100_000;

fn main() {
    // cargo adds arguments of its own.
    let services = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(1000);
    let mut world = world(services);
    let (settings, hosts) = (settings(), Hosts::new());
    let mut snapshot = compile(&world, &settings, 1);
    let compile = median(&times(COMPILATIONS, |_| drop(black_box(compile(&world, &settings, 1)))));
    let change = median(&times(CHANGES, |nth| {
        let mut slice = slice(0);
        if nth % 2 == 0 {
            slice.endpoints.pop();
        }
        world.endpoint_slices.insert(slice.name.clone(), slice);
        snapshot = compile_after(Some(&snapshot), &world, &hosts, &settings, 2);
    }));
    let policy_change = median(&times(CHANGES, |nth| {
        let action = if nth % 2 == 0 { Action::Deny } else { Action::Allow };
        let policy = AuthorizationPolicy { action, ..policy(0) };
        world.authorization_policies.insert(policy.name.clone(), policy);
        snapshot = compile_after(Some(&snapshot), &world, &hosts, &settings, 3);
    }));
    let decision = median(&shares(DECISIONS, |nth| decide(&snapshot, services, nth)));
    println!(
        "{{\"compile\": {}, \"change\": {}, \"policy_change\": {}, \"decision\": {}}}",
        compile.as_secs_f64(),
        change.as_secs_f64(),
        policy_change.as_secs_f64(),
        decision.as_secs_f64()
    );
}

/// A pod of this node dials any service, and is dialled by that endpoint: where does the one go, and may the other?
fn decide(snapshot: &Snapshot, services: usize, nth: usize) {
    let own = snapshot.workload_at(pod_address(nth % ON_A_NODE.min(services * ENDPOINTS))).unwrap();
    let dialled = SocketAddr::new(vip(nth * 7919 % services), 80);
    let route = snapshot.route(own, dialled, &mut Turn(nth)).unwrap();
    let other = route.workload.as_ref().unwrap();
    let connection = Connection {
        source_identity: Some(&other.identity),
        source: other.addresses[0],
        destination: own,
        address: SocketAddr::new(own.addresses[0], 8080),
    };
    _ = black_box(snapshot.authorize(black_box(&connection)));
}

/// Chooses endpoints in turn.
struct Turn(usize);

impl Balance for Turn {
    fn random(&mut self, bound: usize) -> usize {
        self.0 += 1;
        self.0 % bound
    }

    fn in_flight(&self, _: SocketAddr) -> usize {
        0
    }

    fn last(&mut self, _: &Arc<Compiled>, _: u16, _: Duration) -> Option<SocketAddr> {
        None
    }
}

fn world(services: usize) -> World {
    let namespaces = 0..services.div_ceil(NEIGHBOURS);
    let pods = 0..services * ENDPOINTS;
    let enrolled = Labels::from([("orlop.dev/mesh", "enabled")]);
    World {
        namespaces: namespaces
            .clone()
            .map(|number| (namespace(number).into(), Namespace { labels: enrolled.clone() }))
            .collect(),
        nodes: (0..pods.end.div_ceil(ON_A_NODE)).map(node).collect(),
        pods: pods.map(pod).map(|pod| (pod.name.clone(), pod)).collect(),
        services: (0..services).map(service).map(|service| (service.name.clone(), service)).collect(),
        endpoint_slices: (0..services).map(slice).map(|slice| (slice.name.clone(), slice)).collect(),
        authorization_policies: namespaces
            .map(policy)
            .map(|policy| (policy.name.clone(), Arc::new(policy)))
            .collect(),
        ..World::default()
    }
}

fn namespace(number: usize) -> String {
    format!("team-{number}")
}

fn name(of_service: usize, name: String) -> NamespacedName {
    NamespacedName::new(namespace(of_service / NEIGHBOURS), name)
}

fn node(number: usize) -> (Text, Node) {
    let zone = ("topology.kubernetes.io/zone", format!("z{}", number % 3));
    (format!("node-{number}").into(), Node { labels: [zone].into(), ..Node::default() })
}

fn pod_name(pod: usize) -> NamespacedName {
    let service = pod / ENDPOINTS;
    name(service, format!("service-{service}-5d4f8c7b9-{pod:05x}"))
}

fn pod(number: usize) -> Pod {
    let service = number / ENDPOINTS;
    let labels = [
        ("app", format!("service-{service}")),
        ("version", "v1".into()),
        ("pod-template-hash", "5d4f8c7b9".into()),
    ];
    Pod {
        name: pod_name(number),
        uid: format!("7c9e6679-7425-40de-944b-{number:012}").into(),
        labels: labels.into(),
        node: Some(format!("node-{}", number / ON_A_NODE).into()),
        service_account: format!("service-{service}").into(),
        addresses: [pod_address(number)].into(),
        ready: true,
        owner: Some(Owner { kind: "ReplicaSet".into(), name: format!("service-{service}-5d4f8c7b9").into() }),
        container_ports: [Port { name: "http".into(), number: 8080 }].into(),
        ..Pod::default()
    }
}

fn service(number: usize) -> Service {
    let port = ServicePort {
        name: "http".into(),
        number: 80,
        target: TargetPort::Number(8080),
        ..ServicePort::default()
    };
    Service {
        name: name(number, format!("service-{number}")),
        cluster_ips: vec![vip(number)],
        ports: vec![port],
        selector: [("app", format!("service-{number}"))].into(),
        ..Service::default()
    }
}

fn slice(service: usize) -> EndpointSlice {
    let endpoint = |pod| SliceEndpoint {
        addresses: [pod_address(pod)].into(),
        ready: true,
        serving: true,
        node: Some(format!("node-{}", pod / ON_A_NODE).into()),
        target: Some(pod_name(pod)),
        ..SliceEndpoint::default()
    };
    EndpointSlice {
        name: name(service, format!("service-{service}-abcde")),
        service: Some(format!("service-{service}").into()),
        ports: vec![Port { name: "http".into(), number: 8080 }],
        endpoints: (service * ENDPOINTS..(service + 1) * ENDPOINTS).map(endpoint).collect(),
        ..EndpointSlice::default()
    }
}

/// Its services call each other.
fn policy(number: usize) -> AuthorizationPolicy {
    let namespaces = Match { values: vec![namespace(number).parse().unwrap()], not_values: vec![] };
    let source = Source { namespaces, ..Source::default() };
    AuthorizationPolicy {
        name: NamespacedName::new(namespace(number), "own"),
        action: Action::Allow,
        rules: vec![Rule { from: vec![source], ..Rule::default() }],
        ..AuthorizationPolicy::default()
    }
}

fn pod_address(number: usize) -> IpAddr {
    address([100, 64, 0, 0], number)
}

fn vip(service: usize) -> IpAddr {
    address([198, 18, 0, 0], service)
}

fn address(base: [u8; 4], offset: usize) -> IpAddr {
    Ipv4Addr::from(u32::from_be_bytes(base) + 1 + offset as u32).into()
}

fn settings() -> Settings {
    Settings {
        node: "node-0".into(),
        trust_domain: "cluster.local".parse().unwrap(),
        trust_domain_aliases: Vec::new(),
        root_namespace: "istio-system".into(),
        cluster: "Kubernetes".into(),
        cluster_domain: "cluster.local".into(),
        network: None,
    }
}
