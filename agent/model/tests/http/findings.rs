//! What the authors of routes are told, whatever waypoint those are for.

use orlop_model::world::routing::{
    Balancer, Destination, DestinationRule, HttpMatch, HttpRule, Mirror, Percent, RuleAction, ServerTls,
    Subset, TrafficPolicy, VirtualService, WeightedDestination,
};
use orlop_model::world::{Exports, Labels, Protocol, ServiceEntry, ServicePort, WorkloadEntry};
use orlop_model::{Concern, FindingReason, NamespacedName, Settings, World, compile};

use crate::support::{add, add_destination, routes, rule, settings, world};

#[test]
fn good_routes_have_no_findings() {
    let mut world = world();
    add(&mut world, routes("r", [rule("r", []), leads("web", Some("v1"), Some(80))]));
    add_destination(&mut world, versions("shop", "web", &["v1", "v2"]));
    assert_eq!(told(&world), []);
}

#[test]
fn destinations_that_are_not_there_are_told_with_their_place() {
    let one = |http: HttpRule| {
        let mut world = world();
        add_destination(&mut world, versions("shop", "web", &["v1"]));
        add(&mut world, routes("r", [rule("first", []), http]));
        told(&world)
    };
    let wrong = |reason, message: &str| [("r".to_owned(), reason, format!("http[1].route[0] {message}"))];
    assert_eq!(
        one(leads("wbe", None, None)),
        wrong(FindingReason::NoSuchService, "leads to wbe.shop.svc.cluster.local, which is no service: 503")
    );
    assert_eq!(
        one(leads("web", None, Some(82))),
        wrong(
            FindingReason::NoSuchPort,
            "leads to port 82 of web.shop.svc.cluster.local, which has none: 503"
        )
    );
    assert_eq!(
        one(leads("web", Some("v9"), None)),
        wrong(
            FindingReason::NoSuchSubset,
            "leads to subset v9 of web.shop.svc.cluster.local, which no DestinationRule for that host defines: 503"
        )
    );
    assert_eq!(one(leads("web", Some("v1"), None)), []);
    let destination = Destination { host: "wbe".to_owned(), ..Destination::default() };
    let mirrored = HttpRule { mirrors: vec![Mirror { destination, percent: Percent::ALL }], ..rule("m", []) };
    assert!(one(mirrored)[0].2.starts_with("http[1].mirrors[0] leads to wbe"));
}

/// Levels don't merge: a subset that the service's own namespace does not define is not found in the root's.
#[test]
fn a_subset_is_found_where_some_client_would_find_it() {
    let found = |rules: &[(&str, &str, &[&str])]| {
        let mut world = world();
        add(&mut world, routes("r", [leads("web", Some("v1"), None)]));
        for (namespace, host, subsets) in rules {
            add_destination(&mut world, versions(namespace, host, subsets));
        }
        !told(&world).iter().any(|(_, reason, _)| *reason == FindingReason::NoSuchSubset)
    };
    let full = "web.shop.svc.cluster.local";
    assert!(!found(&[]));
    assert!(found(&[("istio-system", full, &["v1"])]));
    assert!(!found(&[("istio-system", full, &["v1"]), ("shop", "web", &["v2"])]));
    assert!(found(&[("far", full, &["v1"]), ("shop", "web", &["v2"])]));
    assert!(found(&[("shop", "*.shop.svc.cluster.local", &["v1"])]));
    assert!(!found(&[("shop", "*.far.svc.cluster.local", &["v1"])]));
}

#[test]
fn without_a_waypoint_nothing_is_in_force() {
    let mut world = world();
    add(&mut world, routes("r", [rule("r", [])]));
    add_destination(&mut world, versions("shop", "web", &["v1"]));
    world.namespaces.clear();
    let reasons: Vec<_> = told(&world).into_iter().map(|(_, reason, _)| reason).collect();
    assert_eq!(reasons, [FindingReason::NoWaypoint; 2]);
    assert!(told(&world)[1].2.ends_with("label the service or its namespace istio.io/use-waypoint"));
}

