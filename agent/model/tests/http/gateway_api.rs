//! HTTPRoutes and GRPCRoutes with a Service as parent.

use std::sync::Arc;

use orlop_model::http::{Action, Choice, Grants, Request};
use orlop_model::world::gateway_api::{
    BackendRef, GROUP, GrantFrom, GrantTo, Parent, ReferenceGrant, Route, RouteBackend, RouteFilters,
    RouteKind, RouteMatch, RouteMirror, RouteRule, RpcMatch, RpcName,
};
use orlop_model::world::routing::{HttpMatch, HttpRule, PathChange, Percent, Redirect, Rewrite, StringMatch};
use orlop_model::{NamespacedName, Reason, Snapshot, World, compile};
use proptest::prelude::*;

use crate::support::{Map, add, chosen, client, compiled, get, routes, rule, selected, settings, world};

fn parent(namespace: &str, name: &str) -> Parent {
    Parent { service: NamespacedName::new(namespace, name), ..Parent::default() }
}

fn route(namespace: &str, name: &str, rules: impl Into<Vec<RouteRule>>) -> Route {
    let name = NamespacedName::new(namespace, name);
    Route { name, parents: vec![parent("shop", "web")], rules: rules.into(), ..Route::default() }
}

fn grpc(name: &str, rules: impl Into<Vec<RouteRule>>) -> Route {
    Route { kind: RouteKind::Grpc, ..route("shop", name, rules) }
}

fn leads(name: &str, matches: impl Into<Vec<RouteMatch>>) -> RouteRule {
    let backends = vec![backend("shop", "web", 1)];
    RouteRule { name: name.to_owned(), matches: matches.into(), backends, ..RouteRule::default() }
}

pub fn backend(namespace: &str, name: &str, weight: u32) -> RouteBackend {
    let name = NamespacedName::new(namespace, name);
    let backend = BackendRef { group: String::new(), kind: "Service".to_owned(), name, port: Some(80) };
    RouteBackend { backend, weight, ..RouteBackend::default() }
}

fn path(uri: StringMatch) -> RouteMatch {
    RouteMatch { http: HttpMatch { uri: Some(uri), ..HttpMatch::default() }, rpc: None }
}

fn segments(text: &str) -> RouteMatch {
    path(StringMatch::Segments(text.to_owned()))
}

fn exact(text: &str) -> RouteMatch {
    path(StringMatch::Exact(text.to_owned()))
}

fn attach(world: &mut World, route: Route) {
    world.routes_mut(route.kind).insert(route.name.clone(), Arc::new(route));
}

fn with(all: impl IntoIterator<Item = Route>) -> World {
    let mut world = world();
    all.into_iter().for_each(|route| attach(&mut world, route));
    world
}

fn named(world: &World, request: &Request<'_>) -> Option<String> {
    match selected(&compiled(world), request) {
        Ok(name) => Some(name.expect("a route is there")),
        Err(reason) => {
            assert_eq!(reason, Reason::NoRoute);
            None
        }
    }
}

pub fn finding(snapshot: &Snapshot, kind: &str, says: &str) -> bool {
    snapshot.findings().iter().any(|finding| finding.kind == kind && finding.message.contains(says))
}

#[test]
fn a_prefix_is_of_segments() {
    let world = with([route("shop", "r", [leads("r", [segments("/abc")])])]);
    for (path, wanted) in
        [("/abc", true), ("/abc/", true), ("/abc/def", true), ("/abcd", false), ("/ABC", false), ("/", false)]
    {
        assert_eq!(named(&world, &get(path)).is_some(), wanted, "{path}");
    }
    let world = with([route("shop", "r", [leads("all", [segments("")])])]);
    assert_eq!(named(&world, &get("/x")).as_deref(), Some("all"));
    assert_eq!(named(&world, &get("/")).as_deref(), Some("all"));
}

