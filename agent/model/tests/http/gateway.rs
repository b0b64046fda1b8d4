//! Gateways: which rule a request follows, and which policies are asked about it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use orlop_model::http::{Action, Asker, NoTokens, OwnGateway, Request};
use orlop_model::world::Pod;
use orlop_model::world::gateway::{CertificateRef, FromNamespaces, Gateway, Listener, ListenerTls};
use orlop_model::world::gateway_api::{
    BackendRef, GROUP, GatewayParent, GrantFrom, GrantTo, ReferenceGrant, Route, RouteBackend, RouteKind,
    RouteMatch, RouteRule, Unreadable,
};
use orlop_model::world::routing::{HttpMatch, StringMatch};
use orlop_model::world::security::{Action as Effect, AuthorizationPolicy, Match, Rule, Source, Target};
use orlop_model::world::stream::HostPattern;
use orlop_model::{Behind, Entrance, NamespacedName, Reason, Refused, Snapshot, World, compile};

use crate::support::{get, settings, world};

const POD: &str = "gate-1";

fn own(class: Option<&str>) -> OwnGateway {
    OwnGateway {
        name: NamespacedName::new("edge", "gate"),
        class: class.map(str::to_owned),
        pod: NamespacedName::new("edge", POD),
    }
}

fn compiled(world: &World) -> Snapshot {
    let settings = settings();
    compile(world, &settings, 1).with_gateway(&own(Some("made-for")), world, &settings)
}

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

/// The gateway `edge/gate` with these listeners, beside the services of the other suites.
fn with(listeners: impl Into<Vec<Listener>>, routes: impl IntoIterator<Item = Route>) -> World {
    let mut world = world();
    let name = NamespacedName::new("edge", "gate");
    let gateway = Gateway {
        name: name.clone(),
        class: "now".to_owned(),
        listeners: listeners.into(),
        ..Gateway::default()
    };
    world.gateways.insert(name, gateway);
    let labels = [("app".to_owned(), "gate".to_owned())].into();
    let service_account = "gate".into();
    let pod = Pod { name: NamespacedName::new("edge", POD), labels, service_account, ..Pod::default() };
    world.pods.insert(pod.name.clone(), pod);
    for route in routes {
        world.routes_mut(route.kind).insert(route.name.clone(), Arc::new(route));
    }
    world
}

/// A route of `shop` to `shop/web`, whose only rule has the route's name.
fn route(name: &str, hostnames: &[&str], path: &str) -> Route {
    let uri = (path != "/").then(|| StringMatch::Segments(path.to_owned()));
    let http = HttpMatch { uri, ..HttpMatch::default() };
    let backend = BackendRef {
        kind: "Service".to_owned(),
        name: NamespacedName::new("shop", "web"),
        port: Some(80),
        ..BackendRef::default()
    };
    let rule = RouteRule {
        name: name.to_owned(),
        matches: vec![RouteMatch { http, rpc: None }],
        backends: vec![RouteBackend { backend, weight: 1, ..RouteBackend::default() }],
        ..RouteRule::default()
    };
    Route {
        name: NamespacedName::new("shop", name),
        gateways: vec![GatewayParent {
            gateway: NamespacedName::new("edge", "gate"),
            ..GatewayParent::default()
        }],
        hostnames: hostnames.iter().map(|&host| HostPattern(host.to_owned())).collect(),
        rules: vec![rule],
        ..Route::default()
    }
}

fn ask<'a>(host: &'a str, port: u16, path: &'a str) -> Request<'a> {
    Request { authority: host, port, source_namespace: "", ..get(path) }
}

fn rule(world: &World, request: &Request<'_>) -> Result<String, Reason> {
    rule_by(world, request, &Entrance::Plain)
}

fn rule_by(world: &World, request: &Request<'_>, entrance: &Entrance) -> Result<String, Reason> {
    let snapshot = compiled(world);
    snapshot.routes().select_at_gateway(request, entrance).map(|selected| selected.rule.name.clone())
}

