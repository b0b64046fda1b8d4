//! The Helm chart, as helm sees it.

use std::fs;
use std::path::PathBuf;

use orlop_tests::DeployTools;
use serde_json::{Value, json};

/// What somebody may ask of the chart, beside what it is by itself.
pub const VARIANTS: [&[&str]; 8] = [
    &[],
    &[
        "--set=monitoring.podMonitor=true",
        "--set=monitoring.dashboard=true",
        "--set=imagePullSecrets={registry}",
        "--set=waypoint.imagePullSecrets={registry}",
        "--set=waypoint.resources.limits.cpu=2",
        "--set=mesh.trustDomainAliases={old.example,older.example}",
        "--set=node.podAnnotations.note=a",
        "--set=controller.podAnnotations.note=a",
        "--set=controller.tolerations[0].operator=Exists",
        "--set=node.args={--same-node=hbone}",
        "--set=ca.nodeAccounts={istio-system/ztunnel}",
        "--set=image.digest=sha256:0000000000000000000000000000000000000000000000000000000000000000",
    ],
    &["--set=ca.address=https://ca.example:15012", "--set=ca.roots.configMap=istio-ca-root-cert"],
    &["--set=node.bootGate.enabled=true"],
    &["--set=node.bootGate.enabled=true", "--set=node.bootGate.systemd=true"],
    &["--set=webhook.enabled=true", "--set=webhook.failurePolicy=Fail", "--set=imagePullSecrets={registry}"],
    &["--set=resourceQuota.enabled=true", "--set=node.seLinuxOptions=null"],
    &["--set=node.enabled=false", "--set=waypoint.enabled=false", "--set=networkPolicy.enabled=false"],
];

pub fn deploy() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

