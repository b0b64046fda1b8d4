//! Where connections go in which no HTTP is read, and whether they may.

use std::net::IpAddr;
use std::sync::Arc;

use orlop_model::http::Stream;
use orlop_model::world::gateway_api::{
    BackendRef, GROUP, GrantFrom, GrantTo, Parent, ReferenceGrant, Route, RouteBackend, RouteKind, RouteRule,
};
use orlop_model::world::routing::{Destination, VirtualService};
use orlop_model::world::security::{Action, AuthorizationPolicy, Condition, Match, Operation, Rule, Target};
use orlop_model::world::stream::{HostPattern, Sni, StreamMatch, StreamRule, WeightedStream};
use orlop_model::world::{JwtRule, KeySource, RequestAuthentication};
use orlop_model::{Behind, Identity, NamespacedName, Reason, Snapshot, World};

use crate::support::{add, compiled, settings, world};

fn stream(port: u16, sni: Sni<'_>) -> Stream<'_> {
    Stream { port, destination: None, sni, source: None, source_namespace: "shop" }
}

fn named(names: &[&str]) -> StreamMatch {
    let names = names.iter().map(|name| HostPattern((*name).to_owned())).collect();
    StreamMatch { names, ..StreamMatch::default() }
}

fn to(host: &str) -> Vec<WeightedStream> {
    let destination = Destination { host: host.to_owned(), port: Some(80), ..Destination::default() };
    vec![WeightedStream { destination, weight: 1 }]
}

fn virtual_service(tls: Vec<StreamRule>, tcp: Vec<StreamRule>) -> VirtualService {
    let name = NamespacedName::new("shop", "web");
    VirtualService { name, hosts: vec!["web".to_owned()], tls, tcp, ..VirtualService::default() }
}

/// Has the service's port 81 say so much of itself.
fn says(world: &mut World, port: u16, word: &str) {
    let name = NamespacedName::new("shop", "web");
    let mut service = (**world.services.get(&name).unwrap()).clone();
    let port = service.ports.iter_mut().find(|of| of.number == port).unwrap();
    port.app_protocol = Some(word.to_owned());
    world.services.insert(name, Arc::new(service));
}

fn route(kind: RouteKind, namespace: &str, backend: &str) -> Route {
    let parent = Parent { service: NamespacedName::new("shop", "web"), port: Some(81), ..Parent::default() };
    let backend = BackendRef {
        group: String::new(),
        kind: "Service".to_owned(),
        name: NamespacedName::new("shop", backend),
        port: Some(80),
    };
    let backends = vec![RouteBackend { backend, weight: 1, ..RouteBackend::default() }];
    let rules = vec![RouteRule { backends, ..RouteRule::default() }];
    let name = NamespacedName::new(namespace, format!("{kind:?}").to_lowercase());
    Route { kind, name, parents: vec![parent], rules, ..Route::default() }
}

fn attach(world: &mut World, route: Route) {
    world.routes_mut(route.kind).insert(route.name.clone(), Arc::new(route));
}

fn web(snapshot: &Snapshot) -> &Arc<orlop_model::Service> {
    snapshot.service(&NamespacedName::new("shop", "web")).unwrap()
}

/// Where it leads to; `None` for the service itself.
fn leads(snapshot: &Snapshot, stream: &Stream<'_>) -> Result<Option<String>, Reason> {
    let Some(rule) = snapshot.routes().select_stream(web(snapshot), stream)? else { return Ok(None) };
    let split = rule.split.as_ref().map_err(|_| Reason::InvalidRoute)?;
    let cluster = &split.pick(0).unwrap().cluster;
    cluster.service.as_ref().map(|service| Some(service.name.to_string())).map_err(|reason| *reason)
}

fn finding(snapshot: &Snapshot, kind: &str, says: &str) -> bool {
    snapshot.findings().iter().any(|finding| finding.kind == kind && finding.message.contains(says))
}

fn policy(action: Action, rules: Vec<Rule>) -> AuthorizationPolicy {
    let name = NamespacedName::new("shop", "sni");
    let targets = vec![Target::Service("web".to_owned())];
    AuthorizationPolicy { name, targets, action, rules, ..AuthorizationPolicy::default() }
}

fn by_sni(values: &[&str], but: &[&str]) -> Rule {
    let of = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let condition = Condition::Sni(Match { values: of(values), not_values: of(but) });
    Rule { when: vec![condition], ..Rule::default() }
}

fn client() -> (Identity, IpAddr) {
    (Identity::new(&settings().trust_domain, "shop", "a"), "10.0.0.9".parse().unwrap())
}

fn target(snapshot: &Snapshot, port: u16) -> Behind {
    Behind::Service { service: web(snapshot).clone(), port, dialled: None }
}

fn allows(snapshot: &Snapshot, port: u16, sni: Sni<'_>) -> bool {
    let (identity, address) = client();
    snapshot.routes().authorize_stream(&target(snapshot, port), Some(&identity), address, sni).is_ok()
}

fn wants_sni(snapshot: &Snapshot, port: u16) -> bool {
    let (identity, address) = client();
    let stream = stream(port, Sni::Unknown);
    snapshot.routes().wants_sni(&target(snapshot, port), Some(&identity), address, &stream)
}

#[test]
fn rules_of_tls_come_before_those_of_tcp_and_are_for_ports_of_tls() {
    let mut world = world();
    says(&mut world, 81, "tls");
    let tls = StreamRule { matches: vec![named(&["*.example.com"])], route: to("other") };
    let tcp = StreamRule { matches: Vec::new(), route: to("web") };
    add(&mut world, virtual_service(vec![tls], vec![tcp]));
    let snapshot = compiled(&world);
    let is = |port, sni| leads(&snapshot, &stream(port, sni)).unwrap().unwrap();
    assert_eq!(is(81, Sni::Name("a.example.com")), "shop/other");
    assert_eq!(is(81, Sni::Name("example.com")), "shop/web");
    assert_eq!(is(81, Sni::Unknown), "shop/web");
    // Port 80 says nothing of TLS, so nobody is asked for a name there.
    assert_eq!(is(80, Sni::Name("a.example.com")), "shop/web");
    assert_eq!((wants_sni(&snapshot, 81), wants_sni(&snapshot, 80)), (true, false));
}

#[test]
fn all_that_a_match_says_must_hold_and_what_matches_none_is_refused() {
    let mut world = world();
    let of = StreamMatch {
        destinations: vec!["10.96.0.0/16".parse().unwrap()],
        port: Some(81),
        source_namespace: Some("shop".to_owned()),
        source_labels: [("version".to_owned(), "v1".to_owned())].into(),
        ..StreamMatch::default()
    };
    let gateway = StreamMatch { gateways: vec!["istio-system/in".to_owned()], ..StreamMatch::default() };
    let rules = vec![StreamRule { matches: vec![gateway, of], route: to("other") }];
    add(&mut world, virtual_service(Vec::new(), rules));
    let snapshot = compiled(&world);
    let v1 = NamespacedName::new("shop", "v1");
    let all = Stream {
        destination: Some("10.96.7.7".parse().unwrap()),
        source: Some(&v1),
        ..stream(81, Sni::Unknown)
    };
    assert_eq!(leads(&snapshot, &all), Ok(Some("shop/other".to_owned())));
    let v2 = NamespacedName::new("shop", "v2");
    for less in [
        Stream { destination: None, ..all },
        Stream { destination: Some("10.97.0.1".parse().unwrap()), ..all },
        Stream { source: None, ..all },
        Stream { source: Some(&v2), ..all },
        Stream { source_namespace: "far", ..all },
    ] {
        // The rule is for others: it goes to the service itself.
        assert_eq!(leads(&snapshot, &less), Ok(None), "{less:?}");
    }
    // A port that no rule is for is the service's own.
    assert_eq!(leads(&snapshot, &stream(80, Sni::Unknown)), Ok(None));
}

#[test]
fn a_port_that_says_http_has_no_routes_but_those_of_requests() {
    let mut world = world();
    says(&mut world, 81, "http");
    add(
        &mut world,
        virtual_service(Vec::new(), vec![StreamRule { matches: Vec::new(), route: to("other") }]),
    );
    for kind in [RouteKind::Tcp, RouteKind::Tls] {
        attach(&mut world, route(kind, "shop", "other"));
    }
    let snapshot = compiled(&world);
    assert_eq!(leads(&snapshot, &stream(81, Sni::Unknown)), Ok(None));
    assert!(!snapshot.routes().is_opaque(web(&snapshot), 81, "shop"));
    assert!(finding(
        &snapshot,
        "TCPRoute",
        "names no port of Service shop/web that does not say that it speaks HTTP"
    ));
    assert!(finding(&snapshot, "TLSRoute", "names no port of Service shop/web that says that it speaks TLS"));
}

#[test]
fn only_the_services_own_namespace_has_its_port_unread() {
    for kind in [RouteKind::Tcp, RouteKind::Tls] {
        let mut consumer = world();
        attach(&mut consumer, route(kind, "far", "other"));
        let snapshot = compiled(&consumer);
        let of_far = Stream { source_namespace: "far", ..stream(81, Sni::Unknown) };
        assert_eq!(leads(&snapshot, &of_far), Ok(Some("shop/other".to_owned())));
        assert_eq!(leads(&snapshot, &stream(81, Sni::Unknown)), Ok(None));
        for namespace in ["far", "shop"] {
            assert!(!snapshot.routes().is_opaque(web(&snapshot), 81, namespace), "{kind:?} {namespace}");
        }
        let mut producer = world();
        attach(&mut producer, route(kind, "shop", "other"));
        attach(&mut producer, route(RouteKind::Http, "far", "other"));
        let snapshot = compiled(&producer);
        let is_opaque = |port, namespace| snapshot.routes().is_opaque(web(&snapshot), port, namespace);
        assert!(is_opaque(81, "shop") && is_opaque(81, "third") && !is_opaque(80, "shop"));
        // Whose own routes are of requests has them read.
        assert!(!is_opaque(81, "far"));
    }
}

#[test]
fn of_several_kinds_for_one_port_that_counts_which_knows_most() {
    let all = [RouteKind::Tcp, RouteKind::Tls, RouteKind::Http, RouteKind::Grpc];
    for (index, kind) in all.into_iter().enumerate().skip(1) {
        let mut world = world();
        all[..=index].iter().for_each(|kind| attach(&mut world, route(*kind, "shop", "other")));
        let snapshot = compiled(&world);
        let best = format!("{} shop/{} is for port 81", kind.name(), format!("{kind:?}").to_lowercase());
        for other in &all[..index] {
            assert!(finding(&snapshot, other.name(), &best), "{kind:?} {other:?}");
        }
        assert_eq!(snapshot.routes().is_opaque(web(&snapshot), 81, "shop"), kind.is_stream());
    }
}

#[test]
fn a_tls_route_goes_by_names_and_what_none_has_is_refused() {
    let mut world = world();
    let hostnames = vec![HostPattern("*.example.com".to_owned())];
    attach(&mut world, Route { hostnames, ..route(RouteKind::Tls, "shop", "other") });
    let snapshot = compiled(&world);
    assert_eq!(leads(&snapshot, &stream(81, Sni::Name("a.example.com"))), Ok(Some("shop/other".to_owned())));
    for sni in [Sni::Name("b.com"), Sni::Absent, Sni::Unknown] {
        assert_eq!(leads(&snapshot, &stream(81, sni)), Err(Reason::NoRoute), "{sni:?}");
    }
    assert_eq!((wants_sni(&snapshot, 81), wants_sni(&snapshot, 80)), (true, false));
}

#[test]
fn a_backend_that_is_none_or_is_not_granted_refuses_its_share() {
    let mut world = world();
    attach(&mut world, route(RouteKind::Tcp, "shop", "none"));
    assert_eq!(leads(&compiled(&world), &stream(81, Sni::Unknown)), Err(Reason::InvalidRoute));
    let mut world = world_with_grants();
    let of_far = Stream { source_namespace: "far", ..stream(81, Sni::Unknown) };
    let settings = settings();
    let gate = NamespacedName::new("shop", "gate");
    let snapshot = |world: &World| {
        let grants = orlop_model::http::Grants::Required;
        orlop_model::compile(world, &settings, 1).with_routes(&gate, world, &settings, grants)
    };
    assert_eq!(leads(&snapshot(&world), &of_far), Err(Reason::InvalidRoute));
    let from = |kind: &str| GrantFrom {
        group: GROUP.to_owned(),
        kind: kind.to_owned(),
        namespace: "far".to_owned(),
    };
    let to = vec![GrantTo { group: String::new(), kind: "Service".to_owned(), name: None }];
    for (kind, wanted) in
        [("TLSRoute", Err(Reason::InvalidRoute)), ("TCPRoute", Ok(Some("shop/other".to_owned())))]
    {
        let grant =
            ReferenceGrant { name: NamespacedName::new("shop", "g"), from: vec![from(kind)], to: to.clone() };
        world.reference_grants.insert(grant.name.clone(), Arc::new(grant));
        assert_eq!(leads(&snapshot(&world), &of_far), wanted, "{kind}");
    }
}

fn world_with_grants() -> World {
    let mut world = world();
    attach(&mut world, route(RouteKind::Tcp, "far", "other"));
    world
}

#[test]
fn no_rule_leads_past_another_services_own_waypoint() {
    let mut world = world();
    let other = NamespacedName::new("shop", "other");
    let mut service = (**world.services.get(&other).unwrap()).clone();
    service.labels = [("istio.io/use-waypoint".to_owned(), "another".to_owned())].into();
    world.services.insert(other, Arc::new(service));
    add(
        &mut world,
        virtual_service(Vec::new(), vec![StreamRule { matches: Vec::new(), route: to("other") }]),
    );
    let snapshot = compiled(&world);
    assert_eq!(leads(&snapshot, &stream(81, Sni::Unknown)), Err(Reason::NotThroughWaypoint));
    assert!(finding(&snapshot, "VirtualService", "its own waypoint shop/another alone"));
    world.virtual_services.clear();
    attach(&mut world, route(RouteKind::Tcp, "shop", "other"));
    let snapshot = compiled(&world);
    assert_eq!(leads(&snapshot, &stream(81, Sni::Unknown)), Err(Reason::InvalidRoute));
    assert!(finding(&snapshot, "TCPRoute", "its own waypoint shop/another alone"));
}

#[test]
fn an_endpoint_that_has_another_waypoint_is_not_reached_past_it_enrolled_or_not() {
    let mut world = world();
    let v2 = NamespacedName::new("shop", "v2");
    let mut pod = (**world.pods.get(&v2).unwrap()).clone();
    pod.name = NamespacedName::new("shop", "lone");
    pod.addresses = ["10.0.0.7".parse().unwrap()].into();
    pod.labels = [("istio.io/use-waypoint".to_owned(), "another".to_owned())].into();
    world.pods.insert(pod.name.clone(), Arc::new(pod));
    let mut slice = (**world.endpoint_slices.get(&NamespacedName::new("shop", "web-v2")).unwrap()).clone();
    slice.name = NamespacedName::new("shop", "other-lone");
    slice.service = Some("other".into());
    slice.endpoints[0].addresses = ["10.0.0.7".parse().unwrap()].into();
    slice.endpoints[0].target = Some(NamespacedName::new("shop", "lone"));
    world.endpoint_slices.insert(slice.name.clone(), Arc::new(slice));
    let snapshot = compiled(&world);
    let other = snapshot.service(&NamespacedName::new("shop", "other")).unwrap();
    let endpoint = &other.ports[0].endpoints[0];
    assert!(endpoint.workload.as_ref().is_some_and(|workload| !workload.enrolled));
    // Of its service's waypoint it is, and of its own, and of no third one.
    let through = |name: &str| snapshot.transport_through(&NamespacedName::new("shop", name), endpoint);
    assert!(through("gate").is_ok() && through("another").is_ok());
    assert_eq!(through("third"), Err(Reason::NotThroughWaypoint));
}

#[test]
fn a_name_that_nobody_is_sure_of_is_denied_and_never_allowed() {
    let world = |action, rule: Rule| {
        let mut world = world();
        let policy = policy(action, vec![rule]);
        world.authorization_policies.insert(policy.name.clone(), Arc::new(policy));
        compiled(&world)
    };
    let all = |snapshot: &Snapshot| {
        [Sni::Name("a.b"), Sni::Name("x"), Sni::Absent, Sni::Unknown].map(|sni| allows(snapshot, 80, sni))
    };
    assert_eq!(all(&world(Action::Allow, by_sni(&["*.b"], &[]))), [true, false, false, false]);
    assert_eq!(all(&world(Action::Deny, by_sni(&["*.b"], &[]))), [false, true, true, false]);
    assert_eq!(all(&world(Action::Allow, by_sni(&[], &["x"]))), [true, false, true, false]);
    assert_eq!(all(&world(Action::Deny, by_sni(&[], &["a.b"]))), [true, false, false, false]);
    assert!(wants_sni(&world(Action::Deny, by_sni(&["*.b"], &[])), 80));
}

#[test]
fn a_name_is_asked_for_only_by_rules_of_the_port() {
    let mut world = world();
    let ports = Match { values: vec![81], not_values: Vec::new() };
    let rule = Rule { to: vec![Operation { ports, ..Operation::default() }], ..by_sni(&["a"], &[]) };
    let policy = policy(Action::Deny, vec![rule]);
    world.authorization_policies.insert(policy.name.clone(), Arc::new(policy));
    let snapshot = compiled(&world);
    assert_eq!((wants_sni(&snapshot, 80), wants_sni(&snapshot, 81)), (false, true));
    assert!(allows(&snapshot, 80, Sni::Unknown) && !allows(&snapshot, 81, Sni::Unknown));
    // Also by those of whatever a rule may lead to.
    let mut world = world;
    let tcp =
        StreamRule { matches: vec![StreamMatch { port: Some(80), ..StreamMatch::default() }], route: vec![] };
    let destination = Destination { host: "web".to_owned(), port: Some(81), ..Destination::default() };
    let tcp = StreamRule { route: vec![WeightedStream { destination, weight: 1 }], ..tcp };
    add(&mut world, virtual_service(Vec::new(), vec![tcp]));
    assert!(wants_sni(&compiled(&world), 80));
}

#[test]
fn what_is_asked_of_requests_is_known_to_whoever_leads_there() {
    let mut world = world();
    let reads = |world: &World| {
        let snapshot = compiled(world);
        snapshot.routes().reads_requests(web(&snapshot), 81)
    };
    assert!(!reads(&world));
    let rule = JwtRule {
        issuer: "me".to_owned(),
        audiences: Vec::new(),
        keys: KeySource::Inline("{}".into()),
        locations: Vec::new(),
        forward: false,
        payload_header: None,
        claim_headers: Vec::new(),
        space_delimited: Vec::new(),
    };
    let tokens = RequestAuthentication {
        name: NamespacedName::new("shop", "tokens"),
        targets: vec![Target::Service("web".to_owned())],
        rules: vec![Arc::new(rule)],
        ..RequestAuthentication::default()
    };
    world.request_authentications.insert(tokens.name.clone(), Arc::new(tokens));
    assert!(reads(&world));
    says(&mut world, 81, "tls");
    assert!(!reads(&world));
}

#[test]
fn a_pod_that_would_take_the_waypoint_for_its_client_is_judged_for_by_the_waypoint() {
    let mut world = world();
    let namespace = world.namespaces.get("shop").unwrap();
    let mut labels = namespace.labels.clone();
    labels.extend([("orlop.dev/mesh".to_owned(), "enabled".to_owned())]);
    world.namespaces.insert("shop".into(), orlop_model::world::Namespace { labels });
    let closed = AuthorizationPolicy {
        targets: Vec::new(),
        selector: [("version".to_owned(), "v1".to_owned())].into(),
        ..policy(Action::Deny, vec![Rule::default()])
    };
    world.authorization_policies.insert(closed.name.clone(), Arc::new(closed));
    let snapshot = compiled(&world);
    let endpoints = &web(&snapshot).ports[0].endpoints;
    let endpoint =
        |address: &str| endpoints.iter().find(|of| of.address.ip().to_string() == address).unwrap();
    let (identity, address) = client();
    let led = |waypoint: &str, to: &str| {
        let waypoint = NamespacedName::new("shop", waypoint);
        snapshot.admit_led(&waypoint, &identity, address, endpoint(to)).map_err(|refused| refused.reason)
    };
    assert_eq!(led("third", "10.0.0.1"), Err(Reason::PolicyDenied));
    assert_eq!(led("third", "10.0.0.2"), Ok(()));
    // Its own node judges by the client.
    assert_eq!(led("gate", "10.0.0.1"), Ok(()));
}

#[test]
fn nobody_leads_all_that_others_say_elsewhere() {
    let mut world = world();
    let rules = vec![StreamRule { matches: Vec::new(), route: to("other") }];
    let all = VirtualService { hosts: vec!["*".to_owned()], ..virtual_service(Vec::new(), rules) };
    add(&mut world, all.clone());
    assert_eq!(leads(&compiled(&world), &stream(81, Sni::Unknown)), Ok(None));
    // Hosts that it names beside that count.
    add(&mut world, VirtualService { hosts: vec!["*".to_owned(), "web".to_owned()], ..all });
    let leads = leads(&compiled(&world), &stream(81, Sni::Unknown));
    assert_eq!(leads, Ok(Some("shop/other".to_owned())));
}
