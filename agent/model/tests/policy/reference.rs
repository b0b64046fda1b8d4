//! Holds `Snapshot::authorize` against an obvious reference that scans the world for every answer.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use orlop_model::world::Pod;
use orlop_model::world::security::{
    Action, AuthorizationPolicy, Condition, IpBlock, Match, Operation, Pattern, Rule, ServiceAccount, Source,
    Target,
};
use orlop_model::{Connection, Hosts, NamespacedName, Outcome, World, compile, compile_after};
use proptest::prelude::*;

use crate::support::*;

const PRINCIPALS: [&str; 8] = [
    "td1/ns/shop/sa/a",
    "td2/ns/shop/sa/a",
    "td1/ns/dev/sa/b",
    "other/ns/dev/sa/a",
    "cluster.local/ns/shop/sa/a",
    "td1/ns/shop/sa/b",
    "td1/ns/shopping/sa/a",
    "",
];
const PRINCIPAL_PATTERNS: [&str; 14] = [
    "td1/ns/shop/sa/a",
    "td2/ns/shop/sa/a",
    "cluster.local/ns/shop/sa/a",
    "other/ns/dev/sa/a",
    "td1/*",
    "td1/ns/shop*",
    "cluster.local/ns/*",
    "td*",
    "*/sa/a",
    "*d2/ns/shop/sa/a",
    "*/ns/dev/sa/b",
    "*a",
    "*",
    "nobody",
];
const NAMESPACES: [&str; 7] = ["shop", "dev", "sh*", "*op", "*ping", "*", "none"];
const BLOCKS: [&str; 7] =
    ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "0.0.0.0/0", "fd00::/8", "fd00::1", "::/0"];
const ADDRESSES: [&str; 6] = ["10.1.2.3", "10.1.0.1", "::ffff:10.2.0.1", "192.0.2.1", "fd00::1", "fe00::1"];
const PORTS: [u16; 3] = [80, 81, 8080];

/// Whether it is allowed, the policies that may be named, whether it is audited, and what dry runs say.
type Answer = (bool, BTreeSet<NamespacedName>, bool, BTreeSet<(NamespacedName, Outcome)>);

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn authorize_agrees_with_a_scan_of_the_world(
        before in any_world(),
        mut world in any_world(),
        kept in any::<u8>(),
        calls in prop::collection::vec((one_of(&PRINCIPALS), one_of(&ADDRESSES), one_of(&ADDRESSES), port()), 6),
    ) {
        // Some policies stay where they are from one world to the next: what was made of them is used again.
        for (index, (name, policy)) in before.authorization_policies.iter().enumerate() {
            if kept >> index & 1 == 1 {
                world.authorization_policies.insert(name.clone(), policy.clone());
            }
        }
        let before = compile(&before, &settings(), 1);
        let snapshot = compile_after(Some(&before), &world, &Hosts::new(), &settings(), 2);
        let anew = compile(&world, &settings(), 2);
        prop_assert_eq!(snapshot.findings(), anew.findings());
        for (principal, source, address, port) in calls {
            let identity = identity(principal);
            for pod in world.pods.values() {
                let destination = snapshot.workload(&pod.name).unwrap();
                let address = SocketAddr::new(ip(address), port);
                let source_identity = identity.as_ref();
                let connection = Connection { source_identity, source: ip(source), destination, address };
                let (allowed, policy, audit, dry_run) = match snapshot.authorize(&connection) {
                    Ok(allowed) => (true, allowed.policy, allowed.audit, allowed.dry_run),
                    Err(denied) => {
                        prop_assert!(!denied.explain(&connection).is_empty());
                        (false, denied.policy, denied.audit, denied.dry_run)
                    }
                };
                let dry_run = dry_run.iter().map(|said| ((*said.policy).clone(), said.outcome)).collect();
                let call = Seen { principal, source: ip(source), address: ip_of(address), port };
                let (want_allowed, may_be_named, want_audit, want_dry_run) = reference(&world, pod, &call);
                prop_assert_eq!((allowed, audit, &dry_run), (want_allowed, want_audit, &want_dry_run));
                prop_assert_eq!(policy.is_some(), !may_be_named.is_empty());
                prop_assert!(policy.is_none_or(|policy| may_be_named.contains(&policy)));
            }
        }
    }
}