/// Precedence, in the words of the specification: an exact path, a prefix with more characters, a method, more headers,
/// more query parameters; then the oldest route, the first by name, the first rule.
#[test]
fn the_match_that_says_more_has_precedence() {
    let with_http = |of: RouteMatch, change: fn(&mut HttpMatch)| {
        let mut of = of;
        change(&mut of.http);
        of
    };
    let pair = |name: &str| (name.to_owned(), StringMatch::Exact("1".to_owned()));
    let headers = |count: usize| {
        let mut of = segments("/a");
        of.http.headers = ["x", "y"].iter().take(count).map(|name| pair(name)).collect();
        of
    };
    let queries = |count: usize| {
        let mut of = segments("/a");
        of.http.query = ["q", "r"].iter().take(count).map(|name| pair(name)).collect();
        of
    };
    let method = || with_http(segments("/a"), |of| of.method = Some(StringMatch::Exact("GET".to_owned())));
    let all =
        Map([("x", "1"), ("y", "1")].map(|(name, value)| (name.to_owned(), vec![value.to_owned()])).into());
    for (less, more) in [
        (segments("/a/b/c"), exact("/a/b/c")),
        (segments("/a"), segments("/a/b")),
        (method(), segments("/a/b")),
        (segments("/a"), method()),
        (headers(2), method()),
        (headers(1), headers(2)),
        (queries(2), headers(1)),
        (queries(1), queries(2)),
        // Ours: the specification leaves it open.
        (segments("/a/b/c"), path(StringMatch::Regex("/a.*".parse().unwrap()))),
        (path(StringMatch::Regex("/a.*".parse().unwrap())), exact("/a/b/c")),
    ] {
        let world =
            with([route("shop", "r", [leads("less", [less.clone()]), leads("more", [more.clone()])])]);
        let request = Request { headers: &all, ..get("/a/b/c?q=1&r=1") };
        assert_eq!(named(&world, &request).as_deref(), Some("more"), "{less:?} {more:?}");
    }
    let aged = |name: &str, created| Route { created, ..route("shop", name, [leads(name, [])]) };
    let world = with([aged("a", Some(2)), aged("b", Some(1))]);
    assert_eq!(named(&world, &get("/")).as_deref(), Some("b"));
    let world = with([aged("b", Some(1)), aged("a", Some(1))]);
    assert_eq!(named(&world, &get("/")).as_deref(), Some("a"));
    let world = with([route("shop", "r", [leads("first", []), leads("second", [])])]);
    assert_eq!(named(&world, &get("/")).as_deref(), Some("first"));
    // Each match by itself, whichever rule it is in.
    let rules = [leads("one", [segments("/a"), exact("/b")]), leads("two", [exact("/a"), segments("/b")])];
    let world = with([route("shop", "r", rules)]);
    assert_eq!(named(&world, &get("/a")).as_deref(), Some("two"));
    assert_eq!(named(&world, &get("/b")).as_deref(), Some("one"));
}

#[test]
fn nothing_that_matches_is_404_and_no_route_is_the_service_itself() {
    assert_eq!(selected(&compiled(&world()), &get("/")), Ok(None));
    let world = with([route("shop", "r", [leads("r", [exact("/a")])])]);
    assert_eq!(named(&world, &get("/b")), None);
}

#[test]
fn consumer_routes_are_for_clients_of_their_namespace_instead_of_the_producers() {
    let world = with([
        route("shop", "producer", [leads("producer", [])]),
        route("far", "consumer", [leads("consumer", [segments("/a")])]),
    ]);
    let from = |namespace, path| named(&world, &Request { source_namespace: namespace, ..get(path) });
    assert_eq!(from("far", "/a").as_deref(), Some("consumer"));
    // They don't merge.
    assert_eq!(from("far", "/b"), None);
    for namespace in ["shop", "street"] {
        assert_eq!(from(namespace, "/a").as_deref(), Some("producer"));
    }
    let world = with([route("far", "consumer", [leads("consumer", [])])]);
    assert_eq!(selected(&compiled(&world), &get("/")), Ok(None));
}

#[test]
fn a_parent_may_be_one_port_by_name_or_by_number() {
    let of = |section: Option<&str>, port| {
        let section = section.map(str::to_owned);
        let parents = vec![Parent { section, port, ..parent("shop", "web") }];
        compiled(&with([Route { parents, ..route("shop", "r", [leads("r", [])]) }]))
    };
    for (section, port, at_80, at_81) in [
        (None, None, true, true),
        (None, Some(81), false, true),
        (Some("p80"), None, true, false),
        (Some("p80"), Some(80), true, false),
        (Some("p80"), Some(81), false, false),
        (Some("none"), None, false, false),
    ] {
        let snapshot = of(section, port);
        for (number, wanted) in [(80, at_80), (81, at_81)] {
            let request = Request { port: number, ..get("/") };
            let there = selected(&snapshot, &request).unwrap().is_some();
            assert_eq!(there, wanted, "{section:?} {port:?} at {number}");
        }
        let told = finding(&snapshot, "HTTPRoute", "names no port of Service shop/web");
        assert_eq!(told, !at_80 && !at_81, "{section:?} {port:?}");
    }
}

