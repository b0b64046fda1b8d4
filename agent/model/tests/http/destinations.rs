use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use orlop_model::http::{
    Client, Cluster, MAX_CERTIFICATES, MAX_SELECTORS, MAX_SUBSETS, Resolved, TargetProblem, backend_problems,
    certificate_maps,
};
use orlop_model::world::config_map::COPIES;
use orlop_model::world::gateway_api::{BackendProblem, BackendTarget, BackendTls};
use orlop_model::world::routing::{
    Balancer, CertificateRef, ConnectionPool, Destination, DestinationRule, HttpRule, Outlier, Pem, Roots,
    RuleAction, ServerCheck, ServerTls, Subset, TrafficPolicy, WeightedDestination,
};
use orlop_model::world::{ConfigMap, Labels, ServiceEntry, ServicePort};
use orlop_model::{NamespacedName, Reason, Snapshot, World};

use crate::support::{add, add_destination, client, compiled, get, routes, selected, settings, world};

fn destination(namespace: &str, name: &str, host: &str) -> DestinationRule {
    let name = NamespacedName::new(namespace, name);
    DestinationRule { name, host: host.to_owned(), ..DestinationRule::default() }
}

fn balanced(balancer: Balancer) -> TrafficPolicy {
    TrafficPolicy { balancer: Some(balancer), ..TrafficPolicy::default() }
}

fn version(version: &str) -> Subset {
    let labels: Labels = [("version".to_owned(), version.to_owned())].into();
    Subset { name: version.to_owned(), labels, ..Subset::default() }
}

/// The endpoints and the policy of a subset of `shop/web`, for clients of a namespace.
fn target(
    snapshot: &Snapshot,
    subset: Option<&str>,
    port: u16,
    namespace: &str,
) -> Result<(Vec<IpAddr>, Option<Arc<TrafficPolicy>>), Reason> {
    let service = snapshot.service(&NamespacedName::new("shop", "web")).cloned();
    let service = service.ok_or(Reason::NoSuchDestination);
    let subset = subset.map(str::to_owned);
    let cluster = Cluster { host: String::new(), service, port: Some(port), subset, needs_tls: false };
    let target = snapshot.routes().target(&cluster, port, &client(namespace))?;
    let eligible = target.eligible(Ipv4Addr::UNSPECIFIED.into());
    Ok((eligible.iter().map(|endpoint| endpoint.address.ip()).collect(), target.policy.cloned()))
}

/// The world compiled, with a route to each of the subsets that there are.
fn led(world: &World) -> Snapshot {
    let mut world = world.clone();
    let subsets = world.destination_rules.values().flat_map(|rule| &rule.subsets);
    let route = subsets.map(|subset| WeightedDestination {
        destination: Destination {
            host: "web".to_owned(),
            subset: Some(subset.name.clone()),
            ..Destination::default()
        },
        weight: 1,
        ..WeightedDestination::default()
    });
    let action = RuleAction::Route(route.collect());
    add(&mut world, routes("led", [HttpRule { action, ..HttpRule::default() }]));
    compiled(&world)
}

fn balancer(world: &World, client: &str) -> Option<Balancer> {
    target(&compiled(world), None, 80, client).unwrap().1.and_then(|policy| policy.balancer.clone())
}

#[test]
fn the_clients_namespace_counts_first_then_the_services_then_the_root() {
    let mut world = world();
    assert_eq!(balancer(&world, "shop"), None);
    for (namespace, policy) in
        [("istio-system", Balancer::Random), ("shop", Balancer::RoundRobin), ("far", Balancer::LeastRequest)]
    {
        let host = "web.shop.svc.cluster.local";
        let rule = DestinationRule { policy: balanced(policy.clone()), ..destination(namespace, "r", host) };
        add_destination(&mut world, rule);
        assert_eq!(balancer(&world, "far"), Some(policy), "{namespace}");
    }
    assert_eq!(balancer(&world, "shop"), Some(Balancer::RoundRobin));
    assert_eq!(balancer(&world, "street"), Some(Balancer::RoundRobin));
}

