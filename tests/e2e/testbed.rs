//! The testbed itself, without agents.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use orlop_tests::traffic::{HttpServer, echo};
use orlop_tests::{Pod, PodSpec, Testbed, leftovers_of, sweep, wait_for};

const TIMEOUT: Duration = Duration::from_secs(5);

#[test]
fn pods_of_two_nodes_reach_each_other() {
    let testbed = Testbed::new().unwrap();
    let id = testbed.id();
    let (n1, n2) = (testbed.node("n1").unwrap(), testbed.node("n2").unwrap());
    let pods: Vec<Pod> = [(&n1, "a"), (&n1, "b"), (&n2, "c"), (&n2, "d")]
        .map(|(node, name)| node.pod("shop", name, PodSpec::new()).unwrap())
        .into();
    let servers: Vec<_> = pods.iter().map(|pod| pod.serve_echo(7).unwrap()).collect();
    for client in &pods {
        for server in &servers {
            for to in [server.addr(), server.addr6()] {
                assert_echo(client, to);
            }
        }
    }
    let expected: BTreeSet<IpAddr> = pods.iter().flat_map(Pod::ips).collect();
    let seen: BTreeSet<IpAddr> = servers[3].peers().iter().map(SocketAddr::ip).collect();
    assert_eq!(seen, expected, "a server sees the pods' own addresses");
    assert!(!leftovers_of(&id).unwrap().is_empty());
    drop(testbed);
    assert_nothing_left(&id);
}

#[test]
fn the_first_packet_over_the_wire_arrives() {
    let testbed = Testbed::new().unwrap();
    let (n1, n2) = (testbed.node("n1").unwrap(), testbed.node("n2").unwrap());
    let server = n2.pod("shop", "server", PodSpec::new()).unwrap().serve_echo(7).unwrap();
    let sent_again =
        || retransmitted(&n1.run(|| fs::read_to_string("/proc/thread-self/net/snmp")).unwrap().unwrap());
    let before = sent_again();
    n1.connect(server.addr(), TIMEOUT).unwrap();
    assert_eq!(sent_again(), before, "a SYN was lost");
}

/// `RetransSegs` of `/proc/net/snmp`: a line of names, then one of numbers.
fn retransmitted(snmp: &str) -> u64 {
    let mut tcp = snmp.lines().filter(|line| line.starts_with("Tcp:")).map(str::split_whitespace);
    let (names, values) = (tcp.next().unwrap(), tcp.next().unwrap());
    names.zip(values).find(|(name, _)| *name == "RetransSegs").unwrap().1.parse().unwrap()
}

#[test]
#[expect(clippy::zombie_processes, reason = "nobody waits for a process that a panic left")]
fn a_panic_leaves_nothing_behind() {
    let mut id = String::new();
    let result = catch_unwind(AssertUnwindSafe(|| {
        let testbed = Testbed::new().unwrap();
        id = testbed.id();
        let node = testbed.node("n1").unwrap();
        let pod = node.pod("shop", "a", PodSpec::new()).unwrap();
        // Not guarded: only its cgroup tells whose it is. `sh` makes a child of its own.
        pod.command("sh").unwrap().args(["-c", "sleep 1000 & sleep 1000"]).spawn().unwrap();
        let _server = pod.serve_http(80).unwrap();
        pod.run(|| panic!("on purpose, inside a pod")).unwrap();
    }));
    assert!(result.is_err());
    assert_nothing_left(&id);
}

#[test]
fn sweeping_spares_the_living() {
    let living = Testbed::new().unwrap();
    living.node("n1").unwrap();
    let before = leftovers_of(&living.id()).unwrap();
    // This process's id with another start time: an owner that is dead.
    let dead = living.id().rsplitn(3, '-').last().unwrap().to_owned() + "-1-1";
    fs::create_dir(std::env::temp_dir().join(&dead)).unwrap();
    assert_eq!(leftovers_of(&dead).unwrap().len(), 1);
    sweep().unwrap();
    assert_nothing_left(&dead);
    assert_eq!(leftovers_of(&living.id()).unwrap(), before);
}

