//! What `deploy/manifests` installs, in a cluster where nothing runs pods.

use std::fs;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::api::Kubernetes;

/// The namespace that everything of Orlop's is in.
pub const SYSTEM: &str = "orlop-system";
/// The service accounts of its roles.
pub const NODE_ACCOUNT: &str = "orlop-node";
pub const CONTROLLER_ACCOUNT: &str = "orlop-controller";
/// Whom the tokens are for that agents show to the controller.
pub const AUDIENCE: &str = "istio-ca";
/// The ConfigMap that the controller puts into every namespace, and its key.
pub const BUNDLE: &str = "orlop-ca-root";
pub const ROOTS: &str = "root-cert.pem";

/// The objects of the manifests, in their order.
pub fn manifests() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/manifests/orlop.yaml");
    serde_saphyr::from_multiple(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Applies them, all but what would wait for a scheduler, and waits until the service accounts may do what their
/// roles say. To do so twice does no harm.
pub fn install(kubernetes: &Kubernetes) {
    let manifests = manifests();
    let runs_pods = |object: &&Value| ["DaemonSet", "Deployment"].iter().any(|kind| object["kind"] == *kind);
    manifests.iter().filter(|object| !runs_pods(object)).for_each(|object| kubernetes.apply(object));
    // Authorisers hear of roles and of their bindings somewhat later, of each kind by itself.
    for (account, attributes) in [
        (NODE_ACCOUNT, json!({"verb": "watch", "resource": "pods"})),
        (CONTROLLER_ACCOUNT, json!({"verb": "watch", "resource": "pods"})),
        (CONTROLLER_ACCOUNT, json!({"verb": "create", "resource": "secrets", "namespace": SYSTEM})),
    ] {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": format!("system:serviceaccount:{SYSTEM}:{account}"),
                "resourceAttributes": attributes,
            },
        });
        kubernetes.wait(async {
            while kubernetes.review(&review).await["status"]["allowed"] != true {
                sleep(Duration::from_millis(10)).await;
            }
        });
    }
}

/// The roots of a namespace's bundle, once a controller has written it.
pub fn roots(kubernetes: &Kubernetes, namespace: &str) -> String {
    let maps = Api::<ConfigMap>::namespaced(kubernetes.client.clone(), namespace);
    kubernetes.wait(async {
        loop {
            let map = maps.get_opt(BUNDLE).await.unwrap();
            if let Some(roots) = map.and_then(|map| map.data?.remove(ROOTS)) {
                return roots;
            }
            sleep(Duration::from_millis(10)).await;
        }
    })
}