#[test]
fn a_waypoint_that_may_not_see_it_and_a_gateway_that_there_is_not_are_told() {
    let told_of = |of: VirtualService| {
        let mut world = world();
        add(&mut world, of);
        told(&world).into_iter().map(|(_, reason, _)| reason).collect::<Vec<_>>()
    };
    let exports = Exports::To(["far".to_owned()].into());
    let hidden = VirtualService { exports, ..routes("r", [rule("r", [])]) };
    assert_eq!(told_of(hidden), [FindingReason::NoWaypoint]);
    let of_gateway =
        VirtualService { gateways: vec!["edge".to_owned()], ..routes("r", [leads("wbe", None, None)]) };
    assert_eq!(told_of(of_gateway), [FindingReason::NoGateway]);
    let hosts = vec!["nobody.example".to_owned()];
    let of_nobody = VirtualService { hosts, ..routes("r", [rule("r", [])]) };
    assert_eq!(told_of(of_nobody), [FindingReason::NoSuchService]);
}

#[test]
fn delegates_that_are_none_are_told() {
    let mut world = world();
    let delegate = |name: &str| HttpRule {
        action: RuleAction::Delegate(NamespacedName::new("shop", name)),
        ..rule("d", [])
    };
    add(&mut world, routes("r", [delegate("nobody"), delegate("hosts"), delegate("good")]));
    let hosts = vec!["other".to_owned()];
    add(&mut world, VirtualService { hosts, ..routes("hosts", [rule("h", [])]) });
    let inner = VirtualService { hosts: Vec::new(), ..routes("good", [delegate("good")]) };
    add(&mut world, inner);
    add(&mut world, VirtualService { hosts: Vec::new(), ..routes("lonely", [rule("l", [])]) });
    let found: Vec<_> = told(&world).into_iter().map(|(name, _, message)| (name, message)).collect();
    let want = [
        ("good", "http[0] delegates again, which a delegate must not"),
        ("r", "http[0] delegates to shop/nobody, which is not there"),
        ("r", "http[1] delegates to shop/hosts, which has hosts of its own"),
        ("lonely", "has no hosts, and no VirtualService delegates to it, so it has no effect"),
    ];
    assert_eq!(sorted(found), sorted(want.map(|(name, text)| (name.to_owned(), text.to_owned())).into()));
}

#[test]
fn a_delegate_for_gateways_alone_is_told() {
    let action = RuleAction::Delegate(NamespacedName::new("shop", "inner"));
    let told_of = |gateways: &[&str]| {
        let gateways = gateways.iter().map(|name| (*name).to_owned()).collect();
        let inner = rule("i", [HttpMatch { gateways, ..HttpMatch::default() }]);
        let mut world = world();
        add(&mut world, routes("r", [HttpRule { action: action.clone(), ..rule("d", []) }]));
        add(&mut world, VirtualService { hosts: Vec::new(), ..routes("inner", [inner]) });
        told(&world)
    };
    assert_eq!(told_of(&["edge", "mesh"]), []);
    let [(name, reason, message)] = &told_of(&["edge"])[..] else { panic!() };
    assert_eq!((name.as_str(), *reason), ("inner", FindingReason::NoGateway));
    assert!(message.starts_with("is for Istio's Gateways alone (edge), "), "{message}");
}

#[test]
fn of_one_host_the_younger_is_told_that_its_rules_come_later() {
    let mut world = world();
    add(&mut world, VirtualService { created: Some(2), ..routes("a", [rule("a", [])]) });
    add(&mut world, VirtualService { created: Some(1), ..routes("b", [rule("b", [])]) });
    let [(name, reason, message)] = &told(&world)[..] else { panic!("{:?}", told(&world)) };
    assert_eq!((name.as_str(), *reason), ("a", FindingReason::Merged));
    assert!(message.contains("shop/b"), "{message}");
}

#[test]
fn destination_rules_of_nothing_are_told() {
    let mut world = world();
    add_destination(
        &mut world,
        DestinationRule { unread: vec!["tls".to_owned()], ..versions("shop", "wbe", &[]) },
    );
    let reasons: Vec<_> = told(&world).into_iter().map(|(_, reason, _)| reason).collect();
    assert_eq!(sorted(reasons), [FindingReason::NoSuchService, FindingReason::FieldsNotEnforced]);
    let mut world = self::world();
    let mut rule = versions("shop", "web", &["v1"]);
    rule.subsets[0].policy.tls = Some(ServerTls::Unavailable("tls.mode: no".to_owned()));
    add_destination(&mut world, rule);
    let want = "tls.mode: no, so that what would go there is refused: 503";
    assert_eq!(told(&world), [("versions".to_owned(), FindingReason::FieldsNotEnforced, want.to_owned())]);
    let mut world = self::world();
    add_destination(&mut world, versions("shop", "web", &["v1", "v9"]));
    let want = "subset v9 (version=v9) has none of the endpoints of web";
    assert_eq!(told(&world), [("versions".to_owned(), FindingReason::SelectsNothing, want.to_owned())]);
}