#[test]
fn the_most_specific_host_counts_and_levels_do_not_merge() {
    let mut world = world();
    let wide = DestinationRule {
        policy: balanced(Balancer::Random),
        subsets: vec![version("v1")],
        ..destination("shop", "wide", "*.shop.svc.cluster.local")
    };
    add_destination(&mut world, wide);
    assert_eq!(balancer(&world, "shop"), Some(Balancer::Random));
    add_destination(&mut world, destination("shop", "own", "web"));
    assert_eq!(balancer(&world, "shop"), None);
    assert_eq!(target(&led(&world), Some("v1"), 80, "shop").unwrap_err(), Reason::NoSuchDestination);
}

#[test]
fn of_one_host_subsets_append_and_the_first_policy_wins() {
    let mut world = world();
    let rule = |name: &str, created, subset, policy| DestinationRule {
        created: Some(created),
        subsets: vec![version(subset)],
        policy,
        ..destination("shop", name, "web")
    };
    add_destination(&mut world, rule("c", 1, "v1", TrafficPolicy::default()));
    add_destination(&mut world, rule("b", 2, "v2", balanced(Balancer::Random)));
    add_destination(&mut world, rule("a", 3, "v2", balanced(Balancer::RoundRobin)));
    let snapshot = led(&world);
    let ip = |n| IpAddr::from([10, 0, 0, n]);
    assert_eq!(target(&snapshot, Some("v1"), 80, "shop").unwrap().0, [ip(1)]);
    assert_eq!(target(&snapshot, Some("v2"), 80, "shop").unwrap().0, [ip(2)]);
    assert_eq!(target(&snapshot, None, 80, "shop").unwrap().0, [ip(1), ip(2)]);
    assert_eq!(balancer(&world, "shop"), Some(Balancer::Random));
}

#[test]
fn a_service_entry_of_the_same_name_has_no_part_in_what_is_said_of_a_service() {
    let mut world = world();
    let rule = DestinationRule {
        policy: balanced(Balancer::Random),
        subsets: vec![version("v1")],
        ..destination("shop", "r", "web")
    };
    add_destination(&mut world, rule);
    let entry = ServiceEntry {
        name: "zoo/web".parse().unwrap(),
        hosts: vec!["web.shop.svc.cluster.local".into()],
        ports: vec![ServicePort { name: "p80".into(), number: 80, ..ServicePort::default() }],
        ..ServiceEntry::default()
    };
    world.service_entries.insert(entry.name.clone(), entry);
    for client in ["shop", "zoo", "street"] {
        let (endpoints, policy) = target(&led(&world), Some("v1"), 80, client).unwrap();
        assert_eq!(endpoints, [IpAddr::from([10, 0, 0, 1])], "{client}");
        assert_eq!(policy.and_then(|policy| policy.balancer.clone()), Some(Balancer::Random), "{client}");
    }
}

#[test]
fn subsets_that_no_route_leads_to_are_not_made() {
    let mut world = world();
    let rule = DestinationRule { subsets: vec![version("v1")], ..destination("shop", "r", "web") };
    add_destination(&mut world, rule);
    assert_eq!(target(&compiled(&world), Some("v1"), 80, "shop").unwrap_err(), Reason::NoSuchDestination);
    assert_eq!(target(&led(&world), Some("v1"), 80, "shop").unwrap().0, [IpAddr::from([10, 0, 0, 1])]);
}

#[test]
fn a_service_entry_of_the_same_name_does_not_take_the_place_of_a_services_routes() {
    let mut world = world();
    let route = HttpRule { name: "of-web".to_owned(), ..HttpRule::default() };
    add(&mut world, routes("r", [route]));
    let entry = ServiceEntry {
        name: "shop/web".parse().unwrap(),
        hosts: vec!["web.shop.svc.cluster.local".into()],
        ports: vec![ServicePort { name: "tcp".into(), number: 90, ..ServicePort::default() }],
        ..ServiceEntry::default()
    };
    world.service_entries.insert(entry.name.clone(), entry);
    assert_eq!(selected(&compiled(&world), &get("/")), Ok(Some("of-web".to_owned())));
}

