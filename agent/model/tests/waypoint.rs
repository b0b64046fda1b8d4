//! Which connections go through a waypoint, and which a workload takes past it.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use orlop_model::world::{
    Backend, BackendAddress, Labels, Namespace, Pod, Service, ServiceEntry, ServicePort,
};
use orlop_model::{
    Balance, NamespacedName, Reason, Route, Service as CompiledService, Settings, Snapshot, Transport, World,
    compile,
};

const USE: &str = "istio.io/use-waypoint";
const GATE: &str = "10.0.0.9:15008";

/// What the labels of namespace, service and pod say, and where then connections to the service's address and to
/// the pod's go: `gate` or straight. Whoever goes straight is taken as well.
#[test]
fn the_nearest_label_decides() {
    let table = [
        (["", "", ""], [false, false]),
        (["gate", "", ""], [true, true]),
        (["", "gate", ""], [true, true]),
        (["", "", "gate"], [true, true]),
        (["gate", "none", ""], [false, false]),
        (["gate", "", "none"], [true, false]),
        (["gate", "none", "none"], [false, false]),
        (["none", "", ""], [false, false]),
        (["none", "gate", ""], [true, true]),
        (["", "gate", "none"], [true, false]),
        (["", "none", "gate"], [true, true]),
        (["gate", "none", "gate"], [true, true]),
    ];
    for (values, want) in table {
        let [namespace, service, pod] = values;
        let mut world = world();
        label(&mut world.namespaces.get_mut("shop").unwrap().labels, namespace);
        label(&mut world.services.get_mut(&id("web")).unwrap().labels, service);
        label(&mut world.pods.get_mut(&id("web")).unwrap().labels, pod);
        let got = ["10.96.0.1:80", "10.0.0.1:80"].map(|to| through_gate(&world, to));
        assert_eq!(got, want, "{values:?}");
        let snapshot = snapshot(&world);
        let [client, web] = ["client", "web"].map(|name| snapshot.workload(&id(name)).unwrap());
        let straight = snapshot.admit_past_waypoints(web, Some(&client.identity)).is_ok();
        assert_eq!(straight, !want[1], "{values:?}");
        assert_eq!(snapshot.admit_past_waypoints(web, None).is_ok(), !want[1], "{values:?}");
        let gate = snapshot.workload(&id("gate")).unwrap();
        assert!(snapshot.admit_past_waypoints(web, Some(&gate.identity)).is_ok(), "{values:?}");
    }
}

#[test]
fn the_tunnel_leads_to_the_waypoint_and_asks_for_what_was_dialled() {
    let mut world = world();
    label(&mut world.services.get_mut(&id("web")).unwrap().labels, "gate");
    let way = route(&world, "client", "10.96.0.1:80").unwrap();
    assert_eq!((way.transport, way.upstream), (Transport::Hbone, "10.96.0.1:80".parse().unwrap()));
    assert!(way.workload.is_none() && way.service.is_some());
    let (identity, address) = way.tunnel().unwrap();
    assert_eq!(identity.to_string(), "spiffe://cluster.local/ns/shop/sa/gate");
    assert_eq!((address, way.endpoint()), (GATE.parse().unwrap(), GATE.parse().unwrap()));
    let way = route(&world, "client", "10.0.0.1:81").unwrap();
    assert_eq!(way.upstream, "10.0.0.1:81".parse().unwrap());
    assert_eq!(way.workload.unwrap().name, id("web"));
}

#[test]
fn a_port_that_the_service_has_not_is_refused_before_any_waypoint() {
    let mut world = world();
    label(&mut world.services.get_mut(&id("web")).unwrap().labels, "gate");
    assert_eq!(route(&world, "client", "10.96.0.1:81"), Err(Reason::NoServicePort));
}

#[test]
fn without_a_ready_waypoint_nothing_gets_through() {
    let mut labelled = world();
    label(&mut labelled.namespaces.get_mut("shop").unwrap().labels, "gate");
    let gone = |change: fn(&mut World)| {
        let mut world = labelled.clone();
        change(&mut world);
        for to in ["10.96.0.1:80", "10.0.0.1:80"] {
            assert_eq!(route(&world, "client", to), Err(Reason::NoReadyWaypoint), "{to}");
        }
        let snapshot = snapshot(&world);
        let [client, web] = ["client", "web"].map(|name| snapshot.workload(&id(name)).unwrap());
        let past = snapshot.admit_past_waypoints(web, Some(&client.identity)).unwrap_err();
        assert_eq!(past.reason, Reason::NotThroughWaypoint);
        assert_eq!(past.detail, "shop/web is reached through the waypoint shop/gate alone");
    };
    gone(|world| world.pods.get_mut(&id("gate")).unwrap().ready = false);
    gone(|world| drop(world.pods.remove(&id("gate"))));
    gone(|world| drop(world.services.remove(&id("gate"))));
    gone(|world| world.services.get_mut(&id("gate")).unwrap().ports[0].number = 80);
}

