use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use orlop_tests::{Pod, PodSpec, wait_for};
use serde_json::{Value, json};

use super::cluster::{Cluster, LONG};
use crate::kubernetes::api::anything;
use crate::kubernetes::gateway_api::define;

const GATEWAY: &str = "gateway.networking.k8s.io";

#[test]
fn the_controller_s_waypoint_and_gateway_serve_and_the_webhook_answers_as_kubelet_runs_them() {
    let cluster = Cluster::start();
    define(&cluster.kubernetes);
    cluster.kubernetes.define(GATEWAY, "HTTPRoute", "httproutes", &json!({"status": {}}), &anything());
    cluster.install(&["--set=webhook.enabled=true"]);
    cluster.shop("shop", &json!({"orlop.dev/mesh": "enabled"}));
    for role in ["daemonset/orlop-node", "deployment/orlop-controller", "deployment/orlop-webhook"] {
        cluster.wait_rollout(role);
    }
    cluster.kubectl(&["label", "pod", "server", "app=server", "--namespace=shop"]);
    apply(
        &cluster,
        "v1",
        "Service",
        "shop",
        "server",
        &json!({
            "selector": {"app": "server"}, "ports": [{"name": "http", "port": 8080}],
        }),
    );
    let service = ["get", "service", "server", "--namespace=shop", "--output=jsonpath={.spec.clusterIP}"];
    let service = cluster.kubectl(&service);
    cluster.wait_gets("shop", "client", &service, true);

    the_webhook_refuses_what_can_t_be_understood(&cluster);
    a_waypoint_stands_before_the_service(&cluster, &service);
    a_gateway_lets_in_who_is_outside(&cluster);
}

fn apply(cluster: &Cluster, version: &str, kind: &str, namespace: &str, name: &str, spec: &Value) {
    cluster.kubernetes.apply(&object(version, kind, namespace, name, spec));
}

fn object(version: &str, kind: &str, namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec,
    })
}

fn the_webhook_refuses_what_can_t_be_understood(cluster: &Cluster) {
    let file = cluster.testbed.dir().join("bad.json");
    let bad = object(
        "security.istio.io/v1",
        "AuthorizationPolicy",
        "shop",
        "bad",
        &json!({"rules": [
            {"to": [{"operation": {"ports": ["eighty"]}}]},
        ]}),
    );
    fs::write(&file, bad.to_string()).unwrap();
    let mut said = String::new();
    let is_refused = || {
        let output = cluster.try_kubectl(&["create", "--filename", file.to_str().unwrap()]);
        said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            // API servers hear of where to ask somewhat later.
            cluster.kubectl(&["delete", "authorizationpolicy", "bad", "--namespace=shop"]);
        }
        !output.status.success()
    };
    assert!(wait_for(LONG, is_refused), "{}", cluster.state());
    assert!(said.contains("spec.rules[0].to[0].operation.ports[0]: \"eighty\" is not a port"), "{said}");
}

fn a_waypoint_stands_before_the_service(cluster: &Cluster, service: &str) {
    let listener = json!([{"name": "mesh", "port": 15008, "protocol": "HBONE"}]);
    let spec = json!({"gatewayClassName": "orlop-waypoint", "listeners": listener});
    apply(cluster, &format!("{GATEWAY}/v1"), "Gateway", "shop", "way", &spec);
    cluster.wait("gateway/way", &["--for=condition=Programmed", "--namespace=shop"]);
    cluster.kubectl(&["label", "namespace", "shop", "istio.io/use-waypoint=way"]);
    // What reads HTTP wants to be told the host.
    let request = format!(
        "printf 'GET / HTTP/1.1\\r\\nHost: server\\r\\nConnection: close\\r\\n\\r\\n' \
         | /bin/busybox timeout 5 /bin/busybox nc {service} 8080"
    );
    let is_served = || cluster.shell("shop", "client", &request).contains("served");
    let through = || {
        is_served()
            && cluster.flows(0).iter().any(|flow| {
                flow["direction"] == "outbound"
                    && flow["src_workload"] == "shop/client"
                    && flow["dst_identity"] == "spiffe://cluster.local/ns/shop/sa/way"
            })
    };
    assert!(wait_for(LONG, through), "{}", cluster.state());
    // It reads what nodes do not.
    let targets = json!([{"group": "", "kind": "Service", "name": "server"}]);
    let deny = |method: &str| {
        let rules = json!([{"to": [{"operation": {"methods": [method]}}]}]);
        let spec = json!({"targetRefs": targets, "action": "DENY", "rules": rules});
        apply(cluster, "security.istio.io/v1", "AuthorizationPolicy", "shop", "methods", &spec);
    };
    deny("GET");
    assert!(wait_for(LONG, || !is_served()), "{}", cluster.state());
    deny("DELETE");
    assert!(wait_for(LONG, is_served), "{}", cluster.state());
}