struct Seen<'a> {
    principal: &'a str,
    source: IpAddr,
    address: IpAddr,
    port: u16,
}

fn ip_of(address: SocketAddr) -> IpAddr {
    address.ip()
}

fn reference(world: &World, pod: &Pod, call: &Seen<'_>) -> Answer {
    let applies = |policy: &&Arc<AuthorizationPolicy>| {
        let namespace = &policy.name.namespace;
        policy.targets.is_empty()
            && (namespace == ROOT || *namespace == pod.name.namespace)
            && policy.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
    };
    let applying: Vec<_> = world.authorization_policies.values().filter(applies).collect();
    let of = |dry_run: bool, actions: &[Action]| -> Vec<&AuthorizationPolicy> {
        let those = applying.iter().filter(|p| p.dry_run == dry_run && actions.contains(&p.action));
        those.map(|policy| &***policy).collect()
    };
    let matching = |policies: &[&AuthorizationPolicy]| -> BTreeSet<NamespacedName> {
        policies
            .iter()
            .filter(|p| p.rules.iter().any(|r| rule(p.action, r, call)))
            .map(|p| p.name.clone())
            .collect()
    };
    let refuse = [Action::Deny, Action::Custom];
    let refusing = matching(&of(false, &refuse));
    let allow = of(false, &[Action::Allow]);
    let allowing = matching(&allow);
    let audited = !matching(&of(false, &[Action::Audit])).is_empty();
    let mut dry_run = BTreeSet::new();
    dry_run.extend(matching(&of(true, &refuse)).into_iter().map(|name| (name, Outcome::Deny)));
    dry_run.extend(matching(&of(true, &[Action::Audit])).into_iter().map(|name| (name, Outcome::Audit)));
    let dry_allow = of(true, &[Action::Allow]);
    let dry_allowing = matching(&dry_allow);
    if let (Some(first), true) = (dry_allow.first(), allowing.is_empty() && dry_allowing.is_empty()) {
        dry_run.insert((first.name.clone(), Outcome::Deny));
    }
    dry_run.extend(dry_allowing.into_iter().map(|name| (name, Outcome::Allow)));
    if !refusing.is_empty() {
        (false, refusing, audited, dry_run)
    } else {
        (allow.is_empty() || !allowing.is_empty(), allowing, audited, dry_run)
    }
}

fn rule(action: Action, rule: &Rule, call: &Seen<'_>) -> bool {
    let asks_of_requests =
        rule.from.iter().any(|s| !s.request_principals.is_empty() || !s.remote_ip_blocks.is_empty())
            || rule.to.iter().any(|o| !o.hosts.is_empty() || !o.methods.is_empty() || !o.paths.is_empty())
            || rule.when.iter().any(of_requests);
    if action == Action::Allow && asks_of_requests {
        return false;
    }
    let namespace = call.principal.split('/').nth(2).unwrap_or("");
    let principal = |of: &Match<Pattern>| holds(of, |pattern| principal(pattern, call.principal));
    let namespaces = |of: &Match<Pattern>| holds(of, |pattern| text(pattern, namespace));
    let accounts = |of: &Match<ServiceAccount>| {
        holds(of, |a| call.principal.ends_with(&format!("/ns/{}/sa/{}", a.namespace, a.name)))
    };
    let source_ip = |of: &Match<IpBlock>| holds(of, |block| block.contains(call.source));
    let source = |source: &Source| {
        principal(&source.principals)
            && namespaces(&source.namespaces)
            && accounts(&source.service_accounts)
            && source_ip(&source.ip_blocks)
    };
    let port = |of: &Match<u16>| holds(of, |port| *port == call.port);
    let condition = |when: &Condition| match when {
        Condition::SourceIp(of) => source_ip(of),
        Condition::SourceNamespace(of) => namespaces(of),
        Condition::SourcePrincipal(of) => principal(of),
        Condition::SourceServiceAccount(of) => accounts(of),
        Condition::DestinationIp(of) => holds(of, |block| block.contains(call.address)),
        Condition::DestinationPort(of) => port(of),
        // Left out.
        _ => true,
    };
    (rule.from.is_empty() || rule.from.iter().any(source))
        && (rule.to.is_empty() || rule.to.iter().any(|operation| port(&operation.ports)))
        && rule.when.iter().all(condition)
}