/// What TLS a client of `shop` gets to `shop/web`: a pod, or nobody knows which.
fn tls_of(world: &World, pod: Option<&str>) -> Option<ServerTls> {
    let snapshot = compiled(world);
    let service = snapshot.service(&NamespacedName::new("shop", "web")).unwrap();
    let pod = pod.map(|pod| NamespacedName::new("shop", pod));
    let client = Client { namespace: "shop", pod: pod.as_ref() };
    let target = snapshot.routes().target_of(service, 80, &client).unwrap();
    target.policy.and_then(|policy| policy.tls.clone())
}

fn secured(tls: ServerTls) -> TrafficPolicy {
    TrafficPolicy { tls: Some(tls), ..TrafficPolicy::default() }
}

#[test]
fn a_rule_for_some_clients_is_for_those_of_its_namespace_alone() {
    let mut world = world();
    let plain = DestinationRule {
        created: Some(1),
        selector: Some([("version".to_owned(), "v1".to_owned())].into()),
        policy: secured(ServerTls::Disable),
        ..destination("shop", "plain", "web")
    };
    let all = DestinationRule {
        created: Some(2),
        policy: secured(ServerTls::Mesh),
        ..destination("shop", "all", "web")
    };
    add_destination(&mut world, plain.clone());
    add_destination(&mut world, all.clone());
    assert_eq!(tls_of(&world, Some("v1")), Some(ServerTls::Disable));
    assert_eq!(tls_of(&world, Some("v2")), Some(ServerTls::Mesh));
    assert_eq!(tls_of(&world, None), Some(ServerTls::Mesh));
    let of_others = target(&compiled(&world), None, 80, "far").unwrap().1.unwrap();
    assert_eq!(of_others.tls, Some(ServerTls::Mesh));
    // Where the selected are those to be secured, nobody goes in clear of whom that is not known.
    add_destination(&mut world, DestinationRule { policy: secured(other_tls()), ..plain.clone() });
    add_destination(&mut world, DestinationRule { policy: secured(ServerTls::Disable), ..all.clone() });
    assert_eq!(tls_of(&world, Some("v1")), Some(other_tls()));
    assert_eq!(tls_of(&world, Some("v2")), Some(ServerTls::Disable));
    let is_refused = |world: &World, pod: Option<&str>| match tls_of(world, pod) {
        Some(ServerTls::Unavailable(why)) => why.contains("workloadSelector"),
        _ => false,
    };
    assert!(is_refused(&world, None) && is_refused(&world, Some("gone")));
    // The mesh's own TLS is to be had for anybody, if nobody asks for more.
    add_destination(&mut world, DestinationRule { policy: secured(ServerTls::Mesh), ..plain });
    assert_eq!(
        [tls_of(&world, Some("v2")), tls_of(&world, None)],
        [Some(ServerTls::Disable), Some(ServerTls::Mesh)]
    );
    add_destination(&mut world, DestinationRule { policy: secured(other_tls()), ..all });
    assert!(is_refused(&world, None));
}

#[test]
fn a_selector_without_labels_is_for_all_clients_of_its_namespace_and_nobody_else() {
    let mut world = world();
    let own = DestinationRule {
        selector: Some(Labels::default()),
        policy: secured(ServerTls::Disable),
        ..destination("shop", "own", "web")
    };
    add_destination(&mut world, own);
    for pod in [Some("v1"), Some("gone"), None] {
        assert_eq!(tls_of(&world, pod), Some(ServerTls::Disable), "{pod:?}");
    }
    assert!(target(&compiled(&world), None, 80, "far").unwrap().1.is_none());
}

#[test]
fn clients_of_a_rule_without_a_policy_go_by_that_for_all() {
    let mut world = world();
    let all = DestinationRule { policy: secured(ServerTls::Mesh), ..destination("shop", "all", "web") };
    let some = DestinationRule {
        selector: Some([("version".to_owned(), "v1".to_owned())].into()),
        ..destination("shop", "some", "web")
    };
    add_destination(&mut world, all);
    add_destination(&mut world, some.clone());
    assert_eq!(tls_of(&world, Some("v1")), Some(ServerTls::Mesh));
    let told = |world: &World| {
        let found = compiled(world).findings_of_all(world, &settings());
        found
            .iter()
            .any(|of| *of.name.name == *"some" && of.message.contains("the tls of shop/all is not in force"))
    };
    assert!(!told(&world));
    let other = DestinationRule { policy: balanced(Balancer::Random), ..some };
    add_destination(&mut world, other);
    assert!(tls_of(&world, Some("v1")).is_none() && told(&world));
}

