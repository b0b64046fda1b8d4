//! Who gets the boot gate's volume, as an API server decides by the policy that the chart makes.

mod start;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::PostParams;
use orlop_model::opted_in;
use orlop_tests::{DeployTools, Testbed, wait_for};
use serde_json::{Value, json};

use super::api::Kubernetes;
use super::kubelet::Kubelet;
use super::replica::LONG;
use crate::boot_gate::inside::{Inside, Said};
use crate::boot_gate::kubelet::{DRIVER, Kubelet as Asks};
use crate::chart::deploy;
use crate::mesh::TIMEOUT;

type Labels = BTreeMap<String, String>;

const MESH: [Option<&str>; 4] = [None, Some("enabled"), Some("disabled"), Some("ambient")];
const MODE: [Option<&str>; 4] = [None, Some("ambient"), Some("none"), Some("enabled")];

/// Applies the driver and the policy, and waits until it is in force.
fn install(kubernetes: &Kubernetes) {
    static DONE: OnceLock<()> = OnceLock::new();
    DONE.get_or_init(|| {
        let chart = deploy().join("helm/orlop");
        let made =
            DeployTools::find().unwrap().render(&chart, &["--set=node.bootGate.enabled=true"]).unwrap();
        let objects: Vec<Value> = serde_saphyr::from_multiple(&made).unwrap();
        let kinds = ["CSIDriver", "MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding"];
        let of_gate = |object: &&Value| kinds.iter().any(|kind| object["kind"] == *kind);
        let objects: Vec<_> = objects.iter().filter(of_gate).collect();
        assert_eq!(objects.len(), kinds.len());
        objects.into_iter().for_each(|object| kubernetes.apply(object));
        let namespace = kubernetes.namespace("gate-in-force", &[("orlop.dev/mesh", "enabled")]);
        let pod = object(&Labels::new(), &json!({}));
        let in_force = || is_gated(&create(kubernetes, &namespace, &pod).unwrap());
        assert!(wait_for(LONG, in_force), "no pod gets the volume");
    });
}

/// A pod of two containers, with more in its spec.
fn object(labels: &Labels, more: &Value) -> Value {
    let mut spec =
        json!({"containers": [{"name": "app", "image": "app"}, {"name": "helper", "image": "helper"}]});
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    json!({"metadata": {"name": "web", "labels": labels}, "spec": spec})
}

/// What would be made of it.
fn create(kubernetes: &Kubernetes, namespace: &str, object: &Value) -> kube::Result<Value> {
    let object: Pod = serde_json::from_value(object.clone()).unwrap();
    let parameters = PostParams { dry_run: true, ..PostParams::default() };
    let pods = Api::<Pod>::namespaced(kubernetes.client.clone(), namespace);
    kubernetes.wait(pods.create(&parameters, &object)).map(|pod| serde_json::to_value(pod).unwrap())
}

fn is_gated(pod: &Value) -> bool {
    let volumes = pod["spec"]["volumes"].as_array();
    volumes.is_some_and(|volumes| volumes.iter().any(|volume| volume["csi"]["driver"] == DRIVER))
}

fn labels(mesh: Option<&str>, mode: Option<&str>) -> Labels {
    let pairs = [("orlop.dev/mesh", mesh), ("istio.io/dataplane-mode", mode)];
    pairs.iter().filter_map(|(key, value)| Some(((*key).to_owned(), (*value)?.to_owned()))).collect()
}

#[test]
fn it_goes_to_the_pods_that_the_agent_would_enrol_and_to_no_other() {
    let kubernetes = Kubernetes::shared();
    install(&kubernetes);
    let all = || MESH.into_iter().flat_map(|mesh| MODE.map(|mode| labels(mesh, mode)));
    for of_namespace in all() {
        let pairs: Vec<_> = of_namespace.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let namespace = kubernetes.namespace("gate", &pairs);
        for of_pod in all() {
            let made = create(&kubernetes, &namespace, &object(&of_pod, &json!({}))).unwrap();
            let wanted = opted_in(&of_namespace.iter().collect(), &of_pod.iter().collect());
            assert_eq!(is_gated(&made), wanted, "namespace {of_namespace:?}, pod {of_pod:?}");
        }
    }
}

