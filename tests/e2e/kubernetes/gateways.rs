//! What the controller makes of Gateways.

use std::time::Duration;

use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Api, ResourceExt as _};
use orlop_tests::{Testbed, Waypoint, wait_for};
use serde_json::{Value, json};

use super::api::Kubernetes;
use super::gateway_api::define;
use super::install::{AUDIENCE, install};
use super::kubelet::Kubelet;
use super::replica::{IMAGE, LONG, Replica};
use super::waypoint::{ENABLED, Runs, Shop};

pub const GATEWAY: &str = "gateway.networking.k8s.io/v1";
/// What a waypoint is made of.
pub const MADE: [(&str, &str); 5] = [
    ("v1", "ServiceAccount"),
    ("v1", "Service"),
    ("apps/v1", "Deployment"),
    ("policy/v1", "PodDisruptionBudget"),
    ("autoscaling/v2", "HorizontalPodAutoscaler"),
];

#[test]
fn a_gateway_becomes_a_waypoint_and_takes_it_along() {
    let stage = Stage::new("made");
    stage.gateway(
        "gate",
        &json!({"infrastructure": {"labels": {"team": "shop"}, "annotations": {"note": "a"}}}),
    );
    let gateway = stage.await_condition("gate", "Accepted", "True");
    assert_eq!(condition(&gateway, "Accepted")["observedGeneration"], gateway["metadata"]["generation"]);
    for (version, kind) in MADE {
        let object = stage.await_object(version, kind, "gate", |_| true);
        let owner = &object["metadata"]["ownerReferences"][0];
        assert_eq!(
            (&owner["kind"], &owner["uid"]),
            (&json!("Gateway"), &gateway["metadata"]["uid"]),
            "{kind}"
        );
        assert_eq!(object["metadata"]["labels"]["team"], "shop", "{kind}");
        assert_eq!(object["metadata"]["annotations"]["note"], "a", "{kind}");
    }
    let service = stage.await_object("v1", "Service", "gate", |_| true);
    assert_eq!(service["spec"]["ports"][0]["port"], 15008);
    let gateway = stage.await_condition("gate", "Programmed", "False");
    assert_eq!(condition(&gateway, "Programmed")["reason"], "Pending");
    let addresses = gateway["status"]["addresses"].as_array().unwrap();
    let addresses: Vec<_> = addresses.iter().map(|address| address["value"].clone()).collect();
    assert_eq!(service["spec"]["clusterIPs"], json!(addresses));
    let listener = &gateway["status"]["listeners"][0];
    assert_eq!((&listener["attachedRoutes"], &listener["supportedKinds"]), (&json!(0), &json!([])));
    assert!(wait_for(LONG, || stage.may_read("gate")), "its service account may read nothing");

    // What no longer is asked for goes.
    stage.gateway("gate", &json!({"infrastructure": {"labels": {"team": "toys"}}}));
    stage.await_object("apps/v1", "Deployment", "gate", |deployment| {
        let template = &deployment["spec"]["template"]["metadata"];
        template["labels"]["team"] == "toys" && template["annotations"]["note"].is_null()
    });

    stage.delete(GATEWAY, "Gateway", "gate");
    for (version, kind) in MADE {
        assert!(wait_for(COLLECTED, || stage.get(version, kind, "gate").is_none()), "the {kind} stays");
    }
    assert!(wait_for(LONG, || !stage.may_read("gate")), "its service account may still read");
}

