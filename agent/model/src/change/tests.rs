//! Holds what is compiled after a change against a compilation of the whole.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::compile::{compile_after, compile_resolved};
use crate::text::Text;
use crate::world::security::{Action, AuthorizationPolicy, Mode, PeerAuthentication, Rule};
use crate::world::{
    Backend, BackendAddress, Namespace, Node, Phase, Port, Protocol, Resolution, ServiceEntry, ServicePort,
    SliceEndpoint, TargetPort, WorkloadEntry,
};

const HERE: &str = "one";
const NAMESPACES: [&str; 2] = ["shop", "bank"];
/// Of pods, of nodes, and one that a WorkloadEntry may have.
const ADDRESSES: [&str; 7] =
    ["10.0.0.1", "10.0.0.2", "10.0.0.3", "::ffff:10.0.0.1", "fd00::1", "192.0.2.1", "127.0.0.1"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn after_any_changes_it_is_as_if_the_whole_had_been_compiled(
        steps in prop::collection::vec(prop::collection::vec(change(), 1..4), 1..25),
    ) {
        let (mut world, settings, hosts) = (World::default(), settings(), Hosts::new());
        let mut snapshot = compile_resolved(&world, &hosts, &settings, 0);
        for (generation, changes) in (1..).zip(steps) {
            changes.into_iter().for_each(|change| change.apply(&mut world));
            snapshot = compile_after(Some(&snapshot), &world, &hosts, &settings, generation);
            let whole = compile_resolved(&world, &hosts, &settings, generation);
            prop_assert_eq!(parts(&snapshot), parts(&whole));
            prop_assert_eq!(&snapshot.service_index, &whole.service_index);
            prop_assert_eq!(&snapshot.zone, &whole.zone);
            prop_assert_eq!(&snapshot.waypoints, &whole.waypoints);
            prop_assert_eq!(snapshot.findings(), whole.findings());
        }
    }
}

/// All that can be compared at once.
fn parts(snapshot: &Snapshot) -> impl PartialEq + std::fmt::Debug {
    let Snapshot { generation, world, workloads, services, service_entries, local, .. } = snapshot;
    let Workloads { pods, pod_by_address, entries, entry_by_address, slices, foreign, of_nodes, .. } =
        workloads;
    let of = |name| {
        let workload = workloads.pods.get(name)?;
        Some((snapshot.policies_of(name)?.names(), snapshot.strict_ports(workload)))
    };
    let standing: Vec<_> = workloads.pods.keys().map(of).collect();
    let guarded: Vec<_> = local.pods.iter().map(|of| local.policies[&of.workload.name].names()).collect();
    let found = (
        (*generation, world.clone(), pods.clone(), pod_by_address.clone(), entries.clone()),
        (entry_by_address.clone(), slices.clone(), foreign.clone(), of_nodes.clone()),
        (services.clone(), service_entries.clone(), local.pods.clone(), local.mutual_tls.clone()),
    );
    (found, standing, guarded, snapshot.used_waypoints.clone())
}

#[test]
fn one_endpoint_touches_nothing_but_its_service() {
    let (settings, hosts) = (settings(), Hosts::new());
    let mut world = World::default();
    for number in 0..200 {
        let name = NamespacedName::new("shop", format!("service-{number}"));
        let service = Service { cluster_ips: vec![[10, 96, 0, number].into()], ..service(&name, "web") };
        world.services.insert(name.clone(), service);
        let pod = Pod { addresses: [[10, 1, 0, number].into()].into(), ..pod(&name) };
        world.pods.insert(name.clone(), pod);
        world.endpoint_slices.insert(name.clone(), slice(&name, &[([10, 1, 0, number].into(), true)]));
    }
    let before = compile_resolved(&world, &hosts, &settings, 1);
    let name = NamespacedName::new("shop", "service-7");
    world.endpoint_slices.insert(name.clone(), slice(&name, &[([10, 1, 0, 7].into(), false)]));
    let now = after(&before, &world, &hosts, &settings, 2).unwrap();
    let changed: Vec<_> = now.changed_services(&before).map(|(name, ..)| name).collect();
    assert_eq!(changed, [&name]);
    assert!(!now.service(&name).unwrap().ports[0].endpoints[0].ready);
    assert!(now.workloads.pods.is_same(&before.workloads.pods));
    assert!(Arc::ptr_eq(&now.local, &before.local) && Arc::ptr_eq(&now.policies, &before.policies));

    let mut pod = (*world.pods[&name]).clone();
    pod.labels.insert("version", "v2");
    world.pods.insert(name.clone(), pod);
    let later = after(&now, &world, &hosts, &settings, 3).unwrap();
    let changed: Vec<_> = later.changed_services(&now).map(|(name, ..)| name).collect();
    assert_eq!(changed, [&name]);
}

