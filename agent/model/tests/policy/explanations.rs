//! What a refusal says.

use orlop_model::world::security::{Action, Condition, Operation, Rule, Source};

use crate::support::*;

const DEV: &str = "td1/ns/dev/sa/curl";

#[test]
fn a_deny_policy_says_which_rule_matched_and_why() {
    let rule = Rule { to: on_ports(&[80, 81]).to, ..namespaces(&["dev"]) };
    let world = world([policy("no-dev", Action::Deny, [namespaces(&["x"]), rule])]);
    assert_eq!(
        call(DEV).explanation(&world),
        "AuthorizationPolicy shop/no-dev denies it: DENY rules[1] matches, since the source's namespace is dev, \
         which is in namespaces (dev); the destination's port is 80, which is in ports (80, 81)"
    );
}

#[test]
fn a_rule_that_matches_anything_says_so() {
    let world = world([policy("none", Action::Deny, [Rule::default()])]);
    assert_eq!(
        call(DEV).explanation(&world),
        "AuthorizationPolicy shop/none denies it: DENY rules[0] matches every connection"
    );
}

#[test]
fn what_a_connection_does_not_show_is_named() {
    let operation = Operation { ports: ports(&[80], &[]), ..paths() };
    let denied = world([policy("p", Action::Deny, [to(operation.clone())])]);
    assert_eq!(
        call(DEV).explanation(&denied),
        "AuthorizationPolicy shop/p denies it: DENY rules[0] matches, since the destination's port is 80, which \
         is in ports (80); its paths can't be seen in a connection and were left out"
    );
    let allowed = world([policy("p", Action::Allow, [to(operation)])]);
    assert_eq!(
        call(DEV).explanation(&allowed),
        "no ALLOW policy matches: shop/p; nearest is shop/p rules[0]: its paths can't be seen in a connection"
    );
}

#[test]
fn custom_says_that_its_provider_was_not_asked() {
    let world = world([policy("ask", Action::Custom, [on_ports(&[80])])]);
    assert_eq!(
        call(DEV).explanation(&world),
        "AuthorizationPolicy shop/ask has action CUSTOM: its provider can't be asked about a connection, so \
         rules[0] denies what it matches, since the destination's port is 80, which is in ports (80)"
    );
}

#[test]
fn the_rule_with_the_fewest_misses_is_the_nearest() {
    let rule = |namespace: &str, port| Rule { to: on_ports(&[port]).to, ..namespaces(&[namespace]) };
    let world = world([
        policy("a", Action::Allow, [rule("x", 1), rule("y", 2)]),
        policy("b", Action::Allow, [rule("z", 3), rule("dev", 8080)]),
    ]);
    assert_eq!(
        call(DEV).explanation(&world),
        "no ALLOW policy matches: shop/a, shop/b; nearest is shop/b rules[1]: the destination's port is 80, which \
         is not in ports (8080)"
    );
}

#[test]
fn the_nearest_alternative_is_told() {
    let source = |namespace: &str, block: &str| Source {
        namespaces: texts(&[namespace], &[]),
        ip_blocks: blocks(&[block], &[]),
        ..Source::default()
    };
    let rule = Rule { from: vec![source("x", "10.0.0.0/8"), source("dev", "10.0.0.0/8")], ..Rule::default() };
    assert_eq!(
        call(DEV).explanation(&world([policy("p", Action::Allow, [rule])])),
        "no ALLOW policy matches: shop/p; nearest is shop/p rules[0]: the source's address is 192.0.2.1, which \
         is not in ipBlocks (10.0.0.0/8)"
    );
}

#[test]
fn a_missing_identity_is_told() {
    let world = world([policy("p", Action::Allow, [principals(&["cluster.local/ns/a/sa/b"])])]);
    assert_eq!(
        call("").explanation(&world),
        "no ALLOW policy matches: shop/p; nearest is shop/p rules[0]: the source has no identity (no mutual TLS), \
         so it is not in principals (cluster.local/ns/a/sa/b, td1/ns/a/sa/b, td2/ns/a/sa/b)"
    );
}

#[test]
fn negations_say_what_is_excluded() {
    let source = Source { namespaces: texts(&["*"], &["dev"]), ..Source::default() };
    assert_eq!(
        call(DEV).explanation(&world([policy("p", Action::Allow, [from(source)])])),
        "no ALLOW policy matches: shop/p; nearest is shop/p rules[0]: the source's namespace is dev, which is in \
         notNamespaces (dev)"
    );
    let condition = Condition::SourceServiceAccount(accounts(&[], &["dev/curl"]));
    assert_eq!(
        call(DEV).explanation(&world([policy("p", Action::Allow, [when(condition)])])),
        "no ALLOW policy matches: shop/p; nearest is shop/p rules[0]: the source's service account is dev/curl, \
         which is in source.serviceAccount notValues (dev/curl)"
    );
}

#[test]
fn an_empty_policy_and_many_of_them_are_told() {
    let one = world([policy("none", Action::Allow, [])]);
    assert_eq!(call(DEV).explanation(&one), "no ALLOW policy matches: shop/none; no rule allows anything");
    let many = world((0..8).map(|n| policy(&format!("p{n}"), Action::Allow, [])));
    assert_eq!(
        call(DEV).explanation(&many),
        "no ALLOW policy matches: shop/p0, shop/p1, shop/p2, shop/p3, shop/p4 and 3 more; no rule allows anything"
    );
    let rule = on_ports(&[1, 2, 3, 4, 5, 6]);
    let values = world([policy("p", Action::Allow, [rule])]);
    assert!(call(DEV).explanation(&values).ends_with("is not in ports (1, 2, 3, 4 and 2 more)"));
}