fn of_requests(when: &Condition) -> bool {
    match when {
        Condition::RemoteIp(of) => !of.is_empty(),
        Condition::Host(of) | Condition::Method(of) => !of.is_empty(),
        Condition::Header(..) | Condition::Unread(_) => true,
        _ => false,
    }
}

fn holds<T>(of: &Match<T>, is: impl Fn(&T) -> bool) -> bool {
    (of.values.is_empty() || of.values.iter().any(&is)) && !of.not_values.iter().any(&is)
}

/// The trust domain may be said by any of its names.
fn principal(pattern: &Pattern, principal: &str) -> bool {
    let (trust_domain, rest) = principal.split_once('/').unwrap_or_default();
    let mut names = vec![trust_domain];
    let says_trust_domain = pattern.to_string().contains('/');
    if ["td1", "td2"].contains(&trust_domain) && says_trust_domain {
        names.extend(["td1", "td2"]);
        if !matches!(pattern, Pattern::Suffix(_)) {
            names.push("cluster.local");
        }
    }
    !principal.is_empty() && names.iter().any(|name| text(pattern, &format!("{name}/{rest}")))
}

fn text(pattern: &Pattern, text: &str) -> bool {
    let written = pattern.to_string();
    !text.is_empty()
        && match (written.strip_prefix('*'), written.strip_suffix('*')) {
            (Some(""), _) => true,
            (Some(suffix), _) => text.ends_with(suffix),
            (_, Some(prefix)) => text.starts_with(prefix),
            (None, None) => text == written,
        }
}

fn any_world() -> impl Strategy<Value = World> {
    let app = || prop::option::of(one_of(&["web", "db"]));
    let pod = (one_of(&["shop", "bank"]), app()).prop_map(|(namespace, app)| {
        let labels = labels(&app.map(|app| ("app", app)).into_iter().collect::<Vec<_>>());
        Pod { name: id(namespace, ""), labels, service_account: "default".into(), ..Pod::default() }
    });
    (prop::collection::vec(pod, 1..4), prop::collection::vec(any_policy(), 0..8)).prop_map(
        |(pods, policies)| {
            let mut world = World::default();
            for (index, mut pod) in pods.into_iter().enumerate() {
                pod.name.name = format!("pod-{index}").into();
                world.pods.insert(pod.name.clone(), pod);
            }
            for (index, mut policy) in policies.into_iter().enumerate() {
                policy.name.name = format!("policy-{index}").into();
                world.authorization_policies.insert(policy.name.clone(), Arc::new(policy));
            }
            world
        },
    )
}

fn any_policy() -> impl Strategy<Value = AuthorizationPolicy> {
    let action = prop::sample::select(vec![
        Action::Allow,
        Action::Allow,
        Action::Allow,
        Action::Deny,
        Action::Deny,
        Action::Custom,
        Action::Audit,
    ]);
    let scope =
        (one_of(&[ROOT, "shop", "bank"]), prop::option::weighted(0.3, one_of(&["web", "db", "none"])));
    let flags = (prop::bool::weighted(0.05), prop::bool::weighted(0.25));
    (scope, action, prop::collection::vec(any_rule(), 0..3), flags).prop_map(
        |((namespace, app), action, rules, (targeted, dry_run))| AuthorizationPolicy {
            name: id(namespace, ""),
            selector: labels(&app.map(|app| ("app", app)).into_iter().collect::<Vec<_>>()),
            targets: targeted.then(|| Target::Service("web".to_owned())).into_iter().collect(),
            action,
            // No connection is one that it can be asked about.
            provider: some_provider(action),
            rules,
            dry_run,
        },
    )
}

