//! What somebody who may write objects can't do to others by it: what is huge, odd or garbage is told so, and everybody
//! else goes on.

use std::fs;

use orlop_tests::{Agent, Pod, Testbed, wait_for};
use serde_json::{Value, json};

use super::api::Kubernetes;
use super::gateway_api::define;
use super::kubelet::Kubelet;
use super::replica::{LONG, Replica};
use super::status::{ACCEPTED, ENTRY, Object, POLICY, PROGRAMMED, RESOLVED_REFS, ROUTES};
use crate::mesh::TIMEOUT;

const ENABLED: (&str, &str) = ("orlop.dev/mesh", "enabled");
const TOKENS: (&str, &str, &str) = ("security.istio.io", "RequestAuthentication", "requestauthentications");
/// All annotations of an object together have at most 256 KiB.
const ANNOTATION: usize = (256 << 10) - 100;
/// How many pods have as many as they may, and how much more an agent and a controller may take for it all.
const PODS: usize = 100;
const MAX_GROWTH: usize = 16 << 20;

/// Pods of the mesh, of which one asks the other, and whoever is to go on with that.
struct Stage<'a> {
    kubernetes: &'a Kubernetes,
    namespace: String,
    agent: Agent,
    pods: [Pod; 2],
}

impl<'a> Stage<'a> {
    fn new(kubernetes: &'a Kubernetes, node: &Kubelet<'_>) -> Self {
        let namespace = kubernetes.namespace("hostile", &[ENABLED]);
        let pods = ["client", "server"].map(|name| node.run(&namespace, name, &[("app", name)]));
        let agent = node.agent(&["--log", "warn"]);
        agent.wait_enrolled(&pods).unwrap();
        Self { kubernetes, namespace, agent, pods }
    }

    fn is_served(&self) -> bool {
        let [client, server] = &self.pods;
        client.http_get(server.addr(8080), "/", TIMEOUT).is_ok_and(|answer| answer.status == 200)
    }

    fn object(&self, kind: (&'static str, &'static str, &'static str), name: &str) -> Object<'a> {
        Object::new(self.kubernetes, kind, &self.namespace, name)
    }

    /// A policy of today that is in force, and is taken back.
    fn assert_policies_count(&self) {
        let lock = self.object(POLICY, "lock");
        let of = |action: &str| json!({"selector": {"matchLabels": {"app": "server"}}, "action": action, "rules": [{}]});
        lock.is(&of("DENY"));
        assert!(wait_for(LONG, || !self.is_served()), "{}", self.agent.log().unwrap());
        lock.is(&of("ALLOW"));
        assert!(wait_for(LONG, || self.is_served()), "{}", self.agent.log().unwrap());
    }
}

/// The memory of a process, in bytes.
fn resident(pid: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim_end_matches("kB").trim().parse::<usize>().unwrap() << 10
}

#[test]
fn annotations_as_large_as_can_be_are_kept_by_nobody() {
    let kubernetes = Kubernetes::own();
    kubernetes.define_istio();
    let testbed = Testbed::new().unwrap();
    let node = Kubelet::start(&kubernetes, &testbed, "n1");
    let controller = Replica::start(&kubernetes, "leads", &[]);
    controller.wait_ready();
    let stage = Stage::new(&kubernetes, &node);
    let _http = stage.pods[1].serve_http(8080).unwrap();
    assert!(stage.is_served());
    let pids = [stage.agent.pid(), controller.process.pid()];

    let metadata = |name: &str, number: usize| {
        // Of those that are read of some kinds, and of others.
        let key =
            ["orlop.dev/note", "networking.istio.io/traffic-distribution", "example.com/note"][number % 3];
        let text = format!("{number}{}", "\u{1F6A2}x".repeat(ANNOTATION / 5));
        json!({"name": name, "namespace": stage.namespace, "annotations": {key: text}})
    };
    let fill = |round: usize| {
        for number in 0..PODS {
            kubernetes.apply(&json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": metadata(&format!("far-{number}"), number + round),
                "spec": {"nodeName": "far", "containers": [{"name": "app", "image": "app"}]},
            }));
        }
    };
    // The first of each is what parsing them takes, whatever is kept.
    fill(0);
    let before = pids.map(resident);
    for number in 0..10 {
        kubernetes.apply(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata(&format!("far-{number}"), number),
            "spec": {"ports": [{"port": 80}]},
        }));
        kubernetes.apply(&json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": metadata(&format!("far-{number}"), number),
            "spec": {"selector": {"matchLabels": {"app": "nobody"}}, "rules": [{}]},
        }));
    }
    (1..3).for_each(fill);
    stage.assert_policies_count();
    stage.object(POLICY, "far-0").wait(ACCEPTED, "True", "Accepted");
    let after = pids.map(resident);
    println!("resident, agent and controller: {before:?} bytes before, {after:?} after");
    for (before, after) in before.into_iter().zip(after) {
        assert!(after < before + MAX_GROWTH, "{before} {after}");
        // All at once they are 25 MB.
        assert!(after < 80 << 20, "{after}");
    }
}

