//! What a change costs a waypoint that stands before all services of a world, each with rules of its own: every other
//! one a VirtualService with a DestinationRule of two subsets, the others an HTTPRoute.
//!
//! `cargo bench -p orlop-model --bench routes -- SERVICES`

#![allow(clippy::unwrap_used, reason = "a bench that cannot go on should stop")]

mod generated;
mod harness;

use std::hint::black_box;
use std::sync::Arc;

use generated::{name, settings, slice, world};
use harness::{report, times};
use orlop_model::http::Grants;
use orlop_model::world::gateway_api::{BackendRef, Parent, Route, RouteBackend, RouteMatch, RouteRule};
use orlop_model::world::routing::{
    Destination, DestinationRule, HttpMatch, HttpRule, RuleAction, StringMatch, Subset, VirtualService,
    WeightedDestination,
};
use orlop_model::world::{Labels, Namespace};
use orlop_model::{Hosts, NamespacedName, Snapshot, World, compile, compile_after};

const COMPILATIONS: usize = 5;
const CHANGES: usize = 50;

fn main() {
    // cargo adds arguments of its own.
    let services = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(1000);
    let waypoint = NamespacedName::new("infra", "gate");
    let mut world = routed(services, &waypoint);
    let (settings, hosts) = (settings(), Hosts::new());
    let routes = |before: Option<&Snapshot>, snapshot: Snapshot, world: &World| {
        snapshot.with_routes_after(before, &waypoint, world, &settings, Grants::Optional)
    };
    let all = |_| drop(black_box(routes(None, compile(&world, &settings, 1), &world)));
    report(&format!("{services} services, all"), times(COMPILATIONS, all));
    let mut snapshot = routes(None, compile(&world, &settings, 1), &world);
    let mut after = |what: &str, world: &mut World, change: fn(&mut World, usize)| {
        let times = times(CHANGES, |nth| {
            change(world, nth);
            let compiled = compile_after(Some(&snapshot), world, &hosts, &settings, 2);
            snapshot = routes(Some(&snapshot), compiled, world);
        });
        report(&format!("{services} services, {what}"), times);
    };
    after("one endpoint", &mut world, |world, nth| {
        let mut slice = slice(0);
        if nth % 2 == 0 {
            slice.endpoints.pop();
        }
        world.endpoint_slices.insert(slice.name.clone(), slice);
    });
    after("one VirtualService", &mut world, |world, nth| {
        let of = virtual_service(0, nth as u32 % 100);
        world.virtual_services.insert(of.name.clone(), Arc::new(of));
    });
    after("one HTTPRoute", &mut world, |world, nth| {
        let of = http_route(1, nth as u32 % 100);
        world.http_routes.insert(of.name.clone(), Arc::new(of));
    });
}

/// With rules for every service, all behind this waypoint.
fn routed(services: usize, waypoint: &NamespacedName) -> World {
    let mut world = world(services);
    let labels = Labels::from([
        ("orlop.dev/mesh", "enabled"),
        ("istio.io/use-waypoint", waypoint.name.as_str()),
        ("istio.io/use-waypoint-namespace", waypoint.namespace.as_str()),
    ]);
    let namespaces: Vec<_> = world.namespaces.keys().cloned().collect();
    for namespace in namespaces {
        world.namespaces.insert(namespace, Namespace { labels: labels.clone() });
    }
    for number in 0..services {
        if number % 2 == 0 {
            let (of, rule) = (virtual_service(number, 10), destination_rule(number));
            world.virtual_services.insert(of.name.clone(), Arc::new(of));
            world.destination_rules.insert(rule.name.clone(), Arc::new(rule));
        } else {
            let of = http_route(number, 10);
            world.http_routes.insert(of.name.clone(), Arc::new(of));
        }
    }
    world
}

fn own(service: usize) -> NamespacedName {
    name(service, format!("service-{service}"))
}

/// By path to one subset, and the rest to two by weight.
fn virtual_service(number: usize, weight: u32) -> VirtualService {
    let host = format!("service-{number}");
    let to = |subset: &str, weight| {
        let subset = Some(subset.to_owned());
        let destination = Destination { host: host.clone(), subset, ..Destination::default() };
        WeightedDestination { destination, weight, ..WeightedDestination::default() }
    };
    let uri = Some(StringMatch::Prefix("/admin/".into()));
    let admin = HttpRule {
        matches: vec![HttpMatch { uri, ..HttpMatch::default() }],
        action: RuleAction::Route(vec![to("v2", 1)]),
        ..HttpRule::default()
    };
    let split = RuleAction::Route(vec![to("v1", 100 - weight), to("v2", weight)]);
    VirtualService {
        name: own(number),
        hosts: vec![host.clone()],
        http: vec![admin, HttpRule { action: split, ..HttpRule::default() }],
        ..VirtualService::default()
    }
}

fn destination_rule(number: usize) -> DestinationRule {
    let subset = |version: &str| Subset {
        name: version.to_owned(),
        labels: [("version", version)].into(),
        ..Subset::default()
    };
    DestinationRule {
        name: own(number),
        host: format!("service-{number}"),
        subsets: vec![subset("v1"), subset("v2")],
        ..DestinationRule::default()
    }
}

fn http_route(number: usize, weight: u32) -> Route {
    let to = |service, weight| RouteBackend {
        backend: BackendRef {
            kind: "Service".into(),
            name: service,
            port: Some(80),
            ..BackendRef::default()
        },
        weight,
        ..RouteBackend::default()
    };
    let uri = Some(StringMatch::Segments("/part".into()));
    let http = HttpMatch { uri, ..HttpMatch::default() };
    Route {
        name: own(number),
        parents: vec![Parent { service: own(number), ..Parent::default() }],
        rules: vec![RouteRule {
            matches: vec![RouteMatch { http, rpc: None }, RouteMatch::default()],
            backends: vec![to(own(number), 100 - weight), to(own(number - 1), weight)],
            ..RouteRule::default()
        }],
        ..Route::default()
    }
}
