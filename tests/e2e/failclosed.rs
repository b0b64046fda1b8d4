//! Failing closed: whatever happens to an agent, an enrolled pod's traffic is refused and never in clear.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use orlop_tests::traffic::{HttpServer, ReadUninterrupted, echo};
use orlop_tests::{Agent, AgentOptions, Frames, READY_PORT, wait_for};

use crate::pair::{
    AT_ONCE, Pair, TIMEOUT, assert_kernel_refuses, assert_refused, dial, is_refusal, ping, program, record,
};
use crate::upgrade::PATIENCE;

const SECRET: &str = "nobody on the wire may read this\n";

#[test]
fn a_killed_agents_pods_are_refused_at_once() {
    let mut pair = Pair::new();
    let outsider = pair.outsider(pair.far.node(), "outsider");
    let (server, own) = (pair.server.serve_echo(80).unwrap(), pair.client.serve_echo(80).unwrap());
    dial(&pair.client, server.addr()).unwrap();
    dial(&pair.server, own.addr()).unwrap();
    let capture = pair.testbed.capture().unwrap();
    pair.near.kill().unwrap();
    for to in [server.addr(), server.addr6()] {
        assert_kernel_refuses(&pair.client, to);
    }
    for to in [own.addr(), own.addr6()] {
        assert_kernel_refuses(&outsider, to);
        assert_refused(&pair.server, to);
        dial(&pair.client, to).unwrap();
    }
    assert_only_tunnels(&capture.stop().unwrap());
    let failed =
        record(&pair.far, |record| record["direction"] == "outbound" && record["result"] == "refused");
    assert_eq!(failed["reason"], "connect_failed", "{failed}");
}

#[test]
fn nothing_leaks_while_an_agent_is_killed_under_traffic() {
    let mut pair = Pair::new();
    let (server, own) = (pair.server.serve_echo(80).unwrap(), pair.client.serve_echo(80).unwrap());
    let (stop, capture) = (AtomicBool::new(false), pair.testbed.capture().unwrap());
    let (client, peer, near, far) = (&pair.client, &pair.server, &mut pair.near, &mut pair.far);
    let tries = thread::scope(|scope| {
        let knock = |from, to| {
            let mut tries = (0, 0);
            while !stop.load(Ordering::SeqCst) {
                match dial(from, to).and_then(|stream| ping(&stream, SECRET)) {
                    Ok(()) => tries.0 += 1,
                    Err(error) => {
                        let hung = matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock);
                        assert!(!hung, "hung: {error}");
                        tries.1 += 1;
                    }
                }
            }
            tries
        };
        let (there, here) = (server.addr(), own.addr6());
        let threads = [scope.spawn(move || knock(client, there)), scope.spawn(move || knock(peer, here))];
        for agent in [near, far] {
            dial(client, there).unwrap();
            agent.kill().unwrap();
            assert!(dial(client, there).is_err());
            agent.restart().unwrap();
            assert!(wait_for(TIMEOUT, || dial(client, there).is_ok()), "not served again");
        }
        stop.store(true, Ordering::SeqCst);
        threads.map(|thread| thread.join().unwrap())
    });
    assert_only_tunnels(&capture.stop().unwrap());
    assert!(tries.iter().all(|(served, refused)| *served > 0 && *refused > 0), "{tries:?}");
}

#[test]
fn a_transfer_cut_by_a_kill_does_not_look_complete() {
    for kill_near in [true, false] {
        let mut pair = Pair::new();
        let server = pair.server.serve_http(80).unwrap();
        let capture = pair.testbed.capture().unwrap();
        let mut stream = start_download(&pair, &server);
        let agent = if kill_near { &mut pair.near } else { &mut pair.far };
        agent.kill().unwrap();
        let end = read_on(&mut stream);
        let frames = capture.stop().unwrap();
        assert_only_tunnels(&frames);
        assert!(!frames.contains(HttpServer::BULK_PATTERN.as_bytes()), "in clear on the wire");
        let error = end.expect_err("an orderly end in the middle of a transfer");
        assert!(is_refusal(&error), "near {kill_near}: {error}");
    }
}

