use std::fs;
use std::net::TcpStream;
use std::path::Path;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::Api;
use kube::api::ListParams;
use orlop_tests::{Testbed, start_detached, stop_detached, wait_for};
use serde_json::json;

use super::api::{Kubernetes, serves};
use super::replica::LONG;

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

/// What `cargo xtask cluster up` and `down` do.
#[test]
fn one_that_outlives_its_program_serves_and_leaves_nothing_when_it_is_ended() {
    let testbed = Testbed::new().unwrap();
    let directory = testbed.dir().join("cluster");
    let plane = start_detached(&directory).unwrap();
    assert!(serves(&plane.kubeconfig));
    // It is nobody else's to start, and what runs goes on.
    let again = start_detached(&directory).unwrap_err().to_string();
    assert!(again.contains("cargo xtask cluster down"), "{again}");
    assert!(serves(&plane.kubeconfig));

    let kubeconfig = fs::read_to_string(&plane.kubeconfig).unwrap();
    let server = kubeconfig.split_once("https://").unwrap().1;
    let server = server.split(['"', '\n']).next().unwrap().to_owned();
    assert!(TcpStream::connect(&server).is_ok(), "{server}");
    let record = fs::read_to_string(directory.join("processes")).unwrap();
    let processes: Vec<_> = record.lines().map(|line| line.split_once(' ').unwrap().0).collect();
    assert_eq!(processes.len(), 3, "{record}");
    assert!(stop_detached(&directory).unwrap());
    assert!(!directory.exists());
    for process in processes {
        // One that nobody has waited for is still there, and is nothing any more.
        let command_line = fs::read(Path::new("/proc").join(process).join("cmdline")).unwrap_or_default();
        assert!(command_line.is_empty(), "{process} runs on");
    }
    // A process that ends has no command line somewhat before it has no sockets.
    let is_silent = || TcpStream::connect(&server).is_err();
    assert!(wait_for(LONG, is_silent), "{server} still answers");
    assert!(!stop_detached(&directory).unwrap());
}