#[test]
fn a_waypoint_goes_straight_and_is_reached_straight() {
    let mut world = world();
    label(&mut world.namespaces.get_mut("shop").unwrap().labels, "gate");
    for to in ["10.96.0.1:80", "10.0.0.1:80"] {
        let way = route(&world, "gate", to).unwrap();
        assert_eq!((way.waypoint, way.upstream), (None, "10.0.0.1:80".parse().unwrap()));
    }
    for to in ["10.96.0.9:15008", GATE] {
        assert_eq!(route(&world, "client", to).unwrap().waypoint, None, "{to}");
    }
}

#[test]
fn a_waypoint_may_be_in_another_namespace() {
    let mut world = world();
    let labels = &mut world.services.get_mut(&id("web")).unwrap().labels;
    label(labels, "gate");
    labels.insert("istio.io/use-waypoint-namespace", "gates");
    assert_eq!(route(&world, "client", "10.96.0.1:80"), Err(Reason::NoReadyWaypoint));
    let there = NamespacedName::new("gates", "gate");
    let service = world.services.remove(&id("gate")).unwrap();
    world.services.insert(there.clone(), Service { name: there.clone(), ..(*service).clone() });
    let pod = world.pods.remove(&id("gate")).unwrap();
    world.pods.insert(there.clone(), Pod { name: there, ..(*pod).clone() });
    assert!(through_gate(&world, "10.96.0.1:80"));
}

#[test]
fn a_pod_of_two_services_takes_the_waypoints_of_both() {
    let mut world = world();
    label(&mut world.services.get_mut(&id("web")).unwrap().labels, "gate");
    add_gate(&mut world, "other", "10.0.0.8", "10.96.0.8");
    let second = Service { name: id("second"), ..service("second", "web", "10.96.0.2", 80) };
    world.services.insert(id("second"), second);
    label(&mut world.services.get_mut(&id("second")).unwrap().labels, "other");
    let snapshot = snapshot(&world);
    let web = snapshot.workload(&id("web")).unwrap();
    for (name, admitted) in [("gate", true), ("other", true), ("client", false), ("web", false)] {
        let identity = &snapshot.workload(&id(name)).unwrap().identity;
        assert_eq!(snapshot.admit_past_waypoints(web, Some(identity)).is_ok(), admitted, "{name}");
    }
    let other = route(&world, "client", "10.96.0.2:80").unwrap();
    assert_eq!(other.waypoint.unwrap().workload.name, id("other"));
}

/// Whoever may make a ServiceEntry anywhere can list any address.
#[test]
fn what_another_namespace_lists_as_its_own_gives_and_takes_no_waypoint() {
    let evil = |name: &str| NamespacedName::new("evil", name);
    let mut world = world();
    let mesh = world.namespaces["shop"].clone();
    world.namespaces.insert("evil".into(), mesh);
    world.pods.insert(evil("x"), Pod { name: evil("x"), ..pod("x", "10.0.0.7") });
    world.services.insert(evil("x"), Service { name: evil("x"), ..service("x", "x", "10.96.0.7", 15008) });
    let claim = |world: &World, name: &str| {
        let mut world = world.clone();
        let entry = ServiceEntry {
            name: evil(name),
            hosts: vec!["web.example.com".into()],
            labels: labels(USE, "x"),
            ports: vec![ServicePort { number: 80, ..ServicePort::default() }],
            resolution: orlop_model::world::Resolution::Static,
            endpoints: vec![Backend {
                address: BackendAddress::Ip("10.0.0.1".parse().unwrap()),
                ..Backend::default()
            }],
            ..ServiceEntry::default()
        };
        world.service_entries.insert(evil(name), entry);
        world
    };
    let claimed = snapshot(&claim(&world, "web"));
    let listed = claimed.service_named("evil", "web.example.com").unwrap();
    assert_eq!(listed.ports[0].endpoints[0].workload.as_ref().unwrap().name, id("web"));
    // It is led through nobody's, and nobody is believed.
    let [web, x] = [id("web"), evil("x")].map(|name| claimed.workload(&name).unwrap());
    assert!(!claimed.is_waypoint_of(web, &x.identity));
    assert_eq!(route(&claim(&world, "web"), "client", "10.0.0.1:80").unwrap().waypoint, None);

    // Nor is it taken for one itself, which would need none.
    label(&mut world.namespaces.get_mut("shop").unwrap().labels, "gate");
    let claimed = snapshot(&claim(&world, "x"));
    let [web, client] = ["web", "client"].map(|name| claimed.workload(&id(name)).unwrap());
    assert!(claimed.admit_past_waypoints(web, Some(&client.identity)).is_err());
}