#[test]
fn a_restarted_agent_adopts_what_is_pinned() {
    let mut pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    let own = pair.client.serve_echo(80).unwrap();
    let outsider = pair.outsider(pair.far.node(), "outsider");
    dial(&pair.client, server.addr()).unwrap();
    let before = pins(&pair.near);
    pair.near.kill().unwrap();
    assert_eq!(pins(&pair.near), before, "they outlive the agent");
    let start = Instant::now();
    pair.near.start_again().unwrap();
    pair.near.wait_ready().unwrap();
    dial(&pair.client, server.addr()).unwrap();
    println!("served again after {:?}", start.elapsed());
    assert!(!pair.in_clear(&pair.client, server.addr()));
    dial(&outsider, own.addr()).unwrap();
    assert_eq!(pins(&pair.near), before);
}

#[test]
fn pods_outside_the_mesh_notice_nothing() {
    let mut pair = Pair::new();
    let one = pair.outsider(pair.near.node(), "one");
    let other = pair.outsider(pair.far.node(), "other");
    let server = other.serve_echo(80).unwrap();
    let open = dial(&one, server.addr()).unwrap();
    pair.near.kill().unwrap();
    pair.far.kill().unwrap();
    ping(&open, "still there?\n").unwrap();
    dial(&one, server.addr()).unwrap();
    pair.near.restart().unwrap();
    pair.far.restart().unwrap();
    ping(&open, "and now?\n").unwrap();
    dial(&one, server.addr6()).unwrap();
}

#[test]
fn sigterm_lets_open_connections_finish_and_refuses_new_ones() {
    let mut pair = Pair::with(draining(Duration::from_secs(30)));
    let outsider = pair.outsider(pair.far.node(), "outsider");
    let (server, own) = (pair.server.serve_echo(80).unwrap(), pair.client.serve_echo(80).unwrap());
    let outbound = dial(&pair.client, server.addr()).unwrap();
    let tunnelled = dial(&pair.server, own.addr()).unwrap();
    let plain = dial(&outsider, own.addr()).unwrap();
    pair.near.terminate().unwrap();
    pair.near.wait_log(|log| log.contains("draining"), TIMEOUT).unwrap();
    assert!(wait_for(TIMEOUT, || pair
        .near
        .http_get("/healthz/ready", READY_PORT)
        .is_ok_and(|a| a.status == 503)));
    assert_refused(&pair.client, server.addr());
    assert_refused(&outsider, own.addr());
    // The other agent's tunnel takes streams until the end of it is answered.
    let refused = || dial(&pair.server, own.addr()).is_err_and(|error| is_refusal(&error));
    assert!(wait_for(TIMEOUT, refused));
    let payload = vec![7; 1 << 20];
    for stream in [outbound, tunnelled, plain] {
        assert_eq!(echo(&stream, &payload).unwrap().len(), payload.len());
    }
    let start = Instant::now();
    let status = pair.near.wait(TIMEOUT).unwrap();
    assert!(status.success(), "{status}");
    assert!(start.elapsed() < AT_ONCE, "ended only {:?} after its last connection", start.elapsed());
}

