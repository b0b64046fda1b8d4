//! Holds `Snapshot::route` against an obvious reference that scans the world for every answer.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use orlop_model::world::{
    EndpointSlice, Labels, Namespace, Phase, Pod, Port, Protocol, Service, ServicePort, SliceEndpoint,
    TargetPort,
};
use orlop_model::{Balance, NamespacedName, Reason, Settings, Transport, World, compile};
use proptest::prelude::*;

/// Pods, services and strangers draw from few addresses, so that they collide.
const ADDRESSES: [&str; 8] =
    ["10.0.0.1", "10.0.0.2", "10.0.0.3", "::ffff:10.0.0.1", "fd00::1", "fd00::2", "127.0.0.1", "192.0.2.1"];
const VIPS: [&str; 4] = ["10.96.0.1", "10.96.0.2", "fd00:96::1", "10.0.0.3"];
const PORTS: [u16; 4] = [80, 81, 8080, 9090];

type Answer = Result<BTreeMap<SocketAddr, (Transport, Option<NamespacedName>)>, Reason>;

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn route_agrees_with_a_scan_of_the_world(world in world(), address in any_address(), port in port()) {
        let destination = SocketAddr::new(address, port);
        let snapshot = compile(&world, &settings(), 1);
        let want = reference(&world, destination);
        let mut got: Answer = Ok(BTreeMap::new());
        for (one, other) in draws() {
            match (snapshot.route(destination, &mut Scripted { draws: vec![other, one], load: |_| 0 }), &mut got) {
                (Ok(route), Ok(found)) => {
                    let name = route.workload.map(|workload| workload.name.clone());
                    // Pods that share their node's address can't be told apart by it.
                    let name = name.filter(|name| !world.pods[name].host_network);
                    found.insert(route.upstream, (route.transport, name));
                }
                (Err(reason), _) => got = Err(reason),
                (Ok(route), Err(_)) => prop_assert!(false, "now routed to {}, now refused", route.upstream),
            }
        }
        prop_assert_eq!(got, want);
    }

    #[test]
    fn the_busiest_of_several_endpoints_is_never_picked(world in world(), vip in vip(), port in port()) {
        let destination = SocketAddr::new(vip, port);
        let snapshot = compile(&world, &settings(), 1);
        let load = |address: SocketAddr| ADDRESSES.iter().position(|a| ip(a) == address.ip()).unwrap_or(100);
        if let Ok(endpoints) = reference(&world, destination) && endpoints.len() > 1 {
            let busiest = endpoints.keys().map(|&address| load(address)).max().unwrap();
            let alone = endpoints.keys().filter(|&&address| load(address) == busiest).count() == 1;
            for (one, other) in draws() {
                let route = snapshot.route(destination, &mut Scripted { draws: vec![other, one], load });
                prop_assert!(!alone || load(route.unwrap().upstream) < busiest);
            }
        }
    }

    #[test]
    fn a_tunnelled_route_always_names_an_enrolled_workload_with_that_address(
        world in world(), address in any_address(), port in port(),
    ) {
        let snapshot = compile(&world, &settings(), 1);
        let route = snapshot.route(SocketAddr::new(address, port), &mut Scripted { draws: vec![], load: |_| 0 });
        if let Ok(route) = route && route.transport == Transport::Hbone {
            let workload = route.workload.unwrap();
            prop_assert!(workload.enrolled && workload.addresses.contains(&route.upstream.ip()));
        }
    }
}

/// Every upstream that some draw may lead to.
fn reference(world: &World, destination: SocketAddr) -> Answer {
    let address = destination.ip().to_canonical();
    let service =
        world.services.values().find(|s| s.cluster_ips.iter().any(|vip| vip.to_canonical() == address));
    let Some(service) = service else {
        return Ok([reached(world, SocketAddr::new(address, destination.port()))].into());
    };
    let mut ports = service.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
    let port = ports.find(|port| port.number == destination.port()).ok_or(Reason::NoServicePort)?;
    let ready = ready(world, service, port);
    let (same, any): (Vec<_>, Vec<_>) = ready.into_iter().partition(|e| e.is_ipv4() == address.is_ipv4());
    let eligible = if same.is_empty() { any } else { same };
    if eligible.is_empty() {
        return Err(Reason::NoHealthyEndpoint);
    }
    Ok(eligible.into_iter().map(|endpoint| reached(world, endpoint)).collect())
}

