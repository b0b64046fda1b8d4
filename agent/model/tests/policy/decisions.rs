//! Every field of a rule, and what the actions make of it.

use orlop_model::world::security::{Action, Condition, Match, Operation, Pattern, Rule, Source};
use orlop_model::{DryRun, Outcome, Reason};

use crate::support::*;

const ANYONE: &str = "td1/ns/dev/sa/curl";

#[test]
fn without_policies_everything_is_allowed() {
    let allowed = call("").judge(&world([])).unwrap();
    assert_eq!((allowed.policy, allowed.audit, allowed.dry_run), (None, false, vec![]));
}

#[test]
fn an_empty_policy_denies_all_and_an_empty_rule_allows_all() {
    assert_eq!(call(ANYONE).verdict(&world([policy("none", Action::Allow, [])])), (false, None));
    let all = world([policy("all", Action::Allow, [Rule::default()])]);
    assert_eq!(call(ANYONE).verdict(&all), (true, Some("all".into())));
    assert_eq!(call("").verdict(&all), (true, Some("all".into())));
}

#[test]
fn custom_and_deny_count_before_allow() {
    let all = || policy("all", Action::Allow, [Rule::default()]);
    for action in [Action::Deny, Action::Custom] {
        let world = world([all(), policy("not-dev", action, [namespaces(&["dev"])])]);
        assert_eq!(call(ANYONE).verdict(&world), (false, Some("not-dev".into())));
        assert_eq!(call("td1/ns/shop/sa/a").verdict(&world), (true, Some("all".into())));
        assert_eq!(call(ANYONE).judge(&world).unwrap_err().reason(), Reason::PolicyDenied);
    }
}

#[test]
fn deny_without_allow_leaves_the_rest_allowed() {
    let world = world([policy("not-dev", Action::Deny, [namespaces(&["dev"])])]);
    assert_eq!(call("td1/ns/shop/sa/a").verdict(&world), (true, None));
}

#[test]
fn any_allow_policy_and_any_rule_will_do() {
    let rules = [namespaces(&["none"]), namespaces(&["dev"])];
    let world = world([policy("a", Action::Allow, []), policy("b", Action::Allow, rules)]);
    assert_eq!(call(ANYONE).verdict(&world), (true, Some("b".into())));
    assert_eq!(call("td1/ns/shop/sa/a").verdict(&world), (false, None));
}

#[test]
fn audit_marks_and_decides_nothing() {
    let audited = world([policy("mark", Action::Audit, [namespaces(&["dev"])])]);
    assert!(call(ANYONE).judge(&audited).unwrap().audit);
    assert!(!call("td1/ns/shop/sa/a").judge(&audited).unwrap().audit);
    let denied = world([policy("mark", Action::Audit, [Rule::default()]), policy("none", Action::Allow, [])]);
    assert!(call(ANYONE).judge(&denied).unwrap_err().audit);
}

#[test]
fn each_field_of_a_source_and_its_negation() {
    let source = |f: &dyn Fn(&mut Source)| {
        let mut source = Source::default();
        f(&mut source);
        from(source)
    };
    let td = ["td1/ns/dev/sa/curl"];
    for (rule, matching, other) in [
        (source(&|s| s.principals = texts(&td, &[])), ANYONE, "td1/ns/dev/sa/other"),
        (source(&|s| s.principals = texts(&[], &td)), "td1/ns/dev/sa/other", ANYONE),
        (source(&|s| s.namespaces = texts(&["dev"], &[])), ANYONE, "td1/ns/dev2/sa/curl"),
        (source(&|s| s.namespaces = texts(&[], &["dev"])), "td1/ns/dev2/sa/curl", ANYONE),
        (source(&|s| s.service_accounts = accounts(&["dev/curl"], &[])), ANYONE, "td1/ns/shop/sa/curl"),
        (source(&|s| s.service_accounts = accounts(&[], &["dev/curl"])), "td1/ns/shop/sa/curl", ANYONE),
    ] {
        let world = world([policy("p", Action::Allow, [rule.clone()])]);
        assert!(call(matching).allowed(&world), "{rule:?} {matching}");
        assert!(!call(other).allowed(&world), "{rule:?} {other}");
    }
}

#[test]
fn addresses_match_by_block() {
    let source = |of| from(Source { ip_blocks: of, ..Source::default() });
    let inside = source(blocks(&["10.1.0.0/16", "fd00::/8"], &["10.1.2.3"]));
    for (address, want) in [
        ("10.1.0.1", true),
        ("::ffff:10.1.0.1", true),
        ("10.1.2.3", false),
        ("10.2.0.1", false),
        ("fd12::1", true),
        ("fe00::1", false),
    ] {
        let world = world([policy("p", Action::Allow, [inside.clone()])]);
        assert_eq!(Call { source: address, ..call("") }.allowed(&world), want, "{address}");
    }
}

