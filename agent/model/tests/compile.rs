//! Small worlds, compiled: one behaviour a test.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use orlop_model::world::{
    EndpointSlice, Labels, Namespace, Phase, Pod, Port, Protocol, Service, ServicePort, SliceEndpoint,
    TargetPort,
};
use orlop_model::{
    Balance, NamespacedName, Reason, Route, Service as CompiledService, Settings, Snapshot, Transport, World,
    compile, uids_in_mesh,
};

#[test]
fn an_enrolled_pod_is_reached_through_the_tunnel_and_others_plain() {
    let world = world([pod("a", "10.0.0.1"), opted_out("b", "10.0.0.2")]);
    assert_eq!(route(&world, "10.0.0.1:80").unwrap().transport, Transport::Hbone);
    let plain = route(&world, "10.0.0.2:80").unwrap();
    assert_eq!((plain.transport, name(&plain)), (Transport::Plain, Some("b")));
    let outside = route(&world, "192.0.2.1:443").unwrap();
    assert_eq!((outside.transport, name(&outside)), (Transport::Plain, None));
}

#[test]
fn a_mapped_address_is_the_ipv4_address() {
    let mut world = world([pod("a", "::ffff:10.0.0.1")]);
    world.services.insert(id("web"), service("::ffff:10.96.0.1", TargetPort::Unset));
    let route = route(&world, "[::ffff:10.0.0.1]:80").unwrap();
    assert_eq!((route.upstream, name(&route)), ("10.0.0.1:80".parse().unwrap(), Some("a")));
    assert!(snapshot(&world).service_to("default", ip("::ffff:10.96.0.1")).is_some());
    assert!(snapshot(&world).service_to("default", ip("10.96.0.1")).is_some());
}

#[test]
fn pods_that_ended_are_gone_and_terminating_ones_stay_enrolled() {
    let ended = |name, phase| Pod { phase, ..pod(name, "10.0.0.1") };
    let leaving = Pod { terminating: true, ..pod("leaving", "10.0.0.2") };
    let world = world([ended("done", Phase::Succeeded), ended("failed", Phase::Failed), leaving]);
    let snapshot = snapshot(&world);
    assert!(snapshot.workload_at(ip("10.0.0.1")).is_none());
    assert!(snapshot.workload(&id("done")).is_none());
    assert_eq!(snapshot.local_pods().len(), 1);
    assert_eq!(route(&world, "10.0.0.2:80").unwrap().transport, Transport::Hbone);
}

#[test]
fn a_reused_address_belongs_to_the_pod_that_lives() {
    let world = world([Pod { phase: Phase::Succeeded, ..pod("a", "10.0.0.1") }, pod("b", "10.0.0.1")]);
    assert_eq!(name(&route(&world, "10.0.0.1:80").unwrap()), Some("b"));
}

#[test]
fn a_doubly_claimed_address_belongs_to_the_enrolled_then_the_staying_then_the_first() {
    let leaving = Pod { terminating: true, ..pod("b", "10.0.0.1") };
    let world = world([opted_out("a", "10.0.0.1"), leaving, pod("c", "10.0.0.1"), pod("d", "10.0.0.1")]);
    assert_eq!(name(&route(&world, "10.0.0.1:80").unwrap()), Some("c"));
}

#[test]
fn a_host_network_pod_is_not_enrolled_and_its_address_is_the_nodes() {
    let world = world([Pod { host_network: true, ..pod("a", "192.0.2.1") }]);
    let snapshot = snapshot(&world);
    assert!(snapshot.workload_at(ip("192.0.2.1")).is_none());
    assert!(snapshot.local_pods().is_empty());
    assert!(!snapshot.workload(&id("a")).unwrap().enrolled);
}

#[test]
fn a_pod_for_windows_is_not_enrolled() {
    let world = world([Pod { windows: true, ..pod("a", "10.0.0.1") }]);
    let snapshot = snapshot(&world);
    assert!(!snapshot.workload_at(ip("10.0.0.1")).unwrap().enrolled);
    assert!(snapshot.outsiders()[0].why.contains("Windows"));
}