#[test]
fn the_wire_is_captured() {
    let testbed = Testbed::new().unwrap();
    let (n1, n2) = (testbed.node("n1").unwrap(), testbed.node("n2").unwrap());
    let client = n1.pod("shop", "client", PodSpec::new()).unwrap();
    let server = n2.pod("shop", "server", PodSpec::new()).unwrap().serve_http(80).unwrap();
    let capture = testbed.capture().unwrap();
    let answer = client.http_get(server.addr(), "/bulk?bytes=1000000", TIMEOUT).unwrap();
    client.http_get(server.addr6(), "/only-over-ipv6", TIMEOUT).unwrap();
    let frames = capture.stop().unwrap();
    assert_eq!(answer.body.len(), 1_000_000);
    assert!(frames.contains(&answer.body[..100_000]), "streams are put together");
    assert!(frames.contains(HttpServer::BULK_PATTERN.as_bytes()));
    assert!(frames.contains(b"/only-over-ipv6"));
    assert_eq!(frames.tls_application_records(80), 0);
}

#[test]
fn a_pods_network_state_shows_what_changed() {
    let testbed = Testbed::new().unwrap();
    let pod = testbed.node("n1").unwrap().pod("shop", "a", PodSpec::new()).unwrap();
    let before = pod.network_state().unwrap();
    assert_eq!(pod.network_state().unwrap(), before);
    pod.output("ip", &["route", "add", "192.0.2.0/24", "dev", "eth0"]).unwrap();
    assert_ne!(pod.network_state().unwrap(), before);
}

#[test]
fn a_firewall_rule_in_a_pod_is_noticed() {
    let testbed = Testbed::new().unwrap();
    let pod = testbed.node("n1").unwrap().pod("shop", "web", PodSpec::new()).unwrap();
    let before = pod.network_state().unwrap();
    assert!(!before.contains("# nft list ruleset\nfailed"), "{before}");
    pod.output("nft", &["add", "table", "inet", "intruder"]).unwrap();
    assert_ne!(pod.network_state().unwrap(), before);
    pod.output("nft", &["delete", "table", "inet", "intruder"]).unwrap();
    assert_eq!(pod.network_state().unwrap(), before);
}

#[test]
fn the_last_of_many_pods_is_made_as_quickly_as_the_first() {
    const SOME: usize = 50;
    let testbed = Testbed::new().unwrap();
    let id = testbed.id();
    let node = testbed.node("n1").unwrap();
    let make = |n| {
        let start = Instant::now();
        let pod = node.pod("many", &format!("p{n}"), PodSpec::new()).unwrap();
        (pod, start.elapsed())
    };
    let (pods, times): (Vec<Pod>, Vec<Duration>) = (0..4 * SOME).map(make).unzip();
    // The quickest of some: what else the machine does counts for less.
    let quickest = |times: &[Duration]| *times.iter().min().unwrap();
    let (first, last) = (quickest(&times[..SOME]), quickest(&times[3 * SOME..]));
    // Did each look at all that are there, it were seven times.
    assert!(last < 5 * first, "{first:?}, and then {last:?}");
    let server = pods.last().unwrap().serve_echo(7).unwrap();
    assert_echo(&pods[0], server.addr());
    drop(testbed);
    assert_nothing_left(&id);
}

fn assert_echo(client: &Pod, to: SocketAddr) {
    let stream =
        client.connect(to, TIMEOUT).unwrap_or_else(|error| panic!("{} to {to}: {error}", client.name()));
    assert_eq!(echo(&stream, b"hello").unwrap(), b"hello", "{} to {to}", client.name());
}

fn assert_nothing_left(id: &str) {
    // A killed process shows until the kernel has taken it down.
    wait_for(TIMEOUT, || leftovers_of(id).unwrap().is_empty());
    assert_eq!(leftovers_of(id).unwrap(), Vec::<String>::new());
}
