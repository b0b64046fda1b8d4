//! `orlop check --kube`, before Orlop is installed.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use orlop_tests::{DeployTools, binary, wait_for};
use serde_json::{Value, json};

use super::api::Kubernetes;
use super::install::SYSTEM;
use super::replica::LONG;
use crate::chart::{VARIANTS, deploy};

/// What it says, as JSON, and its exit code.
fn check(kubeconfig: &Path) -> (Value, Option<i32>) {
    let mut orlop = Command::new(binary().unwrap());
    said(orlop.args(["check", "--kubeconfig"]).arg(kubeconfig).env_remove("KUBECONFIG"))
}

fn said(orlop: &mut Command) -> (Value, Option<i32>) {
    let output = orlop.args(["--output", "json"]).output().unwrap();
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

    // Pods that ask for one mesh by themselves, and for the other by their namespace.
    kubernetes.apply(&json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"orlop.dev/mesh": "enabled"}},
    }));
    kubernetes.apply(&json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "shop"},
    }));
    for (name, labels, container) in [
        ("web", json!({}), "istio-proxy"),
        ("till", json!({"sidecar.istio.io/inject": "true"}), "app"),
        ("ours", json!({}), "app"),
    ] {
        kubernetes.apply(&json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop", "labels": labels},
            "spec": {"containers": [{"name": container, "image": "app"}]},
        }));
    }
    kubernetes.apply(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "cni", "namespace": "istio-system", "labels": {"k8s-app": "istio-cni-node"}},
        "spec": {"serviceAccountName": "ztunnel", "containers": [{"name": "install-cni", "image": "cni"}]},
    }));
    let (said, _) = check(&kubernetes.plane.kubeconfig());
    assert!(state(&said, "pod shop/web").1.contains("has Istio's sidecar"), "{said:#}");
    assert!(state(&said, "pod shop/till").1.contains("sidecar.istio.io/inject"), "{said:#}");
    assert!(!said.to_string().contains("shop/ours"), "{said:#}");
    assert!(state(&said, "Istio").1.contains("istio-cni in istio-system"), "{said:#}");

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
    assert!(wait_for(LONG, refused), "{:#}", check(&nobody).0);

    // A namespace that refuses agents is told, and what to do about it.
    let label = |level: &str| {
        kubernetes.apply(&json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": SYSTEM, "labels": {"pod-security.kubernetes.io/enforce": level}},
        }));
        state(&check(&kubernetes.plane.kubeconfig()).0, "Pod Security")
    };
    let (refuses, how) = label("baseline");
    assert!(
        refuses == "missing" && how.contains("kubectl label --overwrite namespace orlop-system"),
        "{how}"
    );
    assert_eq!(label("privileged").0, "ok");
}

/// The kinds that Helm makes, whatever the values, by group and plural: the chart's, its namespace and what it keeps of
/// a release.
fn made() -> BTreeSet<(String, String)> {
    let tools = DeployTools::find().unwrap();
    let rendered = VARIANTS.map(|args| tools.render(&deploy().join("helm/orlop"), args).unwrap());
    let objects = rendered.iter().flat_map(|text| serde_saphyr::from_multiple::<Value>(text).unwrap());
    let chart = objects.map(|object| {
        let [version, kind] =
            ["apiVersion", "kind"].map(|field| object[field].as_str().unwrap().to_lowercase());
        let plural = match kind.strip_suffix('y') {
            Some(stem) => format!("{stem}ies"),
            None => format!("{kind}s"),
        };
        (version.rsplit_once('/').map_or("", |(group, _)| group).to_owned(), plural)
    });
    chart.chain(["namespaces", "secrets"].map(|core| (String::new(), core.to_owned()))).collect()
}