#[test]
fn pods_of_the_mesh_are_known_by_uid_also_once_they_have_ended() {
    let of = |name, uid: &str| Pod { uid: uid.into(), ..pod(name, "10.0.0.1") };
    let outside = labels(&[("orlop.dev/mesh", "disabled")]);
    let world = world([
        of("a", "1"),
        Pod { phase: Phase::Failed, ..of("b", "2") },
        Pod { labels: outside.clone(), ..of("c", "3") },
        Pod { node: Some("two".into()), ..of("d", "4") },
        Pod { host_network: true, ..of("e", "5") },
        // Two objects of the same static pod, as they say.
        of("f", "6"),
        Pod { labels: outside.clone(), ..of("g", "6") },
        of("h", ""),
        Pod { claim: Some("7".into()), ..of("i", "8") },
        Pod { claim: Some("3".into()), ..of("j", "9") },
        Pod { claim: Some("10".into()), ..of("k", "11") },
        Pod { claim: Some("10".into()), labels: outside.clone(), ..of("l", "12") },
        // A claim takes nobody out of the mesh who is known.
        Pod { claim: Some("1".into()), labels: outside.clone(), ..of("m", "13") },
    ]);
    let uids = |found: &[Arc<Pod>]| {
        let mut uids: Vec<_> = uids_in_mesh(&world, "one", found).into_iter().collect();
        uids.sort_unstable();
        uids
    };
    assert_eq!(uids(&[]), ["1", "11", "2", "7", "8", "9"].map(Arc::from));
    // What the node has, and no object says yet. A claim doesn't count against it.
    let found =
        [of("n", "14"), of("o", "10"), Pod { labels: outside, ..of("p", "15") }, of("q", "3")].map(Arc::new);
    assert_eq!(uids(&found), ["1", "10", "11", "14", "2", "7", "8", "9"].map(Arc::from));
}

#[test]
fn a_uid_that_two_pods_of_a_node_claim_is_contested() {
    let of = |name, address, uid: &str| Pod { uid: uid.into(), ..pod(name, address) };
    let world = world([
        of("a", "10.0.0.1", "1"),
        Pod { labels: labels(&[("orlop.dev/mesh", "disabled")]), ..of("b", "10.0.0.2", "1") },
        of("c", "10.0.0.3", "2"),
        Pod { node: Some("two".into()), ..of("d", "10.0.0.4", "2") },
    ]);
    let snapshot = snapshot(&world);
    let contested = |name| snapshot.is_contested(snapshot.workload(&id(name)).unwrap());
    assert_eq!(["a", "b", "c", "d"].map(contested), [true, true, false, false]);
}

#[test]
fn only_enrolled_pods_of_this_node_are_local_and_their_netns_is_absolute() {
    let with_netns = |name, address, path: &str| Pod {
        annotations: labels(&[("orlop.dev/netns", path)]),
        ..pod(name, address)
    };
    let world = world([
        with_netns("a", "10.0.0.1", "/run/netns/a"),
        with_netns("b", "10.0.0.2", "relative"),
        opted_out("c", "10.0.0.3"),
        Pod { node: Some("two".into()), ..pod("d", "10.0.0.4") },
        Pod { node: None, ..pod("e", "10.0.0.5") },
    ]);
    let snapshot = snapshot(&world);
    let local: Vec<_> = snapshot.local_pods().iter().map(|pod| pod.workload.name.name.as_str()).collect();
    assert_eq!(local, ["a", "b"]);
    assert_eq!(snapshot.local_pods()[0].netns.as_deref(), Some("/run/netns/a".as_ref()));
    assert_eq!(snapshot.local_pods()[1].netns, None);
    let outside: Vec<_> = snapshot.pods_outside().map(|pod| pod.workload.name.name.to_string()).collect();
    assert_eq!(outside, ["c"]);
}

#[test]
fn addresses_no_pod_can_have_are_dropped() {
    let odd = ["127.0.0.1", "0.0.0.0", "::1", "ff02::1", "::ffff:127.0.0.1", "10.0.0.1", "10.0.0.1"];
    let world = world([Pod { addresses: odd.map(ip).into(), ..pod("a", "10.0.0.1") }]);
    assert_eq!(snapshot(&world).workload(&id("a")).unwrap().addresses, [ip("10.0.0.1")].into());
    assert!(snapshot(&world).workload_at(ip("127.0.0.1")).is_none());
}

