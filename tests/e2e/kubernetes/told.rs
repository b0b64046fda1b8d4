//! What routes say of each of their parents, and what events tell.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use orlop_model::world::config_map::COPIES;
use orlop_tests::wait_for;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};

use super::api::Kubernetes;
use super::gateway_api::define;
use super::replica::{LONG, Replica};

const GROUP: &str = "gateway.networking.k8s.io";
const OURS: &str = "orlop.dev/waypoint-controller";
const POLICIES: &str = "backendtlspolicies";

struct Stage {
    kubernetes: Kubernetes,
    namespace: String,
}

impl Stage {
    fn new(prefix: &str) -> Self {
        let kubernetes = Kubernetes::shared();
        define(&kubernetes);
        kubernetes.define_istio();
        Replica::shared(&kubernetes);
        let namespace = kubernetes.namespace(prefix, &[("istio.io/use-waypoint", "gate")]);
        Self { kubernetes, namespace }
    }

    fn apply(&self, version: &str, kind: &str, name: &str, spec: &Value) {
        self.kubernetes.apply(&json!({
            "apiVersion": version, "kind": kind,
            "metadata": {"name": name, "namespace": self.namespace}, "spec": spec,
        }));
    }

    fn service(&self, name: &str) {
        let spec = json!({"selector": {"app": name}, "ports": [{"port": 80, "name": "http"}]});
        self.apply("v1", "Service", name, &spec);
    }

    fn config_map(&self, name: &str, data: &Value) {
        let metadata = json!({"name": name, "namespace": self.namespace});
        self.kubernetes
            .apply(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}));
    }

    fn route(&self, kind: &str, name: &str, parents: &Value, rules: &Value) {
        self.apply(&format!("{GROUP}/v1"), kind, name, &json!({"parentRefs": parents, "rules": rules}));
    }

    fn parents(&self, plural: &str, name: &str) -> Vec<Value> {
        let path = format!("/apis/{GROUP}/v1/namespaces/{}/{plural}/{name}", self.namespace);
        let object = self.kubernetes.wait(self.kubernetes.get(&path));
        let list = if plural == POLICIES { "ancestors" } else { "parents" };
        let parents = object["status"][list].as_array().cloned().unwrap_or_default();
        let generation = &object["metadata"]["generation"];
        let is_current = |entry: &Value| {
            let conditions = entry["conditions"].as_array().into_iter().flatten();
            entry["controllerName"] != OURS
                || conditions.into_iter().all(|of| of["observedGeneration"] == *generation)
        };
        if parents.iter().all(is_current) { parents } else { Vec::new() }
    }

    /// Waits until a route says this of its parents: each one's name, and the reasons of Accepted and ResolvedRefs.
    #[track_caller]
    fn await_parents(&self, plural: &str, name: &str, wanted: &[(&str, &str, &str)]) -> Vec<Value> {
        let mut found = Vec::new();
        let met = wait_for(LONG, || {
            found = self.parents(plural, name);
            found.retain(|entry| entry["controllerName"] == OURS);
            let told = found.iter().map(|entry| {
                let of = if plural == POLICIES { "ancestorRef" } else { "parentRef" };
                let name = entry[of]["name"].as_str().unwrap_or_default();
                (name, reason(entry, "Accepted"), reason(entry, "ResolvedRefs"))
            });
            told.eq(wanted.iter().copied())
        });
        assert!(met, "{found:#?}\n{}", Replica::shared(&self.kubernetes).log());
        found
    }

    /// Events about an object: reason and note.
    fn events(&self, kind: &str, name: &str) -> Vec<(String, String)> {
        let path = format!("/apis/events.k8s.io/v1/namespaces/{}/events", self.namespace);
        let events = self.kubernetes.wait(self.kubernetes.get(&path));
        let of = |event: &&Value| {
            let regarding = &event["regarding"];
            regarding["kind"] == kind
                && regarding["name"] == name
                && event["reportingController"] == "orlop.dev/controller"
        };
        let text = |event: &Value, field: &str| event[field].as_str().unwrap_or_default().to_owned();
        let events = events["items"].as_array().unwrap().iter().filter(of);
        events.map(|event| (text(event, "reason"), text(event, "note"))).collect()
    }

    #[track_caller]
    fn await_event(&self, kind: &str, name: &str, reason: &str, note: &str) {
        let told = || self.events(kind, name).iter().any(|event| event.0 == reason && event.1.contains(note));
        let log = || Replica::shared(&self.kubernetes).log();
        assert!(wait_for(LONG, told), "{:?}\n{}", self.events(kind, name), log());
    }
}

fn reason<'e>(entry: &'e Value, kind: &str) -> &'e str {
    let mut conditions = entry["conditions"].as_array().into_iter().flatten();
    let one = conditions.find(|condition| condition["type"] == kind);
    one.and_then(|one| one["reason"].as_str()).unwrap_or_default()
}

