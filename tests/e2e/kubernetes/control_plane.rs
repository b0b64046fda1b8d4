use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::Api;
use kube::api::ListParams;
use serde_json::json;

use super::api::Kubernetes;

#[test]
fn a_service_account_may_do_what_its_role_says_and_nothing_else() {
    let kubernetes = Kubernetes::shared();
    let namespace = kubernetes.namespace("rbac", &[]);
    let client = kubernetes.client_of(&namespace, "default");
    let pods = Api::<Pod>::namespaced(client.clone(), &namespace);
    let code = |result: kube::Result<_>| match result {
        Err(kube::Error::Api(status)) => status.code,
        Err(error) => panic!("{error}"),
        Ok(_) => 200,
    };
    assert_eq!(code(kubernetes.wait(pods.list(&ListParams::default()))), 403);
    kubernetes.apply(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": "reader", "namespace": namespace},
        "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}],
    }));
    kubernetes.apply(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "reader", "namespace": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": namespace}],
    }));
    // Authorisers hear of it somewhat later.
    kubernetes.wait(async { while pods.list(&ListParams::default()).await.is_err() {} });
    let secrets = Api::<Secret>::namespaced(client, &namespace);
    assert!(matches!(
        kubernetes.wait(secrets.list(&ListParams::default())),
        Err(kube::Error::Api(status)) if status.code == 403
    ));
}

#[test]
fn its_controllers_run() {
    let kubernetes = Kubernetes::shared();
    let namespace = kubernetes.namespace("controllers", &[]);
    // A Deployment becomes a ReplicaSet and that a pod; the namespace gets the cluster's root certificate.
    kubernetes.apply(&json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": namespace},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "web", "image": "web"}]},
            },
        },
    }));
    let pods = Api::<Pod>::namespaced(kubernetes.client.clone(), &namespace);
    let maps = Api::<ConfigMap>::namespaced(kubernetes.client.clone(), &namespace);
    kubernetes.wait(async {
        while pods.list(&ListParams::default()).await.unwrap().items.is_empty() {}
        while maps.get_opt("kube-root-ca.crt").await.unwrap().is_none() {}
    });
}
