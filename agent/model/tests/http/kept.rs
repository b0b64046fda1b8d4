//! What is kept from an earlier state of the world is what would have been made anew, and nothing is made anew that has
//! not changed.

use std::sync::Arc;

use orlop_model::http::{Action, Cluster, Grants, OwnGateway, Request, Split, Stream};
use orlop_model::world::gateway::{FromNamespaces, Gateway, Listener};
use orlop_model::world::gateway_api::{
    BackendRef, GROUP, GatewayParent, GrantFrom, GrantTo, Parent, ReferenceGrant, Route, RouteBackend,
    RouteKind, RouteRule,
};
use orlop_model::world::routing::{
    Balancer, Destination, DestinationRule, HttpRule, RuleAction, Subset, TrafficPolicy, VirtualService,
    WeightedDestination,
};
use orlop_model::world::stream::{Sni, StreamRule, WeightedStream};
use orlop_model::world::{Exports, Pod};
use orlop_model::{Entrance, Hosts, NamespacedName, Snapshot, World, compile, compile_after};
use proptest::prelude::*;

use crate::support::{add, add_destination, client, get, prefix, routes, rule, settings, to, world};

const HOSTS: [&str; 4] = ["web", "other", "*.shop.svc.cluster.local", "web.far.svc.cluster.local"];
const VERSIONS: [&str; 3] = ["v1", "v2", "v3"];

fn shop(name: &str) -> NamespacedName {
    NamespacedName::new("shop", name)
}

fn gate() -> NamespacedName {
    NamespacedName::new("edge", "gate")
}

/// Some choices, drawn from one number.
struct Draw(u32);

impl Draw {
    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        let number = u32::try_from(choices.len()).unwrap();
        let choice = self.0 % number;
        self.0 /= number;
        choices[choice as usize].clone()
    }
}

fn change(world: &mut World, draw: &mut Draw) {
    let changes = [virtual_service, delegate, destination_rule, route, pod, pod, slice, service, grant];
    draw.of(&changes)(world, draw);
}

fn destination(draw: &mut Draw) -> Destination {
    let subset = draw.of(&[None, Some("v1"), Some("v2")]).map(str::to_owned);
    Destination { subset, host: draw.of(&HOSTS[..2]).to_owned(), port: draw.of(&[None, Some(80), Some(82)]) }
}

fn leads(draw: &mut Draw) -> RuleAction {
    let destination = destination(draw);
    RuleAction::Route(vec![WeightedDestination { destination, weight: 1, ..WeightedDestination::default() }])
}

fn virtual_service(world: &mut World, draw: &mut Draw) {
    let name = draw.of(&["a", "b"]);
    if draw.of(&[true, false, false]) {
        world.virtual_services.remove(&shop(name));
        return;
    }
    let delegates =
        HttpRule { action: RuleAction::Delegate(shop("delegate")), ..rule("one", [prefix("/a")]) };
    let http = vec![delegates, HttpRule { action: leads(draw), ..rule("two", []) }];
    let tcp = draw.of(&[true, false]).then(|| StreamRule {
        matches: Vec::new(),
        route: vec![WeightedStream { destination: destination(draw), weight: 1 }],
    });
    let exports = draw.of(&[Exports::All, Exports::All, Exports::To(["far".to_owned()].into())]);
    let hosts = vec![draw.of(&HOSTS).to_owned()];
    add(world, VirtualService { hosts, exports, tcp: tcp.into_iter().collect(), ..routes(name, http) });
}

fn delegate(world: &mut World, draw: &mut Draw) {
    let http = vec![HttpRule { action: leads(draw), ..rule("delegated", []) }];
    let hosts = draw.of(&[vec![], vec![], vec!["web".to_owned()]]);
    add(world, VirtualService { hosts, ..routes("delegate", http) });
}

fn destination_rule(world: &mut World, draw: &mut Draw) {
    let name = NamespacedName::new(draw.of(&["shop", "far", "istio-system"]), draw.of(&["a", "b"]));
    if draw.of(&[true, false, false]) {
        world.destination_rules.remove(&name);
        return;
    }
    let subset = |name: &&str| Subset {
        name: (*name).to_owned(),
        labels: [("tier".to_owned(), (*name).to_owned())].into(),
        ..Subset::default()
    };
    let balancer = draw.of(&[None, Some(Balancer::Random), Some(Balancer::RoundRobin)]);
    let selector = draw.of(&[None, Some([("tier".to_owned(), "v1".to_owned())].into())]);
    let rule = DestinationRule {
        name,
        host: draw.of(&HOSTS).to_owned(),
        selector,
        subsets: VERSIONS[..draw.of(&[0, 1, 2])].iter().map(subset).collect(),
        policy: TrafficPolicy { balancer, ..TrafficPolicy::default() },
        ..DestinationRule::default()
    };
    add_destination(world, rule);
}