#[test]
fn what_reaches_further_is_compiled_whole() {
    let (settings, hosts) = (settings(), Hosts::new());
    let name = NamespacedName::new("shop", "web");
    let pod = Pod { addresses: [ip("10.0.0.1")].into(), ..pod(&name) };
    let mut world = World::default();
    world.pods.insert(name.clone(), pod.clone());
    let before = compile_resolved(&world, &hosts, &settings, 1);
    let is_whole = |change: &dyn Fn(&mut World)| {
        let mut world = world.clone();
        change(&mut world);
        after(&before, &world, &hosts, &settings, 2).is_none()
    };
    assert!(!is_whole(&|world| drop(world.pods.remove(&name))));
    let labelled = |key: &str, value: &str| Labels::from([(key, value)]);
    let namespace = |labels| Namespace { labels };
    let enrolled = namespace(labelled("orlop.dev/mesh", "enabled"));
    assert!(!is_whole(&|world| drop(world.namespaces.insert("shop".into(), enrolled.clone()))));
    let behind = namespace(labelled("istio.io/use-waypoint", "gate"));
    assert!(is_whole(&|world| drop(world.namespaces.insert("shop".into(), behind.clone()))));
    let elsewhere = Node { labels: labelled("topology.kubernetes.io/zone", "z"), ..Node::default() };
    assert!(!is_whole(&|world| drop(world.nodes.insert("two".into(), elsewhere.clone()))));
    assert!(!is_whole(&|world| drop(world.nodes.insert(HERE.into(), Node::default()))));
    assert!(is_whole(&|world| drop(world.nodes.insert(HERE.into(), elsewhere.clone()))));
    let policy = AuthorizationPolicy { name: name.clone(), ..AuthorizationPolicy::default() };
    assert!(!is_whole(&|world| drop(world.authorization_policies.insert(name.clone(), policy.clone()))));
    let modes = PeerAuthentication { name: name.clone(), ..PeerAuthentication::default() };
    assert!(!is_whole(&|world| drop(world.peer_authentications.insert(name.clone(), modes.clone()))));
    let entry = ServiceEntry { name: name.clone(), ..ServiceEntry::default() };
    assert!(is_whole(&|world| drop(world.service_entries.insert(name.clone(), entry.clone()))));
    // Another pod claims the address.
    let other = NamespacedName::new("shop", "other");
    let twin = Pod { name: other.clone(), ..pod };
    assert!(is_whole(&|world| drop(world.pods.insert(other.clone(), twin.clone()))));
    let other_settings = Settings { node: "two".into(), ..settings.clone() };
    assert!(after(&before, &world, &hosts, &other_settings, 2).is_none());
}