#[test]
fn lint_has_nothing_to_say() {
    let tools = DeployTools::find().unwrap();
    for variant in VARIANTS {
        let output = tools
            .helm()
            .args(["lint", "--strict"])
            .arg(deploy().join("helm/orlop"))
            .args(variant)
            .output()
            .unwrap();
        assert!(output.status.success(), "{variant:?}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn agents_that_drain_for_longer_are_given_longer() {
    let tools = DeployTools::find().unwrap();
    for (drain, grace) in [("25s", 100), ("1m 30s", 165), ("500ms", 76)] {
        let drain = format!("--set=node.drainTimeout={drain}");
        let rendered = tools.render(&deploy().join("helm/orlop"), &[&drain]).unwrap();
        let line = format!("terminationGracePeriodSeconds: {grace}\n");
        assert!(rendered.contains(&line), "{drain}: want {line}");
    }
}

#[test]
fn the_controller_may_reach_the_api_server_where_it_is_said_to_listen() {
    let tools = DeployTools::find().unwrap();
    for (args, wanted) in
        [(&[][..], json!([443, 6443])), (&["--set=networkPolicy.apiServerPorts={8443}"], json!([8443]))]
    {
        let rendered = tools.render(&deploy().join("helm/orlop"), args).unwrap();
        let objects: Vec<Value> = serde_saphyr::from_multiple(&rendered).unwrap();
        let policy = objects.iter().find(|object| object["kind"] == "NetworkPolicy").unwrap();
        let ports = policy["spec"]["egress"][0]["ports"].as_array().unwrap();
        let ports: Vec<_> = ports.iter().map(|port| port["port"].clone()).collect();
        assert_eq!(Value::from(ports), wanted);
    }
}

/// The only object of a kind and a name.
fn object<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let mut found = objects.iter().filter(|of| of["kind"] == kind && of["metadata"]["name"] == name);
    let one = found.next().unwrap_or_else(|| panic!("no {kind} {name}"));
    assert!(found.next().is_none(), "more than one {kind} {name}");
    one
}

fn rendered(args: &[&str]) -> Vec<Value> {
    let rendered = DeployTools::find().unwrap().render(&deploy().join("helm/orlop"), args).unwrap();
    serde_saphyr::from_multiple(&rendered).unwrap()
}

/// The runtime's profiles of each of them refuse what its capabilities are for.
#[test]
fn no_profile_of_the_node_keeps_an_agent_from_what_its_capabilities_are_for() {
    let context = |args: &[&str]| {
        let pod = object(&rendered(args), "DaemonSet", "orlop-node")["spec"]["template"]["spec"].clone();
        pod["containers"][0]["securityContext"].clone()
    };
    let usual = context(&[]);
    assert_eq!(usual["seccompProfile"], json!({"type": "Unconfined"}));
    assert_eq!(usual["appArmorProfile"], json!({"type": "Unconfined"}));
    assert_eq!(usual["seLinuxOptions"], json!({"type": "spc_t"}));
    assert_eq!(usual["privileged"], false);
    let own = context(&["--set=node.seLinuxOptions.type=orlop_t"]);
    assert_eq!(own["seLinuxOptions"], json!({"type": "orlop_t"}));
    assert!(context(&["--set=node.seLinuxOptions=null"])["seLinuxOptions"].is_null());
}

/// It is given everything, and needs no capability to have it.
#[test]
fn the_keeper_is_beside_the_agent_with_nothing_but_its_directory() {
    let pod = |args: &[&str]| {
        object(&rendered(args), "DaemonSet", "orlop-node")["spec"]["template"]["spec"].clone()
    };
    let keeper = &pod(&["--set=node.keeper.hold=7s"])["containers"][1];
    assert_eq!(keeper["args"], json!(["keeper", "--hold=7s", "--log=info"]));
    assert_eq!(keeper["securityContext"]["capabilities"], json!({"drop": ["ALL"]}));
    assert_eq!(keeper["volumeMounts"], json!([{"name": "run", "mountPath": "/run/orlop"}]));
    let without = pod(&["--set=node.keeper.enabled=false"]);
    assert_eq!(without["containers"].as_array().unwrap().len(), 1, "{without}");
}

#[test]
fn every_container_is_hardened_and_agents_go_where_they_are_wanted() {
    let objects = rendered(&["--set=webhook.enabled=true"]);
    let runs = objects
        .iter()
        .filter(|object| ["DaemonSet", "Deployment"].iter().any(|kind| object["kind"] == *kind));
    let mut seen = 0;
    for object in runs {
        let pod = &object["spec"]["template"]["spec"];
        assert!(pod["priorityClassName"].is_string(), "{object}");
        for container in pod["containers"].as_array().unwrap() {
            let context = &container["securityContext"];
            assert_eq!(context["readOnlyRootFilesystem"], true, "{container}");
            assert_eq!(context["allowPrivilegeEscalation"], false, "{container}");
            assert_eq!(context["capabilities"]["drop"], json!(["ALL"]), "{container}");
            assert!(container["resources"]["requests"]["memory"].is_string(), "{container}");
            assert!(container["resources"]["limits"]["memory"].is_string(), "{container}");
            assert!(container["name"] == "keeper" || container["readinessProbe"].is_object(), "{container}");
            seen += 1;
        }
    }
    assert_eq!(seen, 4);
    let agents = &object(&objects, "DaemonSet", "orlop-node")["spec"];
    assert_eq!(agents["updateStrategy"]["rollingUpdate"], json!({"maxSurge": "10%", "maxUnavailable": 0}));
    assert_eq!(agents["template"]["spec"]["tolerations"], json!([{"operator": "Exists"}]));
    assert_eq!(agents["template"]["spec"]["priorityClassName"], "system-node-critical");
    assert!(agents["template"]["spec"]["containers"][0]["startupProbe"].is_object());
}

/// Agents without the roots' volume would never start.
#[test]
fn agents_find_the_roots_of_whichever_authority_they_have() {
    let roots = |args: &[&str]| {
        let pod = object(&rendered(args), "DaemonSet", "orlop-node")["spec"]["template"]["spec"].clone();
        let volumes = pod["volumes"].as_array().unwrap();
        volumes.iter().find(|volume| volume["name"] == "root").unwrap()["configMap"].clone()
    };
    let item = |key: &str| json!([{"key": key, "path": "root-cert.pem"}]);
    assert_eq!(roots(&[]), json!({"name": "orlop-ca-root", "items": item("root-cert.pem")}));
    let [address, map] =
        ["--set=ca.address=https://istiod.istio-system.svc:15012", "--set=ca.roots.configMap=corporate"];
    assert_eq!(roots(&[address, map]), json!({"name": "corporate", "items": item("root-cert.pem")}));
    assert_eq!(roots(&[address, map, "--set=ca.roots.key=roots"])["items"], item("roots"));
    // Nobody is there who would do what the controller does.
    let kinds: Vec<_> = rendered(&[address, map]).iter().map(|of| of["kind"].clone()).collect();
    assert!(!kinds.contains(&json!("Deployment")) && !kinds.contains(&json!("Service")), "{kinds:?}");
}

/// What admits pods of the system's classes outside kube-system where they are limited.
#[test]
fn a_quota_is_for_the_classes_that_pods_have() {
    assert!(rendered(&[]).iter().all(|object| object["kind"] != "ResourceQuota"));
    for (node, classes) in [
        ("system-node-critical", json!(["system-node-critical", "system-cluster-critical"])),
        ("system-cluster-critical", json!(["system-cluster-critical"])),
    ] {
        let node = format!("--set=priorityClass.node={node}");
        let objects = rendered(&["--set=resourceQuota.enabled=true", "--set=resourceQuota.pods=70", &node]);
        let spec = &object(&objects, "ResourceQuota", "orlop")["spec"];
        let selected = &spec["scopeSelector"]["matchExpressions"];
        assert_eq!(spec["hard"], json!({"pods": 70}));
        let wanted = json!([{"scopeName": "PriorityClass", "operator": "In", "values": classes}]);
        assert_eq!(*selected, wanted);
    }
}

/// Every other level refuses the agents, and a namespace that helm makes has none.
#[test]
fn the_manifests_namespace_lets_agents_in() {
    let manifests = fs::read_to_string(deploy().join("manifests/orlop.yaml")).unwrap();
    let objects: Vec<Value> = serde_saphyr::from_multiple(&manifests).unwrap();
    let labels = &object(&objects, "Namespace", "orlop-system")["metadata"]["labels"];
    assert_eq!(labels["pod-security.kubernetes.io/enforce"], "privileged");
}

/// A monitor that selects nothing, or asks a port that is not there, looks like one whose pods are all well.
#[test]
fn pod_monitors_select_the_chart_s_own_pods_and_ask_where_they_show_metrics() {
    let tools = DeployTools::find().unwrap();
    let rendered = tools.render(
        &deploy().join("helm/orlop"),
        &["--set=monitoring.podMonitor=true", "--set=webhook.enabled=true"],
    );
    let objects: Vec<Value> = serde_saphyr::from_multiple(&rendered.unwrap()).unwrap();
    let monitor = |name: &str| {
        let is_it = |of: &&Value| of["kind"] == "PodMonitor" && of["metadata"]["name"] == name;
        objects.iter().find(is_it).unwrap_or_else(|| panic!("no PodMonitor {name}"))
    };
    // The only template of pods in the chart's namespace that one selects.
    let selected = |monitor: &Value| {
        assert!(monitor["spec"]["namespaceSelector"].is_null(), "{monitor}");
        let wanted = monitor["spec"]["selector"]["matchLabels"].as_object().unwrap();
        let templates = objects.iter().filter_map(|object| object["spec"].get("template"));
        let found = templates.filter(|template| {
            let labels = &template["metadata"]["labels"];
            !wanted.is_empty() && wanted.iter().all(|(key, value)| labels[key] == *value)
        });
        let [template] = found.collect::<Vec<_>>()[..] else { panic!("{monitor} selects not one template") };
        template["spec"]["containers"][0].clone()
    };
    let endpoint = |monitor: &Value| {
        let endpoints = monitor["spec"]["podMetricsEndpoints"].as_array().unwrap();
        let [endpoint] = endpoints.as_slice() else { panic!("{monitor}") };
        assert_eq!(endpoint["path"], "/metrics");
        endpoint.clone()
    };

    let controller = monitor("orlop-controller");
    let ports = selected(controller)["ports"].clone();
    let port = ports.as_array().unwrap().iter().find(|port| port["name"] == endpoint(controller)["port"]);
    assert_eq!(port.unwrap()["containerPort"], 15021, "{ports}");

    // An agent declares no port, so that its pod is one target, whose address is made.
    let node = monitor("orlop-node");
    let container = selected(node);
    assert!(container["ports"].is_null() && container["args"].as_array().is_some(), "{container}");
    assert!(!container["args"].to_string().contains("--metrics"), "it is at the default: {container}");
    let relabelings = endpoint(node)["relabelings"].clone();
    for relabeling in relabelings.as_array().unwrap() {
        assert!(relabeling["replacement"].as_str().unwrap().ends_with(":15020"), "{relabeling}");
        assert_eq!(relabeling["targetLabel"], "__address__");
    }

    // What the controller makes has these: `kubernetes::node::proxies` asks such pods.
    let waypoint = &monitor("orlop-waypoint")["spec"];
    assert_eq!(waypoint["namespaceSelector"], json!({"any": true}));
    assert_eq!(
        waypoint["selector"],
        json!({"matchLabels": {"app.kubernetes.io/managed-by": "orlop-controller"}})
    );
    assert_eq!(waypoint["podMetricsEndpoints"], json!([{"portNumber": 15020, "path": "/metrics"}]));
}

#[test]
fn plain_manifests_are_what_it_makes() {
    let made = DeployTools::find().unwrap().manifests(&deploy().join("helm/orlop")).unwrap();
    let there = fs::read_to_string(deploy().join("manifests/orlop.yaml")).unwrap();
    let differs = made.lines().zip(there.lines()).position(|(made, there)| made != there);
    assert!(made == there, "run `cargo xtask manifests`: they differ from line {differs:?} on");
}

#[test]
fn values_that_mean_nothing_are_refused_by_name() {
    let tools = DeployTools::find().unwrap();
    for (value, named) in [
        ("--set=node.tolerationz=[]", "tolerationz"),
        ("--set=controller.replicas=0", "/controller/replicas"),
        ("--set=ca.address=http://ca.example", "/ca/address"),
        ("--set=ca.address=https://ca.example", "ca.roots.configMap"),
        ("--set=ca.roots.key=", "/ca/roots/key"),
        ("--set=resourceQuota.pods=0", "/resourceQuota/pods"),
        ("--set=ca.lifetime=soon", "/ca/lifetime"),
        ("--set=image.digest=latest", "/image/digest"),
        ("--set=mesh.trustDomain=a/b", "/mesh/trustDomain"),
        ("--set=networkPolicy.apiServerPorts={}", "/networkPolicy/apiServerPorts"),
        ("--set=networkPolicy.apiServerPorts={65536}", "/networkPolicy/apiServerPorts/0"),
        ("--set=node.bootGate.kubeletDir=var/lib/kubelet", "/node/bootGate/kubeletDir"),
    ] {
        let error = tools.render(&deploy().join("helm/orlop"), &[value]).unwrap_err().to_string();
        assert!(error.contains(named), "{value}: {error}");
    }
}