#[test]
fn in_tls_a_request_follows_the_rules_of_the_listener_whose_name_the_client_gave() {
    let tls = |name: &str, hostname| {
        let of = CertificateRef {
            group: String::new(),
            kind: "Secret".to_owned(),
            name: NamespacedName::new("edge", name),
        };
        let tls = ListenerTls { certificates: vec![of], ..ListenerTls::default() };
        Listener { protocol: "HTTPS".to_owned(), tls: Some(tls), ..listener(name, 443, hostname) }
    };
    let listeners = [
        tls("any", None),
        tls("wide", Some("*.example.com")),
        tls("one", Some("a.example.com")),
        listener("plain", 80, None),
    ];
    let world = with(listeners, [route("r", &[], "/")]);
    let named = |host: Option<&str>| Entrance::Tls(host.map(str::to_owned));
    for (host, port, entrance, wanted) in [
        ("a.example.com", 443, named(Some("a.example.com")), Ok("r")),
        ("b.example.com", 443, named(Some("c.example.com")), Ok("r")),
        ("else.net", 443, named(None), Ok("r")),
        ("else.net", 443, named(Some("other.net")), Ok("r")),
        ("a.example.com", 443, named(Some("b.example.com")), Err(Reason::Misdirected)),
        ("b.example.com", 443, named(Some("a.example.com")), Err(Reason::Misdirected)),
        ("a.example.com", 443, named(None), Err(Reason::Misdirected)),
        // What came before the port spoke something else.
        ("a.example.com", 443, Entrance::Plain, Err(Reason::Misdirected)),
        ("a.example.com", 80, named(Some("a.example.com")), Err(Reason::Misdirected)),
    ] {
        let found = rule_by(&world, &ask(host, port, "/"), &entrance);
        assert_eq!(found.as_deref().map_err(|reason| *reason), wanted, "{host} {port} {entrance:?}");
    }
    let snapshot = compiled(&world);
    let routes = snapshot.routes();
    let certificates: BTreeMap<_, _> = routes.certificates().collect();
    let shown = |port, sni| routes.tls_listener(port, sni).map(|of| &*certificates[of][0].name);
    assert_eq!((shown(443, Some("a.example.com")), shown(443, None)), (Some("one"), Some("any")));
    assert_eq!((shown(443, Some("x.example.com")), shown(80, None)), (Some("wide"), None));
    assert_eq!((routes.is_tls(443), routes.is_tls(80), certificates.len()), (true, false, 3));
}

#[test]
fn the_most_specific_listener_has_a_host_to_itself_and_the_most_specific_hostname_comes_first() {
    let listeners = [
        listener("any", 80, None),
        listener("wide", 80, Some("*.example.com")),
        listener("one", 80, Some("a.example.com")),
        listener("other", 8080, None),
    ];
    let to = |route: Route, section: &str| {
        let mut route = route;
        route.gateways[0].section = Some(section.to_owned());
        route
    };
    let routes = [
        to(route("any", &[], "/"), "any"),
        to(route("wide", &[], "/"), "wide"),
        to(route("wide-b", &["b.example.com"], "/only"), "wide"),
        to(route("one", &[], "/one"), "one"),
        to(route("other", &["a.example.com"], "/"), "other"),
    ];
    let world = with(listeners, routes);
    for (host, port, path, wanted) in [
        ("else.net", 80, "/", Ok("any")),
        ("c.example.com", 80, "/", Ok("wide")),
        ("C.Example.com.:80", 80, "/", Ok("wide")),
        ("b.example.com", 80, "/only/x", Ok("wide-b")),
        // Its rule does not match, and nobody else answers for its host.
        ("b.example.com", 80, "/x", Err(Reason::NoRoute)),
        ("a.example.com", 80, "/one", Ok("one")),
        // Another listener's route is not asked.
        ("a.example.com", 80, "/x", Err(Reason::NoRoute)),
        ("example.com", 80, "/", Ok("any")),
        ("a.example.com", 8080, "/", Ok("other")),
        ("b.example.com", 8080, "/", Err(Reason::NoRoute)),
        ("a.example.com", 81, "/", Err(Reason::NoRoute)),
    ] {
        let found = rule(&world, &ask(host, port, path));
        assert_eq!(found.as_deref().map_err(|reason| *reason), wanted, "{host} {port} {path}");
    }
    assert_eq!(compiled(&world).routes().ports().collect::<Vec<_>>(), [80, 8080]);
}

#[test]
fn listeners_that_conflict_take_none_of_the_others_along() {
    let host = |name, host| listener(name, 80, Some(host));
    let listeners = [host("a", "a.example"), host("again", "a.example"), host("b", "b.example")];
    let world = with(listeners, [route("r", &[], "/")]);
    assert_eq!(rule(&world, &ask("b.example", 80, "/")).as_deref(), Ok("r"));
    assert_eq!(rule(&world, &ask("a.example", 80, "/")), Err(Reason::NoRoute));
    // Of all of them nothing is left to listen on.
    let world = with([listener("a", 80, None), listener("b", 80, None)], [route("r", &[], "/")]);
    assert_eq!(compiled(&world).routes().ports().count(), 0);
}

