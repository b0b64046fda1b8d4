//! What an agent asks of the API server once its connections have broken off.

use orlop_tests::{Testbed, wait_for};
use serde_json::Value;

use super::api::Kubernetes;
use super::install::{NODE_ACCOUNT, SYSTEM};
use super::kubelet::Kubelet;
use super::replica::LONG;

/// How often connections break off.
const TIMES: usize = 3;

/// How many lists and how many watches the agent has asked for so far.
fn asked(kubernetes: &Kubernetes) -> (usize, usize) {
    let log = kubernetes.plane.asked().unwrap();
    let agent = format!("system:serviceaccount:{SYSTEM}:{NODE_ACCOUNT}");
    // The last line may not be whole yet.
    let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let events: Vec<_> = events.filter(|event| event["user"]["username"] == *agent).collect();
    // A watch may list, too.
    let lists_all = |event: &Value| {
        let uri = event["requestURI"].as_str().unwrap_or_default();
        event["verb"] == "list" || uri.contains("sendInitialEvents=true")
    };
    let lists = events.iter().filter(|event| lists_all(event)).count();
    let resumed = |event: &&Value| event["verb"] == "watch" && !lists_all(event);
    // Without them there is nothing to go on from where little changes.
    let asks = |event: &Value| event["requestURI"].as_str().unwrap().contains("allowWatchBookmarks=true");
    assert!(events.iter().filter(|event| event["verb"] == "watch").all(asks), "{log}");
    (lists, events.iter().filter(resumed).filter(|event| event["stage"] == "ResponseStarted").count())
}

#[test]
fn a_watch_that_broke_off_goes_on_and_nothing_is_listed_anew() {
    let kubernetes = Kubernetes::own();
    kubernetes.define_istio();
    let testbed = Testbed::new().unwrap();
    let namespace = kubernetes.namespace("resumes", &[("orlop.dev/mesh", "enabled")]);
    let mut node = Kubelet::start(&kubernetes, &testbed, "n1");
    let mut pods = vec![node.run(&namespace, "web", &[])];
    let agent = node.agent(&[]);
    agent.wait_enrolled(&pods).unwrap();
    let (lists, watches) = asked(&kubernetes);
    assert!(lists > 0 && watches > 0, "{lists} lists, {watches} watches");
    for time in 1..=TIMES {
        let (_, before) = asked(&kubernetes);
        node.relay.cut();
        // It happens while nobody tells.
        pods.push(node.run(&namespace, &format!("late-{time}"), &[]));
        node.relay.mend().unwrap();
        agent.wait_enrolled(&pods).unwrap();
        let all_go_on = || asked(&kubernetes).1 >= before + watches;
        assert!(wait_for(LONG, all_go_on), "{} of {watches} watches", asked(&kubernetes).1 - before);
    }
    assert_eq!(asked(&kubernetes).0, lists, "{}", agent.log().unwrap());
}