#[test]
fn the_drain_timeout_cuts_with_a_reset() {
    let mut pair = Pair::with(draining(Duration::from_millis(300)));
    let outsider = pair.outsider(pair.far.node(), "outsider");
    let server = pair.server.serve_http(80).unwrap();
    let own = pair.client.serve_http(81).unwrap();
    let mut outbound = start_download(&pair, &server);
    let mut inbound = download(outsider.connect(own.addr(), TIMEOUT).unwrap());
    pair.near.terminate().unwrap();
    let status = pair.near.wait(TIMEOUT).unwrap();
    assert!(status.success(), "{status}");
    for stream in [&mut outbound, &mut inbound] {
        let error = read_on(stream).expect_err("an orderly end in the middle of a transfer");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
    assert_kernel_refuses(&pair.client, server.addr());
}

#[test]
fn an_agent_that_cannot_read_its_world_leaves_everything_as_it_is() {
    let mut pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    pair.near.kill().unwrap();
    let before = pins(&pair.near);
    pair.testbed.world().write("broken.yaml", "kind: Pod\nmetadata: [\n").unwrap();
    pair.near.start_again().unwrap();
    let status = pair.near.wait(PATIENCE).unwrap();
    assert!(!status.success());
    let log = pair.near.log().unwrap();
    assert!(log.lines().last().is_some_and(|line| line.contains("broken.yaml:")), "{log}");
    assert_eq!(pins(&pair.near), before);
    assert_kernel_refuses(&pair.client, server.addr());
    pair.testbed.world().remove("broken.yaml").unwrap();
    pair.near.restart().unwrap();
    dial(&pair.client, server.addr()).unwrap();
}

#[test]
fn an_agent_without_its_ca_does_not_start() {
    let mut pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    pair.near.kill().unwrap();
    let (ca, elsewhere) = (pair.testbed.ca_dir(), pair.testbed.dir().join("elsewhere"));
    fs::rename(&ca, &elsewhere).unwrap();
    fs::write(&ca, "no directory").unwrap();
    pair.near.start_again().unwrap();
    assert!(!pair.near.wait(PATIENCE).unwrap().success());
    let log = pair.near.log().unwrap();
    assert!(log.lines().last().is_some_and(|line| line.contains(&*ca.to_string_lossy())), "{log}");
    assert_kernel_refuses(&pair.client, server.addr());
    fs::remove_file(&ca).unwrap();
    fs::rename(&elsewhere, &ca).unwrap();
    pair.near.restart().unwrap();
    dial(&pair.client, server.addr()).unwrap();
}

#[test]
fn a_pod_whose_namespace_is_not_there_is_said_to_be_out_and_does_not_hold_up_others() {
    let pair = Pair::new();
    let ghost = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: ghost\n  namespace: shop\n  annotations:\n    \
                 orlop.dev/netns: /run/netns/no-such-namespace\nspec:\n  nodeName: n1\n  \
                 serviceAccountName: default\nstatus:\n  phase: Running\n  podIPs:\n  - ip: 10.1.99.99\n";
    pair.testbed.world().write("pod.shop.ghost.yaml", ghost).unwrap();
    pair.near.wait_log(|log| log.contains("no-such-namespace"), TIMEOUT).unwrap();
    pair.near.wait_until(|dump| dump.contains("\"not_enrolled\": {\n    \"shop/ghost\"")).unwrap();
    let later = pair.pod(&pair.near, "later", Default::default());
    dial(&later, pair.server.serve_echo(80).unwrap().addr()).unwrap();
}

#[test]
fn clean_removes_everything() {
    let mut pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    let programs = [&pair.near, &pair.far].map(program);
    for (agent, program) in [&mut pair.near, &mut pair.far].into_iter().zip(programs) {
        let directory = agent.node().bpffs_dir();
        agent.kill().unwrap();
        let output = Command::new(program).arg("clean").arg("--bpffs").arg(&directory).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(!directory.exists(), "{} is left", directory.display());
    }
    assert!(pair.in_clear(&pair.client, server.addr()), "the pods talk as if there had been no mesh");
    let stream = dial(&pair.client, server.addr()).unwrap();
    assert_eq!(server.peers().last(), Some(&stream.local_addr().unwrap()));
}

/// Between enrolled pods nothing but TLS to the tunnels' port may cross the wire.
#[track_caller]
pub fn assert_only_tunnels(frames: &Frames) {
    let ports = frames.tcp_ports();
    assert!(ports.iter().all(|port| *port == 15008), "data went over the wire to ports {ports:?}");
    assert!(!frames.contains(SECRET.as_bytes()), "in clear on the wire");
}

pub fn draining(timeout: Duration) -> AgentOptions {
    AgentOptions { drain_timeout: Some(timeout), ..AgentOptions::default() }
}

/// Asks for more than the test will ever read.
fn start_download(pair: &Pair, server: &HttpServer) -> TcpStream {
    download(pair.client.connect(server.addr(), TIMEOUT).unwrap())
}

fn download(mut stream: TcpStream) -> TcpStream {
    stream.write_all(b"GET /bulk?bytes=50000000000 HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
    // Enough that the transfer is under way on all of its way.
    stream.read_exact(&mut vec![0; 4 << 20]).unwrap();
    stream
}

/// Reads until the stream ends one way or the other.
fn read_on(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    while stream.read_uninterrupted(&mut buffer)? > 0 {}
    Ok(())
}

/// What is pinned by an agent, by path.
fn pins(agent: &Agent) -> Vec<PathBuf> {
    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap().is_dir() {
                true => walk(&entry.path(), found),
                false => found.push(entry.path()),
            }
        }
    }
    let mut found = Vec::new();
    walk(&agent.node().bpffs_dir(), &mut found);
    found.sort();
    found
}
