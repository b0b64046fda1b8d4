use std::sync::Arc;

use super::*;
use crate::name::NamespacedName;
use crate::world::gateway::{FromNamespaces, LabelTest, Requirement, RouteGroupKind};
use crate::world::gateway_api::{GatewayParent, Route};
use crate::world::stream::HostPattern;
use crate::world::{Namespace, World};

fn listener(name: &str, port: u16, hostname: Option<&str>) -> Listener {
    Listener {
        name: name.to_owned(),
        port,
        protocol: "HTTP".to_owned(),
        hostname: hostname.map(str::to_owned),
        namespaces: FromNamespaces::All,
        ..Listener::default()
    }
}

fn gateway(listeners: impl Into<Vec<Listener>>) -> Gateway {
    Gateway {
        name: NamespacedName::new("edge", "gate"),
        class: "orlop".to_owned(),
        listeners: listeners.into(),
        tls: false,
    }
}

fn reasons(listeners: impl Into<Vec<Listener>>) -> Vec<&'static str> {
    let judged = gateway(listeners).judge_listeners().into_iter();
    judged.map(|judged| judged.map_or_else(|problem| problem.reason(), |()| "")).collect()
}

#[test]
fn ports_of_our_own_are_not_to_be_had() {
    for port in [15000, 15001, 15006, 15008, 15020, 15021, 15053] {
        assert_eq!(reasons([listener("a", port, None), listener("b", 80, None)]), ["PortUnavailable", ""]);
    }
}

#[test]
fn of_listeners_that_conflict_none_is_opened_and_the_others_go_on() {
    let host = |name, host| listener(name, 80, Some(host));
    let listeners =
        [host("a", "a.example"), host("b", "b.example"), host("c", "a.example"), listener("d", 8080, None)];
    assert_eq!(reasons(listeners), ["HostnameConflict", "", "HostnameConflict", ""]);
    assert_eq!(reasons([listener("a", 80, None), listener("b", 80, None)]), ["HostnameConflict"; 2]);
    assert_eq!(reasons([listener("a", 80, None), host("b", "b.example")]), ["", ""]);
    // What can't be opened anyway is in nobody's way.
    let other = Listener { protocol: "TCP".to_owned(), ..listener("a", 80, None) };
    assert_eq!(reasons([other, listener("b", 80, None)]), ["UnsupportedProtocol", ""]);
    let tls = Listener { tls: Some(ListenerTls::default()), ..listener("a", 80, None) };
    assert_eq!(reasons([tls, host("b", "not a host")]), ["UnsupportedValue"; 2]);
}

#[test]
fn tls_that_can_not_be_had_as_it_is_asked_for_is_none() {
    let secret = |group: &str, kind: &str, namespace: &str| CertificateRef {
        group: group.to_owned(),
        kind: kind.to_owned(),
        name: NamespacedName::new(namespace, "cert"),
    };
    let good = || vec![secret("", "Secret", "edge")];
    let https = |tls: Option<ListenerTls>| Listener {
        protocol: "HTTPS".to_owned(),
        tls,
        ..listener("a", 443, Some("a.example"))
    };
    let with = |certificates| Some(ListenerTls { certificates, ..ListenerTls::default() });
    let terminate = ListenerTls { mode: Some("Terminate".to_owned()), ..with(good()).unwrap() };
    let passthrough = ListenerTls { mode: Some("Passthrough".to_owned()), ..with(good()).unwrap() };
    let unread = ListenerTls { unread: Some("options".to_owned()), ..with(good()).unwrap() };
    for (tls, wanted) in [
        (with(good()), ""),
        (Some(terminate), ""),
        (None, "InvalidCertificateRef"),
        (with(Vec::new()), "InvalidCertificateRef"),
        (with(vec![secret("", "ConfigMap", "edge")]), "InvalidCertificateRef"),
        (with(vec![secret("example.com", "Secret", "edge")]), "InvalidCertificateRef"),
        (with(vec![secret("", "Secret", "edge"), secret("", "Secret", "other")]), "RefNotPermitted"),
        (Some(passthrough), "UnsupportedValue"),
        (Some(unread), "UnsupportedValue"),
    ] {
        assert_eq!(reasons([https(tls.clone())]), [wanted], "{tls:?}");
    }
    let outside =
        CertificateRef { name: NamespacedName::new("edge", "../x"), ..secret("", "Secret", "edge") };
    assert_eq!(reasons([https(with(vec![outside]))]), ["InvalidCertificateRef"]);
    let asks = Gateway { tls: true, ..gateway([https(with(good())), listener("b", 80, None)]) };
    assert_eq!(asks.judge_listeners()[0], Err(ListenerProblem::UnsupportedTls("spec.tls".to_owned())));
    assert_eq!(asks.judge_listeners()[1], Ok(()));
    let plain = listener("b", 443, Some("b.example"));
    assert_eq!(reasons([https(with(good())), plain]), ["ProtocolConflict"; 2]);
}

#[test]
fn pods_have_the_secrets_of_all_listeners_that_may_show_them_up_to_a_limit() {
    let tls = |port: u16, secrets: std::ops::Range<usize>| {
        let name = |n: usize| NamespacedName::new("edge", &*format!("s{n}"));
        let certificates = secrets.map(|n| CertificateRef {
            group: String::new(),
            kind: "Secret".to_owned(),
            name: name(n),
        });
        let tls = ListenerTls { certificates: certificates.collect(), ..ListenerTls::default() };
        let protocol = "HTTPS".to_owned();
        Listener { protocol, tls: Some(tls), ..listener("of", port, None) }
    };
    // In conflict, the one Secret stays.
    let conflicting = gateway([tls(443, 0..1), listener("plain", 443, None)]);
    assert_eq!(conflicting.certificates().len(), 1);
    let many = [tls(443, 0..40), tls(444, 40..70), tls(445, 20..64), tls(446, 63..65)];
    assert_eq!(reasons(many.clone()), ["", "UnsupportedValue", "", "UnsupportedValue"]);
    assert_eq!(gateway(many).certificates().len(), 64);
}