#[test]
fn ports_match_by_number() {
    let rule = to(Operation { ports: ports(&[80, 443], &[443]), ..Operation::default() });
    let world = world([policy("p", Action::Allow, [rule])]);
    for (port, want) in [(80, true), (443, false), (8080, false)] {
        assert_eq!(Call { port, ..call("") }.allowed(&world), want, "{port}");
    }
}

#[test]
fn each_condition_and_its_negation() {
    for (condition, want) in [
        (Condition::SourceIp(blocks(&["192.0.2.0/24"], &[])), true),
        (Condition::SourceIp(blocks(&[], &["192.0.2.1"])), false),
        (Condition::SourceNamespace(texts(&["de*"], &[])), true),
        (Condition::SourceNamespace(texts(&["de*"], &["dev"])), false),
        (Condition::SourcePrincipal(texts(&["*/sa/curl"], &[])), true),
        (Condition::SourcePrincipal(texts(&[], &["*"])), false),
        (Condition::SourceServiceAccount(accounts(&["dev/curl"], &[])), true),
        (Condition::SourceServiceAccount(accounts(&["shop/curl"], &[])), false),
        (Condition::DestinationIp(blocks(&["10.0.0.1"], &[])), true),
        (Condition::DestinationIp(blocks(&[], &["10.0.0.0/24"])), false),
        (Condition::DestinationPort(ports(&[80], &[])), true),
        (Condition::DestinationPort(ports(&[], &[80])), false),
    ] {
        let world = world([policy("p", Action::Allow, [when(condition.clone())])]);
        assert_eq!(call(ANYONE).allowed(&world), want, "{condition:?}");
    }
}

#[test]
fn patterns_are_exact_prefix_suffix_or_presence() {
    for (pattern, principal, want) in [
        ("td1/ns/dev/sa/curl", "td1/ns/dev/sa/curl", true),
        ("td1/ns/dev/sa/curl", "td1/ns/dev/sa/curl2", false),
        ("other/ns/dev/*", "other/ns/dev/sa/a", true),
        ("other/ns/dev/*", "other/ns/dev2/sa/a", false),
        ("*/sa/curl", "other/ns/dev/sa/curl", true),
        ("*/sa/curl", "other/ns/dev/sa/curl2", false),
        ("*", "other/ns/dev/sa/curl", true),
        ("*", "", false),
        ("other*", "", false),
    ] {
        let world = world([policy("p", Action::Allow, [principals(&[pattern])])]);
        assert_eq!(call(principal).allowed(&world), want, "{pattern} {principal}");
    }
}

#[test]
fn a_trust_domain_stands_for_its_aliases_and_cluster_local_for_it() {
    for (pattern, principal, want) in [
        ("td2/ns/a/sa/b", "td1/ns/a/sa/b", true),
        ("td1/ns/a/sa/b", "td2/ns/a/sa/b", true),
        ("cluster.local/ns/a/sa/b", "td1/ns/a/sa/b", true),
        ("cluster.local/ns/a/*", "td2/ns/a/sa/b", true),
        ("*d2/ns/a/sa/b", "td1/ns/a/sa/b", true),
        ("td1/ns/a/sa/b", "other/ns/a/sa/b", false),
        ("other/ns/a/sa/b", "td1/ns/a/sa/b", false),
    ] {
        let world = world([policy("p", Action::Allow, [principals(&[pattern])])]);
        assert_eq!(call(principal).allowed(&world), want, "{pattern} {principal}");
    }
}

#[test]
fn without_identity_only_negations_match() {
    let negative = |rule: &dyn Fn(&mut Source)| {
        let mut source = Source::default();
        rule(&mut source);
        world([policy("p", Action::Deny, [from(source)])])
    };
    assert!(!call("").allowed(&negative(&|s| s.principals = texts(&[], &["td1/ns/a/sa/b"]))));
    assert!(!call("").allowed(&negative(&|s| s.principals = texts(&[], &["*"]))));
    assert!(!call("").allowed(&negative(&|s| s.namespaces = texts(&[], &["a"]))));
    assert!(!call("").allowed(&negative(&|s| s.service_accounts = accounts(&[], &["a/b"]))));
    assert!(call("").allowed(&negative(&|s| s.namespaces = texts(&["*"], &[]))));
    assert!(call("").allowed(&negative(&|s| s.service_accounts = accounts(&["a/b"], &[]))));
}

