//! Agents that start while the API server is away, and what they know of the world then.

use std::fs;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use orlop_tests::{Agent, Pod, READY_PORT, Testbed, wait_for};
use serde_json::{Value, json};

use super::api::Kubernetes;
use super::controller;
use super::kubelet::Kubelet;
use super::replica::{self, Replica};
use crate::mesh::{TIMEOUT, records};
use crate::pair::{dial, is_refusal, ping};

const ENABLED: (&str, &str) = ("orlop.dev/mesh", "enabled");
/// A world that has changed is on disk within 10 s.
const LONG: Duration = Duration::from_secs(30);

#[test]
fn an_agent_that_starts_without_the_api_goes_by_the_world_that_it_knew_last() {
    let kubernetes = Kubernetes::shared();
    let testbed = Testbed::in_shared_cluster().unwrap();
    let namespace = kubernetes.namespace("kept", &[ENABLED]);
    let mut nodes = ["n1", "n2"].map(|name| Kubelet::start(&kubernetes, &testbed, name));
    let [client, server] =
        [(0, "client"), (1, "server")].map(|(at, name)| nodes[at].run(&namespace, name, &[]));
    let [mut near, far] = nodes.each_ref().map(|node| node.agent(&[]));
    near.wait_enrolled([&client]).unwrap();
    far.wait_enrolled([&server]).unwrap();
    let kept = wait_kept(&nodes[0], &[&client, &server]);
    let _http = server.serve_http(8080).unwrap();
    let get = |pod: &Pod| pod.http_get(server.addr(8080), "/", TIMEOUT).map(|answer| answer.status).ok();
    let name = format!("{namespace}/client");
    let tunnelled = || {
        let ours = |record: &Value| record["src_workload"] == *name && record["tunnel"].is_string();
        records(&far).iter().filter(|record| ours(record) && record["result"] == "ok").count()
    };
    assert_eq!(get(&client), Some(200), "{}", near.log().unwrap());
    assert!(wait_for(LONG, || tunnelled() == 1), "{}", far.log().unwrap());

    // One that comes too late to be on disk, which is put back as it was.
    let late = nodes[0].run(&namespace, "late", &[]);
    near.wait_enrolled([&client, &late]).unwrap();
    far.wait_until(|dump| dump.contains(&late.ipv4().to_string())).unwrap();
    nodes.iter_mut().for_each(|node| node.relay.cut());
    near.kill().unwrap();
    fs::write(path(&nodes[0]), kept).unwrap();
    near.restart().unwrap();

    assert!(ready(&near).starts_with("ready, by the world of 20"), "{}", ready(&near));
    near.wait_enrolled([&client]).unwrap();
    let age = |agent: &Agent| agent.metric("orlop_world_from_disk_age_seconds", &[]).unwrap();
    assert!(wait_for(LONG, || age(&near) > 0.0));
    assert_eq!(get(&client), Some(200), "{}", near.log().unwrap());
    assert!(wait_for(LONG, || tunnelled() == 2), "{}", far.log().unwrap());
    // Nobody knows whether it is still in the mesh: it is refused, and not let talk in clear.
    assert_eq!(get(&late), None);

    // What happens meanwhile is seen once the API is back.
    kubernetes.apply(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "client", "namespace": namespace, "labels": {"orlop.dev/mesh": "disabled"}},
    }));
    nodes.iter_mut().for_each(|node| node.relay.mend().unwrap());
    assert!(wait_for(LONG, || ready(&near) == "ready\n"), "{}", near.log().unwrap());
    near.wait_enrolled([&late]).unwrap();
    assert!(age(&near).abs() < f64::EPSILON);
    assert_eq!(get(&late), Some(200), "{}", near.log().unwrap());
    label(&kubernetes, &namespace, "disabled");
    near.wait_enrolled([]).unwrap();
}