#[test]
fn a_service_without_one_leads_through_its_pods() {
    let mut world = world();
    label(&mut world.pods.get_mut(&id("web")).unwrap().labels, "gate");
    let way = route(&world, "client", "10.96.0.1:80").unwrap();
    assert_eq!(way.upstream, "10.0.0.1:80".parse().unwrap());
    assert_eq!(way.waypoint.unwrap().address, GATE.parse().unwrap());
}

#[test]
fn a_service_entry_may_have_one() {
    let mut world = world();
    let entry = ServiceEntry {
        name: id("api"),
        hosts: vec!["api.example.com".into()],
        addresses: vec!["192.0.2.0/24".parse().unwrap()],
        resolution: orlop_model::world::Resolution::None,
        ..ServiceEntry::default()
    };
    world.service_entries.insert(id("api"), entry);
    assert!(!through_gate(&world, "192.0.2.7:443"));
    label(&mut world.service_entries.get_mut(&id("api")).unwrap().labels, "gate");
    assert!(through_gate(&world, "192.0.2.7:443"));
}

#[test]
fn pods_outside_the_mesh_are_not_reached_past_it_either() {
    let mut world = world();
    let pod = world.pods.get_mut(&id("web")).unwrap();
    pod.labels.insert("orlop.dev/mesh", "disabled");
    label(&mut pod.labels, "gate");
    assert!(through_gate(&world, "10.0.0.1:80"));
}

/// A service `web` with one pod, a waypoint `gate`, and a pod `client` that is behind nothing.
fn world() -> World {
    let on = Namespace { labels: [("orlop.dev/mesh", "enabled")].into() };
    let mut world = World { namespaces: [("shop".into(), on)].into(), ..World::default() };
    world.pods.insert(id("client"), Pod { labels: labels(USE, "none"), ..pod("client", "10.0.0.3") });
    world.pods.insert(id("web"), pod("web", "10.0.0.1"));
    world.services.insert(id("web"), service("web", "web", "10.96.0.1", 80));
    add_gate(&mut world, "gate", "10.0.0.9", "10.96.0.9");
    world
}

fn add_gate(world: &mut World, name: &str, address: &str, vip: &str) {
    world.pods.insert(id(name), pod(name, address));
    world.services.insert(id(name), service(name, name, vip, 15008));
}

fn pod(name: &str, address: &str) -> Pod {
    Pod {
        name: id(name),
        labels: labels("app", name),
        node: Some("one".into()),
        service_account: name.into(),
        addresses: [address.parse().unwrap()].into(),
        ready: true,
        ..Pod::default()
    }
}

fn service(name: &str, app: &str, vip: &str, port: u16) -> Service {
    Service {
        name: id(name),
        cluster_ips: vec![vip.parse::<IpAddr>().unwrap()],
        ports: vec![ServicePort { number: port, ..ServicePort::default() }],
        selector: labels("app", app),
        ..Service::default()
    }
}

fn label(labels: &mut Labels, waypoint: &str) {
    if !waypoint.is_empty() {
        labels.insert(USE, waypoint);
    }
}

fn labels(key: &str, value: &str) -> Labels {
    [(key.to_owned(), value.to_owned())].into()
}

fn through_gate(world: &World, to: &str) -> bool {
    let way = route(world, "client", to).unwrap();
    let hop = way.waypoint.map(|hop| hop.address);
    assert!(hop.is_none_or(|hop| hop == GATE.parse().unwrap()));
    hop.is_some()
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

fn route(world: &World, from: &str, to: &str) -> Result<Route, Reason> {
    let snapshot = snapshot(world);
    snapshot.route(snapshot.workload(&id(from)).unwrap(), to.parse().unwrap(), &mut First)
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

fn id(name: &str) -> NamespacedName {
    NamespacedName::new("shop", name)
}