#[test]
fn a_parent_that_is_not_there_or_has_no_waypoint_is_a_finding() {
    let mut world =
        with([Route { parents: vec![parent("shop", "none")], ..route("shop", "r", [leads("r", [])]) }]);
    assert!(finding(&compiled(&world), "HTTPRoute", "Service shop/none, which is not there"));
    world.namespaces.get_mut("far").unwrap().labels = Default::default();
    attach(&mut world, Route { parents: vec![parent("far", "web")], ..route("far", "r", [leads("r", [])]) });
    assert!(finding(&compiled(&world), "HTTPRoute", "far/web, which has no waypoint"));
}

#[test]
fn routes_come_instead_of_virtual_services_whose_authors_are_told() {
    let mut world = with([route("far", "consumer", [leads("consumer", [])])]);
    add(&mut world, routes("vs", [rule("vs", [])]));
    let snapshot = compiled(&world);
    let from = |namespace| {
        let request = Request { source_namespace: namespace, ..get("/") };
        selected(&snapshot, &request).unwrap().unwrap()
    };
    assert_eq!((from("far").as_str(), from("shop").as_str()), ("consumer", "vs"));
    assert!(finding(&snapshot, "VirtualService", "HTTPRoute far/consumer, which counts instead for far"));
    attach(&mut world, route("shop", "producer", [leads("producer", [])]));
    let snapshot = compiled(&world);
    assert_eq!(selected(&snapshot, &get("/")).unwrap().as_deref(), Some("producer"));
    assert!(finding(&snapshot, "VirtualService", "counts instead for all clients"));
}

#[test]
fn of_grpc_routes_and_http_routes_for_one_port_the_grpc_routes_count() {
    let at_80 = || vec![Parent { port: Some(80), ..parent("shop", "web") }];
    let world = with([
        route("shop", "http", [leads("http", [])]),
        Route { parents: at_80(), ..grpc("grpc", [leads("grpc", [])]) },
    ]);
    let headers = Map([("content-type".to_owned(), vec!["application/grpc+proto".to_owned()])].into());
    let rpc = Request { headers: &headers, method: "POST", ..get("/a.B/Do") };
    assert_eq!(named(&world, &rpc).as_deref(), Some("grpc"));
    assert_eq!(named(&world, &Request { port: 81, ..rpc }).as_deref(), Some("http"));
    // What is no gRPC follows no GRPCRoute.
    assert_eq!(named(&world, &get("/a.B/Do")), None);
    assert!(finding(&compiled(&world), "HTTPRoute", "GRPCRoute shop/grpc is for port 80"));
}

#[test]
fn the_service_and_then_the_method_with_more_characters_has_precedence() {
    let headers = Map([("content-type".to_owned(), vec!["application/grpc".to_owned()])].into());
    let exact = |name: &str| Some(RpcName::Exact(name.to_owned()));
    let regex = |name: &str| Some(RpcName::Regex(name.to_owned()));
    let of = |service, method| RouteMatch::of_rpc(RpcMatch { service, method }, Vec::new()).unwrap();
    for (less, more) in [
        (of(None, None), of(None, exact("Do"))),
        (of(None, exact("Do")), of(exact("a.B"), None)),
        (of(exact("a.B"), None), of(exact("a.B"), exact("Do"))),
        (of(regex("a.B|longer"), exact("Do")), of(exact("a.B"), None)),
        (of(exact("a.B"), regex("Do|longer")), of(exact("a.B"), exact("Do"))),
    ] {
        let world = with([grpc("r", [leads("less", [less.clone()]), leads("more", [more.clone()])])]);
        let request = Request { headers: &headers, ..get("/a.B/Do") };
        assert_eq!(named(&world, &request).as_deref(), Some("more"), "{less:?} {more:?}");
    }
}

#[test]
fn a_dot_in_an_exact_name_is_no_other_character() {
    let headers = Map([("content-type".to_owned(), vec!["application/grpc".to_owned()])].into());
    let exact = |name: &str| Some(RpcName::Exact(name.to_owned()));
    let any = || Some(RpcName::Regex(".+".to_owned()));
    let of = |service, method| RouteMatch::of_rpc(RpcMatch { service, method }, Vec::new()).unwrap();
    for (rpc, fits, other) in [
        (of(exact("a.B"), any()), "/a.B/Do", "/aXB/Do"),
        (of(any(), exact("Do.It")), "/a.B/Do.It", "/a.B/DoXIt"),
        (of(None, exact("Do.It")), "/a.B/Do.It", "/a.B/DoXIt"),
    ] {
        let world = with([grpc("r", [leads("it", [rpc.clone()])])]);
        assert_eq!(named(&world, &Request { headers: &headers, ..get(fits) }).as_deref(), Some("it"));
        assert_eq!(named(&world, &Request { headers: &headers, ..get(other) }), None, "{rpc:?}");
    }
}

