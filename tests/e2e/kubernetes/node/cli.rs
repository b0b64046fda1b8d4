//! What people ask agents through the API server.

use std::path::Path;
use std::process::{Command, Output};

use orlop_tests::{binary, wait_for};
use serde_json::{Value, json};

use super::cluster::{Cluster, LONG};
use crate::kubernetes::install::SYSTEM;

/// `orlop`, from the machine's own network, with somebody's kubeconfig.
fn orlop(kubeconfig: &Path, args: &[&str]) -> Output {
    let mut orlop = Command::new(binary().unwrap());
    orlop.args(args).arg("--kubeconfig").arg(kubeconfig).env_remove("KUBECONFIG").output().unwrap()
}

/// What it prints where all goes well.
#[track_caller]
fn said(kubeconfig: &Path, args: &[&str]) -> String {
    let output = orlop(kubeconfig, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What `orlop check` says to who may do everything.
fn check(cluster: &Cluster) -> Value {
    let checked = orlop(&cluster.kubernetes.plane.kubeconfig(), &["check", "-o", "json"]);
    let why = || String::from_utf8_lossy(&checked.stderr).into_owned();
    serde_json::from_slice(&checked.stdout).unwrap_or_else(|_| panic!("{}", why()))
}

fn is_of_pod(check: &Value) -> bool {
    check["name"].as_str().is_some_and(|name| name.starts_with("pod "))
}

/// Waits until `orlop check` notes something of a pod.
#[track_caller]
pub fn check_notes(cluster: &Cluster, pod: &str, text: &str) {
    let mut checked = Value::Null;
    let noted = wait_for(LONG, || {
        checked = check(cluster);
        let mut checks = checked["checks"].as_array().unwrap().iter();
        let noted = checks.find(|one| one["name"] == format!("pod {pod}"));
        noted.is_some_and(|one| {
            one["state"] == "note" && one["detail"].as_str().is_some_and(|detail| detail.contains(text))
        })
    });
    assert!(noted, "{pod}: {text} is not noted: {checked:#}");
}

/// For who may list pods and forward ports where Orlop is, and nothing else: the client's pod is on the first node and
/// the server's on the second.
pub fn people_ask_the_agents(cluster: &Cluster) {
    let nodes = cluster.nodes.each_ref().map(|node| node.node().name().to_owned());
    let kubernetes = &cluster.kubernetes;
    let address = kubernetes.plane.address().to_string();
    for account in ["person", "nobody"] {
        kubernetes.apply(&json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account, "namespace": SYSTEM},
        }));
    }
    let [person, nobody] = ["person", "nobody"].map(|account| {
        kubernetes.kubeconfig(&kubernetes.plane.dir().join(account), SYSTEM, account, &address)
    });
    let refused = orlop(&nobody, &["status"]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("you need the right to list them"), "{why}");

    let api = "rbac.authorization.k8s.io";
    kubernetes.apply(&json!({
        "apiVersion": format!("{api}/v1"), "kind": "Role", "metadata": {"name": "ask", "namespace": SYSTEM},
        "rules": [
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
            {"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["get", "create"]},
        ],
    }));
    kubernetes.apply(&json!({
        "apiVersion": format!("{api}/v1"), "kind": "RoleBinding", "metadata": {"name": "ask", "namespace": SYSTEM},
        "roleRef": {"apiGroup": api, "kind": "Role", "name": "ask"},
        "subjects": [{"kind": "ServiceAccount", "name": "person", "namespace": SYSTEM}],
    }));
    // Authorisers hear of it somewhat later.
    let heard = || orlop(&person, &["status"]).status.success();
    assert!(wait_for(LONG, heard), "{}", String::from_utf8_lossy(&orlop(&person, &["status"]).stderr));

    let status = said(&person, &["status"]);
    let row = |pod: &str| {
        let row = status.lines().find(|line| line.contains(pod)).unwrap_or_else(|| panic!("{pod}: {status}"));
        row.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(row("shop/client")[..4], [nodes[0].as_str(), "shop/client", "enrolled", "valid"]);
    assert_eq!(row("shop/server")[..4], [nodes[1].as_str(), "shop/server", "enrolled", "valid"]);

    // Who is not in the mesh, and why not, is for who wants to know.
    assert!(!status.contains("outside/stranger"), "{status}");
    let wide = said(&person, &["status", "-o", "wide"]);
    let stranger =
        wide.lines().find(|line| line.contains("outside/stranger")).unwrap_or_else(|| panic!("{wide}"));
    assert!(
        stranger.contains(env!("CARGO_PKG_VERSION")) && stranger.contains("label its namespace"),
        "{wide}"
    );

    let one: Value =
        serde_json::from_str(&said(&person, &["status", "--node", &nodes[1], "-o", "json"])).unwrap();
    assert!(one["node"] == *nodes[1] && one["enrolled"]["shop/server"].is_object(), "{one}");
    let certificates: Value = serde_json::from_str(&said(&person, &["certs", "-o", "json"])).unwrap();
    let of = |node: &str, account: &str| {
        let identity = format!("spiffe://cluster.local/ns/shop/sa/{account}");
        let mut all = certificates.as_array().unwrap().iter();
        all.any(|one| one["node"] == node && one["identity"] == identity && one["state"] == "valid")
    };
    assert!(of(&nodes[0], "client") && of(&nodes[1], "server") && !of(&nodes[0], "server"), "{certificates}");
    // All agents know the same of these, and one is asked.
    let workloads = said(&person, &["workloads", "-o", "wide"]);
    assert_eq!(workloads.matches("shop/server ").count(), 1, "{workloads}");
    assert!(said(&person, &["services"]).contains("orlop-system/orlop-controller"));
    assert!(said(&person, &["policies", "-o", "yaml"]).contains("policies:"));
    assert!(said(&person, &["flows"]).contains("\"dst_workload\":\"shop/server\""));

    for view in ["status", "workloads", "services", "policies", "certs"] {
        for output in ["table", "wide", "json", "yaml"] {
            assert!(!said(&person, &[view, "--node", &nodes[0], "-o", output]).is_empty());
        }
    }
    // Who has no agent on the machine means the cluster of the kubeconfig.
    let mut plain = Command::new(binary().unwrap());
    let output = plain.args(["certs", "-o", "wide"]).env("KUBECONFIG", &person).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    // An administrator sees how it stands, and which pods are not as their namespace asks.
    cluster.kubectl(&["label", "pod", "probed", "orlop.dev/mesh=disabled", "--namespace=shop"]);
    check_notes(cluster, "shop/probed", "in clear on n2, though its namespace is in the mesh");
    let checked = check(cluster);
    assert_eq!(checked["verdict"], "Orlop is installed and ready", "{checked:#}");
    for node in &nodes {
        let is_ok = |one: &Value| one["name"] == format!("agent of {node}") && one["state"] == "ok";
        assert!(checked["checks"].as_array().unwrap().iter().any(is_ok), "{checked:#}");
    }

    let is_controller = |one: &&Value| one["name"].as_str().unwrap().starts_with("controller orlop-system/");
    let controllers: Vec<_> = checked["checks"].as_array().unwrap().iter().filter(is_controller).collect();
    let version = format!("version {}", env!("CARGO_PKG_VERSION"));
    assert!(
        !controllers.is_empty() && controllers.iter().all(|one| one["detail"] == *version),
        "{checked:#}"
    );

    let pods = checked["checks"].as_array().unwrap().iter().filter(|one| is_of_pod(one));
    let pods: Vec<_> = pods.map(|one| one["name"].clone()).collect();
    assert_eq!(pods, ["pod shop/probed"], "{checked:#}");

    let absent = orlop(&person, &["status", "--node", "n9"]);
    let why = String::from_utf8_lossy(&absent.stderr).into_owned();
    assert!(!absent.status.success() && why.contains(&nodes.join(", ")), "{why}");
}