#[test]
fn who_waits_in_a_pod_that_the_world_on_disk_does_not_know_is_refused_in_the_end() {
    let kubernetes = Kubernetes::shared();
    let testbed = Testbed::in_shared_cluster().unwrap();
    let [namespace, street] = [("forgotten", &[ENABLED][..]), ("street", &[])]
        .map(|(prefix, labels)| kubernetes.namespace(prefix, labels));
    let mut node = Kubelet::start(&kubernetes, &testbed, "n1");
    // What the kernel lets talk waits for nobody.
    let outsider = node.run(&street, "server", &[]);
    let known = node.run(&namespace, "known", &[]);
    let mut agent = node.agent(&[]);
    agent.wait_enrolled([&known]).unwrap();
    let kept = wait_kept(&node, &[&known]);
    let late = node.run(&namespace, "late", &[]);
    agent.wait_enrolled([&known, &late]).unwrap();
    let _keeper = agent.keeper(Duration::from_secs(600)).unwrap();
    let server = outsider.serve_echo(80).unwrap();
    ping(&dial(&late, server.addr()).unwrap(), "still known\n").unwrap();
    node.relay.cut();
    agent.kill().unwrap();
    fs::write(path(&node), kept).unwrap();

    let mut waits = late.connect(server.addr(), TIMEOUT).unwrap();
    waits.set_read_timeout(Some(replica::LONG)).unwrap();
    agent.start_again().unwrap();
    agent.wait_ready().unwrap();
    ping(&dial(&known, server.addr()).unwrap(), "known as before\n").unwrap();
    let refused = waits.read_exact(&mut [0]).expect_err("was served");
    assert!(is_refusal(&refused), "{refused}");
    let refused = late.connect(server.addr(), TIMEOUT).expect_err("was taken");
    assert!(is_refusal(&refused), "{refused}");

    node.relay.mend().unwrap();
    agent.wait_enrolled([&known, &late]).unwrap();
    ping(&dial(&late, server.addr()).unwrap(), "known again\n").unwrap();
}

#[test]
fn what_is_forbidden_is_on_disk_at_once() {
    /// Less than how far the world may else be behind.
    const AT_ONCE: Duration = Duration::from_secs(8);
    // Others forbid as well, and all together only so often.
    let kubernetes = Kubernetes::own();
    kubernetes.define_istio();
    let testbed = Testbed::new().unwrap();
    let namespace = kubernetes.namespace("forbids", &[ENABLED]);
    let node = Kubelet::start(&kubernetes, &testbed, "n1");
    let agent = node.agent(&[]);
    for name in ["first", "second"] {
        // It is written just now, and for what does not decide not again within 10 s.
        let pod = node.run(&namespace, name, &[]);
        wait_kept(&node, &[&pod]);
        let policy = format!("not-{name}");
        kubernetes.apply(&json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": policy, "namespace": namespace},
            "spec": {"action": "DENY", "rules": [{"from": [{"source": {"namespaces": [name]}}]}]},
        }));
        agent.wait_until(|dump| dump.contains(&policy)).unwrap();
        let kept = || fs::read_to_string(path(&node)).unwrap_or_default().contains(&policy);
        assert!(wait_for(AT_ONCE, kept), "{policy} is not on disk");
    }
}

#[test]
fn without_the_controller_too_only_what_needs_no_certificate_goes_on() {
    let kubernetes = Kubernetes::shared();
    let signs = Replica::shared(&kubernetes);
    let testbed = Testbed::in_shared_cluster().unwrap();
    let namespace = kubernetes.namespace("unsigned", &[ENABLED]);
    let mut nodes = ["n1", "n2"].map(|name| Kubelet::start(&kubernetes, &testbed, name));
    let [mut way, _far_way] = nodes.each_ref().map(|node| node.way_to(signs.listen));
    let [client, neighbour, server] = [(0, "client"), (0, "neighbour"), (1, "server")]
        .map(|(at, name)| nodes[at].run(&namespace, name, &[]));
    let [mut near, far] = nodes.each_ref().map(controller::agent);
    near.wait_enrolled([&client, &neighbour]).unwrap();
    far.wait_enrolled([&server]).unwrap();
    wait_kept(&nodes[0], &[&client, &neighbour, &server]);
    let _servers = [&neighbour, &server].map(|pod| pod.serve_http(8080).unwrap());
    let get = |to: &Pod| client.http_get(to.addr(8080), "/", TIMEOUT).map(|answer| answer.status).ok();
    let allowed = || near.metric("orlop_same_node_pairs", &[]).unwrap() > 0.0;
    assert!(wait_for(replica::LONG, || get(&server) == Some(200)), "{}", near.log().unwrap());
    assert!(wait_for(replica::LONG, || get(&neighbour) == Some(200) && allowed()), "{}", near.log().unwrap());

    nodes[0].relay.cut();
    way.cut();
    near.restart().unwrap();
    near.wait_enrolled([&client, &neighbour]).unwrap();
    assert_eq!(get(&neighbour), Some(200), "{}", near.log().unwrap());
    assert_eq!(get(&server), None);
    let refused = |record: &Value| record["reason"] == "certificate_unavailable";
    assert!(wait_for(LONG, || records(&near).iter().any(refused)), "{}", near.log().unwrap());
    nodes[0].relay.mend().unwrap();
    way.mend().unwrap();
    assert!(wait_for(replica::LONG, || get(&server) == Some(200)), "{}", near.log().unwrap());
}

