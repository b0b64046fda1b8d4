//! What the Helm chart makes, as an API server sees it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use orlop_tests::{DeployTools, wait_for};
use serde_json::{Value, json};

use super::api::{Kubernetes, anything};
use super::install::SYSTEM;
use super::replica::LONG;
use crate::chart::{VARIANTS, deploy};

/// What `kubectl apply --dry-run=server` says of what the chart makes with these arguments.
fn apply(kubernetes: &Kubernetes, name: &str, args: &[&str]) -> Output {
    let tools = DeployTools::find().unwrap();
    let rendered = tools.render(&deploy().join("helm/orlop"), args).unwrap();
    let path = kubernetes.plane.dir().join(format!("{name}.yaml"));
    fs::write(&path, rendered).unwrap();
    let mut kubectl = tools.kubectl(&kubernetes.plane.kubeconfig());
    kubectl.args(["apply", "--dry-run=server", "--filename"]).arg(path).output().unwrap()
}

#[test]
fn an_api_server_takes_what_it_makes() {
    let kubernetes = Kubernetes::shared();
    kubernetes.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}}));
    kubernetes.define("monitoring.coreos.com", "PodMonitor", "podmonitors", &json!({}), &anything());
    for (index, variant) in VARIANTS.into_iter().enumerate() {
        let output = apply(&kubernetes, &format!("variant-{index}"), variant);
        assert!(output.status.success(), "{variant:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    // It would say so if something were wrong.
    let bad = apply(&kubernetes, "bad", &["--set=node.resources.limits.memory=much"]);
    let said = String::from_utf8_lossy(&bad.stderr);
    assert!(!bad.status.success() && said.contains("DaemonSet") && said.contains("quantities"), "{said}");
}

/// Runs helm or kubectl, which must do well. Gives what it printed.
#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The chart, but for the versions that it asks of a cluster: one that is built from its modules has none.
fn unversioned_chart(directory: &Path) -> PathBuf {
    let copy = directory.join("chart");
    run(Command::new("cp").arg("-rL").arg(deploy().join("helm/orlop")).arg(&copy));
    let file = copy.join("Chart.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with("kubeVersion:"));
    fs::write(&file, lines.collect::<Vec<_>>().join("\n")).unwrap();
    copy
}

#[test]
fn istio_s_definitions_come_with_it_and_stay_unless_they_are_somebody_else_s() {
    let kubernetes = Kubernetes::own();
    let tools = DeployTools::find().unwrap();
    let kubeconfig = kubernetes.plane.kubeconfig();
    let helm = |action: &str, args: &[&str]| {
        let mut helm = tools.helm();
        helm.args([action, "orlop"]).args(args).args(["--namespace", SYSTEM]);
        run(helm.arg("--kubeconfig").arg(&kubeconfig))
    };
    let chart = unversioned_chart(kubernetes.plane.dir());
    let chart = chart.to_str().unwrap();
    let definition = |plural: &str| {
        let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{plural}");
        let request = http::Request::get(path).body(Vec::new()).unwrap();
        kubernetes.wait(kubernetes.client.request::<Value>(request)).ok()
    };
    let (theirs, ours) = ("virtualservices.networking.istio.io", "authorizationpolicies.security.istio.io");
    kubernetes.define("networking.istio.io", "VirtualService", "virtualservices", &json!({}), &anything());
    let before = definition(theirs).unwrap();

    helm("install", &[chart, "--create-namespace", "--set=crds.istio=false"]);
    assert!(definition(ours).is_none());
    helm("upgrade", &[chart, "--set=crds.istio=true"]);
    kubernetes.wait_served("/apis/security.istio.io/v1/authorizationpolicies?limit=1");
    assert_eq!(definition(theirs).unwrap()["spec"], before["spec"]);
    assert_eq!(definition(theirs).unwrap()["metadata"]["labels"], before["metadata"]["labels"]);
    let first = definition(ours).unwrap();

    // What they say is what people read.
    let field = "authorizationpolicy.spec.rules.from.source.principals";
    // The API server describes a kind somewhat later than it serves it.
    let explains = || {
        let output = tools.kubectl(&kubeconfig).args(["explain", field]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains("Identities as TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT")
    };
    assert!(wait_for(LONG, explains), "kubectl explain {field} does not say what it is");
    kubernetes.apply(&json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "kept", "namespace": "default"}, "spec": {"rules": [{}]},
    }));

    // Another look at a release that is there keeps what is its own; its end takes nobody's policies along.
    helm("upgrade", &[chart]);
    assert_eq!(definition(ours).unwrap()["metadata"]["uid"], first["metadata"]["uid"]);
    helm("upgrade", &[chart, "--set=crds.istio=false"]);
    helm("uninstall", &[]);
    assert_eq!(definition(ours).unwrap()["metadata"]["uid"], first["metadata"]["uid"]);
    let kept = run(tools.kubectl(&kubeconfig).args(["get", "authorizationpolicies", "--all-namespaces"]));
    assert!(kept.contains("kept"), "{kept}");

    // Whoever installs it again finds them, and may have them.
    helm("install", &[chart]);
    assert_eq!(definition(ours).unwrap()["metadata"]["uid"], first["metadata"]["uid"]);
}