/// By their very groups; and whoever may not give what they have not can't install it all the same.
#[test]
fn the_rights_to_install_it_are_those_to_make_what_the_chart_makes() {
    let kubernetes = Kubernetes::own();
    let made = made();
    kubernetes.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}}));
    kubernetes.apply(&json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "installs", "namespace": SYSTEM},
    }));
    let mut rules: Vec<_> = made
        .iter()
        .map(|(group, plural)| json!({"apiGroups": [group], "resources": [plural], "verbs": ["create"]}))
        .collect();
    rules.push(json!({"apiGroups": ["apps"], "resources": ["daemonsets"], "verbs": ["get"]}));
    let let_do = |rules: &[Value]| {
        kubernetes.apply(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": "installs"}, "rules": rules,
        }));
    };
    let_do(&rules);
    kubernetes.apply(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "installs"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "installs"},
        "subjects": [{"kind": "ServiceAccount", "name": "installs", "namespace": SYSTEM}],
    }));
    let address = kubernetes.plane.address().to_string();
    let kubeconfig = kubernetes.kubeconfig(kubernetes.plane.dir(), SYSTEM, "installs", &address);
    let rights = |wanted: &str| {
        let (said, _) = check(&kubeconfig);
        let rows = said["checks"].as_array().unwrap().iter().filter(|one| one["state"] == wanted);
        let names = rows.filter_map(|one| one["name"].as_str()?.strip_prefix("right to ").map(str::to_owned));
        names.collect::<BTreeSet<_>>()
    };
    let creates: BTreeSet<_> = made.iter().map(|(_, plural)| format!("create {plural}")).collect();
    // Authorisers hear of a role somewhat later.
    assert!(wait_for(LONG, || rights("ok") == creates), "{:?} are not {creates:?}", rights("ok"));
    let gives = ["escalate clusterroles", "bind clusterroles", "escalate roles", "bind roles"];
    assert_eq!(rights("missing"), BTreeSet::from(gives.map(str::to_owned)));

    let resources = json!(["clusterroles", "roles"]);
    let group = "rbac.authorization.k8s.io";
    rules.push(json!({"apiGroups": [group], "resources": resources, "verbs": ["escalate", "bind"]}));
    let_do(&rules);
    assert!(wait_for(LONG, || rights("missing").is_empty()), "{:?}", rights("missing"));
}

/// As kubectl has it, also where the kubeconfig's current context is of no cluster that is there.
#[test]
fn a_context_of_the_kubeconfig_names_the_cluster() {
    let kubernetes = Kubernetes::own();
    let text = fs::read_to_string(kubernetes.plane.kubeconfig()).unwrap();
    let mut kubeconfig: Value = serde_saphyr::from_str(&text).unwrap();
    kubeconfig["contexts"][0]["name"] = "there".into();
    let clusters = kubeconfig["clusters"].as_array_mut().unwrap();
    clusters.push(json!({"name": "gone", "cluster": {"server": "https://127.0.0.1:1"}}));
    let mut gone = kubeconfig["contexts"][0].clone();
    gone["name"] = "gone".into();
    gone["context"]["cluster"] = "gone".into();
    kubeconfig["contexts"].as_array_mut().unwrap().push(gone);
    kubeconfig["current-context"] = "gone".into();
    let path = kubernetes.plane.dir().join("two-contexts");
    fs::write(&path, kubeconfig.to_string()).unwrap();

    let orlop = |args: &[&str]| {
        let mut orlop = Command::new(binary().unwrap());
        orlop.args(args).env("KUBECONFIG", &path);
        orlop
    };
    let there = ["check", "--kube", "--context", "there"];
    assert_eq!(said(&mut orlop(&there)).1, Some(0));
    let file = path.to_str().unwrap();
    assert_eq!(said(orlop(&there).args(["--kubeconfig", file]).env_remove("KUBECONFIG")).1, Some(0));
    let error = |args: &[&str]| {
        let output = orlop(args).output().unwrap();
        assert!(!output.status.success(), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(error(&["check", "--kube"]).contains("is the cluster of this kubeconfig there?"));
    let missing = error(&["check", "--context", "nowhere"]);
    assert!(missing.contains("nowhere") && missing.contains("kubectl config get-contexts"), "{missing}");
    // Every command that asks agents has it: there are none.
    let none = error(&["status", "--context", "there"]);
    assert!(none.contains("there are no agents in namespace orlop-system"), "{none}");
}

/// Serves one client of a proxy (RFC 9110, section 9.3.6).
fn tunnel(mut client: TcpStream) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let target = head.strip_prefix("CONNECT ").unwrap().split(' ').next().unwrap();
    let mut server = TcpStream::connect(target)?;
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    let (mut answers, mut to_client) = (server.try_clone()?, client.try_clone()?);
    let back = thread::spawn(move || {
        let _ = io::copy(&mut answers, &mut to_client);
        to_client.shutdown(Shutdown::Write)
    });
    let _ = io::copy(&mut client, &mut server);
    let _ = server.shutdown(Shutdown::Write);
    back.join().unwrap()
}

#[test]
fn a_proxy_that_the_kubeconfig_names_leads_to_the_cluster() {
    let kubernetes = Kubernetes::own();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (proxy, tunnels) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&tunnels);
    thread::spawn(move || {
        for client in listener.incoming() {
            counted.fetch_add(1, Ordering::Relaxed);
            thread::spawn(move || tunnel(client.unwrap()));
        }
    });
    let text = fs::read_to_string(kubernetes.plane.kubeconfig()).unwrap();
    let mut kubeconfig: Value = serde_saphyr::from_str(&text).unwrap();
    kubeconfig["clusters"][0]["cluster"]["proxy-url"] = format!("http://{proxy}").into();
    let path = kubernetes.plane.dir().join("by-proxy");
    fs::write(&path, kubeconfig.to_string()).unwrap();
    let (said, code) = check(&path);
    assert!(code == Some(0) && tunnels.load(Ordering::Relaxed) > 0, "{said:#}");
}
