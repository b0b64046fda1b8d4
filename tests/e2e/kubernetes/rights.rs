//! That roles have the rights that they use, and no others: by what the API server has written down of who asked for
//! what.

use std::collections::BTreeSet;

use orlop_tests::{Testbed, Waypoint, wait_for};
use serde_json::{Value, json};

use super::api::Kubernetes;
use super::controller::agent;
use super::install::SYSTEM;
use super::kubelet::{CA_PORT, Kubelet};
use super::replica::{LONG, Replica};
use super::waypoint::{ENABLED, Runs};
use super::webhook;

const GATEWAY_API: &str = "gateway.networking.k8s.io";
/// The Gateway whose service account reads what waypoints read.
const GATE: &str = "gate";

#[test]
fn every_right_is_used_and_none_is_missing() {
    let stage = webhook::Stage::new();
    let kubernetes = &stage.kubernetes;
    let roles = Roles::read(&stage.rendered);
    // Clusters do without what Kubernetes lets every service account do by default.
    let path =
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/system:service-account-issuer-discovery";
    let request = http::Request::delete(path).body(Vec::new()).unwrap();
    kubernetes.wait(kubernetes.client.request::<Value>(request)).unwrap();
    let (_webhook, _log) = stage.start();
    let controller = Replica::start(kubernetes, "leads", &["--rotation-spread", "1s"]);
    controller.wait_ready();
    let shop = kubernetes.namespace("shop", &[ENABLED]);
    let testbed = Testbed::new().unwrap();
    let node = Kubelet::start(kubernetes, &testbed, "n1");
    let _way = node.way_to(controller.listen);
    let web = node.run(&shop, "web", &[("app", "web")]);
    let agent = agent(&node);
    agent.wait_enrolled([&web]).unwrap();

    // What is wrong is told, of each kind.
    objects(kubernetes, &shop);
    // The root is changed for another.
    kubernetes.apply(&json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "orlop-ca", "namespace": SYSTEM, "annotations": {"orlop.dev/rotate": "once"}},
    }));
    // A waypoint is made, and runs.
    let may_read = || {
        let attributes = json!({"verb": "watch", "resource": "pods"});
        let user = format!("system:serviceaccount:{shop}:{GATE}");
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {"user": user, "resourceAttributes": attributes},
        });
        kubernetes.wait(kubernetes.review(&review))["status"]["allowed"] == true
    };
    assert!(wait_for(LONG, may_read), "{}", controller.log());
    let labels = [("app", GATE), ("orlop.dev/mesh", "disabled")];
    let uid = node.bind_as(GATE, &shop, "gate-0", &labels);
    let pod = node.sandbox(&shop, "gate-0", &uid);
    let runs = Runs::new(kubernetes, &pod, GATE, &controller);
    let (name, authority) = (format!("{shop}/{GATE}"), format!("https://localhost:{CA_PORT}"));
    let mut arguments =
        vec!["--kube", "--name", &name, "--service-account", GATE, "--ca-address", &authority];
    arguments.extend(runs.files());
    let _waypoint = Waypoint::with(&pod, &arguments).unwrap();

    let mut unused = Vec::new();
    let all_used = wait_for(LONG, || {
        unused = roles.unused(&Asked::read(kubernetes));
        unused.is_empty()
    });
    assert!(all_used, "granted, and not used:\n{}\n{}", unused.join("\n"), controller.log());
    let refused = refused(&Asked::read(kubernetes));
    assert!(refused.is_empty(), "asked for, and not granted:\n{}", refused.join("\n"));
}

/// One object of each kind that says something in its status, with something to say.
fn objects(kubernetes: &Kubernetes, namespace: &str) {
    let apply = |version: &str, kind: &str, name: &str, spec: Value| {
        kubernetes.apply(&json!({
            "apiVersion": version, "kind": kind,
            // The webhook would not have it.
            "metadata": {"name": name, "namespace": namespace, "labels": {"orlop.dev/validation": "disabled"}},
            "spec": spec,
        }));
    };
    apply(
        "v1",
        "Service",
        "web",
        json!({"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80}]}),
    );
    for (version, kinds) in [
        ("security.istio.io/v1", &["AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication"][..]),
        ("networking.istio.io/v1", &["ServiceEntry", "WorkloadEntry", "VirtualService", "DestinationRule"]),
        ("telemetry.istio.io/v1", &["Telemetry"]),
    ] {
        kinds.iter().for_each(|kind| apply(version, kind, "odd", json!({"odd": true})));
    }
    let targets = json!([{"group": "", "kind": "Service", "name": "nobody"}]);
    let limits = json!([{"requests": 1, "unit": "second"}]);
    apply("orlop.dev/v1alpha1", "RateLimit", "odd", json!({"targetRefs": targets, "limits": limits}));
    let provider = json!({"service": "nobody.shop.svc.cluster.local", "port": 80});
    apply("orlop.dev/v1alpha1", "ExtensionProvider", "odd", json!({"envoyExtAuthzGrpc": provider}));
    let version = format!("{GATEWAY_API}/v1");
    for kind in ["HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute"] {
        let parents = json!([{"group": "", "kind": "Service", "name": "web"}]);
        let rules = json!([{"backendRefs": [{"name": "nobody", "port": 80}]}]);
        apply(&version, kind, "odd", json!({"parentRefs": parents, "rules": rules}));
    }
    kubernetes.apply(&json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "nobody", "namespace": namespace},
        "data": {"ca.crt": "odd"},
    }));
    let refs = json!([{"group": "", "kind": "ConfigMap", "name": "nobody"}]);
    let validation = json!({"hostname": "nobody.example", "caCertificateRefs": refs});
    apply(&version, "BackendTLSPolicy", "odd", json!({"targetRefs": targets, "validation": validation}));
    let listeners = json!([{"name": "mesh", "port": 15008, "protocol": "HBONE"}]);
    apply(&version, "Gateway", GATE, json!({"gatewayClassName": "orlop-waypoint", "listeners": listeners}));
}

