//! Two pods of one node: through the proxy once, and then straight, as long as policy has it so.

mod attacks;
mod load;
mod revocation;
mod services;
mod tricks;

use std::io::{self, ErrorKind};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, SocketAddrV6, TcpStream};
use std::time::Instant;

use orlop_tests::traffic::{EchoServer, ReadUninterrupted, echo};
use orlop_tests::{AgentOptions, Pod, PodSpec, wait_for};
use serde_json::Value;

use crate::pair::{
    Pair, TIMEOUT, apply, assert_refused, dial, full_name, ping, record, remove, wait_enrolled,
};
use crate::strict::peer_authentication;

const NO_NEIGHBOURS: &str = "{action: DENY, rules: [{from: [{source: {serviceAccounts: [neighbour]}}]}]}";

fn authorization_policy(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: policy, namespace: shop}}\nspec: {spec}\n"
    )
}

/// A pair, and a pod on the server's node.
struct Neighbours {
    neighbour: Pod,
    server: EchoServer,
    pair: Pair,
}

impl Neighbours {
    fn new() -> Self {
        Self::with(&[])
    }

    fn with(args: &[&str]) -> Self {
        let args = ["--log-format", "json"].iter().chain(args).map(|arg| (*arg).to_owned()).collect();
        let pair = Pair::with(AgentOptions { args, ..AgentOptions::default() });
        let neighbour = pair.pod(&pair.far, "neighbour", PodSpec::new().service_account("neighbour"));
        let server = pair.server.serve_echo(80).unwrap();
        Self { neighbour, server, pair }
    }

    /// Waits until connections to `to` go straight; gives one that does.
    #[track_caller]
    fn straight(&self, to: SocketAddr) -> TcpStream {
        let mut straight = None;
        wait_for(TIMEOUT, || {
            let stream = dial(&self.neighbour, to).unwrap();
            straight = is_straight(&self.neighbour, &stream).then_some(stream);
            straight.is_some()
        });
        straight.expect("it goes through the proxy")
    }

    fn records(&self, wanted: impl Fn(&Value) -> bool) -> usize {
        let log = self.pair.far.log().unwrap();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["target"] == "access" && wanted(line)).count()
    }
}

/// Whether the kernel has the connection as it was dialled; getpeername(2) says so of a redirected one, too.
fn is_straight(pod: &Pod, stream: &TcpStream) -> bool {
    is_in_kernel(pod, stream.local_addr().unwrap().port(), stream.peer_addr().unwrap().port())
}

/// Whether the kernel has a connection from one port to the other.
pub fn is_in_kernel(pod: &Pod, local: u16, remote: u16) -> bool {
    let tables = pod.output("cat", &["/proc/net/tcp", "/proc/net/tcp6"]).unwrap();
    let hex = |address: &str| u16::from_str_radix(address.rsplit(':').next()?, 16).ok();
    tables.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let ends = (fields.next().and_then(hex), fields.next().and_then(hex));
        ends == (Some(local), Some(remote))
    })
}