fn route(world: &mut World, draw: &mut Draw) {
    let kind = draw.of(&[RouteKind::Http, RouteKind::Http, RouteKind::Grpc, RouteKind::Tls, RouteKind::Tcp]);
    let name = NamespacedName::new(draw.of(&["shop", "far"]), draw.of(&["a", "b"]));
    if draw.of(&[true, false, false]) {
        world.routes_mut(kind).remove(&name);
        return;
    }
    let backend = BackendRef {
        group: String::new(),
        kind: "Service".to_owned(),
        name: draw.of(&[shop("other"), NamespacedName::new("far", "web"), shop("web"), shop("none")]),
        port: draw.of(&[Some(80), Some(82)]),
    };
    let backends = vec![RouteBackend { backend, weight: 1, ..RouteBackend::default() }];
    let service = draw.of(&[shop("web"), shop("other")]);
    let parent = Parent { service, port: draw.of(&[None, Some(81)]), ..Parent::default() };
    let gateways = vec![GatewayParent { gateway: gate(), ..GatewayParent::default() }];
    let rules = vec![RouteRule { backends, ..RouteRule::default() }];
    let route = Route { kind, name, parents: vec![parent], gateways, rules, ..Route::default() };
    world.routes_mut(kind).insert(route.name.clone(), Arc::new(route));
}

fn pod(world: &mut World, draw: &mut Draw) {
    let name = shop(draw.of(&VERSIONS[..2]));
    let pod = (**world.pods.get(&name).unwrap()).clone();
    let labels = [("tier".to_owned(), draw.of(&VERSIONS).to_owned())].into();
    world.pods.insert(name, Pod { labels, ready: draw.of(&[true, false]), ..pod });
}

fn slice(world: &mut World, draw: &mut Draw) {
    let name = shop(draw.of(&["web-v1", "web-v2"]));
    let mut slice = (**world.endpoint_slices.get(&name).unwrap()).clone();
    slice.endpoints[0].ready = draw.of(&[true, false]);
    world.endpoint_slices.insert(name, slice);
}

fn service(world: &mut World, draw: &mut Draw) {
    let name = shop(draw.of(&["other", "web"]));
    let mut service = (**world.services.get(&name).unwrap()).clone();
    service.ports[0].number = draw.of(&[80, 82]);
    service.ports[0].app_protocol =
        draw.of(&[None, Some("http"), Some("tls"), Some("tcp")]).map(str::to_owned);
    let waypoint = draw.of(&["gate", "gate", "none"]).to_owned();
    service.labels = [("istio.io/use-waypoint".to_owned(), waypoint)].into();
    service.external_name = draw.of(&[None, None, Some("elsewhere.example.com".to_owned())]);
    world.services.insert(name, service);
}

fn grant(world: &mut World, draw: &mut Draw) {
    let (here, there) = draw.of(&[("far", "shop"), ("shop", "far")]);
    let kinds = ["HTTPRoute", "GRPCRoute", "TCPRoute"];
    let from = kinds[..draw.of(&[0, 1, 3])].iter().map(|kind| GrantFrom {
        group: GROUP.to_owned(),
        kind: (*kind).to_owned(),
        namespace: there.to_owned(),
    });
    let to = vec![GrantTo { group: String::new(), kind: "Service".to_owned(), name: None }];
    let grant = ReferenceGrant { name: NamespacedName::new(here, "grant"), from: from.collect(), to };
    world.reference_grants.insert(grant.name.clone(), Arc::new(grant));
}

/// With a gateway.
fn start() -> World {
    let mut world = world();
    let listener = Listener {
        name: "any".to_owned(),
        port: 80,
        protocol: "HTTP".to_owned(),
        namespaces: FromNamespaces::All,
        ..Listener::default()
    };
    let gateway = Gateway { name: gate(), listeners: vec![listener], ..Gateway::default() };
    world.gateways.insert(gate(), gateway);
    world
}

fn clusters(split: &Split) -> Vec<&Cluster> {
    [0, u64::MAX].into_iter().filter_map(|random| split.pick(random)).map(|choice| &choice.cluster).collect()
}