#[test]
fn fields_are_anded_and_entries_are_ored() {
    let source = |namespace: &str, block: &str| Source {
        namespaces: texts(&[namespace], &[]),
        ip_blocks: blocks(&[block], &[]),
        ..Source::default()
    };
    let rule = Rule {
        from: vec![source("dev", "10.0.0.0/8"), source("test", "192.0.2.0/24")],
        to: vec![
            Operation { ports: ports(&[80], &[]), ..Operation::default() },
            Operation { ports: ports(&[81], &[]), ..Operation::default() },
        ],
        when: vec![Condition::DestinationIp(blocks(&["10.0.0.1"], &[]))],
    };
    let world = world([policy("p", Action::Allow, [rule])]);
    for (principal, port, want) in [
        ("td1/ns/dev/sa/a", 80, false),
        ("td1/ns/test/sa/a", 80, true),
        ("td1/ns/test/sa/a", 81, true),
        ("td1/ns/test/sa/a", 82, false),
    ] {
        assert_eq!(Call { port, ..call(principal) }.allowed(&world), want, "{principal} {port}");
    }
    assert!(!Call { to: id("shop", "db"), ..call("td1/ns/test/sa/a") }.allowed(&world));
}

#[test]
fn an_allow_rule_that_asks_of_requests_never_matches() {
    let mixed = Operation { ports: ports(&[80], &[]), ..paths() };
    let unknown = Condition::Unread("request.headers[x]".into());
    for rule in [
        to(paths()),
        to(mixed),
        when(unknown),
        when(Condition::Header("x".into(), Match { values: vec![Pattern::Present], not_values: vec![] })),
        from(Source { request_principals: texts(&["*"], &[]), ..Source::default() }),
        when(Condition::Claim(vec!["x".into()], texts(&["y"], &[]))),
    ] {
        assert!(!call(ANYONE).allowed(&world([policy("p", Action::Allow, [rule.clone()])])), "{rule:?}");
        let other = world([policy("p", Action::Allow, [rule, namespaces(&["dev"])])]);
        assert!(call(ANYONE).allowed(&other));
    }
}

#[test]
fn a_deny_rule_that_asks_of_requests_denies_more() {
    for action in [Action::Deny, Action::Custom] {
        let alone = world([policy("p", action, [to(paths())])]);
        assert!(!call(ANYONE).allowed(&alone));
        let mixed = Operation { ports: ports(&[80], &[]), ..paths() };
        let either = Rule {
            to: vec![paths(), Operation { ports: ports(&[81], &[]), ..Operation::default() }],
            ..Rule::default()
        };
        let keyed = Rule { when: vec![Condition::Unread("x".into())], ..namespaces(&["dev"]) };
        let by_port = world([policy("p", action, [to(mixed)])]);
        assert!(!call(ANYONE).allowed(&by_port));
        assert!(Call { port: 81, ..call(ANYONE) }.allowed(&by_port));
        let by_either = world([policy("p", action, [either])]);
        assert!(!Call { port: 9, ..call(ANYONE) }.allowed(&by_either));
        let by_key = world([policy("p", action, [keyed])]);
        assert!(!call(ANYONE).allowed(&by_key));
        assert!(call("td1/ns/shop/sa/a").allowed(&by_key));
    }
}

#[test]
fn a_dry_run_is_told_and_not_enforced() {
    let dry = |name, action, rules: Vec<Rule>| {
        let mut policy = policy(name, action, rules);
        policy.dry_run = true;
        policy
    };
    let said = |name: &str, outcome| DryRun { policy: std::sync::Arc::new(id("shop", name)), outcome };
    let everything = world([
        dry("allow-dev", Action::Allow, vec![namespaces(&["dev"])]),
        dry("deny-80", Action::Deny, vec![on_ports(&[80])]),
        dry("mark", Action::Audit, vec![Rule::default()]),
    ]);
    let allowed = call(ANYONE).judge(&everything).unwrap();
    assert_eq!((allowed.policy, allowed.audit), (None, false));
    let want =
        [said("allow-dev", Outcome::Allow), said("deny-80", Outcome::Deny), said("mark", Outcome::Audit)];
    assert_eq!(allowed.dry_run, want);
    let none_matches = world([dry("allow-dev", Action::Allow, vec![namespaces(&["dev"])])]);
    assert_eq!(call("").judge(&none_matches).unwrap().dry_run, [said("allow-dev", Outcome::Deny)]);
    let another_allows = world([
        dry("allow-dev", Action::Allow, vec![namespaces(&["dev"])]),
        policy("all", Action::Allow, [Rule::default()]),
    ]);
    assert_eq!(call("").judge(&another_allows).unwrap().dry_run, []);
}