#[test]
fn the_second_connection_goes_straight_and_is_recorded() {
    let set = Neighbours::new();
    for (to, own) in
        [(set.server.addr(), set.neighbour.ips()[0]), (set.server.addr6(), set.neighbour.ips()[1])]
    {
        let first = dial(&set.neighbour, to).unwrap();
        assert!(!is_straight(&set.neighbour, &first), "{to}: nobody has allowed it yet");
        let second = set.straight(to);
        let from = second.local_addr().unwrap();
        assert_eq!((from.ip(), second.peer_addr().unwrap()), (own, to));
        assert_eq!(*set.server.peers().last().unwrap(), from);

        let opened = |reporter: &str| {
            let labels = [&*format!("reporter=\"{reporter}\""), "source_workload=\"neighbour\""];
            set.pair.far.metric("istio_tcp_connections_opened_total", &labels).unwrap()
        };
        let before = (opened("source"), opened("destination"));
        let third = set.neighbour.connect(to, TIMEOUT).unwrap();
        let from = third.local_addr().unwrap();
        assert!(wait_for(TIMEOUT, || opened("source") > before.0 && opened("destination") > before.1));
        let text = vec![b'x'; 100_000];
        assert_eq!(echo(&third, &text).unwrap(), text);
        drop(third);
        let record = record(&set.pair.far, |record| record["src"] == *from.to_string());
        for (field, value) in [
            ("path", "kernel"),
            ("result", "ok"),
            ("dst", &to.to_string()),
            ("src_workload", &full_name(&set.neighbour)),
            ("dst_workload", &full_name(&set.pair.server)),
            ("src_identity", "spiffe://cluster.local/ns/shop/sa/neighbour"),
            ("dst_identity", "spiffe://cluster.local/ns/shop/sa/seller"),
        ] {
            assert_eq!(record[field], value, "{field}: {record}");
        }
        for field in ["bytes_received", "bytes_sent"] {
            let bytes = record[field].as_u64().unwrap();
            assert!((100_000..=100_001).contains(&bytes), "a FIN may count as one: {record}");
        }
        for field in ["connect_us", "srtt_us", "retransmits", "duration_us"] {
            assert!(record[field].is_u64(), "{field}: {record}");
        }
    }
    assert!(set.pair.far.metric("orlop_same_node_pairs", &[]).unwrap() > 1.0);
    assert!(set.pair.far.metric("orlop_same_node_connect_seconds_count", &[]).unwrap() > 1.0);
}

#[test]
fn a_dual_stack_socket_goes_straight_over_ipv4() {
    let set = Neighbours::new();
    drop(set.straight(set.server.addr()));
    let mapped = |ip: Ipv6Addr| SocketAddr::from(SocketAddrV6::new(ip, 80, 0, 0));
    let stream = dial(&set.neighbour, mapped(set.pair.server.ipv4().to_ipv6_mapped())).unwrap();
    assert!(is_straight(&set.neighbour, &stream));
    assert_eq!(set.server.peers().last().unwrap().ip(), set.neighbour.ipv4());
}

#[test]
fn a_socket_bound_to_another_address_does_not_go_straight() {
    let set = Neighbours::new();
    drop(set.straight(set.server.addr()));
    set.neighbour.output("ip", &["addr", "add", "10.2.200.1/16", "dev", "eth0"]).unwrap();
    let other: SocketAddr = "10.2.200.1:0".parse().unwrap();
    let bound = set.neighbour.run(attacks::dial_from(other, set.server.addr())).unwrap();
    if let Ok(bound) = bound {
        // The proxy may have refused it by now, and then it has no peer any more.
        let local = bound.local_addr().unwrap().port();
        assert!(!is_in_kernel(&set.neighbour, local, set.server.addr().port()));
    }
    assert!(set.server.peers().iter().all(|peer| peer.ip() != other.ip()));
}

#[test]
fn hbone_keeps_the_proxy_in_the_way() {
    let set = Neighbours::with(&["--same-node", "hbone"]);
    for _ in 0..3 {
        let stream = dial(&set.neighbour, set.server.addr()).unwrap();
        assert!(!is_straight(&set.neighbour, &stream));
    }
    assert_eq!(set.pair.far.metric("orlop_same_node_pairs", &[]).unwrap(), 0.0);
}

#[test]
fn strict_lets_them_in() {
    let set = Neighbours::new();
    apply(&set.pair, "strict.yaml", &peer_authentication("{mtls: {mode: STRICT}}"));
    for to in [set.server.addr(), set.server.addr6()] {
        ping(&set.straight(to), "still here?\n").unwrap();
    }
}

#[test]
fn a_port_where_nobody_listens_refuses() {
    let set = Neighbours::new();
    let other = set.pair.server.serve_echo(81).unwrap();
    let to = other.addr();
    drop(set.straight(to));
    drop(other);
    let error = set.neighbour.connect(to, TIMEOUT).expect_err("was served");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    record(&set.pair.far, |record| record["reason"] == "connect_failed" && record["result"] == "refused");
}