fn service(name: &str) -> Value {
    json!({"group": "", "kind": "Service", "name": name})
}

fn leads_to(name: &str) -> Value {
    json!([{"backendRefs": [{"name": name, "port": 80}]}])
}

#[test]
fn a_route_says_of_each_parent_of_ours_whether_it_is_followed_and_leads_somewhere() {
    let stage = Stage::new("parents");
    stage.service("web");
    let listener = json!([{"name": "mesh", "port": 15008, "protocol": "HBONE"}]);
    let gateway = json!({"gatewayClassName": "orlop-waypoint", "listeners": listener});
    stage.apply(&format!("{GROUP}/v1"), "Gateway", "way", &gateway);
    let parents = json!([service("web"), service("none"), {"name": "way"}, {"name": "somebody-s"}]);
    stage.route("HTTPRoute", "web", &parents, &leads_to("later"));
    let wanted = |web| {
        [
            ("web", "Accepted", web),
            ("none", "NoMatchingParent", "NotAccepted"),
            ("way", "NotAllowedByListeners", "NotAccepted"),
        ]
    };
    stage.await_parents("httproutes", "web", &wanted("BackendNotFound"));

    // Another controller writes the whole list: both are there then, each as it was.
    let theirs =
        json!({"parentRef": {"name": "somebody-s"}, "controllerName": "example.com/other", "conditions": []});
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(GROUP, "v1", "HTTPRoute"));
    let client = stage.kubernetes.client.clone();
    let api: Api<DynamicObject> = Api::namespaced_with(client, &stage.namespace, &resource);
    let status = json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": "HTTPRoute",
        "metadata": {"name": "web", "namespace": stage.namespace}, "status": {"parents": [theirs]},
    });
    let force = PatchParams::apply("another").force();
    stage.kubernetes.wait(api.patch_status("web", &force, &Patch::Apply(&status))).unwrap();
    stage.await_parents("httproutes", "web", &wanted("BackendNotFound"));
    assert_eq!(stage.parents("httproutes", "web")[0], theirs);

    stage.service("later");
    stage.await_parents("httproutes", "web", &wanted("ResolvedRefs"));
    stage.service("none");
    let all = [("web", "Accepted", "ResolvedRefs"), ("none", "Accepted", "ResolvedRefs"), wanted("")[2]];
    stage.await_parents("httproutes", "web", &all);

    // What a route is no longer for it says nothing of.
    stage.route("HTTPRoute", "web", &json!([service("web")]), &leads_to("web"));
    stage.await_parents("httproutes", "web", &all[..1]);
    assert_eq!(stage.parents("httproutes", "web")[0], theirs);
}

#[test]
fn a_route_that_can_not_be_understood_says_so() {
    let stage = Stage::new("odd-routes");
    stage.service("web");
    let rules = json!([{"matches": [{"method": {"type": "Tomorrow"}}]}]);
    stage.route("GRPCRoute", "odd", &json!([service("web")]), &rules);
    let told = stage.await_parents("grpcroutes", "odd", &[("web", "UnsupportedValue", "NotAccepted")]);
    let message = told[0]["conditions"][0]["message"].as_str().unwrap();
    assert!(message.starts_with("spec.rules[0].matches[0]"), "{message}");
    stage.await_event("GRPCRoute", "odd", "UnsupportedValue", "spec.rules[0].matches[0]");
    stage.route("GRPCRoute", "odd", &json!([service("web")]), &leads_to("web"));
    stage.await_parents("grpcroutes", "odd", &[("web", "Accepted", "ResolvedRefs")]);
}

