//! What policies and routes say of themselves, in conditions that the controller's leader writes.

use std::time::Duration;

use kube::Api;
use kube::api::DynamicObject;
use kube::api::{ApiResource, Patch, PatchParams};
use kube::core::GroupVersionKind;
use orlop_tests::wait_for;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::api::{Kubernetes, anything};
use super::controller::leader;
use super::install::install;
use super::replica::{LONG, Replica};

pub const ACCEPTED: &str = "orlop.dev/Accepted";
pub const RESOLVED_REFS: &str = "orlop.dev/ResolvedRefs";
pub const PROGRAMMED: &str = "orlop.dev/Programmed";

pub const POLICY: (&str, &str, &str) = ("security.istio.io", "AuthorizationPolicy", "authorizationpolicies");
const PROVIDER: (&str, &str, &str) = ("orlop.dev", "ExtensionProvider", "extensionproviders");
const PEERS: (&str, &str, &str) = ("security.istio.io", "PeerAuthentication", "peerauthentications");
pub const ROUTES: (&str, &str, &str) = ("networking.istio.io", "VirtualService", "virtualservices");
pub const ENTRY: (&str, &str, &str) = ("networking.istio.io", "ServiceEntry", "serviceentries");
const WORKLOAD: (&str, &str, &str) = ("networking.istio.io", "WorkloadEntry", "workloadentries");

/// An object of one of Istio's kinds.
pub struct Object<'a> {
    kubernetes: &'a Kubernetes,
    kind: (&'static str, &'static str, &'static str),
    namespace: String,
    name: String,
}

