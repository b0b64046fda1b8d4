//! The index saves asking: counted, not timed.

use std::sync::Arc;

use super::rule::LOOKED_AT;
use crate::authorize::Connection;
use crate::compile::{Settings, compile};
use crate::identity::Identity;
use crate::name::NamespacedName;
use crate::snapshot::Snapshot;
use crate::world::security::{
    Action, AuthorizationPolicy, Match, Operation, Pattern, Rule, ServiceAccount, Source,
};
use crate::world::{Namespace, Pod, World};

const POLICIES: usize = 10_000;
const RULES: usize = 10;

#[test]
fn of_a_hundred_thousand_rules_few_are_looked_at() {
    let snapshot = snapshot(&world());
    let mut most = 0;
    for number in (0..POLICIES * RULES).step_by(997) {
        for (namespace, account, port) in [
            (format!("ns-{}", number % 1000), format!("sa-{number}"), 80),
            (format!("ns-{}", number % 1000), "nobody".to_owned(), 8080),
            ("elsewhere".to_owned(), "nobody".to_owned(), (number % 60_000) as u16),
        ] {
            let identity = Identity::new(&"cluster.local".parse().unwrap(), &namespace, &account);
            LOOKED_AT.set(0);
            let _ = snapshot.authorize(&connection(&snapshot, Some(&identity), port));
            most = most.max(LOOKED_AT.get());
        }
        LOOKED_AT.set(0);
        let _ = snapshot.authorize(&connection(&snapshot, None, 80));
        most = most.max(LOOKED_AT.get());
    }
    assert!(most < 300, "{most} rules looked at");
}

#[test]
fn rules_that_ask_the_same_are_looked_at_once() {
    let policies = (0..1000).map(|number| AuthorizationPolicy {
        name: NamespacedName::new("shop", format!("p{number}")),
        action: Action::Deny,
        rules: vec![from(Source { namespaces: nothing_but("dev"), ..Source::default() })],
        ..AuthorizationPolicy::default()
    });
    let snapshot = snapshot(&with(policies));
    let identity = Identity::new(&"cluster.local".parse().unwrap(), "dev", "a");
    LOOKED_AT.set(0);
    assert!(snapshot.authorize(&connection(&snapshot, Some(&identity), 80)).is_ok());
    assert_eq!(LOOKED_AT.get(), 1);
}

#[test]
fn pods_with_the_same_policies_share_them() {
    let selecting = |name: &str, app: &str| AuthorizationPolicy {
        name: NamespacedName::new("shop", name),
        selector: [("app".to_owned(), app.to_owned())].into(),
        ..AuthorizationPolicy::default()
    };
    let mut world = with([selecting("a", "web"), selecting("b", "db"), selecting("c", "web")]);
    let enrolled = [("orlop.dev/mesh".to_owned(), "enabled".to_owned())].into();
    world.namespaces.insert("shop".into(), Namespace { labels: enrolled });
    for name in ["web-1", "web-2", "db-1"] {
        let labels = [("app".to_owned(), name.split('-').next().unwrap().to_owned())].into();
        let name = NamespacedName::new("shop", name);
        let pod =
            Pod { name, labels, node: Some("one".into()), service_account: "a".into(), ..Pod::default() };
        world.pods.insert(pod.name.clone(), pod);
    }
    let snapshot = snapshot(&world);
    let layer = |name| snapshot.local.policies[&NamespacedName::new("shop", name)].0[0].clone().unwrap();
    assert!(Arc::ptr_eq(&layer("web-1"), &layer("web-2")));
    assert!(!Arc::ptr_eq(&layer("web-1"), &layer("db-1")));
    assert_eq!(layer("web-1").policies.len(), 2);
}

/// Policies of the kinds that people write, all on one pod.
fn world() -> World {
    with((0..POLICIES).map(|policy| AuthorizationPolicy {
        name: NamespacedName::new("shop", format!("p{policy:05}")),
        action: match policy % 4 {
            0 => Action::Deny,
            1 => Action::Audit,
            _ => Action::Allow,
        },
        dry_run: policy % 50 == 7,
        rules: (0..RULES).map(|rule| a_rule(policy * RULES + rule)).collect(),
        ..AuthorizationPolicy::default()
    }))
}

fn a_rule(number: usize) -> Rule {
    let namespace = format!("ns-{}", number % 1000);
    let one = |text: String| Match { values: vec![text.parse::<Pattern>().unwrap()], not_values: vec![] };
    let block = || format!("10.{}.{}.0/24", number / 256 % 256, number % 256).parse().unwrap();
    let source = match number % 7 {
        0 => Source {
            principals: one(format!("cluster.local/ns/{namespace}/sa/sa-{number}")),
            ..Source::default()
        },
        1 => Source { principals: one(format!("cluster.local/ns/ns-{number}*")), ..Source::default() },
        2 => Source { principals: one(format!("*/sa/sa-{number}")), ..Source::default() },
        3 => {
            let values = vec![ServiceAccount { namespace, name: format!("sa-{number}") }];
            Source { service_accounts: Match { values, not_values: vec![] }, ..Source::default() }
        }
        4 => Source { ip_blocks: Match { values: vec![block()], not_values: vec![] }, ..Source::default() },
        _ => Source { namespaces: one(namespace), ..Source::default() },
    };
    let ports = if number.is_multiple_of(3) { vec![80, 443] } else { vec![1 + (number % 60_000) as u16] };
    let not_values = if number.is_multiple_of(5) { vec![22] } else { vec![] };
    let to = Operation { ports: Match { values: ports, not_values }, ..Operation::default() };
    Rule { to: vec![to], ..from(source) }
}

fn nothing_but(namespace: &str) -> Match<Pattern> {
    Match { values: vec![], not_values: vec![Pattern::Exact(namespace.to_owned())] }
}

fn from(source: Source) -> Rule {
    Rule { from: vec![source], ..Rule::default() }
}

fn with(policies: impl IntoIterator<Item = AuthorizationPolicy>) -> World {
    let name = NamespacedName::new("shop", "web");
    let pod = Pod { name: name.clone(), service_account: "web".into(), ..Pod::default() };
    World {
        pods: [(name, pod)].into(),
        authorization_policies: policies
            .into_iter()
            .map(|policy| (policy.name.clone(), Arc::new(policy)))
            .collect(),
        ..World::default()
    }
}

fn snapshot(world: &World) -> Snapshot {
    let settings = Settings {
        node: "one".into(),
        trust_domain: "cluster.local".parse().unwrap(),
        trust_domain_aliases: Vec::new(),
        root_namespace: "istio-system".into(),
        cluster: "Kubernetes".into(),
        cluster_domain: "cluster.local".into(),
        network: None,
    };
    compile(world, &settings, 1)
}

fn connection<'a>(snapshot: &'a Snapshot, identity: Option<&'a Identity>, port: u16) -> Connection<'a> {
    Connection {
        source_identity: identity,
        source: "10.7.9.1".parse().unwrap(),
        destination: snapshot.workload(&NamespacedName::new("shop", "web")).unwrap(),
        address: ([10, 0, 0, 1], port).into(),
    }
}
