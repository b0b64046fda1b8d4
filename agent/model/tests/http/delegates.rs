//! VirtualServices that delegate, and those that they delegate to.

use std::time::Duration;

use orlop_model::http::Action;
use orlop_model::world::routing::{
    Abort, Destination, Fault, HeaderChange, HeaderChanges, HttpMatch, HttpRule, Mirror, Percent, RuleAction,
    VirtualService,
};
use orlop_model::{NamespacedName, World};

use crate::support::{add, chosen, compiled, get, routes, rule, selected, to, world};

/// `web` of `shop` goes by this rule of the namespace `far`, which delegates to that of `shop`.
fn delegated(root: HttpRule, inner: HttpRule) -> World {
    let action = RuleAction::Delegate(NamespacedName::new("shop", "inner"));
    let http = vec![HttpRule { action, ..root }];
    let (name, hosts) = (NamespacedName::new("far", "root"), vec!["web.shop.svc.cluster.local".to_owned()]);
    let mut world = world();
    add(&mut world, VirtualService { name, hosts, http, ..VirtualService::default() });
    add(&mut world, VirtualService { hosts: Vec::new(), ..routes("inner", [inner]) });
    world
}

#[test]
fn a_rule_of_a_delegate_tells_who_delegates_to_it() {
    let snapshot = compiled(&delegated(rule("root", []), rule("inner", [])));
    let found = chosen(&snapshot, &get("/"));
    assert_eq!(*found.resource, NamespacedName::new("shop", "inner"));
    assert_eq!(found.root.as_deref(), Some(&NamespacedName::new("far", "root")));
    let mut world = world();
    add(&mut world, routes("r", [rule("r", [])]));
    assert_eq!(chosen(&compiled(&world), &get("/")).root, None);
}

#[test]
fn each_short_name_is_of_the_namespace_of_whoever_writes_it() {
    let mirror = |host: &str| {
        let destination = Destination { host: host.to_owned(), ..Destination::default() };
        vec![Mirror { destination, percent: Percent::ALL }]
    };
    let root = || HttpRule { mirrors: mirror("copies"), ..rule("root", []) };
    for (inner, host, by) in [
        (rule("inner", []), "copies.far.svc.cluster.local", "root"),
        (HttpRule { mirrors: mirror("own"), ..rule("inner", []) }, "own.shop.svc.cluster.local", "inner"),
    ] {
        let snapshot = compiled(&delegated(root(), HttpRule { action: to("web"), ..inner }));
        let found = chosen(&snapshot, &get("/"));
        let Action::Route(split) = &found.action else { panic!("{:?}", found.action) };
        assert_eq!(split.pick(0).unwrap().cluster.host, "web.shop.svc.cluster.local");
        assert_eq!(found.mirrors[0].cluster.host, host);
        let message = format!("http[0].mirror leads to {host}, which is no service: 503");
        let told = snapshot.findings().iter().find(|finding| finding.message == message).unwrap();
        assert_eq!(told.name.name, by);
    }
}

#[test]
fn a_delegates_match_for_a_gateway_is_none_for_the_mesh() {
    let of = |gateways: &[&str]| {
        let gateways = gateways.iter().map(|name| (*name).to_owned()).collect();
        [HttpMatch { gateways, ..HttpMatch::default() }]
    };
    for (root, inner, wanted) in [
        (&[][..], &[][..], true),
        (&[], &["mesh"], true),
        (&[], &["edge"], false),
        (&["edge"], &[], false),
        (&["edge"], &["mesh"], false),
        (&["edge", "mesh"], &["edge"], false),
        (&["edge", "mesh"], &["mesh"], true),
    ] {
        let snapshot = compiled(&delegated(rule("root", of(root)), rule("inner", of(inner))));
        let found = selected(&snapshot, &get("/")).ok().flatten();
        assert_eq!(found.as_deref(), wanted.then_some("inner"), "{root:?} {inner:?}");
    }
}

#[test]
fn a_field_that_a_delegate_has_counts_as_a_whole() {
    let headers = HeaderChanges {
        request: HeaderChange { remove: vec!["x".to_owned()], ..HeaderChange::default() },
        ..HeaderChanges::default()
    };
    let delay = Some((Duration::from_secs(1), Percent::ALL));
    let abort = |status| Some((Abort::Http(status), Percent::ALL));
    let root = HttpRule {
        timeout: Some(Duration::from_secs(9)),
        fault: Some(Fault { delay, abort: abort(500) }),
        headers: Some(headers.clone()),
        ..rule("root", [])
    };
    let snapshot = compiled(&delegated(root.clone(), rule("inner", [])));
    let found = chosen(&snapshot, &get("/"));
    assert_eq!(found.timeout, root.timeout);
    assert_eq!((&found.fault, &found.headers), (&Fault { delay, abort: abort(500) }, &headers));
    let own = Fault { delay: None, abort: abort(503) };
    let inner = HttpRule {
        timeout: Some(Duration::ZERO),
        fault: Some(own.clone()),
        headers: Some(HeaderChanges::default()),
        ..rule("inner", [])
    };
    let snapshot = compiled(&delegated(root, inner));
    let found = chosen(&snapshot, &get("/"));
    assert_eq!(found.timeout, None);
    assert_eq!((&found.fault, &found.headers), (&own, &HeaderChanges::default()));
}
