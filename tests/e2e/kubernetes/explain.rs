//! `orlop explain` about what is in the cluster.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use orlop_tests::{Testbed, binary};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::api::Kubernetes;

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
fn explain_waits_for_a_kind_that_was_just_defined() {
    let kubernetes = Kubernetes::own();
    kubernetes.define_istio();
    let namespace = client_and_server(&kubernetes);
    let definitions = Api::<CustomResourceDefinition>::all(kubernetes.client.clone());
    let name = "telemetries.telemetry.istio.io";
    let definition = kubernetes.wait(definitions.get(name)).unwrap();
    let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
    let anew = CustomResourceDefinition { metadata, status: None, ..definition };
    let asked = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !asked.load(Ordering::Relaxed) {
                kubernetes.wait(async {
                    definitions.delete(name, &DeleteParams::default()).await.unwrap();
                    while definitions.create(&PostParams::default(), &anew).await.is_err() {
                        sleep(Duration::from_millis(1)).await;
                    }
                });
            }
        });
        let kubeconfig = kubernetes.plane.kubeconfig();
        let answers: Vec<_> = (0..50).map(|_| ask(&namespace, &kubeconfig)).collect();
        asked.store(true, Ordering::Relaxed);
        let bad: Vec<_> = answers.iter().filter(|(code, _)| *code != Some(0)).collect();
        assert!(bad.is_empty(), "{bad:#?}");
    });
}