/// What becomes of a request that follows this rule: where it leads, or why it is refused.
pub fn outcome(world: &World, grants: Grants, number: u64) -> Result<String, Reason> {
    let settings = settings();
    let gate = NamespacedName::new("shop", "gate");
    let snapshot = compile(world, &settings, 1).with_routes(&gate, world, &settings, grants);
    match &chosen(&snapshot, &get("/")).action {
        Action::Route(split) => {
            let Choice { cluster, .. } = split.pick(number).unwrap();
            snapshot
                .routes()
                .target(cluster, 80, &client("shop"))
                .map(|target| target.service.hostname.clone())
        }
        Action::Invalid(_) => Err(Reason::InvalidRoute),
        other => panic!("{other:?}"),
    }
}

pub fn backends(backends: impl Into<Vec<RouteBackend>>) -> World {
    let rule = RouteRule { backends: backends.into(), ..RouteRule::default() };
    with([route("shop", "r", [rule])])
}

#[test]
fn an_invalid_backend_is_refused_for_its_share_with_a_finding() {
    let good = || backend("shop", "web", 1);
    let mut of_kind = good();
    of_kind.backend.kind = "Bucket".to_owned();
    let mut of_group = good();
    of_group.backend.group = "net.example".to_owned();
    let mut of_port = good();
    of_port.backend.port = Some(99);
    let mut portless = good();
    portless.backend.port = None;
    let mut unsupported = good();
    unsupported.filters.unsupported = Some("has the filter Tomorrow".to_owned());
    for (bad, says) in [
        (backend("shop", "none", 1), "shop/none:80, which is not there"),
        (of_kind, "only a Service"),
        (of_group, "only a Service"),
        (of_port, "no such port"),
        (portless, "to which port"),
        (unsupported, "Tomorrow"),
    ] {
        let world = backends([good(), bad]);
        let outcomes = [0, u64::MAX].map(|number| outcome(&world, Grants::Optional, number));
        assert_eq!(
            outcomes,
            [Ok("web.shop.svc.cluster.local".to_owned()), Err(Reason::InvalidRoute)],
            "{says}"
        );
        assert!(finding(&compiled(&world), "HTTPRoute", says), "{says}: {:?}", compiled(&world).findings());
    }
    for nothing in [backends([]), backends([backend("shop", "web", 0), backend("shop", "other", 0)])] {
        assert_eq!(outcome(&nothing, Grants::Optional, 0), Err(Reason::InvalidRoute));
    }
    let mut world = backends([good()]);
    for (protocol, fits) in [("kubernetes.io/h2c", true), ("kubernetes.io/ws", true), ("mysql", false)] {
        speak(&mut world, protocol);
        assert_eq!(outcome(&world, Grants::Optional, 0).is_ok(), fits, "{protocol}");
    }
}

/// Has the port that routes lead to say that it speaks this.
pub fn speak(world: &mut World, protocol: &str) {
    let service = world.services.get_mut(&NamespacedName::new("shop", "web")).unwrap();
    service.ports[0].app_protocol = Some(protocol.to_owned());
}

#[test]
fn a_filter_that_is_not_supported_refuses_all_that_matches() {
    let filters =
        RouteFilters { unsupported: Some("has the filter X".to_owned()), ..RouteFilters::default() };
    let world = with([route("shop", "r", [RouteRule { filters, ..leads("r", []) }])]);
    assert_eq!(outcome(&world, Grants::Optional, 0), Err(Reason::InvalidRoute));
    assert!(finding(&compiled(&world), "HTTPRoute", "rules[0] has the filter X: 500"));
}

