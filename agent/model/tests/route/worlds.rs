//! Small worlds in which everything draws from few addresses, so that they collide.

use std::net::IpAddr;

use orlop_model::world::{
    Backend, BackendAddress, Distribution, EndpointSlice, Exports, Labels, Namespace, Node, Phase, Pod, Port,
    Protocol, Resolution, Service, ServiceEntry, ServicePort, SliceEndpoint, TargetPort, WorkloadEntry,
};
use orlop_model::{NamespacedName, Settings, Text, Workload, World, compile};
use proptest::prelude::*;

/// The node that the snapshots are for.
pub const HERE: &str = "one";
pub const ADDRESSES: [&str; 8] =
    ["10.0.0.1", "10.0.0.2", "10.0.0.3", "::ffff:10.0.0.1", "fd00::1", "fd00::2", "127.0.0.1", "192.0.2.1"];
const VIPS: [&str; 5] = ["10.96.0.1", "10.96.0.2", "fd00:96::1", "10.0.0.3", "192.0.2.2"];
const BLOCKS: [&str; 5] = ["192.0.2.0/24", "192.0.2.1", "10.0.0.0/8", "fd00::/16", "10.96.0.2"];
const PORTS: [u16; 4] = [80, 81, 8080, 9090];
/// Region and zone of each node.
const NODES: [(&str, &str, &str); 4] =
    [(HERE, "eu", "a"), ("two", "eu", "a"), ("three", "eu", "b"), ("four", "us", "a")];