impl<'a> Object<'a> {
    pub fn new(
        kubernetes: &'a Kubernetes,
        kind: (&'static str, &'static str, &'static str),
        namespace: &str,
        name: &str,
    ) -> Self {
        Self { kubernetes, kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    pub fn is(&self, spec: &Value) -> &Self {
        self.kubernetes.apply(&self.with("spec", spec));
        self
    }

    fn with(&self, field: &str, value: &Value) -> Value {
        let (group, kind, _) = self.kind;
        json!({
            "apiVersion": format!("{group}/{}", self.served()), "kind": kind,
            "metadata": {"name": self.name, "namespace": self.namespace}, field: value,
        })
    }

    fn path(&self) -> String {
        let (group, _, plural) = self.kind;
        format!("/apis/{group}/{}/namespaces/{}/{plural}/{}", self.served(), self.namespace, self.name)
    }

    /// The version that it is written in.
    fn served(&self) -> &'static str {
        if self.kind == PROVIDER { "v1alpha1" } else { "v1" }
    }

    /// Waits until a condition of the object as it is now is so. Gives the condition.
    #[track_caller]
    pub fn wait(&self, condition: &str, status: &str, text: &str) -> Value {
        let waited = wait_for(LONG, || {
            let object = self.get();
            let found = of_type(&object, condition);
            let current = found["observedGeneration"] == object["metadata"]["generation"];
            let message = found["message"].as_str().unwrap_or_default();
            let reason = found["reason"].as_str().unwrap_or_default();
            current && found["status"] == status && (reason == text || message.contains(text))
        });
        let object = self.get();
        assert!(waited, "{}: want {condition} {status} with {text:?}:\n{object:#}", self.name);
        of_type(&object, condition)
    }

    fn get(&self) -> Value {
        self.kubernetes.wait(self.kubernetes.get(&self.path()))
    }

    fn version(&self) -> String {
        self.get()["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
    }

    /// Writes conditions as somebody else would.
    fn tell(&self, manager: &str, conditions: &Value) {
        let (group, kind, plural) = self.kind;
        let kind = GroupVersionKind::gvk(group, "v1", kind);
        let resource = ApiResource::from_gvk_with_plural(&kind, plural);
        let client = self.kubernetes.client.clone();
        let api: Api<DynamicObject> = Api::namespaced_with(client, &self.namespace, &resource);
        let status = self.with("status", &json!({"conditions": conditions}));
        let params = PatchParams::apply(manager).force();
        self.kubernetes.wait(api.patch_status(&self.name, &params, &Patch::Apply(&status))).unwrap();
    }
}

fn of_type(object: &Value, kind: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    conditions.find(|condition| condition["type"] == kind).cloned().unwrap_or_default()
}

#[test]
fn a_custom_policy_and_its_provider_say_that_nobody_can_be_asked() {
    let kubernetes = Kubernetes::shared();
    kubernetes.define_istio();
    Replica::shared(&kubernetes);
    let namespace = kubernetes.namespace("asks", &[]);
    let policy = Object::new(&kubernetes, POLICY, &namespace, "ask");
    let mut spec = json!({"action": "CUSTOM", "provider": {"name": "authz"}, "rules": [{}]});
    policy.is(&spec);
    policy.wait(PROGRAMMED, "False", "can't be asked about a connection: what its rules match is denied");
    spec["targetRefs"] = json!([{"kind": "Service", "group": "", "name": "web"}]);
    policy.is(&spec);
    policy.wait(PROGRAMMED, "False", "there is no ExtensionProvider authz in its namespace or the root");

    let provider = Object::new(&kubernetes, PROVIDER, &namespace, "authz");
    provider.is(&json!({"envoyExtAuthzGrpc": {"service": "nobody.infra.svc.cluster.local", "port": 9000}}));
    provider.wait(ACCEPTED, "True", "Accepted");
    provider.wait(RESOLVED_REFS, "False", "nobody.infra.svc.cluster.local is no service: it can't be asked");
    policy.wait(PROGRAMMED, "True", "Programmed");
}

#[test]
fn a_policy_says_what_is_wrong_with_it_and_what_is_not_enforced() {
    let kubernetes = Kubernetes::shared();
    kubernetes.define_istio();
    Replica::shared(&kubernetes);
    let namespace = kubernetes.namespace("said", &[]);
    let policy = |name: &str| Object::new(&kubernetes, POLICY, &namespace, name);

    // A field that can't be understood is named, with what holds meanwhile.
    let odd = policy("odd");
    odd.is(&json!({"action": "DENNY", "rules": [{}]}));
    let said = odd.wait(ACCEPTED, "False", "spec.action: \"DENNY\" is not ALLOW, DENY, AUDIT or CUSTOM");
    assert_eq!(said["reason"], "Invalid");
    assert!(said["message"].as_str().unwrap().contains("denies everything where it applies"), "{said}");
    odd.wait(PROGRAMMED, "False", "NotAccepted");
    odd.wait(RESOLVED_REFS, "Unknown", "NotAccepted");
    let block = |text: &str| json!({"rules": [{"from": [{"source": {"ipBlocks": ["10.0.0.0/8", text]}}]}]});
    odd.is(&block("10.0.0.0/33"));
    odd.wait(ACCEPTED, "False", "spec.rules[0].from[0].source.ipBlocks[1]: \"10.0.0.0/33\"");
    odd.is(&block("10.0.0.0/32"));
    assert_eq!(odd.wait(ACCEPTED, "True", "Accepted")["message"], "");
    odd.wait(RESOLVED_REFS, "True", "ResolvedRefs");
    odd.wait(PROGRAMMED, "True", "Programmed");

    // What a connection does not show, a DENY without targets denies regardless.
    let l7 = policy("deletes");
    let rules = json!([{"to": [{"operation": {"methods": ["DELETE"]}}]}]);
    l7.is(&json!({"action": "DENY", "rules": rules}));
    l7.wait(
        PROGRAMMED,
        "False",
        "so they are left out and the rule denies more than it says; give the policy",
    );
    l7.is(&json!({"action": "DENY", "rules": rules, "targetRefs": [{"kind": "Service", "name": "web"}]}));
    l7.wait(RESOLVED_REFS, "False", "there is none of this name in the policy's namespace");
    let metadata = |name: &str| json!({"name": name, "namespace": namespace, "labels": {"app": name}});
    let service = |name: &str, protocol: &str| {
        kubernetes.apply(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata(name),
            "spec": {"selector": {"app": name}, "ports": [{"port": 53, "protocol": protocol}]},
        }));
    };
    service("web", "TCP");
    l7.wait(RESOLVED_REFS, "True", "ResolvedRefs");
    l7.wait(PROGRAMMED, "False", "it has no waypoint; label it istio.io/use-waypoint");

    // UDP passes whatever a policy says, which it does not hide.
    service("dns", "UDP");
    kubernetes.apply(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata("dns"),
        "spec": {"nodeName": "nowhere", "containers": [{"name": "dns", "image": "dns"}]},
    }));
    let udp = policy("dns");
    udp.is(&json!({"action": "DENY", "rules": [{"to": [{"operation": {"ports": ["53"]}}]}]}));
    let said = udp.wait(PROGRAMMED, "False", "is UDP, to which policies do not apply");
    assert_eq!(said["reason"], "UdpNotEnforced");

    // A route to what there is not.
    let routes = Object::new(&kubernetes, ROUTES, &namespace, "web");
    let route = json!([{"route": [{"destination": {"host": "web", "subset": "v2"}}]}]);
    routes.is(&json!({"hosts": ["web"], "http": route}));
    let said = routes.wait(RESOLVED_REFS, "False", "http[0].route[0] leads to subset v2 of web");
    assert_eq!(said["reason"], "NoSuchSubset");
    kubernetes.apply(&json!({
        "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": metadata("web"),
        "spec": {"host": "web", "subsets": [{"name": "v2", "labels": {"version": "2"}}]},
    }));
    routes.wait(RESOLVED_REFS, "True", "ResolvedRefs");
    routes.wait(PROGRAMMED, "False", "NoWaypoint");
}

