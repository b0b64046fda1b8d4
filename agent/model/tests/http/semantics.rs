use std::time::Duration;

use orlop_model::http::Action;
use orlop_model::world::Exports;
use orlop_model::world::header_text::HeaderText;
use orlop_model::world::routing::{
    Destination, HeaderChange, HeaderChanges, HttpMatch, HttpRule, Retries, Rewrite, RuleAction, StringMatch,
    VirtualService, WeightedDestination,
};
use orlop_model::{NamespacedName, Reason};

use crate::support::{
    Map, add, chosen, client, compiled, exact, get, host, prefix, regex, routes, rule, selected, to, world,
};

fn named(http: impl Into<Vec<HttpRule>>, path: &str) -> Option<String> {
    let mut world = world();
    add(&mut world, routes("r", http));
    match selected(&compiled(&world), &get(path)) {
        Ok(name) => Some(name.unwrap()),
        Err(reason) => {
            assert_eq!(reason, Reason::NoRoute);
            None
        }
    }
}

#[test]
fn the_first_rule_that_matches_wins() {
    let rules = || {
        [
            rule("a", [exact("/x")]),
            rule("b", [prefix("/x")]),
            rule("c", [prefix("/")]),
            rule("d", [exact("/y")]),
        ]
    };
    assert_eq!(named(rules(), "/x").as_deref(), Some("a"));
    assert_eq!(named(rules(), "/xy").as_deref(), Some("b"));
    assert_eq!(named(rules(), "/y").as_deref(), Some("c"));
    assert_eq!(named([rule("a", [exact("/x")])], "/y"), None);
    assert_eq!(named([rule("all", [])], "/y").as_deref(), Some("all"));
}

#[test]
fn conditions_of_one_match_are_and_and_matches_are_or() {
    let both = HttpMatch { method: Some(StringMatch::Exact("GET".to_owned())), ..prefix("/a") };
    let other = HttpMatch { method: Some(StringMatch::Exact("PUT".to_owned())), ..prefix("/b") };
    let rules = || [rule("r", [both.clone(), other.clone()])];
    assert_eq!(named(rules(), "/a").as_deref(), Some("r"));
    assert_eq!(named(rules(), "/b"), None);
}

#[test]
fn a_prefix_is_of_the_text_and_a_regex_of_the_whole() {
    assert_eq!(named([rule("r", [prefix("/foo")])], "/foobar").as_deref(), Some("r"));
    assert_eq!(named([rule("r", [regex("/foo")])], "/foobar"), None);
    assert_eq!(named([rule("r", [regex("/fo+.*")])], "/foobar").as_deref(), Some("r"));
    let folded = HttpMatch { ignore_uri_case: true, ..prefix("/FOO") };
    assert_eq!(named([rule("r", [folded])], "/foobar").as_deref(), Some("r"));
}

#[test]
fn no_timeout_means_none() {
    let mut world = world();
    let timed = HttpRule { timeout: Some(Duration::from_secs(1)), ..rule("b", []) };
    add(&mut world, routes("r", [rule("a", [exact("/a")]), timed]));
    let snapshot = compiled(&world);
    assert_eq!(chosen(&snapshot, &get("/a")).timeout, None);
    assert_eq!(chosen(&snapshot, &get("/b")).timeout, Some(Duration::from_secs(1)));
}

