use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use orlop_model::http::{Cluster, MAX_SUBSETS};
use orlop_model::world::routing::{
    Balancer, ConnectionPool, DestinationRule, Outlier, Subset, TrafficPolicy,
};
use orlop_model::world::{Labels, ServiceEntry, ServicePort};
use orlop_model::{NamespacedName, Reason, Snapshot, World};

use crate::support::{add_destination, compiled, world};

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
    client: &str,
) -> Result<(Vec<IpAddr>, Option<Arc<TrafficPolicy>>), Reason> {
    let service = snapshot.service(&NamespacedName::new("shop", "web")).cloned();
    let service = service.ok_or(Reason::NoSuchDestination);
    let cluster =
        Cluster { host: String::new(), service, port: Some(port), subset: subset.map(str::to_owned) };
    let target = snapshot.routes().target(&cluster, port, client)?;
    let eligible = target.eligible(Ipv4Addr::UNSPECIFIED.into());
    Ok((eligible.iter().map(|endpoint| endpoint.address.ip()).collect(), target.policy.cloned()))
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
    assert_eq!(target(&compiled(&world), Some("v1"), 80, "shop").unwrap_err(), Reason::NoSuchDestination);
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
    let snapshot = compiled(&world);
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
        let (endpoints, policy) = target(&compiled(&world), Some("v1"), 80, client).unwrap();
        assert_eq!(endpoints, [IpAddr::from([10, 0, 0, 1])], "{client}");
        assert_eq!(policy.and_then(|policy| policy.balancer.clone()), Some(Balancer::Random), "{client}");
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
    let snapshot = compiled(&world);
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
    let snapshot = compiled(&world);
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