#[test]
fn conditions_are_written_once_and_those_of_others_stay() {
    let kubernetes = Kubernetes::shared();
    kubernetes.define_istio();
    Replica::shared(&kubernetes);
    let namespace = kubernetes.namespace("once", &[]);
    let policy = |name: &str| Object::new(&kubernetes, POLICY, &namespace, name);
    let [quiet, busy] = [policy("quiet"), policy("busy")];
    quiet.is(&json!({"action": "DENY", "rules": [{"to": [{"operation": {"hosts": ["a"]}}]}]}));
    quiet.wait(PROGRAMMED, "False", "FieldsNotEnforced");

    // Another controller's list takes the place of ours, as lists do that have one owner: both are there again, and
    // the status that is the same has the same time.
    let (then, theirs) = ("2020-01-02T03:04:05Z", "WaypointAccepted");
    let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": "Theirs", "message": "", "lastTransitionTime": then});
    quiet.tell("another", &json!([condition(theirs, "True"), condition(PROGRAMMED, "False")]));
    let said = quiet.wait(PROGRAMMED, "False", "FieldsNotEnforced");
    assert_eq!(said["lastTransitionTime"], then);
    let accepted = quiet.wait(ACCEPTED, "True", "Accepted");
    assert_ne!(accepted["lastTransitionTime"], then);
    assert_eq!(of_type(&quiet.get(), theirs), condition(theirs, "True"));

    // However often the controller looks, it writes nothing that is there.
    let before = quiet.version();
    for round in 0..3 {
        busy.is(&json!({"action": "ALLOW", "rules": [], "round": round}));
        busy.wait(ACCEPTED, "False", "unknown field `round`");
        busy.is(&json!({"action": "ALLOW", "rules": [{}]}));
        busy.wait(ACCEPTED, "True", "Accepted");
    }
    assert_eq!(quiet.version(), before);
}