#[test]
fn headers_queries_authorities_and_sources_are_asked_about() {
    let text = |text: &str| StringMatch::Exact(text.to_owned());
    let pair = |name: &str, of: StringMatch| vec![(name.to_owned(), of)];
    let any = HttpMatch::default();
    let headers = Map([("x-beta".to_owned(), vec!["true".to_owned()])].into());
    let mut request = get("/?a=1&b");
    request.headers = &headers;
    request.authority = "WEB:80";
    for (of, wanted) in [
        (HttpMatch { headers: pair("x-beta", text("true")), ..any.clone() }, true),
        (HttpMatch { headers: pair("x-beta", StringMatch::Present), ..any.clone() }, true),
        (HttpMatch { headers: pair("x-none", StringMatch::Present), ..any.clone() }, false),
        (HttpMatch { without_headers: pair("x-beta", text("true")), ..any.clone() }, false),
        (HttpMatch { without_headers: pair("x-none", StringMatch::Present), ..any.clone() }, true),
        (HttpMatch { query: pair("a", text("1")), ..any.clone() }, true),
        (HttpMatch { query: pair("b", StringMatch::Present), ..any.clone() }, true),
        (HttpMatch { query: pair("c", StringMatch::Present), ..any.clone() }, false),
        (HttpMatch { authority: Some(text("web")), ..any.clone() }, true),
        (HttpMatch { authority: Some(text("Web:80")), ..any.clone() }, true),
        (HttpMatch { authority: Some(text("web:81")), ..any.clone() }, false),
        (HttpMatch { port: Some(80), ..any.clone() }, true),
        (HttpMatch { port: Some(81), ..any.clone() }, false),
        (HttpMatch { source_namespace: Some("shop".to_owned()), ..any.clone() }, true),
        (HttpMatch { source_namespace: Some("far".to_owned()), ..any.clone() }, false),
        (HttpMatch { scheme: Some(text("https")), ..any.clone() }, false),
    ] {
        let mut world = world();
        add(&mut world, routes("r", [rule("r", [of.clone()])]));
        assert_eq!(selected(&compiled(&world), &request).is_ok(), wanted, "{of:?}");
    }
    let labelled = HttpMatch { source_labels: [("version", "v1")].into(), ..any };
    let mut world = world();
    add(&mut world, routes("r", [rule("r", [labelled])]));
    let snapshot = compiled(&world);
    for (pod, wanted) in [("v1", true), ("v2", false)] {
        let name = NamespacedName::new("shop", pod);
        let request = orlop_model::http::Request { source: Some(&name), ..get("/") };
        assert_eq!(selected(&snapshot, &request).is_ok(), wanted, "{pod}");
    }
    assert!(selected(&snapshot, &get("/")).is_err());
}

#[test]
fn without_gateways_it_is_for_the_mesh_and_a_gateway_takes_it_away() {
    let with = |gateways: &[&str], own: &[&str]| {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let of = HttpMatch { gateways: texts(own), ..HttpMatch::default() };
        let service = VirtualService { gateways: texts(gateways), ..routes("r", [rule("r", [of])]) };
        let mut world = world();
        add(&mut world, service);
        selected(&compiled(&world), &get("/")).unwrap().is_some()
    };
    assert!(with(&[], &[]));
    assert!(!with(&["in"], &[]));
    assert!(with(&["in", "mesh"], &[]));
    assert!(!with(&["mesh"], &["in"]), "a match's own gateways count instead");
    assert!(with(&["in"], &["mesh"]));
}

#[test]
fn short_names_are_of_the_rules_namespace() {
    let mut world = world();
    let mut service = routes("r", [HttpRule { action: to("other"), ..rule("r", []) }]);
    add(&mut world, service.clone());
    assert_eq!(host(chosen(&compiled(&world), &get("/"))), "other.shop.svc.cluster.local");
    // Of another namespace, `web` is another service.
    world.virtual_services.clear();
    service.name.namespace = "far".into();
    add(&mut world, service.clone());
    assert_eq!(selected(&compiled(&world), &get("/")), Ok(None));
    service.hosts = vec!["web.shop.svc.cluster.local".to_owned()];
    add(&mut world, service);
    assert_eq!(host(chosen(&compiled(&world), &get("/"))), "other.far.svc.cluster.local");
}