#[test]
fn rules_that_go_in_circles_or_have_no_end_are_told_so_and_hold_up_nobody() {
    let kubernetes = Kubernetes::shared();
    kubernetes.define_istio();
    define(&kubernetes);
    Replica::shared(&kubernetes);
    let testbed = Testbed::in_shared_cluster().unwrap();
    let node = Kubelet::start(&kubernetes, &testbed, "n1");
    let stage = Stage::new(&kubernetes, &node);
    let _http = stage.pods[1].serve_http(8080).unwrap();
    assert!(stage.is_served());

    // Two that delegate to each other, one to itself, and a chain.
    let delegates = |to: &str| json!([{"delegate": {"name": to}}]);
    for (name, to) in [("tick", "tock"), ("tock", "tick"), ("self", "self")] {
        stage.object(ROUTES, name).is(&json!({"http": delegates(to)}));
    }
    let link = |number: u32| format!("link-{number}");
    stage.object(ROUTES, "chain").is(&json!({"hosts": ["server"], "http": delegates(&link(0))}));
    for number in 0..20 {
        stage.object(ROUTES, &link(number)).is(&json!({"http": delegates(&link(number + 1))}));
    }
    for name in ["tick", "tock", "self", "link-0", "link-19"] {
        stage.object(ROUTES, name).wait(RESOLVED_REFS, "False", "delegates again, which a delegate must not");
    }
    // A backtracking engine would take for ever.
    let matches =
        |regex: &str| json!([{"match": [{"uri": {"regex": regex}}], "directResponse": {"status": 200}}]);
    for (name, regex) in [("nested", "(((a+)+)+)+$"), ("backtracks", "(.*a){25}(.*b){25}")] {
        let routes = stage.object(ROUTES, name);
        routes.is(&json!({"hosts": ["server"], "http": matches(regex)}));
        routes.wait(ACCEPTED, "True", "Accepted");
    }
    let routes = stage.object(ROUTES, "explodes");
    routes.is(&json!({"hosts": ["server"], "http": matches("((((x{99}){99}){99}){99})")}));
    routes.wait(ACCEPTED, "False", "spec.http[0].match[0].uri.regex");

    // As many rules as fit, for somebody else.
    let rule =
        |n: usize| json!({"from": [{"source": {"principals": [format!("cluster.local/ns/a/sa/b{n}")]}}]});
    let rules: Vec<Value> = (0..5000).map(rule).collect();
    let many = stage.object(POLICY, "many");
    many.is(&json!({"selector": {"matchLabels": {"app": "client"}}, "rules": rules}));
    many.wait(PROGRAMMED, "True", "Programmed");
    stage.assert_policies_count();
}

#[test]
fn odd_names_and_garbage_are_told_so_and_hold_up_nobody() {
    let kubernetes = Kubernetes::shared();
    kubernetes.define_istio();
    define(&kubernetes);
    Replica::shared(&kubernetes);
    let testbed = Testbed::in_shared_cluster().unwrap();
    let node = Kubelet::start(&kubernetes, &testbed, "n1");
    let stage = Stage::new(&kubernetes, &node);
    let _http = stage.pods[1].serve_http(8080).unwrap();
    assert!(stage.is_served());

    let nobody = json!({"matchLabels": {"app": "nobody"}});
    for name in
        ["x".repeat(253), format!("{}a", "a.".repeat(126)), "0.0".to_owned(), "constructor".to_owned()]
    {
        let policy = stage.object(POLICY, &name);
        policy.is(&json!({"selector": nobody, "rules": [{}]}));
        policy.wait(RESOLVED_REFS, "False", "SelectsNothing");
    }
    // What a person reads shows what it quotes, and obeys nothing of it.
    let policy = stage.object(POLICY, "speaks");
    policy.is(&json!({"selector": nobody, "action": "\u{1b}]0;\u{202e}\u{1F6A2}\u{7}\n"}));
    let said = policy.wait(ACCEPTED, "False", "Invalid");
    assert!(!said["message"].as_str().unwrap().contains(char::is_control), "{said}");
    let principal = "cluster.local/ns/\u{fc}/sa/\u{1F6A2}";
    let policy = stage.object(POLICY, "letters");
    policy.is(&json!({"selector": {"matchLabels": {"app": "client"}}, "action": "DENY", "rules": [
        {"from": [{"source": {"principals": [principal]}}]},
    ]}));
    policy.wait(ACCEPTED, "True", "no source has principal");
    let entry = |hosts: Value| json!({"hosts": hosts, "resolution": "NONE", "ports": [{"number": 80, "name": "http"}]});
    for (name, host) in
        [("letters", "b\u{fc}cher.example"), ("dots", "a..example"), ("long", &"a".repeat(300))]
    {
        let object = stage.object(ENTRY, name);
        object.is(&entry(json!([host])));
        object.wait(ACCEPTED, "False", "spec.hosts[0]");
    }
    let hosts: Vec<_> = (0..5000).map(|n| format!("h{n}.example")).collect();
    let object = stage.object(ENTRY, "many");
    object.is(&entry(json!(hosts)));
    object.wait(ACCEPTED, "False", "spec.hosts");

    // What is no key set fits no token, and what it is for is its author's alone.
    for (name, keys) in [("text", "garbage".to_owned()), ("deep", "[".repeat(100_000))] {
        let object = stage.object(TOKENS, name);
        object.is(&json!({
            "targetRefs": [{"kind": "Service", "group": "", "name": "web"}],
            "jwtRules": [{"issuer": "https://idp.example", "jwks": keys}],
        }));
        object.wait(ACCEPTED, "False", "spec.jwtRules[0].jwks is no key set that can be used");
        object.wait(RESOLVED_REFS, "False", "NoSuchTarget");
    }
    let object = stage.object(TOKENS, "long");
    object.is(&json!({"jwtRules": [{"issuer": "https://idp.example", "jwks": "x".repeat(1 << 20)}]}));
    object.wait(ACCEPTED, "False", "spec.jwtRules[0].jwks");
    stage.assert_policies_count();
}