#[test]
fn hostile_objects_are_told_so_and_disturb_no_other() {
    let kubernetes = Kubernetes::shared();
    kubernetes.define_istio();
    let controller = Replica::shared(&kubernetes);
    let namespace = kubernetes.namespace("hostile", &[]);
    let policy = |name: &str| Object::new(&kubernetes, POLICY, &namespace, name);
    let good = policy("good");
    good.is(&json!({"rules": [{}]}));
    good.wait(PROGRAMMED, "True", "Programmed");
    let before = good.version();

    let mut blocks: Vec<_> = (0..20_000_u32).map(|n| format!("10.{}.{}.0/24", n / 250, n % 250)).collect();
    blocks.push("10.0.0.0/".to_owned());
    let huge = policy("huge.list-of.blocks");
    huge.is(&json!({"rules": [{"from": [{"source": {"ipBlocks": blocks}}]}]}));
    huge.wait(ACCEPTED, "False", "spec.rules[0].from[0].source.ipBlocks[20000]: \"10.0.0.0/\"");
    let odd = policy("odd");
    odd.is(&json!({"selector": {"matchLabels": {"\u{1b}[2J\n": "*"}}, "\u{1}": {"é": "\u{202e}"}}));
    let said = odd.wait(ACCEPTED, "False", "Invalid");
    assert!(!said["message"].as_str().unwrap().contains(char::is_control), "{said}");
    let long = policy("long");
    long.is(&json!({"action": "X".repeat(500_000)}));
    let said = long.wait(ACCEPTED, "False", "spec.action");
    assert!(said["message"].as_str().unwrap().len() < 2000);
    let routes = |name: &str, regex: &str| {
        let routes = Object::new(&kubernetes, ROUTES, &namespace, name);
        let matches = json!([{"uri": {"regex": regex}}]);
        routes
            .is(&json!({"hosts": ["web"], "http": [{"match": matches, "directResponse": {"status": 200}}]}));
        routes.wait(ACCEPTED, "False", "spec.http[0].match[0].uri.regex");
    };
    routes("exploding", "((a{1000}){1000}){1000}");
    routes("wide", &"(a|b)".repeat(100_000));
    // Deeper than what a parser should follow.
    let deep = format!("{}{}", "{\"a\":".repeat(1000), format_args!("1{}", "}".repeat(1000)));
    let deep = policy("deep").with("spec", &json!("DEEP")).to_string().replace("\"DEEP\"", &deep);
    let list = policy("").path();
    let request = http::Request::post(list.trim_end_matches('/')).header("content-type", "application/json");
    let request = request.body(deep.into_bytes()).unwrap();
    kubernetes.wait(kubernetes.client.request_text(request)).unwrap();
    let is_told = || {
        let request = http::Request::get(policy("deep").path()).body(Vec::new()).unwrap();
        let text = kubernetes.wait(kubernetes.client.request_text(request)).unwrap();
        text.contains(ACCEPTED) && text.contains("\"Invalid\"")
    };
    assert!(wait_for(LONG, is_told), "{}", controller.log());

    let late = policy("late");
    late.is(&json!({"rules": [{}]}));
    late.wait(PROGRAMMED, "True", "Programmed");
    assert_eq!(good.version(), before);
}

