//! What the authors of policies are told.

use orlop_model::world::security::{
    Action, AuthorizationPolicy, Condition, Mode, PeerAuthentication, Source, Target,
};
use orlop_model::world::{Protocol, Service, ServicePort, TargetPort};
use orlop_model::{Severity, World};

use crate::support::*;

#[test]
fn a_sound_policy_has_no_findings() {
    let rule = principals(&["cluster.local/ns/a/sa/b", "td2/ns/a/*", "*"]);
    assert_eq!(told(&world([policy("p", Action::Allow, [rule, on_ports(&[80])])])), []);
}

#[test]
fn what_a_connection_does_not_show_is_an_error() {
    for (action, effect) in [
        (Action::Allow, "so the rule never matches here"),
        (Action::Deny, "so they are left out and the rule denies more than it says"),
        (Action::Audit, "so they are left out and the rule audits more than it says"),
    ] {
        let rule = orlop_model::world::security::Rule {
            when: vec![Condition::Unread("request.headers[x]".into())],
            ..to(paths())
        };
        let want = format!(
            "rules[0] asks for paths, request.headers[x], which a connection does not show, {effect}; give the \
             policy targetRefs, so that a waypoint decides"
        );
        assert_eq!(told(&world([policy("p", action, [rule])])), [(Severity::Error, want)]);
    }
}

#[test]
fn custom_is_an_error() {
    let custom = told(&world([policy("p", Action::Custom, [on_ports(&[80])])]));
    assert!(custom[0].0 == Severity::Error && custom[0].1.starts_with("has action CUSTOM"), "{custom:?}");
}

#[test]
fn targets_that_no_waypoint_judges_are_errors() {
    let of = |target: Target, action, rule| AuthorizationPolicy {
        targets: vec![target],
        ..policy("p", action, [rule])
    };
    let service = || Target::Service("web".to_owned());
    let with = |waypoint: bool, policy| {
        let mut world = world([policy]);
        let label = ("istio.io/use-waypoint".to_owned(), "gate".to_owned());
        let labels = waypoint.then_some(label).into_iter().collect();
        let name = id("shop", "web");
        world.services.insert(name.clone(), Service { name, labels, ..Service::default() });
        told(&world)
    };
    let unenforced = |target: &str, why: &str| {
        [(Severity::Error, format!("is for {target}, where nobody enforces it: {why}"))]
    };
    let bare = || of(service(), Action::Deny, to(paths()));
    let why = "it has no waypoint; label it istio.io/use-waypoint, or select pods instead";
    assert_eq!(with(false, bare()), unenforced("Service/web", why));
    assert_eq!(with(true, bare()), []);
    let why = "there is none of this name in the policy's namespace";
    let entry = of(Target::ServiceEntry("web".to_owned()), Action::Deny, to(paths()));
    assert_eq!(with(true, entry), unenforced("ServiceEntry/web", why));
    let gateway = |name: &str| of(Target::Gateway(name.to_owned()), Action::Deny, to(paths()));
    assert_eq!(with(true, gateway("gate")), []);
    let why = "it is the waypoint of nothing; label what it is for istio.io/use-waypoint";
    assert_eq!(with(true, gateway("other")), unenforced("Gateway/other", why));
    let class = |name: &str| of(Target::GatewayClass(name.to_owned()), Action::Deny, to(paths()));
    assert_eq!(
        with(true, class("istio")),
        unenforced(
            "GatewayClass/istio",
            "no waypoint is of this class; orlop-waypoint and istio-waypoint stand for all of them"
        )
    );
    let why = "only a policy of the root namespace, istio-system, can be for a class";
    assert_eq!(with(true, class("istio-waypoint")), unenforced("GatewayClass/istio-waypoint", why));
    let mut in_root = class("istio-waypoint");
    in_root.name.namespace = "istio-system".into();
    assert_eq!(with(true, in_root), []);
    let sni = Condition::Unread("connection.sni".to_owned());
    let want = "rules[0] asks for connection.sni, which waypoints do not judge yet, so they are left out and the \
                rule denies more than it says";
    let of_sni = of(service(), Action::Deny, when(sni));
    assert_eq!(with(true, of_sni), [(Severity::Error, want.to_owned())]);
}