#[test]
fn one_container_mounts_it_and_nothing_else_of_the_pod_changes() {
    let kubernetes = Kubernetes::shared();
    install(&kubernetes);
    let [mesh, plain] =
        ["enabled", "disabled"].map(|value| kubernetes.namespace("gate-shape", &[("orlop.dev/mesh", value)]));
    let odd = json!({
        "initContainers": [{"name": "first", "image": "first"}],
        "volumes": [{"name": "data", "emptyDir": {}}],
        "containers": [
            {
                "name": "app", "image": "app", "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                // The last one counts.
                "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}],
            },
            {"name": "helper", "image": "helper"},
        ],
    });
    let pod = object(&Labels::new(), &odd);
    let (mut with, without) =
        (create(&kubernetes, &mesh, &pod).unwrap(), create(&kubernetes, &plain, &pod).unwrap());
    let take = |list: &mut Value| {
        let list = list.as_array_mut().unwrap();
        let at = list.iter().position(|one| one["name"] == "orlop-gate").unwrap();
        list.remove(at)
    };
    let volume = take(&mut with["spec"]["volumes"]);
    assert_eq!(volume, json!({"name": "orlop-gate", "csi": {"driver": DRIVER, "readOnly": true}}));
    let mount = take(&mut with["spec"]["containers"][0]["volumeMounts"]);
    let path = "/var/run/secrets/orlop.dev";
    assert_eq!(mount, json!({"name": "orlop-gate", "mountPath": path, "readOnly": true}));
    // The token's volume has a name of its own in each pod.
    let plain = |pod: &Value| {
        let mut spec = pod["spec"].clone();
        let token = spec["volumes"].as_array().unwrap().iter().find(|one| one.get("projected").is_some());
        let token = token.unwrap()["name"].as_str().unwrap().to_owned();
        spec = serde_json::from_str(&spec.to_string().replace(&token, "token")).unwrap();
        spec
    };
    assert_eq!(plain(&with), plain(&without));
}

#[test]
fn who_is_not_enrolled_gets_none_and_who_would_be_without_is_refused() {
    let kubernetes = Kubernetes::shared();
    install(&kubernetes);
    let namespace = kubernetes.namespace("gate-odd", &[("orlop.dev/mesh", "enabled")]);
    let none = Labels::new();
    let windows =
        [json!({"os": {"name": "windows"}}), json!({"nodeSelector": {"kubernetes.io/os": "windows"}})];
    for more in windows.into_iter().chain([json!({"hostNetwork": true})]) {
        let made = create(&kubernetes, &namespace, &object(&none, &more)).unwrap();
        assert!(!is_gated(&made), "{more}");
    }
    let mut mirror = object(&none, &json!({"nodeName": "anywhere"}));
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "hash"});
    assert!(!is_gated(&create(&kubernetes, &namespace, &mirror).unwrap()));

    let taken = json!({"volumes": [{"name": "orlop-gate", "emptyDir": {}}]});
    let error = create(&kubernetes, &namespace, &object(&none, &taken)).unwrap_err().to_string();
    assert!(error.contains("more than 1 volume type"), "{error}");
    let elsewhere = json!({
        "volumes": [{"name": "mine", "emptyDir": {}}],
        "containers": [{
            "name": "app", "image": "app",
            "volumeMounts": [{"name": "mine", "mountPath": "/var/run/secrets/orlop.dev"}],
        }],
    });
    let made = create(&kubernetes, &namespace, &object(&none, &elsewhere)).unwrap();
    assert!(made["spec"]["containers"][0]["volumeMounts"].to_string().contains("orlop-gate"), "{made}");
}

#[test]
fn a_pod_of_the_cluster_is_held_from_its_first_moment_until_it_is_enrolled() {
    let kubernetes = Kubernetes::shared();
    install(&kubernetes);
    let testbed = Testbed::in_shared_cluster().unwrap();
    let namespace = kubernetes.namespace("gate-run", &[("orlop.dev/mesh", "enabled")]);
    let node = Kubelet::start(&kubernetes, &testbed, "n1");
    let asks = Asks::new(&testbed, &node.node);
    let agent = node.agent(&["--boot-gate", "--kubelet-dir", asks.directory.to_str().unwrap()]);
    asks.endpoint();
    let free = node.sandbox("elsewhere", "free", "f0000000-0000-0000-0000-000000000001");
    let echo = free.serve_echo(80).unwrap();

    let uid = node.bind(&namespace, "web", &[]);
    let pods = Api::<Pod>::namespaced(kubernetes.client.clone(), &namespace);
    let object = serde_json::to_value(kubernetes.wait(pods.get("web")).unwrap()).unwrap();
    assert!(is_gated(&object), "{object}");
    asks.cgroup(&uid);
    asks.publish(&uid).unwrap();
    let pod = node.sandbox(&namespace, "web", &uid);
    let mut inside = Inside::of(&pod);
    // By the gate, or since the agent knows of no address of it yet.
    assert_ne!(inside.dial(echo.addr()), Said::Ok);
    node.report(&pod);
    agent.wait_until(|dump| dump.contains(&pod.ipv4().to_string())).unwrap();
    agent.wait_enrolled([&pod]).unwrap();
    assert!(wait_for(TIMEOUT, || inside.dial(echo.addr()) == Said::Ok));
    assert!(agent.config_dump().unwrap().contains("\"gated\": true"));
}
