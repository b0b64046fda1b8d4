//! Which policies apply to which pod.

use orlop_model::world::Phase;
use orlop_model::world::security::{Action, AuthorizationPolicy, Target};
use orlop_model::{Connection, World};

use crate::support::*;

#[test]
fn the_root_namespace_is_the_mesh() {
    let world = world([in_namespace(ROOT)]);
    assert_eq!(denied(&world), ["bank/web", "shop/db", "shop/web"]);
}

#[test]
fn a_namespace_is_its_own_pods() {
    assert_eq!(denied(&world([in_namespace("shop")])), ["shop/db", "shop/web"]);
    assert_eq!(denied(&world([in_namespace("elsewhere")])), [""; 0]);
}

#[test]
fn a_selector_is_the_pods_with_all_its_labels() {
    let selecting = |namespace, pairs: &[(&str, &str)]| AuthorizationPolicy {
        selector: labels(pairs),
        ..in_namespace(namespace)
    };
    assert_eq!(denied(&world([selecting("shop", &[("app", "web")])])), ["shop/web"]);
    assert_eq!(denied(&world([selecting(ROOT, &[("app", "web")])])), ["bank/web", "shop/web"]);
    assert_eq!(denied(&world([selecting("shop", &[("app", "web"), ("tier", "1")])])), [""; 0]);
    let mut labelled = world([selecting("shop", &[("app", "web"), ("tier", "1")])]);
    labelled.pods.get_mut(&id("shop", "web")).unwrap().labels.insert("tier", "1");
    assert_eq!(denied(&labelled), ["shop/web"]);
}

#[test]
fn layers_add_up() {
    let allow = |namespace, selector, rules| AuthorizationPolicy {
        action: Action::Allow,
        selector,
        rules,
        ..in_namespace(namespace)
    };
    let world = world([
        allow(ROOT, labels(&[]), vec![namespaces(&["mesh"])]),
        allow("shop", labels(&[]), vec![namespaces(&["ns"])]),
        AuthorizationPolicy {
            name: id("shop", "selected"),
            ..allow("shop", labels(&[("app", "web")]), vec![namespaces(&["own"])])
        },
    ]);
    for (namespace, web, db, other) in [
        ("mesh", true, true, true),
        ("ns", true, true, false),
        ("own", true, false, false),
        ("none", false, false, false),
    ] {
        let principal = format!("td1/ns/{namespace}/sa/a");
        let to = |namespace, name| Call { to: id(namespace, name), ..call(&principal) }.allowed(&world);
        assert_eq!((to("shop", "web"), to("shop", "db"), to("bank", "web")), (web, db, other), "{namespace}");
    }
}

#[test]
fn targets_are_for_waypoints() {
    let targets = vec![Target::Service("web".to_owned())];
    assert_eq!(denied(&world([AuthorizationPolicy { targets, ..in_namespace("shop") }])), [""; 0]);
}

#[test]
fn a_pod_that_is_not_known_any_more_is_denied() {
    let mut world = world([]);
    let before = snapshot(&world);
    let destination = before.workload(&id("shop", "web")).unwrap();
    world.pods.get_mut(&id("shop", "web")).unwrap().phase = Phase::Succeeded;
    let address = "10.0.0.1:80".parse().unwrap();
    let connection = Connection { source_identity: None, source: ip("192.0.2.1"), destination, address };
    assert!(before.authorize(&connection).is_ok());
    let denied = snapshot(&world).authorize(&connection).unwrap_err();
    assert!(denied.explain(&connection).starts_with("pod shop/web is not known any more"));
}

fn in_namespace(namespace: &str) -> AuthorizationPolicy {
    AuthorizationPolicy { name: id(namespace, "none"), ..AuthorizationPolicy::default() }
}

fn denied(world: &World) -> Vec<String> {
    let pods = world.pods.keys().filter(|name| !Call { to: (*name).clone(), ..call("") }.allowed(world));
    pods.map(ToString::to_string).collect()
}