#[test]
fn what_does_nothing_is_told() {
    let selector = labels(&[("app", "web"), ("tier", "9")]);
    let nobody = AuthorizationPolicy { selector, ..policy("p", Action::Allow, []) };
    let want = "its selector (app=web,tier=9) matches no pod, so it has no effect";
    assert_eq!(told(&world([nobody])), [(Severity::Warning, want.into())]);
    let empty = told(&world([policy("p", Action::Deny, [])]));
    assert!(empty[0].1.starts_with("has no rules, so it matches nothing"), "{empty:?}");
    let dry = AuthorizationPolicy { dry_run: true, ..policy("p", Action::Allow, []) };
    assert!(told(&world([dry]))[0].1.starts_with("is in dry run"));
}

#[test]
fn principals_nobody_has_are_told() {
    let found = told(&world([policy("p", Action::Deny, [principals(&["sa/curl", "other/ns/a/sa/b"])])]));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[1].1.starts_with("rules[0]: principal \"other/ns/a/sa/b\" is of trust domain other"));
    assert!(found[0].1.starts_with("rules[0]: no source has principal \"sa/curl\""));
}

#[test]
fn an_allow_rule_of_negations_alone_is_told_to_admit_plaintext() {
    let source = Source { namespaces: texts(&[], &["dev"]), ..Source::default() };
    let found = told(&world([policy("p", Action::Allow, [from(source)])]));
    assert!(found[0].1.starts_with("rules[0] also allows sources without an identity"), "{found:?}");
    let source =
        Source { principals: texts(&["*"], &[]), namespaces: texts(&[], &["dev"]), ..Source::default() };
    assert_eq!(told(&world([policy("p", Action::Allow, [from(source)])])), []);
}

#[test]
fn udp_ports_are_told_not_to_be_covered() {
    let port = |number, protocol, target| ServicePort { number, protocol, target, ..ServicePort::default() };
    let mut world = world([
        policy("dns", Action::Deny, [on_ports(&[5353])]),
        AuthorizationPolicy {
            selector: labels(&[("app", "db")]),
            ..policy("other", Action::Deny, [on_ports(&[5353])])
        },
        AuthorizationPolicy { name: id("bank", "other"), ..policy("", Action::Deny, [on_ports(&[5353])]) },
    ]);
    let service = Service {
        name: id("shop", "dns"),
        selector: labels(&[("app", "web")]),
        ports: vec![
            port(53, Protocol::Udp, TargetPort::Number(5353)),
            port(53, Protocol::Tcp, TargetPort::Unset),
        ],
        ..Service::default()
    };
    world.services.insert(service.name.clone(), service);
    let want =
        "port 5353 of Service shop/dns is UDP, to which policies do not apply; a NetworkPolicy can close it";
    assert_eq!(told(&world), [(Severity::Info, want.into())]);
}

#[test]
fn peer_authentications_that_do_not_count_are_told() {
    let at = |name, created| PeerAuthentication {
        created,
        mode: Some(Mode::Strict),
        ..peer_authentication("shop", name)
    };
    let select = |policy: PeerAuthentication, app: &str| PeerAuthentication {
        selector: labels(&[("app", app)]),
        ..policy
    };
    let policies = [
        at("a", Some(2)),
        at("b", Some(1)),
        select(at("c", None), "web"),
        select(at("d", None), "nobody"),
        select(peer_authentication(ROOT, "e"), "web"),
    ];
    let peer_authentications = policies.into_iter().map(|policy| (policy.name.clone(), policy)).collect();
    let world = World { peer_authentications, ..world([]) };
    let snapshot = snapshot(&world);
    let found: Vec<_> =
        snapshot.findings().iter().map(|f| (f.name.name.as_str(), f.message.as_str())).collect();
    let want = [
        ("e", "has no effect: in the root namespace a selector is not allowed; move it to the workload's"),
        ("a", "has no effect: shop/b is of the same namespace and older"),
        ("d", "has no effect: its selector (app=nobody) matches no pod that an older one does not"),
    ];
    assert_eq!(found, want);
}

fn told(world: &World) -> Vec<(Severity, String)> {
    snapshot(world).findings().iter().map(|finding| (finding.severity, finding.message.clone())).collect()
}