#[test]
fn an_identity_is_of_the_namespace_and_service_account() {
    let world = world([Pod { service_account: "till".into(), ..pod("a", "10.0.0.1") }]);
    let identity = snapshot(&world).workload(&id("a")).unwrap().identity.to_string();
    assert_eq!(identity, "spiffe://cluster.local/ns/default/sa/till");
}

#[test]
fn a_vip_refuses_ports_it_has_not_and_those_that_are_not_tcp() {
    let mut world = world([pod("a", "10.0.0.1")]);
    let mut service = service("10.96.0.1", TargetPort::Unset);
    service.ports.push(ServicePort { number: 53, protocol: Protocol::Udp, ..ServicePort::default() });
    world.services.insert(id("web"), service);
    assert_eq!(route(&world, "10.96.0.1:81"), Err(Reason::NoServicePort));
    assert_eq!(route(&world, "10.96.0.1:53"), Err(Reason::NoServicePort));
    assert!(route(&world, "10.96.0.1:80").is_ok());
}

#[test]
fn without_slices_the_selector_finds_pods_and_their_named_ports() {
    let port = |number| Box::from([Port { name: "http".into(), number }]);
    let mut world = world([
        Pod { container_ports: port(8080), ..pod("a", "10.0.0.1") },
        Pod { container_ports: port(9090), ready: false, ..pod("b", "10.0.0.2") },
        pod("no-such-port", "10.0.0.3"),
        Pod { labels: Labels::new(), container_ports: port(8080), ..pod("other", "10.0.0.4") },
    ]);
    world.services.insert(id("web"), service("10.96.0.1", TargetPort::Name("http".into())));
    assert_eq!(endpoints(&world), [("10.0.0.1:8080".into(), true), ("10.0.0.2:9090".into(), false)]);
}

#[test]
fn slices_replace_the_selector_and_match_ports_by_name() {
    let mut world = world([pod("a", "10.0.0.1"), pod("b", "10.0.0.2")]);
    world.services.insert(id("web"), service("10.96.0.1", TargetPort::Number(1)));
    let mut slice = slice(&[("10.0.0.2", true, Some("b")), ("192.0.2.9", true, None)]);
    slice.ports.push(Port { name: "metrics".into(), number: 9100 });
    world.endpoint_slices.insert(id("web-1"), slice);
    assert_eq!(endpoints(&world), [("10.0.0.2:8080".into(), true), ("192.0.2.9:8080".into(), true)]);
}

#[test]
fn a_slice_entry_that_disagrees_with_its_pod_is_left_out() {
    let mut world = world([pod("a", "10.0.0.1"), Pod { addresses: [].into(), ..pod("b", "10.0.0.2") }]);
    world.services.insert(id("web"), service("10.96.0.1", TargetPort::Unset));
    let stale = slice(&[
        ("10.0.0.1", true, Some("gone")),
        ("10.0.0.2", true, Some("b")),
        ("10.0.0.3", true, Some("a")),
    ]);
    world.endpoint_slices.insert(id("web-1"), stale);
    assert_eq!(route(&world, "10.96.0.1:80"), Err(Reason::NoHealthyEndpoint));
}

#[test]
fn an_endpoint_listed_twice_counts_once_and_as_ready() {
    let mut world = world([pod("a", "10.0.0.1")]);
    world.services.insert(id("web"), service("10.96.0.1", TargetPort::Unset));
    world.endpoint_slices.insert(id("web-1"), slice(&[("10.0.0.1", false, Some("a"))]));
    world.endpoint_slices.insert(id("web-2"), slice(&[("10.0.0.1", true, Some("a"))]));
    assert_eq!(endpoints(&world), [("10.0.0.1:8080".into(), true)]);
}

#[test]
fn the_vips_family_is_preferred_but_not_required() {
    let both = Pod { addresses: ["10.0.0.1", "fd00::1"].map(ip).into(), ..pod("a", "10.0.0.1") };
    let mut world = world([both, pod("b", "10.0.0.2")]);
    world.services.insert(id("web"), service("fd00:96::1", TargetPort::Unset));
    assert_eq!(route(&world, "[fd00:96::1]:80").unwrap().upstream, "[fd00::1]:80".parse().unwrap());
    world.pods.remove(&id("a"));
    assert_eq!(route(&world, "[fd00:96::1]:80").unwrap().upstream, "10.0.0.2:80".parse().unwrap());
}