/// None of the mesh's.
fn other_tls() -> ServerTls {
    ServerTls::Unavailable("x".to_owned())
}

#[test]
fn a_namespace_can_not_have_more_selectors_and_policies_than_is_sensible() {
    let mut world = world();
    for number in 0..=MAX_SELECTORS {
        let rule = DestinationRule {
            created: Some(number as i64),
            selector: Some([("app".to_owned(), number.to_string())].into()),
            policy: secured(ServerTls::Mesh),
            ..destination("shop", &format!("r{number}"), "web")
        };
        add_destination(&mut world, rule);
    }
    // It may be one of those that the last is for.
    assert!(matches!(tls_of(&world, Some("v1")), Some(ServerTls::Unavailable(_))));
    assert!(target(&compiled(&world), None, 80, "far").unwrap().1.is_none());
    let mut world = self::world();
    let ports: Vec<_> = (1..=64).map(|port| (port, balanced(Balancer::Random))).collect();
    for number in 0..300 {
        let policy = TrafficPolicy { ports: ports.clone(), ..secured(ServerTls::Disable) };
        let host = if number == 299 { "web".to_owned() } else { format!("a{number:03}") };
        let rule = destination("shop", &format!("r{number}"), &host);
        add_destination(&mut world, DestinationRule { policy, ..rule });
    }
    assert_eq!(tls_of(&world, Some("v1")), None);
    let own = DestinationRule { policy: secured(ServerTls::Mesh), ..destination("shop", "z", "web") };
    add_destination(&mut world, own);
    assert!(matches!(tls_of(&world, Some("v1")), Some(ServerTls::Unavailable(_))));
}

#[test]
fn what_is_to_be_secured_goes_to_no_port_that_is_not_listed() {
    let mut world = world();
    let passes = |world: &World| {
        let snapshot = compiled(world);
        let service = snapshot.service(&NamespacedName::new("shop", "web")).unwrap();
        snapshot.routes().pass_unlisted(service, &client("shop"))
    };
    assert_eq!(passes(&world), Ok(()));
    let rule = |tls| DestinationRule { policy: secured(tls), ..destination("shop", "r", "web") };
    add_destination(&mut world, rule(ServerTls::Disable));
    assert_eq!(passes(&world), Ok(()));
    add_destination(&mut world, rule(ServerTls::Mesh));
    assert_eq!(passes(&world), Err(Reason::NoServicePort));
    let of_port = TrafficPolicy { ports: vec![(80, secured(ServerTls::Mesh))], ..TrafficPolicy::default() };
    add_destination(&mut world, DestinationRule { policy: of_port, ..destination("shop", "r", "web") });
    assert_eq!(passes(&world), Err(Reason::NoServicePort));
}

