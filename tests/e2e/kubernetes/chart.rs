//! What the Helm chart makes, as an API server sees it.

use std::fs;
use std::process::Output;

use orlop_tests::DeployTools;
use serde_json::json;

use super::api::{Kubernetes, anything};
use super::install::SYSTEM;
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
    assert!(!bad.status.success() && said.contains("orlop-node") && said.contains("quantities"), "{said}");
}