/// Who asked for what: `verb group/resource`, `verb group/resource name` or `verb /path`, and whether it was allowed.
struct Asked(BTreeSet<(String, String, bool)>);

impl Asked {
    fn read(kubernetes: &Kubernetes) -> Self {
        let log = kubernetes.plane.asked().unwrap();
        // The last line may not be whole yet.
        let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut asked = BTreeSet::new();
        for event in events {
            let object = &event["objectRef"];
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let (user, code) = (text(&event["user"]["username"]), &event["responseStatus"]["code"]);
            let verb = text(&event["verb"]);
            let Some(resource) = object["resource"].as_str() else {
                let path =
                    event["requestURI"].as_str().unwrap_or_default().split('?').next().unwrap_or_default();
                asked.insert((user, format!("{verb} {path}"), *code != 403));
                continue;
            };
            let resource = match object["subresource"].as_str() {
                Some(subresource) => format!("{resource}/{subresource}"),
                None => resource.to_owned(),
            };
            // Whoever applies what is not there makes it, for which both rights are asked for.
            let makes = (verb == "patch" && *code == 201).then(|| "create".to_owned());
            for verb in makes.into_iter().chain([verb]) {
                let what = right(&verb, &text(&object["apiGroup"]), &resource);
                if let Some(name) = object["name"].as_str() {
                    asked.insert((user.clone(), format!("{what} {name}"), *code != 403));
                }
                asked.insert((user.clone(), what, *code != 403));
            }
        }
        Self(asked)
    }

    fn is_allowed(&self, user: &str, what: &str) -> bool {
        self.0.contains(&(user.to_owned(), what.to_owned(), true))
    }
}

/// What nobody was ever let do who asked. Authorisers hear of a right somewhat late.
fn refused(asked: &Asked) -> Vec<String> {
    let never = asked.0.iter().filter(|(user, what, allowed)| !allowed && !asked.is_allowed(user, what));
    never.map(|(user, what, _)| format!("{user}: {what}")).collect()
}

/// Who may do what.
struct Roles(Vec<(String, String)>);

impl Roles {
    /// Those of the chart's objects, with whoever the controller gives them to.
    fn read(objects: &[Value]) -> Self {
        let of = |kinds: [&'static str; 2]| {
            objects.iter().filter(move |object| kinds.iter().any(|kind| object["kind"] == *kind))
        };
        let mut rights = Vec::new();
        for role in of(["ClusterRole", "Role"]) {
            let is_its = |binding: &&Value| {
                binding["roleRef"]["name"] == role["metadata"]["name"]
                    && binding["roleRef"]["kind"] == role["kind"]
            };
            let binding = of(["ClusterRoleBinding", "RoleBinding"]).find(is_its).unwrap();
            let user = match binding["subjects"][0]["name"].as_str() {
                Some(account) => format!("system:serviceaccount:{SYSTEM}:{account}"),
                None => String::new(),
            };
            let rules = role["rules"].as_array().unwrap();
            rights.extend(rules.iter().flat_map(of_rule).map(|right| (user.clone(), right)));
        }
        assert!(rights.len() > 100, "{rights:?}");
        let distinct: BTreeSet<_> = rights.iter().collect();
        assert_eq!(distinct.len(), rights.len(), "something is granted twice");
        Self(rights)
    }

    fn unused(&self, asked: &Asked) -> Vec<String> {
        let is_used = |user: &str, right: &str| match user {
            // A service account of a Gateway.
            "" => {
                asked.0.iter().any(|(user, what, allowed)| *allowed && what == right && user.ends_with(GATE))
            }
            user => asked.is_allowed(user, right),
        };
        let unused = self.0.iter().filter(|(user, right)| !is_used(user, right));
        unused.map(|(user, right)| format!("{user}: {right}")).collect()
    }
}

/// What a rule grants. The right to bind a role is asked for in no request: without it the binding can't be written.
fn of_rule(rule: &Value) -> Vec<String> {
    let texts = |field: &str| {
        let texts = rule[field].as_array().into_iter().flatten();
        texts.map(|text| text.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let mut rights = Vec::new();
    for verb in texts("verbs").iter().filter(|verb| *verb != "bind") {
        for group in texts("apiGroups") {
            for resource in texts("resources") {
                let right = right(verb, &group, &resource);
                match &texts("resourceNames")[..] {
                    [] => rights.push(right),
                    names => rights.extend(names.iter().map(|name| format!("{right} {name}"))),
                }
            }
        }
        rights.extend(texts("nonResourceURLs").iter().map(|path| format!("{verb} {path}")));
    }
    rights
}

fn right(verb: &str, group: &str, resource: &str) -> String {
    format!("{verb} {group}/{resource}")
}