fn ready(world: &World, service: &Service, port: &ServicePort) -> Vec<SocketAddr> {
    let slices: Vec<_> =
        world.endpoint_slices.values().filter(|s| s.service.as_ref() == Some(&service.name.name)).collect();
    let mut ready = Vec::new();
    for slice in &slices {
        for number in slice.ports.iter().filter(|p| p.name == port.name).map(|p| p.number) {
            for endpoint in slice.endpoints.iter().filter(|e| e.ready && !e.terminating) {
                for address in endpoint.addresses.iter().map(IpAddr::to_canonical) {
                    let target = endpoint.target.as_ref();
                    let agrees = |name| world.pods.get(name).is_some_and(|pod| has(world, pod, address));
                    if !address.is_loopback() && target.is_none_or(agrees) {
                        ready.push(SocketAddr::new(address, number));
                    }
                }
            }
        }
    }
    if slices.is_empty() && !service.selector.is_empty() {
        for pod in world.pods.values() {
            let selected = service.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value));
            let up = (pod.ready && !pod.terminating) || service.publish_not_ready;
            let number = match &port.target {
                TargetPort::Unset => Some(port.number),
                TargetPort::Number(number) => Some(*number),
                TargetPort::Name(name) => {
                    pod.container_ports.iter().find(|p| p.name == *name).map(|p| p.number)
                }
            };
            if let (true, true, Some(number)) = (selected, up, number) {
                let own = pod.addresses.iter().map(IpAddr::to_canonical);
                let own = own.filter(|&address| has(world, pod, address));
                ready.extend(own.map(|address| SocketAddr::new(address, number)));
            }
        }
    }
    ready
}

fn reached(world: &World, upstream: SocketAddr) -> (SocketAddr, (Transport, Option<NamespacedName>)) {
    let pod = pod_at(world, upstream.ip());
    let transport =
        if pod.is_some_and(|pod| enrolled(world, pod)) { Transport::Hbone } else { Transport::Plain };
    (upstream, (transport, pod.map(|pod| pod.name.clone())))
}

fn has(world: &World, pod: &Pod, address: IpAddr) -> bool {
    let live = !matches!(pod.phase, Phase::Succeeded | Phase::Failed) && !address.is_loopback();
    let listed = pod.addresses.iter().any(|a| a.to_canonical() == address);
    live && listed && pod_at(world, address).map_or(pod.host_network, |owner| owner.name == pod.name)
}

fn pod_at(world: &World, address: IpAddr) -> Option<&Pod> {
    let mut claims: Vec<_> = world
        .pods
        .values()
        .filter(|pod| !matches!(pod.phase, Phase::Succeeded | Phase::Failed) && !pod.host_network)
        .filter(|pod| !address.is_loopback() && pod.addresses.iter().any(|a| a.to_canonical() == address))
        .collect();
    claims.sort_by_key(|pod| (!enrolled(world, pod), pod.terminating, &pod.name));
    claims.first().copied()
}

fn enrolled(world: &World, pod: &Pod) -> bool {
    match pod.labels.get("orlop.dev/mesh").map(String::as_str) {
        Some("enabled") => true,
        Some("disabled") => false,
        _ => world.namespaces.contains_key(&pod.name.namespace),
    }
}

struct Scripted<F> {
    draws: Vec<usize>,
    load: F,
}

impl<F: Fn(SocketAddr) -> usize> Balance for Scripted<F> {
    fn random(&mut self, bound: usize) -> usize {
        self.draws.pop().unwrap_or(0) % bound
    }

    fn in_flight(&self, endpoint: SocketAddr) -> usize {
        (self.load)(endpoint)
    }
}

/// Enough to draw every pair of up to 12 endpoints.
fn draws() -> impl Iterator<Item = (usize, usize)> {
    (0..12).flat_map(|one| (0..12).map(move |other| (one, other)))
}

