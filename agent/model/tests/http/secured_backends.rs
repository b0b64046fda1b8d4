//! Backends that speak nothing but TLS.

use std::sync::Arc;

use orlop_model::http::Grants;
use orlop_model::world::gateway_api::{BackendTarget, BackendTls};
use orlop_model::world::routing::{DestinationRule, Roots, ServerCheck, ServerTls, TrafficPolicy};
use orlop_model::{NamespacedName, Reason, Snapshot, World, compile};

use crate::gateway_api::{backend, backends, finding, outcome, speak};
use crate::support::{compiled, settings};

#[test]
fn a_backend_that_speaks_tls_is_one_for_those_who_reach_it_by_tls() {
    let rule = |namespace: &str, policy| DestinationRule {
        name: NamespacedName::new(namespace, "r"),
        host: "*.shop.svc.cluster.local".to_owned(),
        policy,
        ..DestinationRule::default()
    };
    let by = |tls| TrafficPolicy { tls: Some(tls), ..TrafficPolicy::default() };
    let at = |port, tls| TrafficPolicy { ports: vec![(port, by(tls))], ..TrafficPolicy::default() };
    let check = ServerCheck { sni: None, names: Vec::new(), roots: Roots::Public, credential: None };
    let simple = || ServerTls::Simple(Arc::new(check.clone()));
    let invalid = Err(Reason::InvalidRoute);
    let there = Ok("web.shop.svc.cluster.local".to_owned());
    for protocol in ["https", "TLS", "kubernetes.io/wss"] {
        for (rule, secured, told) in [
            (None, false, true),
            (Some(rule("shop", by(simple()))), true, false),
            (Some(rule("shop", at(80, simple()))), true, false),
            // It is refused by the rule, which says why.
            (Some(rule("shop", by(ServerTls::Unavailable("?".to_owned())))), true, false),
            (Some(rule("shop", at(81, simple()))), false, true),
            (Some(rule("shop", by(ServerTls::Disable))), false, true),
            (Some(rule("shop", by(ServerTls::Mesh))), false, true),
            // Only for clients of another namespace.
            (Some(rule("far", by(simple()))), false, false),
        ] {
            let mut world = backends([backend("shop", "web", 1)]);
            speak(&mut world, protocol);
            let says = format!("{protocol}: {rule:?}");
            if let Some(rule) = rule {
                world.destination_rules.insert(rule.name.clone(), rule);
            }
            let wanted = if secured { &there } else { &invalid };
            assert_eq!(outcome(&world, Grants::Optional, 0), *wanted, "{says}");
            let message = format!("which speaks {protocol}, and nothing has it asked by TLS: 500");
            assert_eq!(finding(&compiled(&world), "HTTPRoute", &message), told, "{says}");
        }
        let mut world = backends([backend("shop", "web", 1)]);
        speak(&mut world, protocol);
        let policy = BackendTls {
            name: NamespacedName::new("shop", "p"),
            created: None,
            targets: vec![BackendTarget { service: "web".to_owned(), port: None }],
            anything: false,
            check: Ok(Arc::new(check.clone())),
            unread: Vec::new(),
        };
        world.backend_tls.insert(policy.name.clone(), policy);
        assert_eq!(outcome(&world, Grants::Optional, 0), there, "{protocol}");
    }
}

#[test]
fn a_rule_that_comes_has_a_backend_reached_by_tls_after_all() {
    let mut world = backends([backend("shop", "web", 1)]);
    speak(&mut world, "https");
    let gate = NamespacedName::new("shop", "gate");
    let after = |world: &World, before: Option<&Snapshot>| {
        let snapshot = compile(world, &settings(), 1);
        snapshot.with_routes_after(before, &gate, world, &settings(), Grants::Optional)
    };
    let before = after(&world, None);
    assert!(finding(&before, "HTTPRoute", "which speaks https"));
    let tls = Some(ServerTls::Unavailable(String::new()));
    let rule = DestinationRule {
        name: NamespacedName::new("shop", "r"),
        host: "web".to_owned(),
        policy: TrafficPolicy { tls, ..TrafficPolicy::default() },
        ..DestinationRule::default()
    };
    world.destination_rules.insert(rule.name.clone(), rule);
    assert!(!finding(&after(&world, Some(&before)), "HTTPRoute", "which speaks https"));
}