#[test]
fn another_namespaces_service_needs_a_grant_where_grants_are_required() {
    let mut world = backends([backend("far", "web", 1)]);
    let there = Ok("web.far.svc.cluster.local".to_owned());
    assert_eq!(outcome(&world, Grants::Optional, 0), there);
    assert_eq!(outcome(&world, Grants::Required, 0), Err(Reason::InvalidRoute));
    let grant = ReferenceGrant {
        name: NamespacedName::new("far", "g"),
        from: vec![GrantFrom {
            group: GROUP.to_owned(),
            kind: "HTTPRoute".to_owned(),
            namespace: "shop".to_owned(),
        }],
        to: vec![GrantTo { group: String::new(), kind: "Service".to_owned(), name: None }],
    };
    // A grant is for what is in its own namespace.
    let elsewhere = ReferenceGrant { name: NamespacedName::new("shop", "g"), ..grant.clone() };
    world.reference_grants.insert(elsewhere.name.clone(), Arc::new(elsewhere));
    assert_eq!(outcome(&world, Grants::Required, 0), Err(Reason::InvalidRoute));
    world.reference_grants.insert(grant.name.clone(), Arc::new(grant));
    assert_eq!(outcome(&world, Grants::Required, 0), there);
    // Its own namespace's services need none.
    assert!(outcome(&backends([backend("shop", "web", 1)]), Grants::Required, 0).is_ok());
}

#[test]
fn a_path_that_nobody_asked_for_has_no_prefix() {
    let path = Some(PathChange::Prefix("/new".to_owned()));
    let filters =
        RouteFilters { rewrite: Some(Rewrite { path, ..Rewrite::default() }), ..RouteFilters::default() };
    let mut world = world();
    attach(&mut world, route("shop", "r", [RouteRule { filters, ..leads("any", []) }]));
    let snapshot = compiled(&world);
    let service = snapshot.service(&NamespacedName::new("shop", "web")).unwrap();
    let selected = snapshot.routes().select(service, &get("/0/x")).unwrap().unwrap();
    assert_eq!(selected.prefix, None);
    // What Istio's `rewrite.uri` replaces is a slash.
    let mut world = self::world();
    let rewrite = Some(Rewrite { uri: Some("/new".to_owned()), ..Rewrite::default() });
    add(&mut world, routes("r", [HttpRule { rewrite, ..rule("any", []) }]));
    let snapshot = compiled(&world);
    let selected = snapshot.routes().select(service, &get("/0/x")).unwrap().unwrap();
    assert_eq!(selected.prefix, Some("/"));
}

#[test]
fn weights_are_exact_and_zeros_get_nothing() {
    let world =
        backends([backend("shop", "web", 3), backend("shop", "none", 0), backend("shop", "other", 1)]);
    let snapshot = compiled(&world);
    let Action::Route(split) = &chosen(&snapshot, &get("/")).action else { panic!() };
    let step = u64::MAX / 4000;
    let hosts: Vec<_> = (0..4000).map(|n| split.pick(n * step).unwrap().cluster.host.as_str()).collect();
    let count = |host: &str| hosts.iter().filter(|of| of.starts_with(host)).count();
    assert!(count("web").abs_diff(3000) <= 1 && count("other").abs_diff(1000) <= 1, "{}", count("web"));
    assert_eq!(count("web") + count("other"), 4000);
}

#[test]
fn a_backends_own_filters_come_on_top_of_the_rules() {
    let mirror =
        |name: &str| RouteMirror { backend: backend("shop", name, 1).backend, percent: Percent::ALL };
    let filters = RouteFilters { mirrors: vec![mirror("other"), mirror("none")], ..RouteFilters::default() };
    let mut own = backend("shop", "web", 1);
    own.filters = RouteFilters {
        mirrors: vec![mirror("web")],
        redirect: Some(Redirect::default()),
        ..RouteFilters::default()
    };
    let rule =
        RouteRule { filters, backends: vec![backend("shop", "other", 1), own], ..RouteRule::default() };
    let snapshot = compiled(&with([route("shop", "r", [rule])]));
    let rule = chosen(&snapshot, &get("/"));
    // A mirror that is not there gets nothing, and nobody else notices.
    assert_eq!(rule.mirrors.len(), 1);
    assert!(finding(&snapshot, "HTTPRoute", "no copy is made"));
    let Action::Route(split) = &rule.action else { panic!() };
    assert_eq!(split.pick(0).unwrap().own, None);
    let own = split.pick(u64::MAX).unwrap().own.as_ref().unwrap();
    assert_eq!((own.mirrors.len(), own.redirect.is_some()), (2, true));
}