#[test]
fn a_headless_service_is_listed_with_its_endpoints() {
    let mut world = world([pod("a", "10.0.0.1")]);
    world
        .services
        .insert(id("web"), Service { cluster_ips: vec![], ..service("10.96.0.1", TargetPort::Unset) });
    let snapshot = snapshot(&world);
    let service = snapshot.service(&id("web")).unwrap();
    assert_eq!(service.hostname, "web.default.svc.cluster.local");
    assert!(service.vips.is_empty());
    assert_eq!(service.port(80).unwrap().ready().count(), 1);
}

fn world<const N: usize>(pods: [Pod; N]) -> World {
    let on = Namespace { labels: labels(&[("orlop.dev/mesh", "enabled")]) };
    World {
        namespaces: [("default".into(), on)].into(),
        pods: pods.into_iter().map(|pod| (pod.name.clone(), pod)).collect(),
        ..World::default()
    }
}

fn pod(name: &str, address: &str) -> Pod {
    Pod {
        name: id(name),
        labels: labels(&[("app", "web")]),
        node: Some("one".into()),
        service_account: "default".into(),
        addresses: [ip(address)].into(),
        ready: true,
        ..Pod::default()
    }
}

fn opted_out(name: &str, address: &str) -> Pod {
    Pod { labels: labels(&[("app", "web"), ("orlop.dev/mesh", "disabled")]), ..pod(name, address) }
}

fn service(vip: &str, target: TargetPort) -> Service {
    Service {
        name: id("web"),
        cluster_ips: vec![ip(vip)],
        ports: vec![ServicePort { name: "http".into(), number: 80, target, ..ServicePort::default() }],
        selector: labels(&[("app", "web")]),
        ..Service::default()
    }
}

fn slice(endpoints: &[(&str, bool, Option<&str>)]) -> EndpointSlice {
    let endpoint = |&(address, ready, target): &(&str, bool, Option<&str>)| SliceEndpoint {
        addresses: [ip(address)].into(),
        ready,
        serving: ready,
        target: target.map(id),
        ..SliceEndpoint::default()
    };
    EndpointSlice {
        name: id("web-1"),
        service: Some("web".into()),
        ports: vec![Port { name: "http".into(), number: 8080 }],
        endpoints: endpoints.iter().map(endpoint).collect(),
        ..EndpointSlice::default()
    }
}

fn endpoints(world: &World) -> Vec<(String, bool)> {
    let snapshot = snapshot(world);
    let port = snapshot.service(&id("web")).unwrap().port(80).unwrap();
    port.endpoints.iter().map(|endpoint| (endpoint.address.to_string(), endpoint.ready)).collect()
}

struct First;

impl Balance for First {
    fn random(&mut self, _: usize) -> usize {
        0
    }

    fn in_flight(&self, _: SocketAddr) -> usize {
        0
    }

    fn last(&mut self, _: &Arc<CompiledService>, _: u16, _: Duration) -> Option<SocketAddr> {
        None
    }
}

/// Seen by a pod of its own.
fn route(world: &World, destination: &str) -> Result<Route, Reason> {
    let mut world = world.clone();
    let client = Pod { labels: Labels::new(), ..pod("client", "10.0.9.9") };
    world.pods.insert(client.name.clone(), client);
    let snapshot = snapshot(&world);
    let client = snapshot.workload(&id("client")).unwrap();
    snapshot.route(client, destination.parse().unwrap(), &mut First)
}

fn snapshot(world: &World) -> Snapshot {
    let settings = Settings {
        node: "one".into(),
        trust_domain: "cluster.local".parse().unwrap(),
        trust_domain_aliases: Vec::new(),
        root_namespace: "istio-system".into(),
        cluster: "Kubernetes".into(),
        cluster_domain: "cluster.local".into(),
        network: None,
    };
    compile(world, &settings, 1)
}

fn name(route: &Route) -> Option<&str> {
    route.workload.as_ref().map(|workload| workload.name.name.as_str())
}

fn id(name: &str) -> NamespacedName {
    NamespacedName::new("default", name)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}