#[test]
fn older_routes_come_first_and_then_those_of_the_lesser_name() {
    let at = |name: &str, created, namespace: &str| {
        let mut route = route(name, &[], "/");
        route.created = Some(created);
        route.name.namespace = namespace.into();
        route
    };
    let any = || [listener("any", 80, None)];
    let first = |routes: [Route; 2]| rule(&with(any(), routes), &ask("x", 80, "/")).unwrap();
    assert_eq!(first([at("a", 2, "shop"), at("b", 1, "shop")]), "b");
    assert_eq!(first([at("a", 1, "shop"), at("b", 1, "far")]), "b");
}

#[test]
fn another_namespaces_service_needs_a_grant_and_what_is_not_understood_is_refused() {
    let invalid = |world: &World| {
        let snapshot = compiled(world);
        match &snapshot.routes().select_at_gateway(&ask("x", 80, "/"), &Entrance::Plain).unwrap().rule.action
        {
            Action::Route(split) => split.pick(0).unwrap().cluster.service.is_err(),
            Action::Invalid(_) => true,
            _ => false,
        }
    };
    let mut foreign = route("r", &[], "/");
    foreign.name.namespace = "edge".into();
    let mut world = with([listener("any", 80, None)], [foreign]);
    assert!(invalid(&world));
    let from =
        GrantFrom { group: GROUP.to_owned(), kind: "HTTPRoute".to_owned(), namespace: "edge".to_owned() };
    let to = GrantTo { group: String::new(), kind: "Service".to_owned(), name: None };
    let name = NamespacedName::new("shop", "grant");
    let grant = ReferenceGrant { name: name.clone(), from: vec![from], to: vec![to] };
    world.reference_grants.insert(name, Arc::new(grant));
    assert!(!invalid(&world));
}

#[test]
fn a_rule_that_is_not_understood_is_refused_where_it_would_count() {
    let odd = |path: &str, may_match_anything| {
        let mut route = route("odd", &[], path);
        route.created = Some(2);
        route.rules[0].unreadable = Some(Unreadable { problem: "x".to_owned(), may_match_anything });
        route
    };
    let older = || Route { created: Some(1), ..route("older", &[], "/") };
    let is_refused = |world: &World, path: &str| {
        let snapshot = compiled(world);
        let selected = snapshot.routes().select_at_gateway(&ask("x", 80, path), &Entrance::Plain).unwrap();
        matches!(selected.rule.action, Action::Invalid(_))
    };
    let world = with([listener("any", 80, None)], [older(), odd("/admin", false)]);
    assert!(is_refused(&world, "/admin/x") && !is_refused(&world, "/x"));
    let specific = Route { created: Some(1), ..route("specific", &[], "/a/b/c") };
    let mut other = route("other", &[], "/other");
    other.name.namespace = "edge".into();
    other.rules[0].backends[0].backend.name.namespace = "shop".into();
    let world = with([listener("any", 80, None)], [specific, other, odd("/", true)]);
    assert!(is_refused(&world, "/a/b/c") && is_refused(&world, "/x"));
    // What another namespace's rule matches is its own.
    let snapshot = compiled(&world);
    let selected = snapshot.routes().select_at_gateway(&ask("x", 80, "/other"), &Entrance::Plain).unwrap();
    assert_eq!(&*selected.rule.resource, &NamespacedName::new("edge", "other"));
    assert!(matches!(selected.rule.action, Action::Route(_)));
}

#[test]
fn only_grpc_follows_a_grpc_route() {
    let rpc = Route { kind: RouteKind::Grpc, ..route("rpc", &[], "/") };
    let world = with([listener("any", 80, None)], [rpc]);
    assert_eq!(rule(&world, &ask("x", 80, "/a.B/C")), Err(Reason::NoRoute));
}

#[test]
fn the_root_namespace_s_providers_may_be_asked_and_those_that_a_grant_lets() {
    let world = with([listener("any", 80, None)], []);
    let snapshot = compiled(&world);
    let service = snapshot.service(&NamespacedName::new("shop", "web")).unwrap();
    let root = settings().root_namespace;
    let permits =
        |namespace: &str| snapshot.routes().permits(&Asker { kind: "ExtensionProvider", namespace }, service);
    assert!(permits(&root) && permits("shop") && !permits("edge"));
}

