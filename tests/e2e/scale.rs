//! Many pods on one node.

use std::time::{Duration, Instant};

use orlop_tests::{AgentOptions, PodSpec, Testbed, wait_for};

use crate::pair::dial;

const PODS: usize = 200;

#[test]
fn two_hundred_pods_cost_little_time_no_threads_and_little_memory() {
    let testbed = Testbed::new().unwrap();
    testbed.world().enrolled_namespace("many").unwrap();
    let node = testbed.node("n1").unwrap();
    let pod =
        |n| node.pod("many", &format!("p{n}"), PodSpec::new().service_account(&format!("sa{n}"))).unwrap();
    let pods: Vec<_> = (0..PODS).map(pod).collect();

    let start = Instant::now();
    let agent = node.agent(AgentOptions::default()).unwrap();
    let all = || agent.enrolled().unwrap().len() == PODS;
    assert!(wait_for(Duration::from_secs(60), all), "{} enrolled", agent.enrolled().unwrap().len());
    let (time, rss, threads) = (start.elapsed(), agent.rss().unwrap(), agent.threads().unwrap());
    println!("{PODS} pods: enrolled {time:?} after the start, {} KiB, {threads} threads", rss >> 10);

    assert!(threads < 16, "{threads} threads");
    assert!(rss < 60 << 20, "{} MiB", rss >> 20);
    let echo = pods[PODS - 1].serve_echo(80).unwrap();
    dial(&pods[0], echo.addr()).unwrap();
}