#[test]
fn a_world_that_is_broken_is_not_taken_and_the_agent_waits_for_the_api() {
    let kubernetes = Kubernetes::shared();
    let testbed = Testbed::in_shared_cluster().unwrap();
    let namespace = kubernetes.namespace("broken", &[ENABLED]);
    let mut node = Kubelet::start(&kubernetes, &testbed, "n1");
    let pod = node.run(&namespace, "web", &[]);
    let mut agent = node.agent(&[]);
    agent.wait_enrolled([&pod]).unwrap();
    let kept = wait_kept(&node, &[&pod]);
    node.relay.cut();
    agent.kill().unwrap();
    fs::write(path(&node), &kept[..kept.len() - 100]).unwrap();
    agent.start_again().unwrap();
    let named = format!("{}: is broken", path(&node).display());
    agent.wait_log(|log| log.contains(&named), LONG).unwrap();
    assert!(agent.is_running());
    assert!(agent.http_get("/healthz/ready", READY_PORT).is_err());
    node.relay.mend().unwrap();
    agent.wait_ready().unwrap();
    agent.wait_enrolled([&pod]).unwrap();
    // And the next time there is a good one again.
    wait_kept(&node, &[&pod]);
}

#[test]
fn an_agent_that_serves_is_not_replaced_by_one_that_knows_the_past_alone() {
    let kubernetes = Kubernetes::shared();
    let testbed = Testbed::in_shared_cluster().unwrap();
    let namespace = kubernetes.namespace("beside", &[ENABLED]);
    let mut node = Kubelet::start(&kubernetes, &testbed, "n1");
    let pod = node.run(&namespace, "web", &[]);
    let mut agent = node.agent(&[]);
    agent.wait_enrolled([&pod]).unwrap();
    wait_kept(&node, &[&pod]);
    node.relay.cut();
    let new = agent.start_beside(&[]).unwrap();
    agent.wait_log(|log| log.contains("another agent serves this node: waiting"), LONG).unwrap();
    assert!(agent.is_running());
    assert_eq!(ready(&agent), "ready\n");
    assert!(!agent.log().unwrap().contains("wants to take over"));
    // It has died: now what is on disk is better than nothing.
    agent.kill().unwrap();
    let is_ready = || {
        agent.http_get("/healthz/ready", READY_PORT).is_ok_and(|answer| answer.text().contains("from disk"))
    };
    assert!(wait_for(LONG, is_ready), "{}", agent.log().unwrap());
    agent.wait_enrolled([&pod]).unwrap();
    drop(new);
}

/// Waits until the node's world on disk has the addresses of these pods. Gives it.
pub fn wait_kept(node: &Kubelet<'_>, pods: &[&Pod]) -> String {
    let mut kept = String::new();
    let all = || {
        kept = fs::read_to_string(path(node)).unwrap_or_default();
        let whole = kept.lines().last().is_some_and(|line| line.starts_with("sha256 "));
        whole && pods.iter().all(|pod| kept.contains(&format!("\"{}\"", pod.ipv4())))
    };
    assert!(wait_for(LONG, all), "{}", path(node).display());
    kept
}

fn path(node: &Kubelet<'_>) -> PathBuf {
    node.node.run_dir().join("state/world")
}

fn ready(agent: &Agent) -> String {
    agent.http_get("/healthz/ready", READY_PORT).unwrap().text()
}

fn label(kubernetes: &Kubernetes, namespace: &str, value: &str) {
    kubernetes.apply(&json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": namespace, "labels": {"orlop.dev/mesh": value}},
    }));
}