#[test]
fn a_backend_tls_policy_says_of_each_service_whether_it_is_in_force() {
    let stage = Stage::new("backends");
    stage.service("web");
    let policy = |name: &str, services: &[&str], validation: &Value| {
        let targets: Vec<_> = services.iter().map(|name| service(name)).collect();
        let spec = json!({"targetRefs": targets, "validation": validation});
        stage.apply(&format!("{GROUP}/v1"), "BackendTLSPolicy", name, &spec);
    };
    let public = json!({"hostname": "web.example", "wellKnownCACertificates": "System"});
    let refs = json!([{"group": "", "kind": "ConfigMap", "name": "ca"}]);
    let unread = json!({"hostname": "web.example", "caCertificateRefs": refs});

    policy("a", &["web", "later"], &public);
    let good = ("web", "Accepted", "ResolvedRefs");
    stage.await_parents(POLICIES, "a", &[good, ("later", "TargetNotFound", "ResolvedRefs")]);
    stage.service("later");
    stage.await_parents(POLICIES, "a", &[good, ("later", "Accepted", "ResolvedRefs")]);

    // Of the same age the name decides; elsewhere the older one counts.
    policy("b", &["web"], &public);
    stage.await_parents(POLICIES, "b", &[("web", "Conflicted", "ResolvedRefs")]);

    policy("a", &["later"], &unread);
    stage.await_parents(POLICIES, "b", &[good]);
    stage.await_parents(POLICIES, "a", &[("later", "NoValidCACertificate", "InvalidCACertificateRef")]);
    stage.await_event("BackendTLSPolicy", "a", "NoValidCACertificate", "caCertificateRefs");
    let authority = CertificateParams::new(Vec::new()).unwrap().self_signed(&KeyPair::generate().unwrap());
    for (data, said) in [
        (json!({"ca.crt": authority.unwrap().pem()}), ["Accepted", "ResolvedRefs"]),
        (json!({"other": ""}), ["NoValidCACertificate", "InvalidCACertificateRef"]),
    ] {
        stage.config_map("ca", &data);
        stage.await_parents(POLICIES, "a", &[("later", said[0], said[1])]);
    }
    policy("a", &["later"], &json!({"hostname": "web.example", "ca": 7}));
    stage.await_parents(POLICIES, "a", &[("later", "Invalid", "NotAccepted")]);
}

#[test]
fn certificates_that_no_policy_names_any_more_are_taken_out_of_the_copies() {
    let stage = Stage::new("copies");
    let authority = CertificateParams::new(Vec::new()).unwrap().self_signed(&KeyPair::generate().unwrap());
    let pem = authority.unwrap().pem();
    ["first", "second"].iter().for_each(|name| stage.config_map(name, &json!({"ca.crt": pem})));
    let policy = |name: &str| {
        let refs = json!([{"group": "", "kind": "ConfigMap", "name": name}]);
        let validation = json!({"hostname": "web.example", "caCertificateRefs": refs});
        let spec = json!({"targetRefs": [service(name)], "validation": validation});
        stage.apply(&format!("{GROUP}/v1"), "BackendTLSPolicy", name, &spec);
    };
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(GROUP, "v1", "BackendTLSPolicy"));
    let client = || stage.kubernetes.client.clone();
    let policies: Api<DynamicObject> = Api::namespaced_with(client(), &stage.namespace, &resource);
    let delete = |name: &str| {
        stage.kubernetes.wait(policies.delete(name, &DeleteParams::default())).unwrap();
    };
    let maps = Api::<ConfigMap>::namespaced(client(), &stage.namespace);
    let await_copies = |wanted: &[&str]| {
        let mut found = Vec::new();
        let met = wait_for(LONG, || {
            let map = stage.kubernetes.wait(maps.get_opt(COPIES)).unwrap();
            found = map.and_then(|map| map.data).unwrap_or_default().into_keys().collect();
            found == wanted
        });
        assert!(met, "{found:?}, not {wanted:?}\n{}", Replica::shared(&stage.kubernetes).log());
    };
    policy("first");
    policy("second");
    await_copies(&["first", "second"]);
    delete("second");
    await_copies(&["first"]);
    // Nor does what somebody else has put there stay.
    stage.config_map(COPIES, &json!({"stranger": pem}));
    await_copies(&["first"]);
    delete("first");
    await_copies(&[]);
    // What a namespace without any policy is left with is nobody's either.
    stage.config_map(COPIES, &json!({"stranger": pem}));
    await_copies(&[]);
    let original = stage.kubernetes.wait(maps.get("first")).unwrap();
    assert_eq!(original.data.unwrap()["ca.crt"], pem);
}

#[test]
fn events_tell_of_what_is_refused_once_for_each_reason() {
    let stage = Stage::new("events");
    let policy = |spec: &Value| stage.apply("security.istio.io/v1", "AuthorizationPolicy", "odd", spec);
    policy(&json!({"action": "DENNY"}));
    stage.await_event("AuthorizationPolicy", "odd", "Invalid", "\"DENNY\" is not ALLOW, DENY");
    // Otherwise the same is wrong with it.
    policy(&json!({"action": "DENNY", "rules": [{}]}));
    policy(&json!({"action": "DENIED", "rules": [{}]}));
    stage.await_event("AuthorizationPolicy", "odd", "Invalid", "\"DENIED\" is not ALLOW, DENY");
    let events = stage.events("AuthorizationPolicy", "odd");
    assert_eq!(events.len(), 2, "{events:?}");

    // A waypoint whose ServiceAccount is there already, and somebody else's.
    let listener = json!([{"name": "mesh", "port": 15008, "protocol": "HBONE"}]);
    let gateway = json!({"gatewayClassName": "orlop-waypoint", "listeners": listener});
    stage.apply(&format!("{GROUP}/v1"), "Gateway", "default", &gateway);
    stage.await_event("Gateway", "default", "Invalid", "there is a ServiceAccount default");
}