/// All that can be asked, in words.
fn seen(snapshot: &Snapshot) -> Vec<String> {
    let routes = snapshot.routes();
    let mut seen = vec![format!("{:?}", snapshot.findings())];
    let mut follow = |what: String, rule: Option<&orlop_model::http::Rule>| {
        seen.push(format!("{what}: {rule:?}"));
        let Some(Action::Route(split)) = rule.map(|rule| &rule.action) else { return };
        for cluster in clusters(split) {
            for client in ["shop", "far"].map(client) {
                seen.push(format!("{:?}", routes.target(cluster, 80, &client)));
            }
        }
    };
    for path in ["/a", "/b"] {
        let at_gateway = routes.select_at_gateway(&get(path), &Entrance::Plain);
        follow(format!("gateway {path} {:?}", at_gateway.err()), at_gateway.ok().map(|of| of.rule));
    }
    for name in [shop("web"), shop("other"), NamespacedName::new("far", "web")] {
        let service = snapshot.service(&name).unwrap();
        for port in [80, 81, 82] {
            for namespace in ["shop", "far"] {
                for path in ["/a", "/b"] {
                    let request = Request { port, source_namespace: namespace, ..get(path) };
                    let found = routes.select(service, &request);
                    let found = found.map(|selected| selected.map(|of| of.rule));
                    follow(
                        format!("{name} {port} {namespace} {path} {:?}", found.err()),
                        found.ok().flatten(),
                    );
                }
                let stream = Stream {
                    port,
                    destination: None,
                    sni: Sni::Name("a"),
                    source: None,
                    source_namespace: namespace,
                };
                let found = routes.select_stream(service, &stream);
                follow(format!("{name} {port} {namespace} {found:?}"), None);
                let opaque = routes.is_opaque(service, port, namespace);
                follow(format!("{opaque} {:?}", routes.target_of(service, port, &client(namespace))), None);
            }
        }
    }
    seen
}

fn own() -> OwnGateway {
    OwnGateway { name: gate(), class: None, pod: NamespacedName::new("edge", "gate-1") }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_kept_is_what_would_be_made(
        changes in proptest::collection::vec(proptest::collection::vec(any::<u32>(), 1..4), 1..24),
        required in any::<bool>(),
    ) {
        let (settings, hosts) = (settings(), Hosts::new());
        let grants = if required { Grants::Required } else { Grants::Optional };
        let mut world = start();
        let (mut waypoint, mut gateway): (Option<Snapshot>, Option<Snapshot>) = (None, None);
        for changes in changes {
            changes.into_iter().for_each(|number| change(&mut world, &mut Draw(number)));
            let compiled = compile_after(waypoint.as_ref(), &world, &hosts, &settings, 1);
            let kept =
                compiled.with_routes_after(waypoint.as_ref(), &shop("gate"), &world, &settings, grants);
            let made = compile(&world, &settings, 1).with_routes(&shop("gate"), &world, &settings, grants);
            prop_assert_eq!(seen(&kept), seen(&made));
            waypoint = Some(kept);
            let compiled = compile_after(gateway.as_ref(), &world, &hosts, &settings, 1);
            let kept = compiled.with_gateway_after(gateway.as_ref(), &own(), &world, &settings);
            let made = compile(&world, &settings, 1).with_gateway(&own(), &world, &settings);
            prop_assert_eq!(seen(&kept), seen(&made));
            gateway = Some(kept);
        }
    }
}

#[test]
fn nothing_else_is_made_anew() {
    let (settings, hosts) = (settings(), Hosts::new());
    let mut world = start();
    add(&mut world, routes("web", [rule("r", [])]));
    let of_other = VirtualService { hosts: vec!["other".to_owned()], ..routes("other", [rule("r", [])]) };
    let to_other = HttpRule { action: to("other"), ..rule("r", []) };
    add(&mut world, VirtualService { http: vec![to_other], ..of_other });
    let snapshot = |before: Option<&Snapshot>, world: &World| {
        let compiled = compile_after(before, world, &hosts, &settings, 1);
        compiled.with_routes_after(before, &shop("gate"), world, &settings, Grants::Optional)
    };
    let at = |snapshot: &Snapshot, name| {
        let service = snapshot.service(&shop(name)).unwrap();
        std::ptr::from_ref(snapshot.routes().select(service, &get("/")).unwrap().unwrap().rule)
    };
    let before = snapshot(None, &world);
    // Another state in between, so that nothing has the address of what is gone.
    let mut slice = (**world.endpoint_slices.get(&shop("web-v1")).unwrap()).clone();
    slice.endpoints[0].ready = false;
    world.endpoint_slices.insert(slice.name.clone(), slice);
    let after = snapshot(Some(&before), &world);
    assert_ne!(at(&after, "web"), at(&before, "web"));
    assert_eq!(at(&after, "other"), at(&before, "other"));
    add(&mut world, routes("web", [rule("s", [])]));
    let last = snapshot(Some(&after), &world);
    assert_ne!(at(&last, "web"), at(&after, "web"));
    assert_eq!(at(&last, "other"), at(&before, "other"));
}
