use std::env;
use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output};

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::Api;
use kube::api::ListParams;
use orlop_tests::{Testbed, wait_for};
use serde_json::json;

use super::api::{Kubernetes, serves};
use super::replica::LONG;
use crate::readme::root;

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

/// `cargo xtask cluster …`, as cargo runs it.
fn xtask(command: &str, directory: &Path) -> Output {
    let me = env::current_exe().unwrap();
    let program = me.ancestors().nth(2).unwrap().join("xtask");
    let mut xtask = Command::new(program);
    xtask.args(["cluster", command, "--dir"]).arg(directory);
    xtask.env("CARGO_MANIFEST_DIR", root().join("xtask")).output().unwrap()
}

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

/// Ends the cluster, whatever becomes of the test.
struct Ended<'a>(&'a Path);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        xtask("down", self.0);
    }
}

#[test]
fn cluster_up_gives_one_that_serves_until_cluster_down_which_leaves_nothing_of_it() {
    let testbed = Testbed::new().unwrap();
    let directory = testbed.dir().join("cluster");
    let _ended = Ended(&directory);
    let up = xtask("up", &directory);
    assert!(up.status.success(), "{}", text(&up.stderr));
    // What a shell can take as it is, and nothing else.
    let (said, kubeconfig) = (text(&up.stdout), directory.join("admin.kubeconfig"));
    assert_eq!(said, format!("export KUBECONFIG={}\n", kubeconfig.display()));
    assert!(serves(&kubeconfig));
    // It is nobody else's to start, and what runs goes on.
    let again = xtask("up", &directory);
    assert!(!again.status.success() && again.stdout.is_empty());
    let (again, wanted) =
        (text(&again.stderr), format!("there is a cluster in {} already", directory.display()));
    assert!(again.contains(&wanted) && again.contains("cargo xtask cluster down"), "{again}");
    assert!(serves(&kubeconfig));

    let of_admin = fs::read_to_string(&kubeconfig).unwrap();
    let server = of_admin.split_once("https://").unwrap().1;
    let server = server.split(['"', '\n']).next().unwrap().to_owned();
    assert!(TcpStream::connect(&server).is_ok(), "{server}");
    let record = fs::read_to_string(directory.join("processes")).unwrap();
    let processes: Vec<_> = record.lines().map(|line| line.split_once(' ').unwrap().0).collect();
    assert_eq!(processes.len(), 3, "{record}");
    let down = xtask("down", &directory);
    assert!(down.status.success() && text(&down.stdout) == "ended\n", "{}", text(&down.stderr));
    assert!(!directory.exists());
    for process in processes {
        // One that nobody has waited for is still there, and is nothing any more.
        let command_line = fs::read(Path::new("/proc").join(process).join("cmdline")).unwrap_or_default();
        assert!(command_line.is_empty(), "{process} runs on");
    }
    // A process that ends has no command line somewhat before it has no sockets.
    let is_silent = || TcpStream::connect(&server).is_err();
    assert!(wait_for(LONG, is_silent), "{server} still answers");
    let again = xtask("down", &directory);
    let again = (again.status.success(), text(&again.stderr));
    assert!(!again.0 && again.1.contains("there is no cluster in"), "{again:?}");
}