#[test]
fn tls_that_is_not_in_force_is_told() {
    let rule = |namespace: &str, name: &str, created, tls: Option<ServerTls>| {
        let policy = TrafficPolicy { balancer: Some(Balancer::Random), tls, ..TrafficPolicy::default() };
        DestinationRule {
            name: NamespacedName::new(namespace, name),
            created: Some(created),
            policy,
            ..versions("", "web.shop.svc.cluster.local", &[])
        }
    };
    let reasons = |rules: Vec<DestinationRule>| -> Vec<_> {
        let mut world = world();
        rules.into_iter().for_each(|rule| add_destination(&mut world, rule));
        told(&world).into_iter().map(|(name, reason, _)| (name, reason)).collect()
    };
    let (plain, secured) = (rule("shop", "a", 1, None), rule("shop", "b", 2, Some(ServerTls::Mesh)));
    let merged = |name: &str| vec![(name.to_owned(), FindingReason::Merged)];
    assert_eq!(reasons(vec![plain.clone(), secured.clone()]), merged("b"));
    assert_eq!(reasons(vec![plain, rule("shop", "b", 2, None)]), []);
    // Clients of a namespace that has one of its own.
    assert_eq!(reasons(vec![secured.clone(), rule("far", "c", 1, None)]), merged("c"));
    assert_eq!(reasons(vec![secured.clone(), rule("far", "c", 1, Some(ServerTls::Disable))]), []);
    let mut of_port = secured;
    of_port.policy.ports = vec![(80, TrafficPolicy::default())];
    assert_eq!(reasons(vec![of_port]), [("b".to_owned(), FindingReason::FieldsNotEnforced)]);
}

#[test]
fn service_entries_are_told_of_selectors_and_udp() {
    let app = |app: &str| -> Labels { [("app".to_owned(), app.to_owned())].into() };
    let name = NamespacedName::new("shop", "vms");
    let ports = vec![ServicePort { number: 53, protocol: Protocol::Udp, ..ServicePort::default() }];
    let entry = ServiceEntry { name: name.clone(), selector: app("vm"), ports, ..ServiceEntry::default() };
    let mut world = world();
    world.service_entries.insert(name.clone(), entry);
    let reasons = |world: &World| told(world).into_iter().map(|(_, reason, _)| reason).collect::<Vec<_>>();
    assert_eq!(sorted(reasons(&world)), [FindingReason::SelectsNothing, FindingReason::UdpNotEnforced]);
    let mut vm = WorkloadEntry { name, ..WorkloadEntry::default() };
    vm.backend.labels = app("vm");
    vm.backend.service_account = "default".to_owned();
    world.workload_entries.insert(vm.name.clone(), vm);
    assert_eq!(reasons(&world), [FindingReason::UdpNotEnforced]);
}

#[test]
fn every_reason_puts_one_thing_in_question() {
    assert_eq!(FindingReason::NoSuchSubset.concern(), Concern::References);
    assert_eq!(FindingReason::NoWaypoint.concern(), Concern::Enforcement);
    assert_eq!(FindingReason::Merged.concern(), Concern::Meaning);
}

/// By the resource's name.
fn told(world: &World) -> Vec<(String, FindingReason, String)> {
    let settings: Settings = settings();
    let found = compile(world, &settings, 1).findings_of_all(world, &settings);
    found
        .into_iter()
        .map(|finding| (finding.name.name.to_string(), finding.reason, finding.message))
        .collect()
}

fn sorted<T: Ord>(mut list: Vec<T>) -> Vec<T> {
    list.sort();
    list
}

fn leads(host: &str, subset: Option<&str>, port: Option<u16>) -> HttpRule {
    let destination = Destination { host: host.to_owned(), subset: subset.map(str::to_owned), port };
    let route = WeightedDestination { destination, weight: 1, ..WeightedDestination::default() };
    HttpRule { action: RuleAction::Route(vec![route]), ..rule("leads", []) }
}

fn versions(namespace: &str, host: &str, subsets: &[&str]) -> DestinationRule {
    let subset = |name: &&str| Subset {
        name: (*name).to_owned(),
        labels: [("version".to_owned(), (*name).to_owned())].into(),
        ..Subset::default()
    };
    DestinationRule {
        name: NamespacedName::new(namespace, "versions"),
        host: host.to_owned(),
        subsets: subsets.iter().map(subset).collect(),
        ..DestinationRule::default()
    }
}
