use std::fs;

use orlop_tests::{BUSYBOX, wait_for};
use serde_json::{Value, json};

use super::cli::check_notes;
use super::cluster::{Cluster, LONG};
use crate::boot_gate::kubelet::DRIVER;
use crate::kubernetes::install::SYSTEM;
use crate::readme::root;

/// How many start at once.
const PODS: usize = 8;
/// What they say, which nobody may read on the wire.
const WORD: &str = "cold-start";

#[test]
fn kubelet_asks_the_boot_gate_and_pods_that_dial_at_once_are_served_and_never_in_clear_also_after_a_reboot() {
    let mut cluster = Cluster::start();
    cluster.shop("early", &json!({"orlop.dev/mesh": "enabled"}));
    cluster.install(&["--set=node.bootGate.enabled=true"]);
    cluster.wait_rollout("daemonset/orlop-node");
    let drivers = ["get", "csinodes", "--output=jsonpath={.items[*].spec.drivers[*].name}"];
    let registered = || cluster.kubectl(&drivers) == format!("{DRIVER} {DRIVER}");
    assert!(wait_for(LONG, registered), "{}", cluster.state());
    cluster.shop("shop", &json!({"orlop.dev/mesh": "enabled"}));
    let server = cluster.address("shop", "server");
    check_notes(
        &cluster,
        "early/client",
        "not held by the boot gate after a reboot of n1, as it is static or older than that",
    );

    let capture = cluster.testbed.capture().unwrap();
    // Each dials as its first act, and again whenever it is refused.
    let busybox = "/bin/busybox";
    let dial = format!(
        "until [ \"$(echo {WORD} | {busybox} nc {server} 7)\" = {WORD} ]; do {busybox} sleep 0.1; done"
    );
    let names: Vec<String> = (0..PODS).map(|number| format!("cold-{number}")).collect();
    for name in &names {
        let spec = json!({
            "nodeName": cluster.nodes[0].node().name(), "serviceAccountName": "client", "restartPolicy": "Never",
        });
        cluster.pod("shop", name, &spec, &json!({"command": [busybox, "sh", "-c", dial]}));
    }
    for name in &names {
        let wanted = "--for=jsonpath={.status.phase}=Succeeded";
        cluster.wait(&format!("pod/{name}"), &[wanted, "--namespace=shop"]);
    }
    let frames = capture.stop().unwrap();
    assert!(frames.len() > PODS && !frames.contains(WORD.as_bytes()));
    let inbound = cluster.flows(1).into_iter().filter(|flow| {
        flow["direction"] == "inbound"
            && flow["dst_workload"] == "shop/server"
            && flow["dst"] == format!("{server}:7")
    });
    let inbound: Vec<Value> = inbound.collect();
    assert!(inbound.len() >= PODS, "{inbound:?}");
    let identity = "spiffe://cluster.local/ns/shop/sa/client";
    assert!(
        inbound.iter().all(|flow| flow["src_identity"] == identity && flow["tunnel"].is_string()),
        "{inbound:?}"
    );

    // The same of pods that are there when the node starts.
    let before = cluster.flows(1).len();
    let stays = format!("{dial}; exec {busybox} sleep 2147483647");
    let names: Vec<String> = (0..PODS).map(|number| format!("stays-{number}")).collect();
    for name in &names {
        let spec = json!({"nodeName": cluster.nodes[0].node().name(), "serviceAccountName": "client"});
        cluster.pod("shop", name, &spec, &json!({"command": [busybox, "sh", "-c", stays]}));
    }
    // The server's agent may hear of a pod later than from it, and tells of its address alone then.
    let served = |cluster: &Cluster, namespace: &str, name: &str, account: &str, before: usize| {
        let address = cluster.address(namespace, name);
        let from = |flow: &Value| match flow["src_workload"].as_str() {
            Some(workload) => workload == format!("{namespace}/{name}"),
            None => flow["src"].as_str().is_some_and(|src| src.starts_with(&format!("{address}:"))),
        };
        let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
        let of = |flow: &&Value| from(flow) && flow["src_identity"] == identity && flow["tunnel"].is_string();
        cluster.flows(1).iter().skip(before).filter(of).count()
    };
    for name in &names {
        assert!(
            wait_for(LONG, || served(&cluster, "shop", name, "client", before) == 1),
            "{name}\n{}",
            cluster.state()
        );
    }
    let before = cluster.flows(1).len();
    let capture = cluster.testbed.capture().unwrap();
    cluster.nodes[0].reboot().unwrap();
    for name in &names {
        assert!(
            wait_for(LONG, || served(&cluster, "shop", name, "client", before) == 1),
            "{name}\n{}",
            cluster.state()
        );
    }
    let frames = capture.stop().unwrap();
    assert!(frames.len() > PODS && !frames.contains(WORD.as_bytes()));

    // Those without the volume: older than their label, and static.
    let node = cluster.nodes[0].node().name().to_owned();
    cluster.kubernetes.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "late"}}));
    cluster.kubernetes.apply(&json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "client", "namespace": "late"},
    }));
    let spec = json!({"nodeName": node, "serviceAccountName": "client"});
    cluster.pod("late", "old", &spec, &json!({"command": [busybox, "sh", "-c", stays]}));
    let manifest = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "static", "namespace": "late"},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "app", "image": BUSYBOX, "command": [busybox, "sh", "-c", stays]}],
        },
    });
    cluster.nodes[0].static_pod("static", &manifest).unwrap();
    let mirror = format!("static-{node}");
    for pod in ["old", mirror.as_str()] {
        assert!(wait_for(LONG, || cluster
            .try_kubectl(&["get", "pod", pod, "--namespace=late"])
            .status
            .success()));
        cluster.wait(&format!("pod/{pod}"), &["--for=condition=Ready", "--namespace=late"]);
    }
    cluster.label("late");
    for pod in ["old", mirror.as_str()] {
        check_notes(&cluster, &format!("late/{pod}"), "not held by the boot gate after a reboot");
    }
    let chart = root().join("deploy/helm/orlop");
    let chart = chart.to_str().unwrap();
    cluster.helm(&["upgrade", "orlop", chart, "--reuse-values", "--set=node.bootGate.systemd=true"]);
    cluster.wait_rollout("daemonset/orlop-node");
    for pod in ["old", mirror.as_str()] {
        let gated = || cluster.config_dump(0)["enrolled"][format!("late/{pod}")]["gated"] == true;
        assert!(wait_for(LONG, gated), "{pod}: {}", cluster.state());
    }
    let world = cluster.nodes[0].home().join("var/lib/orlop/world");
    let is_kept = || {
        let world = fs::read_to_string(&world).unwrap_or_default();
        let world: Value = serde_json::from_str(world.lines().nth(1).unwrap_or_default()).unwrap_or_default();
        world["namespaces"]["late"]["labels"]["orlop.dev/mesh"] == "enabled"
    };
    assert!(wait_for(LONG, is_kept));
    let before = cluster.flows(1).len();
    let capture = cluster.testbed.capture().unwrap();
    cluster.nodes[0].reboot().unwrap();
    for (pod, account) in [("old", "client"), (&mirror, "default")] {
        let served = || served(&cluster, "late", pod, account, before) > 0;
        assert!(wait_for(LONG, served), "{pod}\n{}", cluster.state());
    }
    let frames = capture.stop().unwrap();
    assert!(frames.len() > PODS && !frames.contains(WORD.as_bytes()));

    // A static pod's first start, which nobody admits: kubelet makes its object before the sandbox.
    let before = cluster.flows(1).len();
    let capture = cluster.testbed.capture().unwrap();
    let names = ["first", "second"];
    for name in names {
        let mut manifest = manifest.clone();
        manifest["metadata"]["name"] = name.into();
        cluster.nodes[0].static_pod(name, &manifest).unwrap();
    }
    for mirror in names.map(|name| format!("{name}-{node}")) {
        assert!(wait_for(LONG, || cluster
            .try_kubectl(&["get", "pod", &mirror, "--namespace=late"])
            .status
            .success()));
        let served = || served(&cluster, "late", &mirror, "default", before) > 0;
        assert!(wait_for(LONG, served), "{mirror}\n{}", cluster.state());
    }
    let frames = capture.stop().unwrap();
    assert!(frames.len() > names.len() && !frames.contains(WORD.as_bytes()));

    // The same where no agent runs.
    let keep_off = |nodes: &[&str]| {
        let terms = match nodes {
            [] => json!(null),
            nodes => json!({"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": nodes},
            ]}]}),
        };
        let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}});
        let patch = json!({"spec": {"template": {"spec": {"affinity": affinity}}}}).to_string();
        let patch = ["--type=merge", "--patch", &patch, "--namespace", SYSTEM];
        cluster.kubectl(&[&["patch", "daemonset/orlop-node"][..], &patch].concat());
        cluster.wait_rollout("daemonset/orlop-node");
    };
    keep_off(&[&node]);
    let agents = ["get", "pods", "--selector=app.kubernetes.io/name=orlop-node", "--output=name"];
    let on = ["--namespace", SYSTEM, "--field-selector", &format!("spec.nodeName={node}")];
    assert!(
        wait_for(LONG, || cluster.kubectl(&[&agents[..], &on].concat()).is_empty()),
        "{}",
        cluster.state()
    );
    let capture = cluster.testbed.capture().unwrap();
    let mut alone = manifest.clone();
    alone["metadata"]["name"] = "alone".into();
    let stays = stays.replace("; do ", "; do echo >>/tries; ").replace("; exec ", "; echo >/served; exec ");
    alone["spec"]["containers"][0]["command"] = json!([busybox, "sh", "-c", stays]);
    cluster.nodes[0].static_pod("alone", &alone).unwrap();
    let mirror = format!("alone-{node}");
    let object = ["get", "pod", &mirror, "--namespace=late"];
    assert!(wait_for(LONG, || cluster.try_kubectl(&object).status.success()));
    cluster.wait(&format!("pod/{mirror}"), &["--for=condition=Ready", "--namespace=late"]);
    let tries = || cluster.shell("late", &mirror, &format!("{busybox} wc -l /tries"));
    let tried = || tries().split(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0) > 10;
    assert!(wait_for(LONG, tried), "{}", tries());
    keep_off(&[]);
    // Maybe by an agent that has gone since.
    let served = || cluster.shell("late", &mirror, "[ -e /served ] && echo yes") == "yes\n";
    assert!(wait_for(LONG, served), "{}", cluster.state());
    let frames = capture.stop().unwrap();
    assert!(!frames.is_empty() && !frames.contains(WORD.as_bytes()));

    // kubelet gives the volumes back, and the pods end.
    cluster.kubectl(&["delete", "pods", "--all", "--namespace=shop", "--timeout=60s"]);
}
