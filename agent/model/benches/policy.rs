//! What policies cost at scale: one decision among 10,000 policies of 10 rules each, and compiling them.
//!
//! `cargo bench -p orlop-model`

#![allow(clippy::unwrap_used, reason = "a bench that cannot go on should stop")]

mod harness;

use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;

use harness::{report, times};
use orlop_model::world::Pod;
use orlop_model::world::security::{
    Action, AuthorizationPolicy, Match, Operation, Pattern, Rule, ServiceAccount, Source,
};
use orlop_model::{
    Connection, Hosts, Identity, NamespacedName, Settings, Snapshot, World, compile, compile_after,
};

const POLICIES: usize = 10_000;
const RULES: usize = 10;
const PODS: usize = 1000;
const DECISIONS: usize = 100_000;
const COMPILATIONS: usize = 20;

fn main() {
    let mut world = world();
    let (settings, hosts) = (settings(), Hosts::new());
    println!("{POLICIES} policies of {RULES} rules, {PODS} pods");

    let snapshot = compile(&world, &settings, 1);
    let compiling =
        |compile: &mut dyn FnMut() -> Snapshot| times(COMPILATIONS, |_| drop(black_box(compile())));
    report("compile, everything new", compiling(&mut || compile(&world, &settings, 2)));
    let pod = pod(PODS);
    world.pods.insert(pod.name.clone(), pod);
    report(
        "compile, after one pod",
        compiling(&mut || compile_after(Some(&snapshot), &world, &hosts, &settings, 2)),
    );
    let policy = policy(0);
    world.authorization_policies.insert(policy.name.clone(), Arc::new(policy));
    report(
        "compile, after one policy",
        compiling(&mut || compile_after(Some(&snapshot), &world, &hosts, &settings, 2)),
    );

    let callers: Vec<_> = (0..1000).map(|n| caller(n * 97)).collect();
    let destination = snapshot.workload(&NamespacedName::new("shop", "web-0")).unwrap();
    let decide = |n: usize| {
        let (identity, port) = &callers[n % callers.len()];
        let source = IpAddr::from([10, (n % 256) as u8, (n / 256 % 256) as u8, 1]);
        let address = (destination.addresses[0], *port).into();
        let connection = Connection { source_identity: identity.as_ref(), source, destination, address };
        // What comes of it is dropped in time: an answer holds names.
        _ = black_box(snapshot.authorize(black_box(&connection)));
    };
    report("decision", times(DECISIONS, decide));
}

fn world() -> World {
    let policies = (0..POLICIES).map(policy);
    World {
        pods: (0..PODS).map(pod).map(|pod| (pod.name.clone(), pod)).collect(),
        authorization_policies: policies.map(|policy| (policy.name.clone(), Arc::new(policy))).collect(),
        ..World::default()
    }
}

fn pod(number: usize) -> Pod {
    Pod {
        name: NamespacedName::new("shop", format!("web-{number}")),
        labels: [("app", format!("app-{}", number % 100)), ("orlop.dev/mesh", "enabled".into())]
            .map(|(key, value)| (key.to_owned(), value))
            .into(),
        node: Some("one".into()),
        service_account: "web".into(),
        addresses: [[10, 1, (number / 250) as u8, (number % 250) as u8].into()].into(),
        ..Pod::default()
    }
}

/// Of each hundred policies 98 are for every pod of the namespace, two for those of an app.
fn policy(number: usize) -> AuthorizationPolicy {
    let app = number.is_multiple_of(50).then(|| ("app".to_owned(), format!("app-{}", number / 50 % 100)));
    AuthorizationPolicy {
        name: NamespacedName::new("shop", format!("p{number:05}")),
        selector: app.into_iter().collect(),
        action: if number.is_multiple_of(4) { Action::Deny } else { Action::Allow },
        rules: (0..RULES).map(|rule| self::rule(number * RULES + rule)).collect(),
        ..AuthorizationPolicy::default()
    }
}

fn rule(number: usize) -> Rule {
    let namespace = format!("ns-{}", number % 1000);
    let one = |text: String| Match { values: vec![text.parse::<Pattern>().unwrap()], not_values: vec![] };
    let source = match number % 6 {
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
        4 => {
            let block = format!("10.{}.{}.0/24", number / 256 % 256, number % 256).parse().unwrap();
            Source { ip_blocks: Match { values: vec![block], not_values: vec![] }, ..Source::default() }
        }
        _ => Source { namespaces: one(namespace), ..Source::default() },
    };
    let ports = if number.is_multiple_of(3) { vec![80, 443] } else { vec![1 + (number % 60_000) as u16] };
    let to = Operation { ports: Match { values: ports, not_values: vec![] }, ..Operation::default() };
    Rule { from: vec![source], to: vec![to], ..Rule::default() }
}

/// Of ten callers one shows no identity and one is in no rule.
fn caller(number: usize) -> (Option<Identity>, u16) {
    let text = match number % 10 {
        0 => return (None, 80),
        1 => "spiffe://cluster.local/ns/elsewhere/sa/nobody".to_owned(),
        _ => format!("spiffe://cluster.local/ns/ns-{}/sa/sa-{number}", number % 1000),
    };
    (Some(text.parse().unwrap()), if number.is_multiple_of(2) { 80 } else { 1 + (number % 60_000) as u16 })
}

fn settings() -> Settings {
    Settings {
        node: "one".into(),
        trust_domain: "cluster.local".parse().unwrap(),
        trust_domain_aliases: Vec::new(),
        root_namespace: "istio-system".into(),
        cluster: "Kubernetes".into(),
        cluster_domain: "cluster.local".into(),
        network: None,
    }
}
