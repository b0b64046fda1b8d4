//! `orlop explain` about what is in the cluster.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use orlop_tests::{Testbed, binary, wait_for};
use serde_json::{Value, json};

use super::api::{Kubernetes, anything};
use super::replica::LONG;

/// Makes a namespace with both in it.
fn client_and_server(kubernetes: &Kubernetes) -> String {
    let namespace = kubernetes.namespace("asked", &[("orlop.dev/mesh", "enabled")]);
    for (name, address) in [("client", "10.213.0.1"), ("server", "10.213.0.2")] {
        kubernetes.apply(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
            "spec": {"nodeName": namespace, "containers": [{"name": "app", "image": "app"}]},
            "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
        }));
    }
    namespace
}

/// What would become of a connection from one to the other, and the exit status.
fn ask(namespace: &str, kubeconfig: &Path) -> (Option<i32>, String) {
    let [from, to] = ["client", "server"].map(|name| format!("{namespace}/{name}"));
    let output = Command::new(binary().unwrap())
        .args(["explain", "--kube", "--from", &from, "--to", &to, "--port", "80", "--kubeconfig"])
        .arg(kubeconfig)
        .output()
        .unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.code(), text)
}

#[test]
fn explain_goes_by_what_is_in_the_cluster_and_says_what_it_may_not_read() {
    let kubernetes = Kubernetes::shared();
    kubernetes.define_istio();
    let testbed = Testbed::in_shared_cluster().unwrap();
    let namespace = client_and_server(&kubernetes);
    let ask = |kubeconfig: &Path| ask(&namespace, kubeconfig);
    let policy = |spec: Value| {
        kubernetes.apply(&json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "asks", "namespace": namespace}, "spec": spec,
        }));
    };
    let kubeconfig = kubernetes.plane.kubeconfig();
    let (code, text) = ask(&kubeconfig);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("by HBONE") && text.contains("no ALLOW policy applies"), "{text}");

    let source = json!([{"from": [{"source": {"namespaces": [namespace]}}]}]);
    policy(json!({"selector": {"matchLabels": {"app": "server"}}, "action": "DENY", "rules": source}));
    let (code, text) = ask(&kubeconfig);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("policy_denied") && text.contains(&format!("{namespace}/asks")), "{text}");

    // What nodes can't understand is said, whatever is asked.
    policy(json!({"selector": {"matchLabels": {"app": "server"}}, "rules": [{"whom": "nobody"}]}));
    let (code, text) = ask(&kubeconfig);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains(&format!("AuthorizationPolicy {namespace}/asks: spec.rules[0]")), "{text}");

    let address = kubernetes.plane.address().to_string();
    let poor = kubernetes.kubeconfig(&testbed.dir().join("poor"), &namespace, "default", &address);
    let (code, text) = ask(&poor);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("of the Kubernetes API: ") && text.contains("forbidden"), "{text}");
}

#[test]
fn explain_waits_for_a_kind_that_is_defined_and_not_served_yet() {
    let kubernetes = Kubernetes::own();
    kubernetes.define_istio();
    let namespace = client_and_server(&kubernetes);
    let serve = |served: bool| {
        let version = json!({
            "name": "v1", "served": served, "storage": true, "schema": {"openAPIV3Schema": anything()},
        });
        kubernetes.apply(&json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": "telemetries.telemetry.istio.io"},
            "spec": {
                "group": "telemetry.istio.io", "scope": "Namespaced", "versions": [version],
                "names": {"kind": "Telemetry", "plural": "telemetries"},
            },
        }));
    };
    let path = "/apis/telemetry.istio.io/v1/telemetries";
    let is_served = || {
        let request = http::Request::get(path).body(Vec::new()).unwrap();
        kubernetes.wait(kubernetes.client.request_text(request)).is_ok()
    };
    serve(false);
    assert!(wait_for(LONG, || !is_served()));
    let kubeconfig = kubernetes.plane.kubeconfig();
    let (code, text) = thread::scope(|scope| {
        let asks = scope.spawn(|| ask(&namespace, &kubeconfig));
        let gave_up = wait_for(Duration::from_secs(3), || asks.is_finished());
        serve(true);
        let answer = asks.join().unwrap();
        assert!(!gave_up, "{answer:?}");
        answer
    });
    assert_eq!(code, Some(0), "{text}");
}