#[test]
fn the_most_specific_host_counts_and_of_one_host_the_oldest_first_with_a_warning() {
    let mut world = world();
    let wide =
        VirtualService { hosts: vec!["*.svc.cluster.local".into()], ..routes("wide", [rule("wide", [])]) };
    add(&mut world, wide);
    assert_eq!(selected(&compiled(&world), &get("/")), Ok(Some("wide".to_owned())));
    let young = VirtualService { created: Some(2), ..routes("a", [rule("young", [])]) };
    let old = VirtualService { created: Some(1), ..routes("b", [rule("old", [exact("/x")])]) };
    add(&mut world, young);
    add(&mut world, old);
    let snapshot = compiled(&world);
    assert_eq!(selected(&snapshot, &get("/x")), Ok(Some("old".to_owned())));
    assert_eq!(selected(&snapshot, &get("/y")), Ok(Some("young".to_owned())));
    let finding = snapshot.findings().iter().find(|finding| finding.name.name == "a").unwrap();
    assert!(finding.message.contains("shop/b"), "{}", finding.message);
}

#[test]
fn what_is_not_exported_to_the_waypoint_does_not_count() {
    let mut world = world();
    let exports = Exports::To(["far".to_owned()].into());
    add(&mut world, VirtualService { exports, ..routes("r", [rule("r", [])]) });
    assert_eq!(selected(&compiled(&world), &get("/")), Ok(None));
}

#[test]
fn weights_are_relative_and_zeros_get_nothing() {
    let to = |host: &str, weight| WeightedDestination {
        destination: Destination { host: host.to_owned(), ..Destination::default() },
        weight,
        ..WeightedDestination::default()
    };
    let action = RuleAction::Route(vec![to("web", 3), to("none", 0), to("other", 1)]);
    let mut world = world();
    add(&mut world, routes("r", [HttpRule { action, ..rule("r", []) }]));
    let snapshot = compiled(&world);
    let Action::Route(split) = &chosen(&snapshot, &get("/")).action else { panic!() };
    let step = u64::MAX / 4000;
    let hosts: Vec<_> = (0..4000).map(|n| split.pick(n * step).unwrap().cluster.host.as_str()).collect();
    let count = |host: &str| hosts.iter().filter(|of| of.starts_with(host)).count();
    assert!(count("web").abs_diff(3000) <= 1 && count("other").abs_diff(1000) <= 1, "{}", count("web"));
    assert_eq!(count("none"), 0);
    assert!(split.pick(u64::MAX).is_some());
}

#[test]
fn retries_are_two_unless_the_rule_says_otherwise() {
    let mut world = world();
    let none =
        HttpRule { retries: Some(Retries { attempts: 0, ..Retries::default() }), ..rule("n", [exact("/n")]) };
    add(&mut world, routes("r", [none, rule("d", [])]));
    let snapshot = compiled(&world);
    assert_eq!(chosen(&snapshot, &get("/n")).retries.attempts, 0);
    let default = &chosen(&snapshot, &get("/")).retries;
    assert_eq!((default.attempts, default.backoff), (2, Duration::from_millis(25)));
    assert_eq!((default.per_try, &default.on), (None, &None));
}

#[test]
fn a_delegate_has_no_hosts_one_level_and_both_matches_hold() {
    let delegate = |name: &str| RuleAction::Delegate(NamespacedName::new("far", name));
    let changes = |value: &str| HeaderChanges {
        request: HeaderChange {
            set: vec![("x".to_owned(), HeaderText::verbatim(value))],
            ..HeaderChange::default()
        },
        ..HeaderChanges::default()
    };
    let root = HttpRule {
        action: delegate("inner"),
        timeout: Some(Duration::from_secs(9)),
        headers: Some(changes("outer")),
        ..rule("root", [prefix("/a")])
    };
    let mut world = world();
    add(&mut world, routes("root", [root, rule("rest", [])]));
    let inner = |hosts: Vec<String>, http: Vec<HttpRule>| VirtualService {
        name: NamespacedName::new("far", "inner"),
        hosts,
        http,
        ..VirtualService::default()
    };
    let rules = vec![
        HttpRule { headers: Some(changes("inner")), ..rule("ab", [prefix("/a/b")]) },
        rule("outside", [exact("/z")]),
        HttpRule { action: delegate("inner"), ..rule("again", []) },
    ];
    add(&mut world, inner(Vec::new(), rules.clone()));
    let snapshot = compiled(&world);
    assert_eq!(selected(&snapshot, &get("/a/b/c")), Ok(Some("ab".to_owned())));
    assert_eq!(selected(&snapshot, &get("/a/c")), Ok(Some("rest".to_owned())));
    assert_eq!(selected(&snapshot, &get("/z")), Ok(Some("rest".to_owned())), "outside of the root's match");
    let found = chosen(&snapshot, &get("/a/b"));
    assert_eq!(found.timeout, Some(Duration::from_secs(9)));
    assert_eq!(found.headers, changes("inner"));
    assert_eq!(host(found), "web.far.svc.cluster.local");
    assert!(snapshot.findings().iter().any(|finding| finding.message.contains("delegates again")));
    // With hosts it is none.
    add(&mut world, inner(vec!["web".to_owned()], rules));
    assert_eq!(selected(&compiled(&world), &get("/a/b")), Ok(Some("rest".to_owned())));
}

