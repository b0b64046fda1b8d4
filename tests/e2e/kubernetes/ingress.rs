//! What the controller makes of Gateways for those outside the mesh.

use orlop_tests::wait_for;
use serde_json::{Value, json};

use super::gateways::{COLLECTED, GATEWAY, MADE, Stage, condition, condition_of};
use super::replica::LONG;

const INTERNAL: &str = "service.beta.kubernetes.io/aws-load-balancer-scheme";

fn listener(name: &str, port: u16, more: &Value) -> Value {
    let mut listener = json!({
        "name": name, "port": port, "protocol": "HTTP", "allowedRoutes": {"namespaces": {"from": "Same"}},
    });
    listener.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    listener
}

fn gateway(stage: &Stage, name: &str, listeners: &[Value], more: &Value) {
    let mut spec = json!({"gatewayClassName": "orlop", "listeners": listeners});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    stage.gateway(name, &spec);
}

fn route(stage: &Stage, name: &str, parent: &Value) {
    stage.kubernetes.apply(&json!({
        "apiVersion": GATEWAY, "kind": "HTTPRoute", "metadata": {"name": name, "namespace": stage.namespace},
        "spec": {"parentRefs": [parent], "rules": [{"backendRefs": [{"name": "none", "port": 80}]}]},
    }));
}

/// Status and reason of a condition of the route's only parent, once there is one.
#[track_caller]
fn of_parent(stage: &Stage, route: &str, kind: &str) -> (String, String) {
    let told = |route: &Value| route["status"]["parents"].as_array().is_some_and(|all| !all.is_empty());
    let route = stage.await_object(GATEWAY, "HTTPRoute", route, told);
    let parent = &route["status"]["parents"][0];
    assert_eq!(parent["controllerName"], "orlop.dev/gateway-controller");
    let condition = condition_of(parent, kind);
    let text = |field: &str| condition[field].as_str().unwrap().to_owned();
    (text("status"), text("reason"))
}

#[test]
fn a_gateway_becomes_a_load_balanced_proxy_and_takes_it_along() {
    let stage = Stage::new("ingress");
    let infrastructure = json!({"infrastructure": {
        "labels": {"team": "edge"}, "annotations": {INTERNAL: "internal", "note": "a"},
    }});
    gateway(&stage, "gate", &[listener("web", 80, &json!({}))], &infrastructure);
    let object = stage.await_condition("gate", "Accepted", "True");
    for (version, kind) in MADE {
        let made = stage.await_object(version, kind, "gate", |_| true);
        assert_eq!(made["metadata"]["ownerReferences"][0]["uid"], object["metadata"]["uid"], "{kind}");
        assert_eq!(made["metadata"]["labels"]["team"], "edge", "{kind}");
        assert_eq!(made["metadata"]["annotations"]["note"], "a", "{kind}");
    }
    let service = stage.await_object("v1", "Service", "gate", |_| true);
    assert_eq!(service["metadata"]["annotations"][INTERNAL], "internal");
    assert_eq!(
        (&service["spec"]["type"], &service["spec"]["ports"][0]["port"]),
        (&json!("LoadBalancer"), &json!(80))
    );
    let deployment = stage.await_object("apps/v1", "Deployment", "gate", |_| true);
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    let args = container["args"].as_array().unwrap();
    assert!(args[0] == "gateway" && args.contains(&json!("--class=orlop")), "{args:?}");
    let object = stage.await_condition("gate", "Programmed", "False");
    assert_eq!(condition(&object, "Programmed")["reason"], "AddressNotAssigned");
    assert!(wait_for(LONG, || stage.may_read("gate")), "its service account may read nothing");

    // A port more, and no other pods.
    gateway(
        &stage,
        "gate",
        &[listener("web", 80, &json!({})), listener("more", 8080, &json!({}))],
        &infrastructure,
    );
    stage.await_object("v1", "Service", "gate", |service| service["spec"]["ports"][1]["port"] == 8080);
    let after = stage.get("apps/v1", "Deployment", "gate").unwrap();
    assert_eq!(after["metadata"]["generation"], deployment["metadata"]["generation"]);

    stage.delete(GATEWAY, "Gateway", "gate");
    for (version, kind) in MADE {
        assert!(wait_for(COLLECTED, || stage.get(version, kind, "gate").is_none()), "the {kind} stays");
    }
    assert!(wait_for(LONG, || !stage.may_read("gate")), "its service account may still read");
}

#[test]
fn each_listener_and_each_route_is_told_what_is_wrong_with_it() {
    let stage = Stage::new("listeners");
    stage.kubernetes.define_istio();
    let host = json!({"hostname": "a.example"});
    let listeners = [
        listener("web", 80, &json!({})),
        listener("one", 81, &host),
        listener("two", 81, &host),
        listener("own", 15020, &json!({})),
    ];
    gateway(&stage, "gate", &listeners, &json!({}));
    let reasons = |gateway: &Value| {
        let listeners = gateway["status"]["listeners"].as_array().cloned().unwrap_or_default();
        let of = listeners
            .iter()
            .map(|of| condition_of(of, "Accepted")["reason"].as_str().unwrap_or("").to_owned());
        of.collect::<Vec<_>>()
    };
    let wanted = ["Accepted", "HostnameConflict", "HostnameConflict", "PortUnavailable"];
    let object = stage.await_object(GATEWAY, "Gateway", "gate", |gateway| reasons(gateway) == wanted);
    let accepted = condition(&object, "Accepted");
    assert_eq!((&accepted["status"], &accepted["reason"]), (&json!("True"), &json!("ListenersNotValid")));
    let conflicted = condition_of(&object["status"]["listeners"][1], "Conflicted");
    assert_eq!(conflicted["status"], "True");
    let service = stage.await_object("v1", "Service", "gate", |_| true);
    assert_eq!(service["spec"]["ports"].as_array().unwrap().len(), 1);

    route(&stage, "good", &json!({"name": "gate", "sectionName": "web"}));
    route(&stage, "nowhere", &json!({"name": "gate", "sectionName": "none"}));
    let text = |status: &str, reason: &str| (status.to_owned(), reason.to_owned());
    assert_eq!(of_parent(&stage, "good", "Accepted"), text("True", "Accepted"));
    assert_eq!(of_parent(&stage, "good", "ResolvedRefs"), text("False", "BackendNotFound"));
    assert_eq!(of_parent(&stage, "nowhere", "Accepted"), text("False", "NoMatchingParent"));
    stage.await_object(GATEWAY, "Gateway", "gate", |gateway| {
        gateway["status"]["listeners"][0]["attachedRoutes"] == 1
    });

    // Without any that could be opened it is none.
    gateway(&stage, "none", &[listener("own", 15008, &json!({}))], &json!({}));
    let object = stage.await_condition("none", "Accepted", "False");
    assert_eq!(condition(&object, "Accepted")["reason"], "ListenersNotValid");
    assert!(stage.get("v1", "Service", "none").is_none());
}