#[test]
fn a_backend_tls_policy_is_undone_by_nothing() {
    let mut world = world();
    let policy = |name: &str, created, targets: &[(&str, Option<&str>)], why: &str| BackendTls {
        name: NamespacedName::new("shop", name),
        created: Some(created),
        targets: targets
            .iter()
            .map(|(name, port)| BackendTarget { service: (*name).to_owned(), port: port.map(str::to_owned) })
            .collect(),
        anything: false,
        check: Err(BackendProblem::Invalid(why.to_owned())),
        unread: Vec::new(),
    };
    let tls = |world: &World, port| {
        let snapshot = compiled(world);
        let service = snapshot.service(&NamespacedName::new("shop", "web")).unwrap();
        match snapshot.routes().target_of(service, port, &client("far")).unwrap().tls {
            Some(ServerTls::Unavailable(why)) => why.rsplit(": ").next().unwrap_or_default().to_owned(),
            other => format!("{other:?}"),
        }
    };
    let plain = |namespace: &str| DestinationRule {
        policy: secured(ServerTls::Disable),
        ..destination(namespace, "plain", "web.shop.svc.cluster.local")
    };
    add_destination(&mut world, plain("far"));
    add_destination(&mut world, plain("shop"));
    assert_eq!(tls(&world, 80), "Some(Disable)");
    for of in [
        policy("c", 3, &[("web", None)], "younger"),
        policy("b", 2, &[("web", None)], "all"),
        policy("a", 4, &[("web", Some("p81")), ("none", None)], "port"),
    ] {
        world.backend_tls.insert(of.name.clone(), of);
    }
    assert_eq!((tls(&world, 80), tls(&world, 81)), ("all".to_owned(), "port".to_owned()));
    let problems = backend_problems(&world);
    let of =
        |name| problems.get(&NamespacedName::new("shop", name)).map(|of| of.values().collect::<Vec<_>>());
    let conflict = TargetProblem::Conflicted(NamespacedName::new("shop", "b"));
    assert_eq!((of("b"), of("c")), (None, Some(vec![&conflict])));
    let missing = TargetProblem::NotFound("there is no such Service".to_owned());
    assert_eq!(of("a"), Some(vec![&missing]));
    // Nobody knows what for.
    world.backend_tls = Default::default();
    let of = BackendTls { anything: true, ..policy("d", 1, &[], "anything") };
    world.backend_tls.insert(of.name.clone(), of);
    assert_eq!(tls(&world, 80), "anything");
}

fn config_map(namespace: &str, name: &str, all: &[(&str, &str)]) -> ConfigMap {
    let certificates = all.iter().map(|(key, text)| ((*key).to_owned(), Ok(Pem::from((*text).to_owned()))));
    ConfigMap { name: NamespacedName::new(namespace, name), certificates: certificates.collect() }
}

fn naming(namespace: &str, refs: &[CertificateRef]) -> BackendTls {
    let check = ServerCheck {
        sni: Some("web.example".to_owned()),
        names: Vec::new(),
        roots: Roots::Named(refs.to_vec()),
        credential: None,
    };
    BackendTls {
        name: NamespacedName::new(namespace, "p"),
        created: None,
        targets: Vec::new(),
        anything: false,
        check: Ok(Arc::new(check)),
        unread: Vec::new(),
    }
}

#[test]
fn names_of_config_maps_are_copied_and_what_no_policy_names_any_more_is_looked_at() {
    let mut world = World::default();
    let names = ["ca", "far/ca", "my ca", "ca?x", "..", "", "CA", "ca.two"];
    let policy = naming("shop", &names.map(|name| CertificateRef::ConfigMap(name.into())));
    world.backend_tls.insert(policy.name.clone(), Arc::new(policy));
    for (namespace, name, all) in [
        ("left", COPIES, [("ca", "pem")].as_slice()),
        ("empty", COPIES, &[]),
        ("other", "own", &[("ca.crt", "pem")]),
    ] {
        let map = config_map(namespace, name, all);
        world.config_maps.insert(map.name.clone(), Arc::new(map));
    }
    let found: Vec<_> = certificate_maps(&world).into_iter().collect();
    let of = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(found, [("left".to_owned(), of(&[])), ("shop".to_owned(), of(&["ca", "ca.two"]))]);
}

