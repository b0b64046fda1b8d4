//! Many pods that start at once and dial before anybody knows them.

use std::sync::PoisonError;
use std::thread;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use orlop_tests::traffic::EchoServer;
use orlop_tests::{Agent, Pod, wait_for};

use super::Gated;
use super::inside::{Inside, Said};
use crate::mesh::{MANY_DESCRIPTORS, TIMEOUT};

const PODS: usize = 64;
/// How often one may be refused, 10 ms apart: retries of a few seconds are what any client makes.
const MAX_REFUSED: usize = 500;
/// What they say, which nobody may read on the wire.
const WORD: &str = "cold-start";

fn uid(number: usize) -> String {
    format!("c01d0000-0000-0000-0000-{number:012}")
}

/// An enrolled pod of the other node.
struct Server {
    agent: Agent,
    echo: EchoServer,
}

impl Server {
    fn start(gated: &Gated) -> Self {
        let node = gated.outside.node();
        let pod = node.pod("shop", "server", Default::default()).unwrap();
        let agent = node.agent(Default::default()).unwrap();
        agent.wait_enrolled([&pod]).unwrap();
        gated.agent.wait_until(|dump| dump.contains("shop/server")).unwrap();
        Self { agent, echo: pod.serve_echo(80).unwrap() }
    }
}

/// Starts a pod's processes, which dial from then on.
fn start(gated: &Gated, server: &Server, number: usize) -> (Pod, Inside) {
    let pod = gated.kubelet.sandbox("shop", &format!("cold-{number}"), &uid(number));
    let mut inside = Inside::of(&pod);
    let to = if number.is_multiple_of(2) { server.echo.addr() } else { server.echo.addr6() };
    inside.begin(&format!("insist {} {} {WORD}", to.ip(), to.port()));
    (pod, inside)
}

/// Each is served in the end, and from then on each time. Says how often each was refused before.
fn assert_all_served(gated: &Gated, server: &Server, pods: &mut [(Pod, Inside)]) -> Vec<usize> {
    let mut refused = Vec::new();
    for (pod, inside) in &mut *pods {
        let said = inside.hear();
        let failures = match &said {
            Said::Other(said) => said.strip_prefix("after ").and_then(|count| count.parse::<usize>().ok()),
            _ => None,
        };
        refused.push(failures.unwrap_or_else(|| panic!("{}: {said:?}", pod.name())));
    }
    for (pod, inside) in pods {
        for to in [server.echo.addr(), server.echo.addr6()] {
            let said = inside.dial(to);
            let of_pod = || {
                let logs = [&gated.agent, &server.agent].map(|agent| agent.log().unwrap()).concat();
                let lines = logs.lines().filter(|line| line.contains(&format!("{}\"", pod.name())));
                lines.map(str::to_owned).collect::<Vec<_>>()
            };
            assert_eq!(said, Said::Ok, "{}: {:#?}", pod.name(), of_pod());
        }
    }
    refused
}

#[test]
fn pods_that_start_cold_and_dial_at_once_send_nothing_in_clear() {
    start_cold(PODS);
}

#[test]
fn five_hundred_pods_that_start_cold_and_dial_at_once_send_nothing_in_clear() {
    let _alone = MANY_DESCRIPTORS.lock().unwrap_or_else(PoisonError::into_inner);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    start_cold(500);
}

fn start_cold(count: usize) {
    let gated = Gated::new();
    let server = Server::start(&gated);
    let capture = gated.testbed.capture().unwrap();
    let one = |number: usize| {
        gated.kubelet.cgroup(&uid(number));
        gated.kubelet.publish(&uid(number)).unwrap();
        let (pod, inside) = start(&gated, &server, number);
        // As late as the API may tell.
        pod.set_ready(true).unwrap();
        (pod, inside)
    };
    let mut pods: Vec<_> = thread::scope(|scope| {
        let half = |first: usize| scope.spawn(move || (first..count).step_by(2).map(one).collect::<Vec<_>>());
        let halves = [0, 1].map(half);
        halves.into_iter().flat_map(|half| half.join().unwrap()).collect()
    });
    let refused = assert_all_served(&gated, &server, &mut pods);
    let most = *refused.iter().max().unwrap();
    println!(
        "{count} pods were refused {} times until each was served, one {most} times",
        refused.iter().sum::<usize>()
    );
    assert!(most <= MAX_REFUSED, "one was refused {most} times");
    gated.agent.wait_enrolled(pods.iter().map(|(pod, _)| pod)).unwrap();
    assert!(!capture.stop().unwrap().contains(WORD.as_bytes()), "something went in clear");
}

#[test]
fn pods_that_start_while_the_agent_is_down_wait_for_it() {
    let mut gated = Gated::new();
    let server = Server::start(&gated);
    // kubelet has asked for one half of them.
    for number in 0..PODS / 2 {
        gated.kubelet.cgroup(&uid(number));
        gated.kubelet.publish(&uid(number)).unwrap();
    }
    gated.agent.kill().unwrap();
    let capture = gated.testbed.capture().unwrap();
    let mut pods: Vec<_> = (0..PODS / 2).map(|number| start(&gated, &server, number)).collect();
    for (pod, _) in &pods {
        pod.set_ready(true).unwrap();
    }
    for number in PODS / 2..PODS {
        gated.kubelet.cgroup(&uid(number));
        gated.kubelet.publish(&uid(number)).expect_err("no agent runs");
    }
    gated.agent.restart().unwrap();
    for number in PODS / 2..PODS {
        assert!(wait_for(TIMEOUT, || gated.kubelet.publish(&uid(number)).is_ok()), "{number}");
        let (pod, inside) = start(&gated, &server, number);
        pod.set_ready(true).unwrap();
        pods.push((pod, inside));
    }
    assert_all_served(&gated, &server, &mut pods);
    gated.agent.wait_enrolled(pods.iter().map(|(pod, _)| pod)).unwrap();
    assert!(!capture.stop().unwrap().contains(WORD.as_bytes()), "something went in clear");
}