#[test]
fn pods_have_the_secrets_that_destination_rules_of_their_namespace_name() {
    let stage = Stage::new("named");
    stage.kubernetes.define_istio();
    stage.gateway("gate", &json!({}));
    let other = stage.kubernetes.namespace("named-other", &[]);
    let secrets = |deployment: &Value| {
        let volumes = deployment.pointer("/spec/template/spec/volumes").and_then(Value::as_array);
        let sources = volumes.into_iter().flatten().filter_map(|of| of["projected"]["sources"].as_array());
        let names = sources.flatten().filter_map(|of| of["secret"]["name"].as_str());
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    stage.await_object("apps/v1", "Deployment", "gate", |deployment| secrets(deployment).is_empty());
    for (namespace, secret) in [(&other, "theirs"), (&stage.namespace, "client")] {
        stage.kubernetes.apply(&json!({
            "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
            "metadata": {"name": "outside", "namespace": namespace},
            "spec": {"host": "a.example", "trafficPolicy": {"tls": {"mode": "MUTUAL", "credentialName": secret}}},
        }));
    }
    let deployment = stage.await_object("apps/v1", "Deployment", "gate", |of| {
        // The other may have what is believed.
        secrets(of) == ["client", "client-cacert"]
    });
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    assert!(container["args"].as_array().unwrap().contains(&json!("--credentials=/etc/orlop/credentials")));
    stage.delete("networking.istio.io/v1", "DestinationRule", "outside");
    stage.await_object("apps/v1", "Deployment", "gate", |deployment| secrets(deployment).is_empty());
}

#[test]
fn what_somebody_changes_or_deletes_of_a_waypoint_comes_back() {
    let stage = Stage::new("kept");
    stage.gateway("gate", &json!({}));
    for (version, kind) in MADE {
        stage.await_object(version, kind, "gate", |_| true);
    }
    for (version, kind, field, change) in [
        ("v1", "Service", "/spec/selector", json!({"spec": {"selector": {"app": "mine"}}})),
        ("v1", "Service", "/metadata/labels", json!({"metadata": {"labels": {MANAGED_BY: "me"}}})),
        (
            "apps/v1",
            "Deployment",
            ACCOUNT,
            json!({"spec": {"template": {"spec": {"serviceAccountName": "default"}}}}),
        ),
        ("policy/v1", "PodDisruptionBudget", "/spec/maxUnavailable", json!({"spec": {"maxUnavailable": 0}})),
        (
            "autoscaling/v2",
            "HorizontalPodAutoscaler",
            "/spec/minReplicas",
            json!({"spec": {"minReplicas": 1}}),
        ),
    ] {
        let before = stage.get(version, kind, "gate").unwrap();
        stage.change(version, kind, "gate", &change);
        stage.await_object(version, kind, "gate", |now| now.pointer(field) == before.pointer(field));
    }
    for (version, kind) in MADE {
        let before = stage.get(version, kind, "gate").unwrap();
        stage.delete(version, kind, "gate");
        stage.await_object(version, kind, "gate", |now| now["metadata"]["uid"] != before["metadata"]["uid"]);
    }
}

#[test]
fn a_gateway_that_can_be_no_waypoint_says_what_to_change() {
    let stage = Stage::new("refused");
    stage.gateway("gate", &json!({"listeners": [{"name": "web", "port": 80, "protocol": "HTTP"}]}));
    let gateway = stage.await_condition("gate", "Accepted", "False");
    let accepted = condition(&gateway, "Accepted");
    assert_eq!(accepted["reason"], "ListenersNotValid");
    assert!(accepted["message"].as_str().unwrap().contains("make its protocol HBONE"), "{accepted}");
    assert_eq!(condition(&gateway, "Programmed")["status"], "False");
    let listener = condition_of(&gateway["status"]["listeners"][0], "Accepted");
    assert_eq!((&listener["status"], &listener["reason"]), (&json!("False"), &json!("UnsupportedProtocol")));
    // Once it is put right it becomes one; until then nothing was made.
    assert!(MADE.iter().all(|(version, kind)| stage.get(version, kind, "gate").is_none()));
    stage.gateway("gate", &json!({}));
    stage.await_condition("gate", "Accepted", "True");
    stage.await_object("apps/v1", "Deployment", "gate", |_| true);

    // What is somebody else's is not taken over, nor is it given any right.
    stage.gateway("default", &json!({}));
    let taken = |gateway: &Value| {
        let message = condition(gateway, "Programmed")["message"].as_str().unwrap_or_default().to_owned();
        message.contains("there is a ServiceAccount default that is not this Gateway's")
    };
    stage.await_object(GATEWAY, "Gateway", "default", taken);
    let account = stage.get("v1", "ServiceAccount", "default").unwrap();
    assert!(account["metadata"]["ownerReferences"].is_null(), "{account:#}");
    assert!(!stage.may_read("default"));

    // What the API server refuses is told in its words.
    stage.gateway("odd", &json!({"infrastructure": {"labels": {"no label!": "x"}}}));
    let refused = |gateway: &Value| {
        let message = condition(gateway, "Programmed")["message"].as_str().unwrap_or_default().to_owned();
        message.contains("the API server does not take the ServiceAccount odd")
            && message.contains("no label!")
    };
    stage.await_object(GATEWAY, "Gateway", "odd", refused);

    // Another controller's Gateway is left alone.
    stage.kubernetes.apply(&json!({
        "apiVersion": GATEWAY, "kind": "GatewayClass", "metadata": {"name": stage.namespace},
        "spec": {"controllerName": "example.com/other"},
    }));
    stage.gateway("other", &json!({"gatewayClassName": stage.namespace}));
    stage.gateway("later", &json!({}));
    stage.await_condition("later", "Accepted", "True");
    let other = stage.get(GATEWAY, "Gateway", "other").unwrap();
    assert_eq!(condition(&other, "Accepted")["status"], "Unknown");
    assert!(stage.get("v1", "Service", "other").is_none());
}

#[test]
fn a_gateway_whose_class_is_gone_says_no_more_that_it_is_a_waypoint() {
    let stage = Stage::new("orphan");
    let class = || {
        stage.kubernetes.apply(&json!({
            "apiVersion": GATEWAY, "kind": "GatewayClass", "metadata": {"name": stage.namespace},
            "spec": {"controllerName": "orlop.dev/waypoint-controller"},
        }));
    };
    class();
    stage.gateway("gate", &json!({"gatewayClassName": stage.namespace}));
    let is_waypoint = |is: bool| {
        stage.await_object(GATEWAY, "Gateway", "gate", |gateway| {
            let accepted = condition(gateway, "Accepted")["status"] == "True";
            let addresses = gateway["status"]["addresses"].as_array().is_some_and(|all| !all.is_empty());
            accepted == is && addresses == is
        });
        assert!(wait_for(LONG, || stage.may_read("gate") == is), "{is}");
    };
    is_waypoint(true);
    let classes = api(&stage.kubernetes, GATEWAY, "GatewayClass", None);
    stage.kubernetes.wait(classes.delete(&stage.namespace, &DeleteParams::default())).unwrap();
    is_waypoint(false);
    class();
    is_waypoint(true);
}

#[test]
fn the_class_is_there_once_the_gateway_api_is() {
    let kubernetes = Kubernetes::own();
    install(&kubernetes);
    let replica = Replica::start(&kubernetes, "alone", &[]);
    let absent = "the Gateway API is not installed";
    assert!(wait_for(LONG, || replica.log().contains(absent)), "{}", replica.log());
    replica.wait_ready();
    define(&kubernetes);
    let class = || {
        let class = get(&kubernetes, GATEWAY, "GatewayClass", None, "orlop-waypoint");
        class.filter(|class| condition(class, "Accepted")["status"] == "True")
    };
    assert!(wait_for(LONG, || class().is_some()), "{}", replica.log());
    let first = class().unwrap();
    assert_eq!(first["spec"]["controllerName"], "orlop.dev/waypoint-controller");
    assert_eq!(condition(&first, "SupportedVersion")["status"], "True");
    let api = api(&kubernetes, GATEWAY, "GatewayClass", None);
    kubernetes.wait(api.delete("orlop-waypoint", &DeleteParams::default())).unwrap();
    let again = || class().is_some_and(|class| class["metadata"]["uid"] != first["metadata"]["uid"]);
    assert!(wait_for(LONG, again), "{}", replica.log());
    assert_eq!(replica.log().matches(absent).count(), 1);
}

#[test]
fn requests_pass_through_a_waypoint_that_runs_as_the_controller_has_it() {
    let kubernetes = Kubernetes::shared();
    define(&kubernetes);
    kubernetes.define_istio();
    let controller = Replica::shared(&kubernetes);
    let testbed = Testbed::in_shared_cluster().unwrap();
    let namespace = kubernetes.namespace("whole", &[ENABLED, ("istio.io/use-waypoint", "gate")]);
    let stage = Stage { kubernetes, namespace };
    let nodes = ["n1", "n2"].map(|name| Kubelet::start(&stage.kubernetes, &testbed, name));
    let _ways = nodes.each_ref().map(|node| node.way_to(controller.listen));
    let shop = Shop::new(&stage.kubernetes, &nodes, &stage.namespace, &[]);
    stage.gateway("gate", &json!({}));

    // Its pod is scheduled, and runs with what its template says.
    let name = stage.await_pod();
    let uid = stage.schedule(&name, nodes[1].node.name());
    let pod = stage.get("v1", "Pod", &name).unwrap();
    let spec = &pod["spec"];
    let container = &spec["containers"][0];
    assert_eq!((&container["image"], &spec["serviceAccountName"]), (&json!(IMAGE), &json!("gate")));
    let tokens =
        |volume: &Value| volume["projected"]["sources"][0]["serviceAccountToken"]["audience"] == AUDIENCE;
    assert!(spec["volumes"].as_array().unwrap().iter().any(tokens), "{spec:#}");
    let sandbox = nodes[1].sandbox(&stage.namespace, &name, &uid);
    let runs = Runs::new(&stage.kubernetes, &sandbox, "gate", controller);
    let arguments =
        container["args"].as_array().unwrap().iter().skip(1).map(|argument| argument.as_str().unwrap());
    let arguments: Vec<_> = arguments.chain(runs.files()).collect();
    assert!(wait_for(LONG, || stage.may_read("gate")), "its service account may read nothing");
    let waypoint = Waypoint::with(&sandbox, &arguments).unwrap();
    nodes[1].report(&sandbox);

    stage.await_condition("gate", "Programmed", "True");
    shop.wait_until_served();
    shop.assert_through(&waypoint, "gate");
}

/// For Kubernetes' garbage collector. It looks for kinds that are new to it every 30 s, and starts anew when there are
/// more before it has read their objects; other tests bring theirs.
pub const COLLECTED: Duration = Duration::from_secs(300);
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
const ACCOUNT: &str = "/spec/template/spec/serviceAccountName";

/// A namespace of a cluster whose controller makes waypoints.
pub struct Stage {
    pub kubernetes: Kubernetes,
    pub namespace: String,
}

impl Stage {
    pub fn new(prefix: &str) -> Self {
        let kubernetes = Kubernetes::shared();
        define(&kubernetes);
        Replica::shared(&kubernetes);
        let namespace = kubernetes.namespace(prefix, &[]);
        Self { kubernetes, namespace }
    }

    /// Applies a Gateway that differs from a good one by this.
    pub fn gateway(&self, name: &str, spec: &Value) {
        let mut all = json!({
            "gatewayClassName": "orlop-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        });
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        self.kubernetes.apply(&json!({
            "apiVersion": GATEWAY, "kind": "Gateway",
            "metadata": {"name": name, "namespace": self.namespace}, "spec": all,
        }));
    }

    #[track_caller]
    pub fn await_condition(&self, gateway: &str, kind: &str, status: &str) -> Value {
        self.await_object(GATEWAY, "Gateway", gateway, |gateway| condition(gateway, kind)["status"] == status)
    }

    /// Waits until there is such an object of which this holds.
    #[track_caller]
    pub fn await_object(
        &self,
        version: &str,
        kind: &str,
        name: &str,
        holds: impl Fn(&Value) -> bool,
    ) -> Value {
        let mut found = None;
        let met = wait_for(LONG, || {
            found = self.get(version, kind, name);
            found.as_ref().is_some_and(&holds)
        });
        assert!(met, "the {kind} {name} is:\n{found:#?}\n{}", Replica::shared(&self.kubernetes).log());
        found.unwrap()
    }

    pub fn get(&self, version: &str, kind: &str, name: &str) -> Option<Value> {
        get(&self.kubernetes, version, kind, Some(&self.namespace), name)
    }

    fn change(&self, version: &str, kind: &str, name: &str, change: &Value) {
        let api = api(&self.kubernetes, version, kind, Some(&self.namespace));
        self.kubernetes.wait(api.patch(name, &PatchParams::default(), &Patch::Merge(change))).unwrap();
    }

    pub fn delete(&self, version: &str, kind: &str, name: &str) {
        let api = api(&self.kubernetes, version, kind, Some(&self.namespace));
        self.kubernetes.wait(api.delete(name, &DeleteParams::default())).unwrap();
    }

    /// Whether a service account may read what waypoints read.
    pub fn may_read(&self, account: &str) -> bool {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": format!("system:serviceaccount:{}:{account}", self.namespace),
                "resourceAttributes": {"verb": "watch", "resource": "pods"},
            },
        });
        self.kubernetes.wait(self.kubernetes.review(&review))["status"]["allowed"] == true
    }

    /// The name of a pod that the waypoint's Deployment has made.
    fn await_pod(&self) -> String {
        let pods = api(&self.kubernetes, "v1", "Pod", Some(&self.namespace));
        let of_gate = kube::api::ListParams::default().labels("gateway.networking.k8s.io/gateway-name=gate");
        let mut found = None;
        assert!(wait_for(LONG, || {
            found = self.kubernetes.wait(pods.list(&of_gate)).unwrap().items.pop();
            found.is_some()
        }));
        found.unwrap().name_any()
    }

    /// Does what a scheduler does. Gives the pod's UID.
    fn schedule(&self, pod: &str, node: &str) -> String {
        let path = format!("/api/v1/namespaces/{}/pods/{pod}/binding", self.namespace);
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod, "namespace": self.namespace},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        let request = http::Request::post(path).body(binding.to_string().into_bytes()).unwrap();
        self.kubernetes.wait(self.kubernetes.client.request::<Value>(request)).unwrap();
        self.get("v1", "Pod", pod).unwrap()["metadata"]["uid"].as_str().unwrap().to_owned()
    }
}

fn api(kubernetes: &Kubernetes, version: &str, kind: &str, namespace: Option<&str>) -> Api<DynamicObject> {
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    match namespace {
        Some(namespace) => Api::namespaced_with(kubernetes.client.clone(), namespace, &resource),
        None => Api::all_with(kubernetes.client.clone(), &resource),
    }
}

fn get(
    kubernetes: &Kubernetes,
    version: &str,
    kind: &str,
    namespace: Option<&str>,
    name: &str,
) -> Option<Value> {
    let found = kubernetes.wait(api(kubernetes, version, kind, namespace).get_opt(name)).unwrap();
    found.map(|found| serde_json::to_value(found).unwrap())
}

pub fn condition(object: &Value, kind: &str) -> Value {
    condition_of(&object["status"], kind)
}

pub fn condition_of(status: &Value, kind: &str) -> Value {
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    conditions.find(|condition| condition["type"] == kind).cloned().unwrap_or_default()
}