#[test]
fn a_rewrite_replaces_the_prefix_of_the_innermost_path_that_was_asked_for() {
    let folded = HttpMatch { ignore_uri_case: true, ..prefix("/A") };
    for (outer, inner, path, wanted) in [
        (vec![prefix("/a")], vec![exact("/a/x")], "/a/x", None),
        (vec![prefix("/a")], vec![regex("/a/.*")], "/a/x", None),
        (vec![prefix("/a")], vec![prefix("/a/")], "/a/x", Some("/a/")),
        (vec![prefix("/a")], vec![], "/a/x", Some("/a")),
        (vec![exact("/a/x")], vec![HttpMatch::default()], "/a/x", None),
        (vec![folded], vec![], "/a/x", Some("/A")),
        (vec![], vec![], "/a/x", Some("/")),
    ] {
        let inner_name = NamespacedName::new("shop", "inner");
        let root = HttpRule { action: RuleAction::Delegate(inner_name), ..rule("root", outer.clone()) };
        let rewrite = Some(Rewrite { uri: Some("/new".to_owned()), ..Rewrite::default() });
        let of_inner = HttpRule { rewrite, ..rule("inner", inner.clone()) };
        let mut world = world();
        add(&mut world, routes("root", [root]));
        add(&mut world, VirtualService { hosts: Vec::new(), ..routes("inner", [of_inner]) });
        let snapshot = compiled(&world);
        let service = snapshot.service(&NamespacedName::new("shop", "web")).unwrap();
        let found = snapshot.routes().select(service, &get(path)).unwrap().unwrap();
        assert_eq!(found.prefix, wanted, "{outer:?} {inner:?}");
    }
}

#[test]
fn an_unknown_service_subset_or_port_is_an_answer_of_its_own_and_a_finding() {
    let with = |host: &str, subset: Option<&str>, port: Option<u16>| {
        let destination = Destination { host: host.to_owned(), subset: subset.map(str::to_owned), port };
        let action =
            RuleAction::Route(vec![WeightedDestination { destination, weight: 1, ..Default::default() }]);
        let mut world = world();
        add(&mut world, routes("r", [HttpRule { action, ..rule("r", []) }]));
        let snapshot = compiled(&world);
        let Action::Route(split) = &chosen(&snapshot, &get("/")).action else { panic!() };
        let target = snapshot
            .routes()
            .target(&split.pick(0).unwrap().cluster, 80, &client("shop"))
            .map(|of| of.port.number);
        (target, snapshot.findings().iter().any(|finding| finding.kind == "VirtualService"))
    };
    assert_eq!(with("web", None, None), (Ok(80), false));
    assert_eq!(with("web", None, Some(81)), (Ok(81), false));
    assert_eq!(with("nobody", None, None), (Err(Reason::NoSuchDestination), true));
    assert_eq!(with("web", None, Some(82)), (Err(Reason::NoSuchDestination), true));
    assert_eq!(with("web", Some("v9"), None).0, Err(Reason::NoSuchDestination));
}