fn judge(world: &World, address: &str) -> Result<(), Refused> {
    let snapshot = compiled(world);
    let address: IpAddr = address.parse().unwrap();
    let gateway = Behind::Gateway {
        gateway: NamespacedName::new("edge", "gate"),
        address: "10.9.9.9:80".parse().unwrap(),
        entrance: Entrance::Plain,
    };
    let request = ask("x", 80, "/");
    let routes = snapshot.routes();
    routes.authorize(&gateway, None, address, Some(&request), &NoTokens, &[]).map(drop)
}

fn denying(namespace: &str, selector: &[(&str, &str)], targets: Vec<Target>) -> AuthorizationPolicy {
    AuthorizationPolicy {
        name: NamespacedName::new(namespace, "deny"),
        selector: selector.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        targets,
        action: Effect::Deny,
        rules: vec![Rule::default()],
        ..AuthorizationPolicy::default()
    }
}

fn guarded(policy: AuthorizationPolicy) -> World {
    let mut world = with([listener("any", 80, None)], [route("r", &[], "/")]);
    world.authorization_policies.insert(policy.name.clone(), policy);
    world
}

#[test]
fn policies_of_the_mesh_the_namespace_the_pods_the_gateway_and_its_class_are_asked_about_strangers() {
    let root = settings().root_namespace;
    let gateway = |name: &str| vec![Target::Gateway(name.to_owned())];
    let class = |name: &str| vec![Target::GatewayClass(name.to_owned())];
    for (policy, applies) in [
        (denying("edge", &[], Vec::new()), true),
        (denying(&root, &[], Vec::new()), true),
        (denying("edge", &[("app", "gate")], Vec::new()), true),
        (denying(&root, &[("app", "gate")], Vec::new()), true),
        (denying("edge", &[("app", "other")], Vec::new()), false),
        // The backend's node asks its own.
        (denying("shop", &[], Vec::new()), false),
        (denying("edge", &[], gateway("gate")), true),
        (denying("edge", &[], gateway("other")), false),
        (denying("shop", &[], gateway("gate")), false),
        // The service's waypoint asks its own.
        (denying("shop", &[], vec![Target::Service("web".to_owned())]), false),
        // Whatever class it was made for and has now, both count, and that of all gateways.
        (denying(&root, &[], class("orlop")), true),
        (denying(&root, &[], class("made-for")), true),
        (denying(&root, &[], class("now")), true),
        (denying(&root, &[], class("another")), false),
        (denying("edge", &[], class("orlop")), false),
    ] {
        let told = format!("{policy:?}");
        assert_eq!(judge(&guarded(policy), "192.0.2.1").is_err(), applies, "{told}");
    }
}

#[test]
fn a_stranger_has_an_address_and_no_principal() {
    let allow = |source: Source| AuthorizationPolicy {
        action: Effect::Allow,
        rules: vec![Rule { from: vec![source], ..Rule::default() }],
        ..denying("edge", &[], Vec::new())
    };
    let values = |text: &str| Match { values: vec![text.parse().unwrap()], not_values: Vec::new() };
    let block = guarded(allow(Source { ip_blocks: values("192.0.2.0/24"), ..Source::default() }));
    assert!(judge(&block, "192.0.2.1").is_ok() && judge(&block, "198.51.100.1").is_err());
    let remote = Match { values: vec!["192.0.2.0/24".parse().unwrap()], not_values: Vec::new() };
    let remote = guarded(allow(Source { remote_ip_blocks: remote, ..Source::default() }));
    assert!(judge(&remote, "192.0.2.1").is_ok() && judge(&remote, "198.51.100.1").is_err());
    let anybody = Match { values: vec!["*".parse().unwrap()], not_values: Vec::new() };
    let known = guarded(allow(Source { principals: anybody, ..Source::default() }));
    assert!(judge(&known, "192.0.2.1").is_err());
}

#[test]
fn a_selector_of_which_nobody_can_tell_whether_it_selects_the_gateway_denies() {
    let mut world = guarded(denying("edge", &[("app", "other")], Vec::new()));
    world.pods.remove(&NamespacedName::new("edge", POD));
    assert_eq!(judge(&world, "192.0.2.1").unwrap_err().reason, Reason::PolicyDenied);
    let mut world = guarded(denying("elsewhere", &[("app", "other")], Vec::new()));
    world.pods.remove(&NamespacedName::new("edge", POD));
    assert!(judge(&world, "192.0.2.1").is_ok());
}
