//! While no agent runs, whoever dials waits in what the keeper holds, for the next agent.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::socket::{MsgFlags, recv};
use orlop_tests::traffic::EchoServer;
use orlop_tests::{AgentOptions, Process, wait_for};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::failclosed::{assert_only_tunnels, draining};
use crate::pair::{Pair, TIMEOUT, assert_kernel_refuses, assert_refused, dial, is_refusal, ping, record};
use crate::upgrade::PATIENCE;

/// Longer than any test.
const LONG: Duration = Duration::from_secs(600);
/// What an agent has in each pod.
const SOCKETS: usize = 5;
const SECRET: &str = "nobody on the wire may read this\n";

/// A pair of agents, the keeper of the near one, and a server on either side.
fn kept(hold: Duration) -> (Pair, Process, [EchoServer; 2]) {
    let pair = Pair::with(AgentOptions {
        args: ["--log-format", "json"].map(str::to_owned).into(),
        ..draining(LONG)
    });
    let servers = [pair.server.serve_echo(80).unwrap(), pair.client.serve_echo(80).unwrap()];
    let keeper = pair.near.keeper(hold).unwrap();
    (pair, keeper, servers)
}

/// Dials through the agent that is away, each way that there is: all are taken, and nobody answers.
fn wait(pair: &Pair, [server, own]: &[EchoServer; 2]) -> Vec<TcpStream> {
    let ways = [
        pair.client.connect(server.addr(), TIMEOUT),
        pair.client.connect(server.addr6(), TIMEOUT),
        pair.server.connect(own.addr(), TIMEOUT),
    ];
    let waiting: Vec<_> = ways.into_iter().map(|way| way.expect("refused")).collect();
    for mut stream in &waiting {
        stream.write_all(SECRET.as_bytes()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    waiting
}

#[track_caller]
fn assert_answered(waiting: Vec<TcpStream>) {
    for mut stream in waiting {
        let mut back = vec![0; SECRET.len()];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(back, SECRET.as_bytes());
        ping(&stream, "and once more?\n").unwrap();
    }
}

fn start_again(pair: &mut Pair) {
    pair.near.start_again().unwrap();
    pair.near.wait_ready().unwrap();
}

/// Who dials while the agent is dead is served by the next.
#[track_caller]
fn assert_held(pair: &mut Pair, servers: &[EchoServer; 2]) {
    pair.near.kill().unwrap();
    let waiting = wait(pair, servers);
    start_again(pair);
    assert_answered(waiting);
}

#[test]
fn who_dials_while_no_agent_runs_is_served_by_the_next_in_good_order() {
    let (mut pair, _keeper, servers) = kept(LONG);
    let capture = pair.testbed.capture().unwrap();
    // The second one has what the first has left.
    for _ in 0..2 {
        assert_held(&mut pair, &servers);
    }
    let outsider = pair.outsider(pair.near.node(), "outsider");
    pair.near.kill().unwrap();
    let stranger = outsider.connect(servers[1].addr(), TIMEOUT).unwrap();
    start_again(&mut pair);
    stranger.set_read_timeout(Some(PATIENCE)).unwrap();
    ping(&stranger, "from outside\n").unwrap();
    let frames = capture.stop().unwrap();
    assert_only_tunnels(&frames);
    assert!(!frames.contains(SECRET.as_bytes()), "in clear on the wire");
}

/// Policy is asked when the agent is back, and not before.
#[test]
fn who_has_waited_is_judged_by_what_is_in_force_then() {
    let (mut pair, _keeper, servers) = kept(LONG);
    dial(&pair.client, servers[0].addr()).unwrap();
    let _far = pair.far.keeper(LONG).unwrap();
    pair.far.kill().unwrap();
    let mut stream = pair.client.connect(servers[0].addr(), TIMEOUT).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(SECRET.as_bytes()).unwrap();
    let deny = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                metadata: {name: nobody, namespace: shop}\nspec: {}\n";
    pair.testbed.world().write("deny.yaml", deny).unwrap();
    pair.far.start_again().unwrap();
    pair.far.wait_ready().unwrap();
    let error = stream.read_exact(&mut [0]).expect_err("was served");
    assert!(is_refusal(&error), "{error}");
    record(&pair.far, |record| record["direction"] == "inbound" && record["reason"] == "policy_denied");
}

#[test]
fn after_its_hold_pods_are_refused_until_an_agent_is_back() {
    let (mut pair, _keeper, servers) = kept(Duration::from_secs(3));
    let killed = Instant::now();
    pair.near.kill().unwrap();
    let waiting = wait(&pair, &servers);
    for mut stream in &waiting[..2] {
        let error = stream.read_exact(&mut [0]).expect_err("was served");
        assert!(is_refusal(&error), "{error}");
    }
    assert!(killed.elapsed() >= Duration::from_secs(3), "refused after {:?}", killed.elapsed());
    assert_kernel_refuses(&pair.client, servers[0].addr());
    pair.near.wait_log(|log| log.contains("no agent has come"), TIMEOUT).unwrap();
    start_again(&mut pair);
    dial(&pair.client, servers[0].addr()).unwrap();

    // And all over again.
    pair.near.wait_log(|log| log.matches("a keeper holds").count() == 2, TIMEOUT).unwrap();
    assert_held(&mut pair, &servers);
}

/// Also where its drain would take longer.
#[test]
fn who_dials_an_agent_that_is_stopped_waits_no_longer_than_the_hold() {
    let (pair, _keeper, servers) = kept(Duration::from_secs(3));
    let open = dial(&pair.client, servers[0].addr()).unwrap();
    pair.near.terminate().unwrap();
    pair.near.wait_log(|log| log.contains("draining"), TIMEOUT).unwrap();
    for mut stream in wait(&pair, &servers) {
        let error = stream.read_exact(&mut [0]).expect_err("was served");
        assert!(is_refusal(&error), "{error}");
    }
    assert_refused(&pair.client, servers[0].addr());
    ping(&open, "still there?\n").unwrap();
}

/// One that has given up while nobody took it is in the queue all the same, with what it has said. The next of the same
/// ports is another's.
#[test]
fn what_was_said_to_one_server_never_comes_to_another() {
    // One in sixteen has the other's ports.
    const TRIES: u16 = 64;
    let (mut pair, _keeper, servers) = kept(LONG);
    let outsider = pair.outsider(pair.far.node(), "outsider");
    let listeners: Vec<_> = (0..TRIES).map(|n| outsider.listen(false, 9000 + n).unwrap()).collect();
    pair.near.kill().unwrap();
    let dial_from = |port: u16, to: SocketAddr, says: &[u8]| {
        let dialled = pair.client.run(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.set_linger(Some(Duration::ZERO))?;
            socket.bind(&SocketAddr::from((pair.client.ipv4(), port)).into())?;
            socket.connect(&to.into())?;
            socket.send(says)?;
            std::io::Result::Ok(socket)
        });
        dialled.unwrap().unwrap()
    };
    let open: Vec<_> = (0..TRIES)
        .map(|n| {
            drop(dial_from(20_000 + n, servers[0].addr(), SECRET.as_bytes()));
            dial_from(20_000 + n, outsider.addr(9000 + n), &n.to_be_bytes())
        })
        .collect();
    start_again(&mut pair);
    for (n, listener) in (0..TRIES).zip(listeners) {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut said = [0; 2];
        stream.read_exact(&mut said).unwrap();
        assert_eq!(said, n.to_be_bytes(), "{n}");
    }
    drop(open);
}

#[test]
fn keepers_come_and_go_and_nothing_is_lost_with_them() {
    let (mut pair, mut keeper, servers) = kept(LONG);
    let open = dial(&pair.client, servers[0].addr()).unwrap();
    keeper.kill().unwrap();
    ping(&open, "still there?\n").unwrap();
    // The next waits for it to go, as when a pod is replaced.
    let mut keeper = pair.near.keeper(LONG).unwrap();
    let next = pair.near.start_keeper(LONG).unwrap();
    pair.near.wait_log(|log| log.contains("waiting until the keeper before has ended"), TIMEOUT).unwrap();
    keeper.signal(Signal::SIGTERM).unwrap();
    assert!(keeper.wait(TIMEOUT).unwrap().success());
    pair.near.wait_log(|log| log.matches("a keeper holds").count() == 3, PATIENCE).unwrap();
    ping(&open, "and now?\n").unwrap();
    assert_held(&mut pair, &servers);
    drop(next);
}

/// The sockets that it holds, and a few of its own.
fn sockets(process: &Process) -> usize {
    let open = fs::read_dir(format!("/proc/{}/fd", process.pid())).unwrap().flatten();
    open.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:")))
        .count()
}

/// The same, once it has taken what it was sent.
fn settled(keeper: &Process) -> usize {
    const QUIET: usize = 20;
    let (mut before, mut same) = (0, 0);
    let quiet = || {
        let now = sockets(keeper);
        same = if now == before { same + 1 } else { 0 };
        before = now;
        same == QUIET
    };
    assert!(wait_for(TIMEOUT, quiet));
    before
}

#[test]
fn what_is_no_longer_in_the_mesh_is_not_held() {
    let (mut pair, keeper, servers) = kept(LONG);
    let before = settled(&keeper);
    let other = pair.pod(&pair.near, "other", Default::default());
    assert!(wait_for(TIMEOUT, || sockets(&keeper) == before + SOCKETS), "{} of {before}", sockets(&keeper));
    other.opt_out().unwrap();
    assert!(wait_for(TIMEOUT, || sockets(&keeper) == before), "{} of {before}", sockets(&keeper));
    other.opt_in().unwrap();
    assert!(wait_for(TIMEOUT, || sockets(&keeper) == before + SOCKETS), "{} of {before}", sockets(&keeper));

    // Its sockets are others than those before.
    pair.near.kill().unwrap();
    let waiting = other.connect(servers[0].addr(), TIMEOUT).unwrap();
    start_again(&mut pair);
    waiting.set_read_timeout(Some(PATIENCE)).unwrap();
    ping(&waiting, "from another\n").unwrap();

    // One that goes while nobody sees it.
    pair.near.kill().unwrap();
    other.delete().unwrap();
    start_again(&mut pair);
    assert!(wait_for(TIMEOUT, || sockets(&keeper) == before), "{} of {before}", sockets(&keeper));
    dial(&pair.client, servers[0].addr()).unwrap();
}

#[test]
fn who_dials_an_agent_that_is_stopped_waits_unless_its_keeper_is_stopped_too() {
    let (mut pair, mut keeper, servers) = kept(LONG);
    let open = dial(&pair.client, servers[0].addr()).unwrap();
    pair.near.terminate().unwrap();
    pair.near.wait_log(|log| log.contains("draining"), TIMEOUT).unwrap();
    let waiting = wait(&pair, &servers);
    ping(&open, "still there?\n").unwrap();
    drop(open);
    assert!(pair.near.wait(PATIENCE).unwrap().success());
    start_again(&mut pair);
    assert_answered(waiting);

    let open = dial(&pair.client, servers[0].addr()).unwrap();
    pair.near.terminate().unwrap();
    pair.near.wait_log(|log| log.matches("draining").count() == 2, TIMEOUT).unwrap();
    let mut waiting = pair.client.connect(servers[0].addr(), TIMEOUT).unwrap();
    keeper.signal(Signal::SIGTERM).unwrap();
    assert!(keeper.wait(TIMEOUT).unwrap().success());
    waiting.set_read_timeout(Some(PATIENCE)).unwrap();
    let error = waiting.read_exact(&mut [0]).expect_err("was served");
    assert!(is_refusal(&error), "{error}");
    assert_refused(&pair.client, servers[0].addr());
    ping(&open, "still there?\n").unwrap();
    drop(open);
    assert!(pair.near.wait(PATIENCE).unwrap().success());
}

#[test]
fn an_agent_that_has_taken_over_is_kept_as_the_one_before() {
    let (mut pair, keeper, servers) = kept(LONG);
    let held = settled(&keeper);
    let mut old = pair.near.upgrade().unwrap();
    assert!(old.wait(PATIENCE).unwrap().success());
    pair.near.wait_log(|log| log.matches("a keeper holds").count() == 2, TIMEOUT).unwrap();
    assert!(wait_for(TIMEOUT, || sockets(&keeper) == held), "{} of {held}", sockets(&keeper));
    assert_held(&mut pair, &servers);
}

#[test]
fn only_root_gets_to_a_keeper_and_nonsense_does_not_stop_it() {
    let (mut pair, _keeper, servers) = kept(LONG);
    let path = pair.near.node().run_dir().join("keeper.sock");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let say = |words: &[&str]| {
        let stranger = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        stranger.connect(&SockAddr::unix(&path).unwrap()).unwrap();
        stranger.set_read_timeout(Some(TIMEOUT)).unwrap();
        for word in words {
            let length = u32::try_from(word.len()).unwrap().to_be_bytes();
            stranger.send(&[&length[..], word.as_bytes()].concat()).unwrap();
        }
        let mut heard = vec![0; 4096];
        let length = recv(stranger.as_raw_fd(), &mut heard, MsgFlags::empty()).unwrap_or(0);
        String::from_utf8_lossy(&heard[..length]).into_owned()
    };
    assert!(say(&["{\"hello\":{\"version\":99}}"]).contains("this keeper is of version 1, and not of 99"));
    for words in [&["nonsense"][..], &[""], &["\"serving\""], &["{\"hello\":{\"version\":1}}", "\"all\""]] {
        say(words);
    }
    // One that begins to serve and goes leaves the one that serves alone.
    say(&["{\"hello\":{\"version\":1}}", "\"serving\""]);
    dial(&pair.client, servers[0].addr()).unwrap();
    assert_held(&mut pair, &servers);
}