#[test]
fn what_policy_forbids_is_closed_and_refused() {
    let set = Neighbours::new();
    let other = set.pair.pod(&set.pair.far, "other", PodSpec::new().service_account("other"));
    let unharmed = dial(&other, set.server.addr()).and_then(|_| dial(&other, set.server.addr())).unwrap();
    assert!(is_straight(&other, &unharmed));
    let open: Vec<_> = [set.server.addr(), set.server.addr6()].map(|to| set.straight(to)).into();
    apply(&set.pair, "policy.yaml", &authorization_policy(NO_NEIGHBOURS));
    for mut stream in open {
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let end = stream.read_uninterrupted(&mut [0]);
        assert!(end.as_ref().is_err_and(|error| error.kind() != ErrorKind::WouldBlock), "{end:?}");
    }
    let cut = record(&set.pair.far, |record| record["path"] == "kernel" && record["result"] == "cut");
    assert_eq!(cut["reason"], "policy_denied", "{cut}");
    for to in [set.server.addr(), set.server.addr6()] {
        assert_refused(&set.neighbour, to);
    }
    ping(&unharmed, "still here?\n").unwrap();
    assert!(is_straight(&other, &dial(&other, set.server.addr()).unwrap()), "in force all the time");

    remove(&set.pair, "policy.yaml");
    drop(set.straight(set.server.addr()));
}

#[test]
fn who_leaves_the_mesh_loses_its_connections() {
    let set = Neighbours::new();
    for pod in [&set.neighbour, &set.pair.server] {
        let mut open = set.straight(set.server.addr());
        pod.opt_out().unwrap();
        wait_enrolled(&set.pair.far, pod, false);
        let end = open.read_uninterrupted(&mut [0]);
        assert!(end.as_ref().is_err_and(|error| error.kind() != ErrorKind::WouldBlock), "{end:?}");
        pod.opt_in().unwrap();
        wait_enrolled(&set.pair.far, pod, true);
    }
}

#[test]
fn a_change_that_concerns_nobody_disturbs_nobody() {
    let set = Neighbours::new();
    let open = set.straight(set.server.addr());
    let opened = set.records(|record| record["path"] != "kernel");
    for n in 0..5 {
        apply(
            &set.pair,
            "other.yaml",
            &format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: n{n}}}\n"),
        );
        assert!(is_straight(&set.neighbour, &dial(&set.neighbour, set.server.addr()).unwrap()));
    }
    ping(&open, "still here?\n").unwrap();
    assert_eq!(set.records(|record| record["path"] != "kernel"), opened);
}

#[test]
fn connections_live_on_and_are_made_without_an_agent() {
    let mut set = Neighbours::new();
    let open = set.straight(set.server.addr());
    set.pair.far.kill().unwrap();
    ping(&open, "still here?\n").unwrap();
    let new = [set.server.addr(), set.server.addr()].map(|to| dial(&set.neighbour, to).unwrap());
    let from = new[0].local_addr().unwrap().to_string();
    drop(new);
    set.pair.far.restart().unwrap();
    ping(&open, "and now?\n").unwrap();
    assert!(is_straight(&set.neighbour, &dial(&set.neighbour, set.server.addr()).unwrap()));
    let told = record(&set.pair.far, |record| record["src"] == *from);
    assert_eq!(told["src_workload"], *full_name(&set.neighbour), "{told}");
}

#[test]
fn a_full_ring_loses_events_and_no_connection() {
    let mut set = Neighbours::new();
    drop(set.straight(set.server.addr()));
    set.pair.far.kill().unwrap();
    let to = set.server.addr();
    // Each is two events of 120 bytes and a header, and the ring holds 1 MiB.
    let start = Instant::now();
    let made = set.neighbour.run(|| {
        (0..5500)
            .map(|_| TcpStream::connect(to).and_then(|s| s.shutdown(Shutdown::Both)))
            .collect::<io::Result<Vec<_>>>()
    });
    assert_eq!(made.unwrap().unwrap().len(), 5500, "after {:?}", start.elapsed());
    set.pair.far.restart().unwrap();
    assert!(set.pair.far.metric("orlop_kernel_events_lost_total", &[]).unwrap() > 0.0);
    ping(&set.straight(to), "hello\n").unwrap();
}