fn world() -> impl Strategy<Value = World> {
    (
        any::<bool>(),
        prop::collection::vec(pod(), 0..6),
        prop::collection::vec(service(), 0..3),
        prop::collection::vec(slice(), 0..3),
    )
        .prop_map(|(meshed, pods, services, slices)| {
            let on = Namespace { labels: labels(&[("orlop.dev/mesh", "enabled")]) };
            let mut world = World::default();
            if meshed {
                world.namespaces.insert("default".into(), on);
            }
            for (index, pod) in pods.into_iter().enumerate() {
                let name = id(&format!("pod-{index}"));
                world.pods.insert(name.clone(), Pod { name, ..pod });
            }
            for (index, service) in services.into_iter().enumerate() {
                let name = id(&format!("service-{index}"));
                world.services.insert(name.clone(), Service { name, ..service });
            }
            for (index, slice) in slices.into_iter().enumerate() {
                let name = id(&format!("slice-{index}"));
                world.endpoint_slices.insert(name.clone(), EndpointSlice { name, ..slice });
            }
            world
        })
}

fn pod() -> impl Strategy<Value = Pod> {
    let mesh = prop::sample::select(vec![None, Some("enabled"), Some("disabled"), Some("maybe")]);
    let phase = prop::sample::select(vec![Phase::Running, Phase::Running, Phase::Pending, Phase::Succeeded]);
    let addresses = prop::collection::vec(address(), 0..3);
    let flags = (prop::bool::weighted(0.8), prop::bool::weighted(0.2), prop::bool::weighted(0.15));
    (mesh, app(), phase, addresses, flags, prop::option::of(port())).prop_map(
        |(mesh, app, phase, addresses, (ready, terminating, host_network), named_port)| {
            let mut pod = Pod { phase, addresses, ready, terminating, host_network, ..Pod::default() };
            pod.labels = labels(&[("app", app)]);
            pod.labels.extend(mesh.map(|value| ("orlop.dev/mesh".to_owned(), value.to_owned())));
            pod.service_account = "default".into();
            pod.container_ports =
                named_port.map(|number| Port { name: "http".into(), number }).into_iter().collect();
            pod
        },
    )
}

fn service() -> impl Strategy<Value = Service> {
    let target = prop_oneof![
        Just(TargetPort::Unset),
        port().prop_map(TargetPort::Number),
        Just(TargetPort::Name("http".into())),
    ];
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Tcp, Protocol::Udp]);
    let service_port = (port_name(), port(), protocol, target)
        .prop_map(|(name, number, protocol, target)| ServicePort { name, number, protocol, target });
    let ports = prop::collection::vec(service_port, 1..3);
    (prop::collection::vec(vip(), 0..3), ports, prop::option::of(app()), any::<bool>()).prop_map(
        |(cluster_ips, ports, app, publish_not_ready)| Service {
            cluster_ips,
            ports,
            selector: app.map(|app| labels(&[("app", app)])).unwrap_or_default(),
            publish_not_ready,
            ..Service::default()
        },
    )
}

fn slice() -> impl Strategy<Value = EndpointSlice> {
    let target = prop::option::of((0..6).prop_map(|index| id(&format!("pod-{index}"))));
    let endpoint = (prop::collection::vec(address(), 1..3), any::<bool>(), prop::bool::weighted(0.2), target)
        .prop_map(|(addresses, ready, terminating, target)| SliceEndpoint {
            addresses,
            ready,
            terminating,
            target,
            ..SliceEndpoint::default()
        });
    let ports =
        prop::collection::vec((port_name(), port()).prop_map(|(name, number)| Port { name, number }), 1..3);
    let service = prop::option::of((0..3).prop_map(|index| format!("service-{index}")));
    (service, ports, prop::collection::vec(endpoint, 0..4)).prop_map(|(service, ports, endpoints)| {
        EndpointSlice { service, ports, endpoints, ..EndpointSlice::default() }
    })
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![address(), vip()]
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop::sample::select(&ADDRESSES[..]).prop_map(ip)
}

fn vip() -> impl Strategy<Value = IpAddr> {
    prop::sample::select(&VIPS[..]).prop_map(ip)
}

fn port() -> impl Strategy<Value = u16> {
    prop::sample::select(&PORTS[..])
}

fn port_name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["http".to_owned(), "metrics".to_owned()])
}

fn app() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["web", "db"])
}

fn settings() -> Settings {
    Settings {
        node: "one".into(),
        trust_domain: "cluster.local".parse().unwrap(),
        trust_domain_aliases: Vec::new(),
        root_namespace: "istio-system".into(),
        cluster: "Kubernetes".into(),
        cluster_domain: "cluster.local".into(),
    }
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