pub fn world() -> impl Strategy<Value = World> {
    let objects = (
        prop::collection::vec(pod(), 0..6),
        prop::collection::vec(service(), 0..3),
        prop::collection::vec(slice(), 0..3),
        prop::collection::vec(service_entry(), 0..3),
        prop::collection::vec(workload_entry(), 0..3),
    );
    (any::<bool>(), any::<bool>(), objects).prop_map(
        |(meshed, labelled, (pods, services, slices, entries, workloads))| {
            let on = Namespace { labels: labels(&[("orlop.dev/mesh", "enabled")]) };
            let mut world = World::default();
            if meshed {
                world.namespaces.insert("default".into(), on);
            }
            for (name, region, zone) in NODES.into_iter().filter(|_| labelled) {
                let at = [("topology.kubernetes.io/region", region), ("topology.kubernetes.io/zone", zone)];
                world.nodes.insert(name.into(), Node { labels: labels(&at), ..Node::default() });
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
            for (index, (namespace, entry)) in entries.into_iter().enumerate() {
                let name = NamespacedName::new(namespace, format!("entry-{index}"));
                world.service_entries.insert(name.clone(), ServiceEntry { name, ..entry });
            }
            for (index, entry) in workloads.into_iter().enumerate() {
                let name = id(&format!("workload-{index}"));
                world.workload_entries.insert(name.clone(), WorkloadEntry { name, ..entry });
            }
            world
        },
    )
}

fn pod() -> impl Strategy<Value = Pod> {
    let mesh = prop::sample::select(vec![None, Some("enabled"), Some("disabled"), Some("maybe")]);
    let phase = prop::sample::select(vec![Phase::Running, Phase::Running, Phase::Pending, Phase::Succeeded]);
    let addresses = prop::collection::vec(address(), 0..3);
    let flags = (prop::bool::weighted(0.8), prop::bool::weighted(0.2), prop::bool::weighted(0.15));
    (mesh, app(), phase, addresses, flags, prop::option::of(port()), node()).prop_map(
        |(mesh, app, phase, addresses, (ready, terminating, host_network), named_port, node)| {
            let mut pod = Pod {
                phase,
                addresses: addresses.into(),
                ready,
                terminating,
                host_network,
                node: node.map(Text::from),
                ..Pod::default()
            };
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
    let addresses = (prop::collection::vec(vip(), 0..3), prop::collection::vec(vip(), 0..2));
    let flags = (any::<bool>(), prop::bool::weighted(0.3));
    (addresses, ports(), prop::option::of(app()), flags, distribution()).prop_map(
        |((cluster_ips, external_ips), ports, app, (publish_not_ready, node_local), distribution)| Service {
            cluster_ips,
            external_ips,
            ports,
            selector: app.map(|app| labels(&[("app", app)])).unwrap_or_default(),
            publish_not_ready,
            node_local,
            distribution,
            ..Service::default()
        },
    )
}

fn ports() -> impl Strategy<Value = Vec<ServicePort>> {
    let target = prop_oneof![
        Just(TargetPort::Unset),
        port().prop_map(TargetPort::Number),
        Just(TargetPort::Name("http".into())),
    ];
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Tcp, Protocol::Udp]);
    let port = (port_name(), port(), protocol, target).prop_map(|(name, number, protocol, target)| {
        ServicePort { name, number, protocol, target, app_protocol: None }
    });
    prop::collection::vec(port, 1..3)
}

fn slice() -> impl Strategy<Value = EndpointSlice> {
    let target = prop::option::of((0..6).prop_map(|index| id(&format!("pod-{index}"))));
    let flags = (any::<bool>(), any::<bool>(), prop::bool::weighted(0.2));
    let zone = prop::option::of(prop::sample::select(vec!["a".to_owned(), "b".to_owned()]));
    let addresses = prop::collection::vec(prop_oneof![4 => address(), 1 => vip()], 1..3);
    let endpoint = (addresses, flags, target, node(), zone).prop_map(
        |(addresses, (ready, serving, terminating), target, node, zone)| SliceEndpoint {
            hostname: None,
            addresses: addresses.into(),
            ready,
            serving,
            terminating,
            target,
            node: node.map(Text::from),
            zone: zone.map(Text::from),
        },
    );
    let ports = prop::collection::vec(
        (port_name(), port()).prop_map(|(name, number)| Port { name: name.into(), number }),
        1..3,
    );
    let service = prop::option::of((0..3).prop_map(|index| format!("service-{index}")));
    (service, ports, prop::collection::vec(endpoint, 0..4)).prop_map(|(service, ports, endpoints)| {
        EndpointSlice { service: service.map(Text::from), ports, endpoints, ..EndpointSlice::default() }
    })
}

/// With the namespace that it is to be in.
fn service_entry() -> impl Strategy<Value = (&'static str, ServiceEntry)> {
    let addresses = prop::collection::vec(prop::sample::select(&BLOCKS[..]), 0..3);
    let resolution = prop::sample::select(vec![Resolution::None, Resolution::Static, Resolution::Static]);
    let exports = prop::sample::select(vec![
        Exports::All,
        Exports::To(["street".to_owned()].into()),
        Exports::To(["default".to_owned()].into()),
        Exports::default(),
    ]);
    let endpoints = (prop::collection::vec(backend(), 0..3), prop::option::weighted(0.3, app()));
    (namespace(), addresses, ports(), resolution, exports, endpoints, distribution()).prop_map(
        |(namespace, addresses, ports, resolution, exports, (endpoints, app), distribution)| {
            let entry = ServiceEntry {
                hosts: vec!["example.com".into()],
                addresses: addresses.into_iter().map(|block| block.parse().unwrap()).collect(),
                ports,
                resolution,
                endpoints,
                selector: app.map(|app| labels(&[("app", app)])).unwrap_or_default(),
                exports,
                distribution,
                ..ServiceEntry::default()
            };
            (namespace, entry)
        },
    )
}

fn workload_entry() -> impl Strategy<Value = WorkloadEntry> {
    backend().prop_map(|backend| WorkloadEntry { backend, ..WorkloadEntry::default() })
}

fn backend() -> impl Strategy<Value = Backend> {
    let address = prop_oneof![3 => address(), 1 => vip()]
        .prop_filter("no mapped one", |address| address.to_canonical() == *address && !address.is_loopback());
    let ports = prop::collection::btree_map(port_name(), port(), 0..2);
    (address, ports, app(), any::<bool>()).prop_map(|(address, ports, app, tunnels)| {
        let mut labels = labels(&[("app", app)]);
        if tunnels {
            labels.insert("networking.istio.io/tunnel", "http");
        }
        let service_account = "default".into();
        Backend { address: BackendAddress::Ip(address), ports, labels, service_account, ..Backend::default() }
    })
}

fn distribution() -> impl Strategy<Value = Distribution> {
    prop::sample::select(vec![Distribution::Any, Distribution::Zone, Distribution::Node])
}

fn node() -> impl Strategy<Value = Option<String>> {
    prop::option::of(prop::sample::select(&NODES[..]).prop_map(|(name, _, _)| name.to_owned()))
}

pub fn namespace() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["default", "street"])
}

pub fn any_address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![address(), vip(), Just(ip("192.0.2.77"))]
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop::sample::select(&ADDRESSES[..]).prop_map(ip)
}

pub fn vip() -> impl Strategy<Value = IpAddr> {
    prop::sample::select(&VIPS[..]).prop_map(ip)
}

pub fn port() -> impl Strategy<Value = u16> {
    prop::sample::select(&PORTS[..])
}

fn port_name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["http".to_owned(), "metrics".to_owned()])
}

fn app() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["web", "db"])
}

pub fn settings() -> Settings {
    Settings {
        node: HERE.into(),
        trust_domain: "cluster.local".parse().unwrap(),
        trust_domain_aliases: Vec::new(),
        root_namespace: "istio-system".into(),
        cluster: "Kubernetes".into(),
        cluster_domain: "cluster.local".into(),
        network: None,
    }
}

/// A pod of this namespace that dials.
pub fn client(namespace: &str) -> Workload {
    let name = NamespacedName::new(namespace, "client");
    let pod = Pod { name: name.clone(), service_account: "client".into(), ..Pod::default() };
    let world = World { pods: [(name.clone(), pod)].into(), ..World::default() };
    Workload::clone(compile(&world, &settings(), 1).workload(&name).unwrap())
}

fn id(name: &str) -> NamespacedName {
    NamespacedName::new("default", name)
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}