/// Kinds as Istio defined them of old, as they should be, and without a status.
#[test]
fn definitions_of_every_make_do_and_only_the_leader_writes() {
    let kubernetes = Kubernetes::own();
    let with_status = json!({"status": {}});
    let condition = |observed: bool| {
        let mut properties: serde_json::Map<_, _> =
            ["type", "status", "reason", "message", "lastTransitionTime"]
                .map(|name| (name.to_owned(), json!({"type": "string"})))
                .into_iter()
                .collect();
        if observed {
            properties.insert("observedGeneration".to_owned(), json!({"type": "integer"}));
            properties["message"]["maxLength"] = 40.into();
        }
        json!({"type": "object", "properties": properties, "required": ["type"]})
    };
    let schema = |conditions: Value| {
        json!({"type": "object", "properties": {
            "spec": anything(),
            "status": {"type": "object", "properties": {"conditions": conditions}, "x-kubernetes-preserve-unknown-fields": true},
        }})
    };
    let old = schema(json!({"type": "array", "items": condition(false)}));
    let each = schema(json!({
        "type": "array", "items": condition(true),
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
    }));
    for ((group, kind, plural), subresources, schema) in [
        (POLICY, &with_status, &anything()),
        (ENTRY, &with_status, &old),
        (PEERS, &with_status, &each),
        (WORKLOAD, &json!({}), &anything()),
    ] {
        kubernetes.define(group, kind, plural, subresources, schema);
    }
    install(&kubernetes);
    let namespace = kubernetes.namespace("of-all-makes", &[]);
    let object = |kind, name: &str| Object::new(&kubernetes, kind, &namespace, name);
    let peers = object(PEERS, "strict");
    peers.is(&json!({"mtls": {"mode": "STRICT"}}));
    peers.tell("another", &json!([{"type": "Theirs", "status": "True"}]));
    // What is to be said of this one the definition does not take.
    let of_nobody = json!({"matchLabels": {"app": "nobody"}});
    object(PEERS, "a-first").is(&json!({"selector": of_nobody, "mtls": {"mode": "ON"}}));
    object(WORKLOAD, "vm").is(&json!({"address": "10.0.0.1"}));
    let entry = object(ENTRY, "outside");
    entry
        .is(&json!({"hosts": ["a.example"], "ports": [{"number": 80, "name": "http"}], "resolution": "DNS"}));
    let policy = object(POLICY, "odd");
    policy.is(&json!({"action": "DENNY"}));

    let replicas = ["first", "second"].map(|name| Replica::start(&kubernetes, name, &[]));
    policy.wait(ACCEPTED, "False", "spec.action");
    peers.wait(ACCEPTED, "True", "Accepted");
    // Each condition has an owner of its own.
    let there = peers.get();
    assert_eq!(of_type(&there, "Theirs")["status"], "True");
    let owner = there["metadata"]["managedFields"].as_array().unwrap().iter();
    let mut owner = owner.filter(|fields| fields["manager"] == "orlop-status");
    let owned = owner.next().unwrap()["fieldsV1"].to_string();
    assert!(owned.contains(ACCEPTED) && !owned.contains("Theirs"), "{owned}");
    // A definition without the field gets conditions without it.
    assert!(wait_for(LONG, || of_type(&entry.get(), ACCEPTED)["status"] == "True"), "{:#}", entry.get());
    let version = entry.version();

    // One replica leads and has said that a kind has no status; the other has said and written nothing.
    let leads = leader(&kubernetes);
    let [mut gone, mut left] = replicas;
    if gone.name != leads {
        std::mem::swap(&mut gone, &mut left);
    }
    let says = |replica: &Replica| replica.log().matches("its definition has no status subresource").count();
    assert!(wait_for(LONG, || says(&gone) == 1), "{}", gone.log());
    assert_eq!(says(&left), 0, "{}", left.log());
    assert!(object(WORKLOAD, "vm").get()["status"].is_null());
    let untold = format!("PeerAuthentication {namespace}/a-first: its status can't be written");
    assert!(wait_for(LONG, || gone.log().contains(&untold)), "{}", gone.log());

    // While nobody leads nothing is written.
    gone.process.kill().unwrap();
    let late = object(POLICY, "late");
    late.is(&json!({"action": "NONE"}));
    assert!(wait_for(LONG, || leader(&kubernetes) == left.name), "{}", left.log());
    late.wait(ACCEPTED, "False", "spec.action");
    assert!(left.log().contains("leading lease"), "{}", left.log());

    // The API server goes away and comes back: what changed is told, and nothing else is written.
    kubernetes.plane.stop_api();
    kubernetes.plane.start_api().unwrap();
    kubernetes.wait(async {
        let path = late.path();
        let get = || http::Request::get(&path).body(Vec::new()).unwrap();
        while kubernetes.client.request::<Value>(get()).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    });
    policy.is(&json!({"rules": [{}]}));
    policy.wait(ACCEPTED, "True", "Accepted");
    assert_eq!(entry.version(), version);
}