fn some_provider(action: Action) -> Option<String> {
    (action == Action::Custom).then(|| "authz".to_owned())
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let list = |max| prop::collection::vec(any_source(), 0..max);
    (list(3), prop::collection::vec(any_operation(), 0..3), prop::collection::vec(any_condition(), 0..2))
        .prop_map(|(from, to, when)| Rule { from, to, when })
}

fn any_source() -> impl Strategy<Value = Source> {
    let sparse = |chance: f64| prop::bool::weighted(chance);
    let token = sparse(0.05).prop_map(|there| some(there.then_some("*")));
    (matching(&PRINCIPAL_PATTERNS), matching(&NAMESPACES), any_accounts(), any_blocks(), token).prop_map(
        |(principals, namespaces, service_accounts, ip_blocks, request_principals)| Source {
            principals,
            namespaces,
            service_accounts,
            ip_blocks,
            request_principals,
            ..Source::default()
        },
    )
}

fn any_operation() -> impl Strategy<Value = Operation> {
    let sparse = || prop::bool::weighted(0.1);
    (any_ports(), sparse(), sparse(), sparse()).prop_map(|(ports, path, host, method)| Operation {
        ports,
        paths: some(path.then_some("/a")),
        hosts: some(host.then_some("*")),
        methods: some(method.then_some("GET")),
    })
}

fn some<T: std::str::FromStr<Err: std::fmt::Debug>>(text: Option<&str>) -> Match<T> {
    Match { values: text.map(|text| text.parse().unwrap()).into_iter().collect(), not_values: vec![] }
}

fn any_condition() -> impl Strategy<Value = Condition> {
    prop_oneof![
        any_blocks().prop_map(Condition::SourceIp),
        matching(&NAMESPACES).prop_map(Condition::SourceNamespace),
        matching(&PRINCIPAL_PATTERNS).prop_map(Condition::SourcePrincipal),
        any_accounts().prop_map(Condition::SourceServiceAccount),
        any_blocks().prop_map(Condition::DestinationIp),
        any_ports().prop_map(Condition::DestinationPort),
        any_blocks().prop_map(Condition::RemoteIp),
        matching(&NAMESPACES).prop_map(|of| Condition::Header("x".into(), of)),
        Just(Condition::Unread("connection.sni".into())),
    ]
}

fn matching(patterns: &'static [&'static str]) -> impl Strategy<Value = Match<Pattern>> {
    both(one_of(patterns).prop_map(|pattern| pattern.parse().unwrap()))
}

fn any_accounts() -> impl Strategy<Value = Match<ServiceAccount>> {
    both(
        (one_of(&["shop", "dev"]), one_of(&["a", "b"]))
            .prop_map(|(namespace, name)| ServiceAccount { namespace: namespace.into(), name: name.into() }),
    )
}

fn any_blocks() -> impl Strategy<Value = Match<IpBlock>> {
    both(one_of(&BLOCKS).prop_map(|block| block.parse().unwrap()))
}

fn any_ports() -> impl Strategy<Value = Match<u16>> {
    both(port())
}

/// Mostly empty, so that rules of several fields match now and then.
fn both<T: std::fmt::Debug + Clone>(of: impl Strategy<Value = T> + Clone) -> impl Strategy<Value = Match<T>> {
    let list = |chance| prop::option::weighted(chance, prop::collection::vec(of.clone(), 1..3));
    (list(0.3), list(0.15)).prop_map(|(values, not_values)| Match {
        values: values.unwrap_or_default(),
        not_values: not_values.unwrap_or_default(),
    })
}

fn one_of(texts: &'static [&'static str]) -> prop::sample::Select<&'static str> {
    prop::sample::select(texts)
}

fn port() -> prop::sample::Select<u16> {
    prop::sample::select(&PORTS[..])
}