/// All matches that hold, one after the other, of which the specification's words choose.
fn reference(routes: &[Route], request: &Request<'_>) -> Option<String> {
    let parts = |path: &str| path.split('/').skip(1).map(str::to_owned).collect::<Vec<_>>();
    let holds = |of: &HttpMatch| {
        let uri = match of.uri.as_ref().unwrap() {
            StringMatch::Exact(exact) => request.path == exact,
            StringMatch::Segments(prefix) => {
                let (prefix, path) = (parts(prefix), parts(request.path));
                path.len() >= prefix.len() && path[..prefix.len()] == prefix
            }
            other => panic!("{other:?}"),
        };
        let header = |(name, value): &(String, StringMatch)| match value {
            StringMatch::Exact(value) => request.headers.value(name).is_some_and(|found| found == *value),
            other => panic!("{other:?}"),
        };
        let method = match &of.method {
            None => true,
            Some(StringMatch::Exact(method)) => method == request.method,
            other => panic!("{other:?}"),
        };
        uri && method && of.headers.iter().all(header)
    };
    let mut best: Option<(&Route, usize, &HttpMatch)> = None;
    for route in routes {
        for (number, rule) in route.rules.iter().enumerate() {
            for of in rule.matches.iter().map(|of| &of.http).filter(|of| holds(of)) {
                if best.is_none_or(|best| precedes((route, number, of), best)) {
                    best = Some((route, number, of));
                }
            }
        }
    }
    best.map(|(route, number, _)| route.rules[number].name.clone())
}

fn precedes(this: (&Route, usize, &HttpMatch), other: (&Route, usize, &HttpMatch)) -> bool {
    let is_exact = |of: &HttpMatch| matches!(of.uri, Some(StringMatch::Exact(_)));
    let length = |of: &HttpMatch| match &of.uri {
        Some(StringMatch::Segments(prefix)) => prefix.chars().count(),
        _ => 0,
    };
    if is_exact(this.2) != is_exact(other.2) {
        return is_exact(this.2);
    }
    if length(this.2) != length(other.2) {
        return length(this.2) > length(other.2);
    }
    if this.2.method.is_some() != other.2.method.is_some() {
        return this.2.method.is_some();
    }
    if this.2.headers.len() != other.2.headers.len() {
        return this.2.headers.len() > other.2.headers.len();
    }
    // Of whose age nobody knows it comes last.
    let age = |route: &Route| (route.created.is_none(), route.created);
    if age(this.0) != age(other.0) {
        return age(this.0) < age(other.0);
    }
    if this.0.name != other.0.name {
        return this.0.name.to_string() < other.0.name.to_string();
    }
    this.1 < other.1
}

fn any_path() -> impl Strategy<Value = String> {
    "(/[ab]{1,2}){1,3}/?"
}

fn any_match() -> impl Strategy<Value = RouteMatch> {
    let uri = prop_oneof![
        any_path().prop_map(StringMatch::Exact),
        "(/[ab]{1,2}){0,3}".prop_map(StringMatch::Segments),
    ];
    let method = prop_oneof![Just("GET"), Just("PUT")];
    let headers = proptest::collection::btree_map("[xy]", "[12]", 0..3);
    (uri, proptest::option::weighted(0.3, method), headers).prop_map(|(uri, method, headers)| {
        let mut of = path(uri);
        of.http.method = method.map(|method| StringMatch::Exact(method.to_owned()));
        of.http.headers =
            headers.into_iter().map(|(name, value)| (name, StringMatch::Exact(value))).collect();
        of
    })
}

fn any_routes() -> impl Strategy<Value = Vec<Route>> {
    let rules = proptest::collection::vec(proptest::collection::vec(any_match(), 1..4), 1..4);
    let all = proptest::collection::vec((proptest::option::of(0..2_i64), rules), 1..4);
    all.prop_map(|all| {
        let named = all.into_iter().enumerate().map(|(number, (created, rules))| {
            let rules = rules.into_iter().enumerate();
            let rules: Vec<_> = rules.map(|(rule, of)| leads(&format!("{number}-{rule}"), of)).collect();
            Route { created, ..route("shop", &format!("r{number}"), rules) }
        });
        named.collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_rule_is_that_which_the_specification_chooses(
        routes in any_routes(),
        requests in proptest::collection::vec(
            (any_path(), proptest::collection::btree_map("[xy]", "[12]", 0..3)),
            1..16,
        ),
    ) {
        let world = with(routes.clone());
        let snapshot = compiled(&world);
        for (path, headers) in requests {
            let headers = Map(headers.into_iter().map(|(name, value)| (name, vec![value])).collect());
            let request = Request { headers: &headers, ..get(&path) };
            let found = selected(&snapshot, &request).ok().flatten();
            prop_assert_eq!(found, reference(&routes, &request), "{} {:?}", path, headers);
        }
    }
}
