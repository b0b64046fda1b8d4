//! `orlop check --kube`, before Orlop is installed.

use std::path::Path;
use std::process::Command;

use orlop_tests::binary;
use serde_json::{Value, json};

use super::api::Kubernetes;
use super::install::SYSTEM;

/// What it says, as JSON, and its exit code.
fn check(kubeconfig: &Path) -> (Value, Option<i32>) {
    let mut orlop = Command::new(binary().unwrap());
    orlop.args(["check", "--output", "json", "--kubeconfig"]).arg(kubeconfig).env_remove("KUBECONFIG");
    let output = orlop.output().unwrap();
    let said = serde_json::from_slice(&output.stdout);
    (said.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr))), output.status.code())
}

fn state(said: &Value, name: &str) -> (String, String) {
    let mut checks = said["checks"].as_array().unwrap().iter();
    let one = checks.find(|one| one["name"] == name).unwrap_or_else(|| panic!("no {name}: {said:#}"));
    let text = |field: &str| one[field].as_str().unwrap().to_owned();
    (text("state"), text("detail"))
}

#[test]
fn whether_it_can_be_installed_is_said_before_it_is() {
    let kubernetes = Kubernetes::own();
    let (said, code) = check(&kubernetes.plane.kubeconfig());
    assert_eq!(code, Some(0), "{said:#}");
    assert_eq!(state(&said, "Istio"), ("ok".to_owned(), "none is installed".to_owned()));
    assert_eq!(state(&said, "right to create daemonsets").0, "ok");
    assert!(said["verdict"].as_str().unwrap().contains("can be installed"), "{said:#}");

    // Istio's ambient mode would have the same pods.
    for (name, labels) in
        [("istio-system", json!({})), ("both", json!({"istio.io/dataplane-mode": "ambient"}))]
    {
        kubernetes.apply(&json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels},
        }));
    }
    kubernetes.apply(&json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "ztunnel", "namespace": "istio-system"},
    }));
    kubernetes.apply(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "ztunnel-1", "namespace": "istio-system", "labels": {"app": "ztunnel"}},
        "spec": {"serviceAccountName": "ztunnel", "containers": [{"name": "ztunnel", "image": "ztunnel"}]},
    }));
    let (said, code) = check(&kubernetes.plane.kubeconfig());
    assert_eq!((code, state(&said, "namespace both").0.as_str()), (Some(2), "missing"), "{said:#}");

    // Who may not install it is told so, and of what can't be seen that it is not known.
    kubernetes.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}}));
    kubernetes.apply(&json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "nobody", "namespace": SYSTEM},
    }));
    kubernetes.apply(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": "look", "namespace": SYSTEM},
        "rules": [{"apiGroups": ["apps"], "resources": ["daemonsets"], "verbs": ["get"]}],
    }));
    kubernetes.apply(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "look", "namespace": SYSTEM},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "look"},
        "subjects": [{"kind": "ServiceAccount", "name": "nobody", "namespace": SYSTEM}],
    }));
    let address = kubernetes.plane.address().to_string();
    let nobody = kubernetes.kubeconfig(kubernetes.plane.dir(), SYSTEM, "nobody", &address);
    let refused = || {
        let (said, code) = check(&nobody);
        let right = said["checks"]
            .as_array()
            .unwrap()
            .iter()
            .any(|one| one["name"] == "right to create daemonsets" && one["state"] == "missing");
        right && code == Some(2) && state(&said, "Istio").0 == "note"
    };
    // Authorisers hear of a role somewhat later.
    assert!(orlop_tests::wait_for(super::replica::LONG, refused), "{:#}", check(&nobody).0);
}