/// What becomes of one object.
#[derive(Clone, Debug)]
enum Change {
    Pod(NamespacedName, Option<Pod>),
    Service(NamespacedName, Option<Service>),
    Slice(NamespacedName, Option<EndpointSlice>),
    Namespace(&'static str, Option<Namespace>),
    Node(&'static str, Option<Node>),
    Policy(NamespacedName, Option<AuthorizationPolicy>),
    PeerAuthentication(NamespacedName, Option<PeerAuthentication>),
    WorkloadEntry(NamespacedName, Option<WorkloadEntry>),
    ServiceEntry(NamespacedName, Option<ServiceEntry>),
}

impl Change {
    fn apply(self, world: &mut World) {
        fn put<K: Ord + Clone, T>(map: &mut Map<K, T>, key: K, value: Option<T>) {
            match value {
                Some(value) => drop(map.insert(key, value)),
                None => drop(map.remove(&key)),
            }
        }
        match self {
            Self::Pod(name, of) => put(&mut world.pods, name, of),
            Self::Service(name, of) => put(&mut world.services, name, of),
            Self::Slice(name, of) => put(&mut world.endpoint_slices, name, of),
            Self::Namespace(name, of) => put(&mut world.namespaces, name.into(), of),
            Self::Node(name, of) => put(&mut world.nodes, name.into(), of),
            Self::Policy(name, of) => put(&mut world.authorization_policies, name, of),
            Self::PeerAuthentication(name, of) => put(&mut world.peer_authentications, name, of),
            Self::WorkloadEntry(name, of) => put(&mut world.workload_entries, name, of),
            Self::ServiceEntry(name, of) => put(&mut world.service_entries, name, of),
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    fn or_gone<T: Clone + std::fmt::Debug>(
        value: impl Strategy<Value = T>,
    ) -> impl Strategy<Value = Option<T>> {
        prop::option::weighted(0.8, value)
    }
    prop_oneof![
        8 => named(6).prop_flat_map(|name| {
            or_gone(any_pod(name.clone())).prop_map(move |of| Change::Pod(name.clone(), of))
        }),
        4 => named(3).prop_flat_map(|name| {
            or_gone(any_service(name.clone())).prop_map(move |of| Change::Service(name.clone(), of))
        }),
        8 => named(4).prop_flat_map(|name| {
            or_gone(any_slice(name.clone())).prop_map(move |of| Change::Slice(name.clone(), of))
        }),
        3 => (prop::sample::select(&NAMESPACES[..]), or_gone(labels())).prop_map(|(name, labels)| {
            Change::Namespace(name, labels.map(|labels| Namespace { labels }))
        }),
        3 => (prop::sample::select(vec![HERE, "two"]), or_gone(prop::sample::select(vec!["a", "b"]))).prop_map(
            |(name, zone)| {
                let labels = |zone: &str| [("topology.kubernetes.io/zone".to_owned(), zone.to_owned())].into();
                Change::Node(name, zone.map(|zone| Node { labels: labels(zone), ..Node::default() }))
            },
        ),
        3 => (named(2), or_gone((labels(), any::<bool>()))).prop_map(|(name, of)| {
            let policy = of.map(|(selector, deny)| AuthorizationPolicy {
                name: name.clone(),
                selector,
                action: if deny { Action::Deny } else { Action::Allow },
                rules: vec![Rule::default()],
                ..AuthorizationPolicy::default()
            });
            Change::Policy(name, policy)
        }),
        1 => (named(2), or_gone(labels())).prop_map(|(name, selector)| {
            let policy = selector.map(|selector| PeerAuthentication {
                name: name.clone(),
                selector,
                mode: Some(Mode::Strict),
                ..PeerAuthentication::default()
            });
            Change::PeerAuthentication(name, policy)
        }),
        1 => (named(2), or_gone((labels(), address()))).prop_map(|(name, of)| {
            let entry = of.map(|(labels, address)| WorkloadEntry {
                name: name.clone(),
                backend: Backend { labels, ..backend(address) },
            });
            Change::WorkloadEntry(name, entry)
        }),
        1 => (named(2), or_gone((labels(), prop::option::of(address())))).prop_map(|(name, of)| {
            let entry = of.map(|(selector, address)| ServiceEntry {
                name: name.clone(),
                hosts: vec!["api.example".into()],
                ports: vec![ServicePort { name: "http".into(), number: 80, ..ServicePort::default() }],
                resolution: Resolution::Static,
                endpoints: address.map(backend).into_iter().collect(),
                selector,
                ..ServiceEntry::default()
            });
            Change::ServiceEntry(name, entry)
        }),
    ]
}

fn any_pod(name: NamespacedName) -> impl Strategy<Value = Pod> {
    let phase = prop::sample::select(vec![Phase::Running, Phase::Running, Phase::Running, Phase::Succeeded]);
    let flags = (prop::bool::weighted(0.8), prop::bool::weighted(0.1), prop::bool::weighted(0.1));
    let node = prop::sample::select(vec![HERE, HERE, "two"]);
    let hostname = prop::option::weighted(0.3, Just("host".to_owned()));
    let addresses = prop::collection::vec(address(), 0..3);
    (labels(), phase, flags, node, hostname, addresses).prop_map(
        move |(labels, phase, (ready, terminating, host_network), node, hostname, addresses)| Pod {
            labels,
            phase,
            ready,
            terminating,
            host_network,
            node: Some(node.into()),
            subdomain: hostname.as_ref().map(|_| "name-0".into()),
            hostname: hostname.map(Text::from),
            addresses: addresses.into(),
            ..pod(&name)
        },
    )
}

fn any_service(name: NamespacedName) -> impl Strategy<Value = Service> {
    let vips = prop::collection::vec(prop::sample::select(vec!["10.96.0.1", "10.96.0.2", "10.96.0.3"]), 0..3);
    let port = prop::sample::select(vec![
        TargetPort::Unset,
        TargetPort::Number(8080),
        TargetPort::Name("http".into()),
    ]);
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Tcp, Protocol::Udp]);
    (vips, labels(), labels(), port, protocol, any::<bool>()).prop_map(
        move |(vips, own, selector, target, protocol, node_local)| Service {
            cluster_ips: vips.into_iter().map(ip).collect(),
            external_ips: if node_local { vec![ip("192.0.2.9")] } else { Vec::new() },
            labels: own,
            selector,
            node_local,
            ports: vec![ServicePort {
                name: "http".into(),
                number: 80,
                target,
                protocol,
                ..ServicePort::default()
            }],
            ..service(&name, "web")
        },
    )
}

fn any_slice(name: NamespacedName) -> impl Strategy<Value = EndpointSlice> {
    let target = prop::option::weighted(0.8, named(6));
    let own = name.namespace.clone();
    let node = prop::sample::select(vec![None, Some(HERE), Some("two")]);
    let endpoint = (address(), any::<bool>(), target, prop::bool::weighted(0.8), node).prop_map(
        move |(address, ready, target, is_own, node)| SliceEndpoint {
            addresses: [address].into(),
            ready,
            serving: ready,
            node: node.map(Text::from),
            target: target.map(|name| match is_own {
                true => NamespacedName::new(&*own, name.name),
                false => name,
            }),
            ..SliceEndpoint::default()
        },
    );
    let service = prop::option::weighted(0.9, named(3));
    (service, prop::collection::vec(endpoint, 0..4)).prop_map(move |(service, endpoints)| EndpointSlice {
        service: service.map(|service| service.name),
        endpoints,
        ..slice(&name, &[])
    })
}

fn named(below: usize) -> impl Strategy<Value = NamespacedName> {
    (prop::sample::select(&NAMESPACES[..]), 0..below)
        .prop_map(|(namespace, number)| NamespacedName::new(namespace, format!("name-{number}")))
}

/// Few, so that selectors meet them, and seldom those of the mesh and of waypoints.
fn labels() -> impl Strategy<Value = Labels> {
    let label = prop_oneof![
        12 => Just(("app", "web")),
        4 => Just(("app", "db")),
        3 => Just(("orlop.dev/mesh", "enabled")),
        1 => Just(("istio.io/use-waypoint", "name-0")),
    ];
    prop::collection::vec(label, 0..3).prop_map(|labels| {
        labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    })
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop::sample::select(&ADDRESSES[..]).prop_map(ip)
}

fn backend(address: IpAddr) -> Backend {
    Backend { address: BackendAddress::Ip(address), service_account: "default".into(), ..Backend::default() }
}

fn pod(name: &NamespacedName) -> Pod {
    Pod {
        name: name.clone(),
        labels: [("app".to_owned(), "none".to_owned())].into(),
        node: Some("two".into()),
        service_account: "default".into(),
        ready: true,
        container_ports: [Port { name: "http".into(), number: 9090 }].into(),
        ..Pod::default()
    }
}

fn service(name: &NamespacedName, app: &str) -> Service {
    Service {
        name: name.clone(),
        selector: [("app".to_owned(), app.to_owned())].into(),
        ports: vec![ServicePort { name: "http".into(), number: 80, ..ServicePort::default() }],
        ..Service::default()
    }
}

fn slice(name: &NamespacedName, endpoints: &[(IpAddr, bool)]) -> EndpointSlice {
    let endpoint = |&(address, ready): &(IpAddr, bool)| SliceEndpoint {
        addresses: [address].into(),
        ready,
        serving: ready,
        target: Some(name.clone()),
        ..SliceEndpoint::default()
    };
    EndpointSlice {
        name: name.clone(),
        service: Some(name.name.clone()),
        ports: vec![Port { name: "http".into(), number: 8080 }],
        endpoints: endpoints.iter().map(endpoint).collect(),
        ..EndpointSlice::default()
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn settings() -> Settings {
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