#[test]
fn of_several_references_to_certificates_those_count_that_have_any() {
    let (mut world, map) = (world(), config_map);
    let (half, most) = ("x".repeat(MAX_CERTIFICATES / 2), "y".repeat(MAX_CERTIFICATES / 2 - 3));
    let copies = map(
        "shop",
        COPIES,
        &[("copied", "two"), ("both", "copy"), ("twin", "one"), ("half", &half), ("most", &most)],
    );
    for of in [map("shop", "own", &[("ca.crt", "one")]), map("shop", "both", &[("ca.crt", "own")]), copies] {
        world.config_maps.insert(of.name.clone(), of);
    }
    world.config_maps.insert(NamespacedName::new("far", "theirs"), map("far", "theirs", &[("ca.crt", "x")]));
    let resolved = |refs: &[CertificateRef]| {
        let Resolved { check, unresolved } = Resolved::of(&world, &naming("shop", refs));
        let pem = check.ok().map(|check| match &check.roots {
            Roots::Only(all) => all.iter().map(Pem::as_str).collect::<Vec<_>>().join(" "),
            other => panic!("{other:?}"),
        });
        (pem, unresolved.len())
    };
    let named = |name: &str| CertificateRef::ConfigMap(name.into());
    let other = CertificateRef::Other("Secret own".to_owned());
    for (refs, wanted, unresolved) in [
        (vec![named("own")], Some("one"), 0),
        (vec![named("copied")], Some("two"), 0),
        (vec![named("both")], Some("own"), 0),
        (vec![named("own"), named("none"), named("copied"), other.clone()], Some("one two"), 2),
        (vec![named("own"), named("twin"), named("own")], Some("one"), 0),
        (vec![named("none"), named("own"), named("none")], Some("one"), 1),
        // What they have together is bounded.
        (vec![named("half"), named("most"), named("own")], Some(&*format!("{half} {most} one")), 0),
        (
            vec![named("half"), named("most"), named("both"), named("copied")],
            Some(&*format!("{half} {most} own")),
            1,
        ),
        (vec![named("theirs")], None, 1),
        (vec![named("none"), other], None, 2),
        (vec![named("far/theirs"), named("")], None, 2),
    ] {
        assert_eq!(resolved(&refs), (wanted.map(str::to_owned), unresolved), "{refs:?}");
    }
}

#[test]
fn a_service_has_no_more_subsets_than_is_sensible() {
    let mut world = world();
    let subsets = (0..=MAX_SUBSETS).map(|n| Subset { name: format!("s{n}"), ..Subset::default() });
    add_destination(
        &mut world,
        DestinationRule { subsets: subsets.collect(), ..destination("shop", "r", "web") },
    );
    let snapshot = led(&world);
    let subset = |n: usize| target(&snapshot, Some(&format!("s{n}")), 80, "shop").map(|found| found.0.len());
    assert_eq!((subset(MAX_SUBSETS - 1), subset(MAX_SUBSETS)), (Ok(2), Err(Reason::NoSuchDestination)));
}

#[test]
fn port_settings_replace_and_a_subset_overrides_block_by_block() {
    let pool = ConnectionPool { max_requests: Some(1), ..ConnectionPool::default() };
    let whole = TrafficPolicy {
        outlier: Some(Outlier::default()),
        pool: Some(pool.clone()),
        ports: vec![(81, balanced(Balancer::Random))],
        ..balanced(Balancer::RoundRobin)
    };
    let own = TrafficPolicy {
        outlier: Some(Outlier { server_errors: 1, ..Outlier::default() }),
        ..TrafficPolicy::default()
    };
    let subset = Subset { policy: own, ..version("v1") };
    let mut world = world();
    add_destination(
        &mut world,
        DestinationRule { policy: whole, subsets: vec![subset], ..destination("shop", "r", "web") },
    );
    let snapshot = led(&world);
    let policy = |subset, port| target(&snapshot, subset, port, "shop").unwrap().1.unwrap();
    assert_eq!(policy(None, 80).balancer, Some(Balancer::RoundRobin));
    let at_port = policy(None, 81);
    assert_eq!((&at_port.balancer, &at_port.outlier, &at_port.pool), (&Some(Balancer::Random), &None, &None));
    let of_subset = policy(Some("v1"), 80);
    assert_eq!(of_subset.outlier.as_ref().unwrap().server_errors, 1);
    assert_eq!((&of_subset.balancer, &of_subset.pool), (&Some(Balancer::RoundRobin), &Some(pool)));
    let at_port = policy(Some("v1"), 81);
    assert_eq!((&at_port.balancer, &at_port.pool), (&Some(Balancer::Random), &None));
}

#[test]
fn outliers_are_not_looked_for_unless_asked() {
    let default = Outlier::default();
    assert_eq!((default.server_errors, default.max_percent, default.min_health), (5, 10, 0));
    assert_eq!((default.interval.as_secs(), default.base.as_secs()), (10, 30));
    assert_eq!(TrafficPolicy::default().outlier, None);
}
