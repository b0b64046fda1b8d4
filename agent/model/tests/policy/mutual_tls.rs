//! Which mode counts.

use orlop_model::world::security::{Action, Mode, PeerAuthentication, Rule};
use orlop_model::{Connection, Reason, World};

use crate::support::*;

#[test]
fn the_default_is_permissive() {
    assert_eq!(modes(&[]), [Mode::Permissive; 3]);
}

#[test]
fn workload_counts_before_namespace_before_mesh() {
    let mesh = of(ROOT, "mesh", Some(Mode::Strict));
    let namespace = of("shop", "namespace", Some(Mode::Disable));
    let workload = selecting("web", "workload", Some(Mode::Permissive));
    assert_eq!(modes(std::slice::from_ref(&mesh)), [Mode::Strict; 3]);
    assert_eq!(modes(&[mesh.clone(), namespace.clone()]), [Mode::Disable, Mode::Disable, Mode::Strict]);
    assert_eq!(modes(&[mesh, namespace, workload]), [Mode::Permissive, Mode::Disable, Mode::Strict]);
}

#[test]
fn unset_is_what_the_wider_scope_says() {
    let mesh = of(ROOT, "mesh", Some(Mode::Strict));
    let (namespace, workload) = (of("shop", "namespace", None), selecting("web", "workload", None));
    assert_eq!(modes(&[mesh, namespace, workload]), [Mode::Strict; 3]);
}

#[test]
fn a_port_counts_before_the_rest_and_unset_is_as_the_rest() {
    let ports = [(80, Some(Mode::Disable)), (81, None)].into();
    let workload = PeerAuthentication { ports, ..selecting("web", "workload", None) };
    let world = world_of(&[workload, of(ROOT, "mesh", Some(Mode::Strict))]);
    let snapshot = snapshot(&world);
    let web = snapshot.workload(&id("shop", "web")).unwrap();
    assert_eq!(
        [80, 81, 82].map(|port| snapshot.mutual_tls(web, port)),
        [Mode::Disable, Mode::Strict, Mode::Strict]
    );
}

#[test]
fn the_oldest_of_a_scope_counts_then_the_first_by_name() {
    let at = |name, created, mode| PeerAuthentication { created, ..of("shop", name, Some(mode)) };
    let old = at("b", Some(1), Mode::Strict);
    assert_eq!(modes(&[at("a", Some(2), Mode::Disable), old.clone()])[0], Mode::Strict);
    assert_eq!(modes(&[at("a", Some(1), Mode::Disable), old.clone()])[0], Mode::Disable);
    assert_eq!(modes(&[at("c", None, Mode::Disable), old])[0], Mode::Disable);
    let selecting =
        |name, created, mode| PeerAuthentication { created, ..selecting("web", name, Some(mode)) };
    let two = [selecting("a", Some(2), Mode::Disable), selecting("b", Some(1), Mode::Strict)];
    assert_eq!(modes(&two)[0], Mode::Strict);
}

#[test]
fn a_selector_in_the_root_namespace_has_no_effect() {
    let selector = labels(&[("app", "web")]);
    let policy = PeerAuthentication { selector, ..of(ROOT, "mesh", Some(Mode::Strict)) };
    assert_eq!(modes(&[policy]), [Mode::Permissive; 3]);
}

#[test]
fn a_pod_that_is_not_known_is_strict() {
    let empty = orlop_model::compile(&World::default(), &settings(), 2);
    let snapshot = snapshot(&world([]));
    assert_eq!(empty.mutual_tls(snapshot.workload(&id("shop", "web")).unwrap(), 80), Mode::Strict);
}

#[test]
fn a_refusal_names_the_policy_of_the_port() {
    let ports = [(80, Some(Mode::Strict)), (81, None)].into();
    let workload = PeerAuthentication { ports, ..selecting("web", "workload", None) };
    let snapshot = snapshot(&world_of(&[workload, of(ROOT, "mesh", Some(Mode::Strict))]));
    let web = snapshot.workload(&id("shop", "web")).unwrap();
    let refused = |port| {
        let connection = Connection {
            source_identity: None,
            source: ip("192.0.2.1"),
            destination: web,
            address: (web.addresses[0], port).into(),
        };
        let refused = snapshot.admit(&connection).unwrap_err();
        assert_eq!(refused.reason, Reason::PlaintextRefused);
        assert_eq!(refused.detail, snapshot.explain_strict(web, port));
        (refused.judgement.policy.unwrap().to_string(), refused.detail)
    };
    let (policy, detail) = refused(80);
    assert_eq!(policy, "shop/workload");
    assert_eq!(
        detail,
        "PeerAuthentication shop/workload asks for mutual TLS on port 80 of shop/web, and the connection has none"
    );
    assert_eq!([81, 82].map(|port| refused(port).0), [format!("{ROOT}/mesh"), format!("{ROOT}/mesh")]);
}

#[test]
fn mutual_tls_is_asked_for_before_any_policy() {
    let strict = of("shop", "strict", Some(Mode::Strict));
    let all = policy("all", Action::Allow, [Rule::default()]);
    let peer_authentications = [(strict.name.clone(), strict)].into();
    let snapshot = snapshot(&World { peer_authentications, ..world([all]) });
    let web = snapshot.workload(&id("shop", "web")).unwrap();
    let somebody = identity("td1/ns/dev/sa/curl");
    let admit = |source_identity| {
        let address = (web.addresses[0], 80).into();
        snapshot.admit(&Connection { source_identity, source: ip("192.0.2.1"), destination: web, address })
    };
    assert_eq!(admit(None).unwrap_err().reason, Reason::PlaintextRefused);
    assert_eq!(admit(somebody.as_ref()).unwrap().policy.unwrap().to_string(), "shop/all");
}

fn of(namespace: &str, name: &str, mode: Option<Mode>) -> PeerAuthentication {
    PeerAuthentication { mode, ..peer_authentication(namespace, name) }
}

fn selecting(app: &str, name: &str, mode: Option<Mode>) -> PeerAuthentication {
    PeerAuthentication { selector: labels(&[("app", app)]), ..of("shop", name, mode) }
}

fn world_of(policies: &[PeerAuthentication]) -> World {
    let peer_authentications = policies.iter().map(|policy| (policy.name.clone(), policy.clone())).collect();
    World { peer_authentications, ..world([]) }
}

/// Of `shop/web`, `shop/db` and `bank/web`.
fn modes(policies: &[PeerAuthentication]) -> [Mode; 3] {
    let snapshot = snapshot(&world_of(policies));
    [("shop", "web"), ("shop", "db"), ("bank", "web")]
        .map(|(namespace, name)| snapshot.mutual_tls(snapshot.workload(&id(namespace, name)).unwrap(), 80))
}