fn a_gateway_lets_in_who_is_outside(cluster: &Cluster) {
    cluster.kubernetes.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "edge"}}));
    let listener = json!([{
        "name": "web", "port": 8080, "protocol": "HTTP", "allowedRoutes": {"namespaces": {"from": "All"}},
    }]);
    let spec = json!({"gatewayClassName": "orlop", "listeners": listener});
    apply(cluster, &format!("{GATEWAY}/v1"), "Gateway", "edge", "gate", &spec);
    let rules = json!([{"backendRefs": [{"name": "server", "port": 8080}]}]);
    let spec = json!({"parentRefs": [{"name": "gate", "namespace": "edge"}], "rules": rules});
    apply(cluster, &format!("{GATEWAY}/v1"), "HTTPRoute", "shop", "server", &spec);
    // There is no load balancer here, and somebody must say what it would.
    cluster.wait("service/gate", &["--for=create", "--namespace=edge"]);
    let status = r#"{"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}}}"#;
    let patch = ["patch", "service", "gate", "--namespace=edge", "--subresource=status", "--patch", status];
    cluster.kubectl(&patch);
    cluster.wait("gateway/gate", &["--for=condition=Programmed", "--namespace=edge"]);

    let of_gate = "--selector=gateway.networking.k8s.io/gateway-name=gate";
    let pod = ["get", "pods", "--namespace=edge", of_gate, "--output=jsonpath={.items[0].status.podIP}"];
    let pod = format!("{}:8080", cluster.kubectl(&pod)).parse().unwrap();
    let street = cluster.testbed.node("street").unwrap();
    let stranger = street.pod("street", "stranger", PodSpec::new()).unwrap();
    let is_served = || {
        let answer = stranger.http_get(pod, "/", Duration::from_secs(5));
        answer.is_ok_and(|answer| answer.status == 200 && answer.body.starts_with(b"served"))
    };
    assert!(wait_for(LONG, is_served), "{}", cluster.state());
    both_show_metrics_where_the_chart_s_pod_monitor_asks(cluster, &stranger);
}

fn both_show_metrics_where_the_chart_s_pod_monitor_asks(cluster: &Cluster, from: &Pod) {
    let selector = "--selector=app.kubernetes.io/managed-by=orlop-controller";
    let pods = cluster.kubectl(&["get", "pods", "--all-namespaces", selector, "--output=json"]);
    let pods: Value = serde_json::from_str(&pods).unwrap();
    let pods = pods["items"].as_array().unwrap();
    let namespaces: BTreeSet<_> =
        pods.iter().map(|pod| pod["metadata"]["namespace"].as_str().unwrap()).collect();
    assert_eq!(namespaces, ["edge", "shop"].into());
    for pod in pods {
        let ports = pod["spec"]["containers"][0]["ports"].as_array().unwrap();
        assert!(ports.iter().any(|port| port["containerPort"] == 15020), "{ports:?}");
        let address = format!("{}:15020", pod["status"]["podIP"].as_str().unwrap()).parse().unwrap();
        let metrics = from.http_get(address, "/metrics", Duration::from_secs(5)).unwrap();
        assert!(String::from_utf8_lossy(&metrics.body).contains("orlop_certificates"), "{address}");
    }
}
