//! A generated world: services of ten endpoints each, ten to a namespace.

#![allow(dead_code, reason = "not every bench has use for all of it")]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use orlop_model::world::security::{Action, AuthorizationPolicy, Match, Rule, Source};
use orlop_model::world::{
    EndpointSlice, Labels, Namespace, Node, Owner, Pod, Port, Service, ServicePort, SliceEndpoint, TargetPort,
};
use orlop_model::{NamespacedName, Settings, Text, World};

pub const ENDPOINTS: usize = 10;
/// Services of one namespace.
const NEIGHBOURS: usize = 10;
/// Workloads of one node.
pub const ON_A_NODE: usize = 50;

pub fn world(services: usize) -> World {
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

pub fn namespace(number: usize) -> String {
    format!("team-{number}")
}

pub fn name(of_service: usize, name: String) -> NamespacedName {
    NamespacedName::new(namespace(of_service / NEIGHBOURS), name)
}

fn node(number: usize) -> (Text, Node) {
    let zone = ("topology.kubernetes.io/zone", format!("z{}", number % 3));
    (format!("node-{number}").into(), Node { labels: [zone].into(), ..Node::default() })
}

pub fn pod_name(pod: usize) -> NamespacedName {
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

pub fn service(number: usize) -> Service {
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

pub fn slice(service: usize) -> EndpointSlice {
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
pub fn policy(number: usize) -> AuthorizationPolicy {
    let namespaces = Match { values: vec![namespace(number).parse().unwrap()], not_values: vec![] };
    let source = Source { namespaces, ..Source::default() };
    AuthorizationPolicy {
        name: NamespacedName::new(namespace(number), "own"),
        action: Action::Allow,
        rules: vec![Rule { from: vec![source], ..Rule::default() }],
        ..AuthorizationPolicy::default()
    }
}

pub fn pod_address(number: usize) -> IpAddr {
    address([100, 64, 0, 0], number)
}

pub fn vip(service: usize) -> IpAddr {
    address([198, 18, 0, 0], service)
}

fn address(base: [u8; 4], offset: usize) -> IpAddr {
    Ipv4Addr::from(u32::from_be_bytes(base) + 1 + offset as u32).into()
}

pub fn settings() -> Settings {
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