fn route(namespace: &str, name: &str, hostnames: &[&str]) -> Route {
    Route {
        name: NamespacedName::new(namespace, name),
        gateways: vec![GatewayParent {
            gateway: NamespacedName::new("edge", "gate"),
            ..GatewayParent::default()
        }],
        hostnames: hostnames.iter().map(|&host| HostPattern(host.to_owned())).collect(),
        ..Route::default()
    }
}

fn world(routes: impl IntoIterator<Item = Route>) -> World {
    let mut world = World::default();
    for (name, team) in [("shop", "blue"), ("edge", "red")] {
        let labels = [("team".to_owned(), team.to_owned())].into();
        world.namespaces.insert(name.into(), Arc::new(Namespace { labels }));
    }
    for route in routes {
        world.routes_mut(route.kind).insert(route.name.clone(), Arc::new(route));
    }
    world
}

fn counts(world: &World, gateway: &Gateway) -> Vec<usize> {
    Attachments::new(world, gateway).listeners.iter().map(AtListener::count).collect()
}

#[test]
fn a_route_is_attached_where_name_port_namespace_kind_and_hosts_fit() {
    let section = |section: Option<&str>, port| {
        let mut route = route("shop", "r", &[]);
        route.gateways[0].section = section.map(str::to_owned);
        route.gateways[0].port = port;
        route
    };
    let two = gateway([listener("a", 80, None), listener("b", 8080, None)]);
    for (wanted, found) in [
        ((None, None), [1, 1]),
        ((Some("a"), None), [1, 0]),
        ((None, Some(8080)), [0, 1]),
        ((Some("a"), Some(8080)), [0, 0]),
        ((Some("c"), None), [0, 0]),
    ] {
        let world = world([section(wanted.0, wanted.1)]);
        assert_eq!(counts(&world, &two), found, "{wanted:?}");
        let refused = Attachments::new(&world, &two).refused(&section(None, None), 0).cloned();
        assert_eq!(refused, (found == [0, 0]).then_some(NotAttached::NoMatchingParent));
    }
    let team = |test| vec![Requirement { key: "team".to_owned(), test }];
    for (from, allowed) in [
        (FromNamespaces::Same, false),
        (FromNamespaces::All, true),
        (FromNamespaces::None, false),
        (FromNamespaces::Selector(team(LabelTest::In(vec!["blue".to_owned()]))), true),
        (FromNamespaces::Selector(team(LabelTest::NotIn(vec!["blue".to_owned()]))), false),
        (FromNamespaces::Selector(team(LabelTest::Exists)), true),
        (FromNamespaces::Selector(team(LabelTest::DoesNotExist)), false),
        (FromNamespaces::Selector(Vec::new()), true),
    ] {
        let of = gateway([Listener { namespaces: from.clone(), ..listener("a", 80, None) }]);
        let world = world([route("shop", "r", &[])]);
        assert_eq!(counts(&world, &of), [usize::from(allowed)], "{from:?}");
        let refused = Attachments::new(&world, &of).refused(&route("shop", "r", &[]), 0).cloned();
        assert_eq!(refused, (!allowed).then_some(NotAttached::NotAllowed), "{from:?}");
    }
    let unknown =
        gateway([Listener { namespaces: FromNamespaces::Selector(Vec::new()), ..listener("a", 80, None) }]);
    assert_eq!(counts(&world([route("elsewhere", "r", &[])]), &unknown), [0]);
    let grpc = RouteGroupKind { group: GROUP.to_owned(), kind: "GRPCRoute".to_owned() };
    let odd = RouteGroupKind { group: String::new(), kind: "HTTPRoute".to_owned() };
    let of = gateway([Listener { kinds: vec![grpc, odd], ..listener("a", 80, None) }]);
    assert_eq!(of.listeners[0].supported_kinds(), (vec![RouteKind::Grpc], true));
    let rpc = Route { kind: RouteKind::Grpc, ..route("shop", "rpc", &[]) };
    assert_eq!(counts(&world([route("shop", "r", &[]), rpc]), &of), [1]);
    let of = gateway([listener("a", 80, Some("*.example.com"))]);
    assert_eq!(counts(&world([route("shop", "r", &["a.example.com", "b.example.net"])]), &of), [1]);
    let world = world([route("shop", "r", &["example.com"])]);
    assert_eq!(counts(&world, &of), [0]);
    let refused = Attachments::new(&world, &of).refused(&route("shop", "r", &[]), 0).cloned();
    assert_eq!(refused, Some(NotAttached::NoMatchingHostname));
}

#[test]
fn of_two_kinds_for_one_host_the_older_counts() {
    let of = gateway([listener("a", 80, None)]);
    let at = |kind, name: &str, created, hosts: &[&str]| Route {
        kind,
        created: Some(created),
        ..route("shop", name, hosts)
    };
    let (old, new) =
        (at(RouteKind::Grpc, "old", 1, &["a.example"]), at(RouteKind::Http, "new", 2, &["a.example"]));
    let both = at(RouteKind::Http, "both", 3, &["a.example", "b.example"]);
    let world = world([old.clone(), new.clone(), both.clone()]);
    let found = Attachments::new(&world, &of);
    assert_eq!(found.listeners[0].count(), 2);
    assert_eq!(found.refused(&new, 0), Some(&NotAttached::Taken(old.name.clone())));
    assert_eq!((found.refused(&old, 0), found.refused(&both, 0)), (None, None));
}
