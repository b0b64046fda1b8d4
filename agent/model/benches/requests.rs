//! What one request costs a waypoint in the pure parts: the path made plain, and the rule that it follows among 1,000 of
//! one host.
//!
//! `cargo bench -p orlop-model --bench requests`

#![allow(clippy::unwrap_used, reason = "a bench that cannot go on should stop")]

mod harness;

use std::borrow::Cow;
use std::sync::Arc;

use harness::{report, shares};
use orlop_model::http::{Grants, Headers, Request, normalised};
use orlop_model::world::routing::{
    Destination, HttpMatch, HttpRule, RuleAction, StringMatch, VirtualService, WeightedDestination,
};
use orlop_model::world::{Labels, Namespace, Service, ServicePort};
use orlop_model::{NamespacedName, Settings, Snapshot, World, compile};

const RULES: usize = 1000;
const RUNS: usize = 100_000;

fn main() {
    for (what, path) in [
        ("path, plain", "/api/v1/users/1234/orders"),
        ("path, with dots and slashes", "/api//v1/./users/../users/1234/%6Frders"),
    ] {
        report(what, shares(RUNS, |_| normalised(path).map(|path| path.len())));
    }
    for (what, kind) in [("exact", 0), ("prefix", 1), ("regex", 2)] {
        let snapshot = snapshot(kind);
        let service = snapshot.service(&NamespacedName::new("shop", "web")).unwrap();
        let paths: Vec<_> = (0..RULES).map(|number| format!("/part-{}/x", number * 7919 % RULES)).collect();
        let select = |number: usize| {
            let request = request(&paths[number % RULES]);
            snapshot.routes().select(service, &request).unwrap().is_some()
        };
        report(&format!("one of {RULES} rules, {what}"), shares(RUNS / (1 + 9 * kind), select));
    }
}

struct NoHeaders;

impl Headers for NoHeaders {
    fn values(&self, _: &str) -> Vec<Cow<'_, str>> {
        Vec::new()
    }

    fn alike(&self, _: &str) -> Vec<Cow<'_, str>> {
        Vec::new()
    }
}

fn request(path: &str) -> Request<'_> {
    Request {
        method: "GET",
        scheme: "http",
        authority: "web",
        path,
        query: None,
        headers: &NoHeaders,
        port: 80,
        source: None,
        source_namespace: "shop",
        claims: &[],
    }
}

/// With a route of this kind for each path.
fn snapshot(kind: usize) -> Snapshot {
    let (web, waypoint) = (NamespacedName::new("shop", "web"), NamespacedName::new("shop", "gate"));
    let labels = Labels::from([("istio.io/use-waypoint".to_owned(), "gate".to_owned())]);
    let port = ServicePort { name: "http".into(), number: 80, ..ServicePort::default() };
    let service = Service { name: web.clone(), ports: vec![port], ..Service::default() };
    let rule = |number: usize| {
        let uri = match kind {
            0 => StringMatch::Exact(format!("/part-{number}/x")),
            1 => StringMatch::Prefix(format!("/part-{number}/")),
            _ => StringMatch::Regex(format!("/part-{number}/.*").parse().unwrap()),
        };
        let destination = Destination { host: "web".into(), ..Destination::default() };
        let to = WeightedDestination { destination, weight: 1, ..WeightedDestination::default() };
        HttpRule {
            matches: vec![HttpMatch { uri: Some(uri), ..HttpMatch::default() }],
            action: RuleAction::Route(vec![to]),
            ..HttpRule::default()
        }
    };
    let routes = VirtualService {
        name: web.clone(),
        hosts: vec!["web".into()],
        http: (0..RULES).map(rule).collect(),
        ..VirtualService::default()
    };
    let mut world = World::default();
    world.namespaces.insert("shop".into(), Namespace { labels });
    world.services.insert(web.clone(), service);
    world.virtual_services.insert(web, Arc::new(routes));
    let settings = Settings {
        node: "one".into(),
        trust_domain: "cluster.local".parse().unwrap(),
        trust_domain_aliases: Vec::new(),
        root_namespace: "istio-system".into(),
        cluster: "Kubernetes".into(),
        cluster_domain: "cluster.local".into(),
        network: None,
    };
    compile(&world, &settings, 1).with_routes(&waypoint, &world, &settings, Grants::Optional)
}
