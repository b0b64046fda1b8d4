//! Connections that are on their way just when one agent hands over to another: none of them is lost.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::socket::{MsgFlags, recv};
use orlop_tests::{Agent, AgentOptions, Pod, READY_PORT, wait_for};
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::pair::{Pair, TIMEOUT, dial};
use crate::upgrade::{PATIENCE, options};

/// Speaks to an agent as another one would that wants to take over.
pub struct Stranger(Socket);

impl Stranger {
    pub fn come(agent: &Agent) -> Self {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        socket.connect(&SockAddr::unix(agent.node().run_dir().join("handover.sock")).unwrap()).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self(socket)
    }

    /// The first word, of this version of the messages.
    pub fn hello(agent: &Agent, version: u32) -> String {
        let layout = agent.node().pins_dir().unwrap().file_name().unwrap().to_string_lossy()[1..].to_owned();
        format!(
            "{{\"hello\":{{\"version\":{version},\"layout\":{layout},\"node\":\"{}\"}}}}",
            agent.node().name()
        )
    }

    pub fn say(&self, word: &str) {
        let length = u32::try_from(word.len()).unwrap().to_be_bytes();
        self.0.send(&[&length[..], word.as_bytes()].concat()).unwrap();
    }

    /// The next message, without what comes with it; `None` if there is none any more.
    pub fn hear(&self) -> Option<String> {
        let mut buffer = vec![0; 192 << 10];
        match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(0) | Err(_) => None,
            Ok(length) => Some(String::from_utf8_lossy(&buffer[size_of::<u32>()..length]).into_owned()),
        }
    }

    fn hear_until(&self, word: &str) {
        while !self.hear().expect("the agent has gone").contains(word) {}
    }

    /// Takes everything over.
    fn take_over(agent: &Agent) -> Self {
        let stranger = Self::come(agent);
        stranger.say(&Self::hello(agent, 2));
        stranger.hear_until("\"enrolled\"");
        stranger.say("\"ready\"");
        stranger.hear_until("\"yours\"");
        stranger
    }
}

#[test]
fn who_asks_whether_an_agent_has_started_means_the_one_that_comes() {
    let pair = Pair::new();
    let started = || pair.near.http_get("/healthz/started", READY_PORT).unwrap().status;
    assert_eq!(started(), 200);
    // As an agent does that has just begun.
    let lock = fs::File::options().write(true).open(pair.near.node().run_dir().join("coming.lock")).unwrap();
    lock.lock().unwrap();
    assert_eq!(started(), 503);
    assert_eq!(pair.near.http_get("/healthz/ready", READY_PORT).unwrap().status, 200);
    // A process that another test has just forked has the lock's file, too.
    lock.unlock().unwrap();
    assert_eq!(started(), 200);
}

/// kubelet starts anew what ends, and it would take over.
#[test]
fn an_agent_that_lingers_ends_when_it_is_told_to_or_when_nobody_serves() {
    let args = ["--log-format", "json", "--linger"].map(str::to_owned).into();
    let mut pair = Pair::with(AgentOptions { args, ..AgentOptions::default() });
    let server = pair.server.serve_echo(80).unwrap();
    let mut old = pair.near.upgrade().unwrap();
    pair.near.wait_log(|log| log.contains("waiting to be told to stop"), PATIENCE).unwrap();
    assert!(old.wait(Duration::from_secs(2)).is_err(), "it has ended");
    old.signal(Signal::SIGTERM).unwrap();
    assert!(old.wait(PATIENCE).unwrap().success());
    dial(&pair.client, server.addr()).unwrap();

    let mut old = pair.near.upgrade().unwrap();
    pair.near.kill().unwrap();
    assert!(old.wait(PATIENCE).unwrap().success());
}

/// As of a DaemonSet's old pod: nobody would serve if it went before the new one does.
#[test]
fn an_agent_that_is_stopped_while_it_hands_over_serves_until_it_has() {
    let mut pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    let stranger = Stranger::come(&pair.near);
    stranger.say(&Stranger::hello(&pair.near, 2));
    stranger.hear_until("\"enrolled\"");
    pair.near.terminate().unwrap();
    dial(&pair.client, server.addr()).unwrap();
    stranger.say("\"preparing\"");
    dial(&pair.client, server.addr()).unwrap();
    stranger.say("\"ready\"");
    stranger.hear_until("\"yours\"");
    drop(stranger);
    assert!(pair.near.wait(PATIENCE).unwrap().success());

    // One that does not get ready is not waited for.
    pair.near.restart().unwrap();
    let stranger = Stranger::come(&pair.near);
    stranger.say(&Stranger::hello(&pair.near, 2));
    stranger.hear_until("\"enrolled\"");
    pair.near.terminate().unwrap();
    drop(stranger);
    assert!(pair.near.wait(PATIENCE).unwrap().success());
}

/// Nobody would serve if it went before the new one has even asked.
#[test]
fn an_agent_that_is_stopped_serves_on_while_another_comes() {
    let mut pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    let lock = fs::File::options().write(true).open(pair.near.node().run_dir().join("coming.lock")).unwrap();
    lock.lock_shared().unwrap();
    pair.near.terminate().unwrap();
    assert!(pair.near.wait(Duration::from_secs(2)).is_err(), "it has ended");
    dial(&pair.client, server.addr()).unwrap();
    let stranger = Stranger::take_over(&pair.near);
    drop((stranger, lock));
    assert!(pair.near.wait(PATIENCE).unwrap().success());

    // One that has gone is not waited for.
    pair.near.restart().unwrap();
    let lock = fs::File::options().write(true).open(pair.near.node().run_dir().join("coming.lock")).unwrap();
    lock.lock_shared().unwrap();
    pair.near.terminate().unwrap();
    drop(lock);
    assert!(pair.near.wait(PATIENCE).unwrap().success());
}

/// Whoever replaces agents waits for the new one to start, and ends the old one then.
#[test]
fn an_agent_of_another_version_is_followed_once_it_has_ended() {
    let mut pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    let stranger = Stranger::come(&pair.near);
    stranger.say(&Stranger::hello(&pair.near, 999));
    let refused = stranger.hear().unwrap();
    assert!(refused.contains("\"for_good\":true") && refused.contains("stop it first"), "{refused}");
    pair.near.terminate().unwrap();
    while stranger.hear().is_some() {}
    assert!(pair.near.wait(PATIENCE).unwrap().success());

    // The other side.
    let run_dir = pair.near.node().run_dir();
    let door = run_dir.join("handover.sock");
    fs::remove_file(&door).unwrap();
    let listener = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    listener.bind(&SockAddr::unix(&door).unwrap()).unwrap();
    listener.listen(1).unwrap();
    listener.set_read_timeout(Some(PATIENCE)).unwrap();
    pair.near.start_again().unwrap();
    let old = Stranger(listener.accept().unwrap().0);
    old.0.set_read_timeout(Some(TIMEOUT)).unwrap();
    assert!(old.hear().unwrap().contains("\"hello\""));
    let lock = fs::File::options().write(true).open(run_dir.join("coming.lock")).unwrap();
    assert!(lock.try_lock().is_err(), "nobody is awaited");
    old.say("{\"refused\":{\"reason\":\"of another version\",\"for_good\":true}}");
    let waits = |log: &str| log.contains("waiting until the agent that runs has ended");
    pair.near.wait_log(waits, PATIENCE).unwrap();
    assert!(lock.try_lock().is_ok(), "it is awaited still");
    lock.unlock().unwrap();
    assert!(pair.near.is_running());
    drop((old, listener));
    pair.near.wait_ready().unwrap();
    dial(&pair.client, server.addr()).unwrap();
}

/// A server that takes nobody yet: whoever dials it sends SYNs that nobody answers.
struct Busy {
    listener: TcpListener,
    queue: Vec<TcpStream>,
}

impl Busy {
    fn start(pod: &Pod, port: u16) -> Self {
        let listen = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
            // The kernel takes one more.
            socket.listen(1)?;
            // Of its accept, too.
            socket.set_read_timeout(Some(PATIENCE))?;
            io::Result::Ok(socket.into())
        };
        let listener = pod.run(listen).unwrap().unwrap();
        let queue = (0..2).map(|_| pod.connect(pod.addr(port), TIMEOUT).unwrap()).collect();
        Self { listener, queue }
    }

    /// Takes those who wait, and says who comes then.
    fn relent(self) -> TcpStream {
        for _ in self.queue {
            self.listener.accept().unwrap();
        }
        self.listener.accept().unwrap().0
    }
}

/// Whether a socket of the pod's netns waits for an answer from this port.
fn is_dialling(pod: &Pod, port: u16) -> bool {
    let sockets = pod.output("cat", &["/proc/net/tcp", "/proc/net/tcp6"]).unwrap();
    let to = format!(":{port:04X}");
    sockets.lines().any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        matches!(fields[..], [_, _, peer, "02", ..] if peer.ends_with(&to))
    })
}

fn exchange(mut client: &TcpStream, mut server: &TcpStream) -> io::Result<()> {
    for stream in [client, server] {
        stream.set_read_timeout(Some(PATIENCE))?;
    }
    let mut said = [0; 4];
    client.write_all(b"ping")?;
    server.read_exact(&mut said)?;
    server.write_all(&said)?;
    client.read_exact(&mut said)?;
    if &said == b"ping" { Ok(()) } else { Err(io::Error::other(format!("{said:?} came back"))) }
}

#[test]
fn what_is_still_being_dialled_moves_once_it_is_connected_also_twice() {
    let mut options = options(Duration::from_millis(1));
    options.args.extend(["--connect-timeout", "60s"].map(str::to_owned));
    let mut pair = Pair::with(options);
    let outsider = pair.outsider(pair.far.node(), "outsider");
    let (outbound, inbound) = (Busy::start(&outsider, 81), Busy::start(&pair.client, 82));
    let clients = [
        pair.client.connect(outsider.addr(81), TIMEOUT).unwrap(),
        outsider.connect(pair.client.addr(82), TIMEOUT).unwrap(),
    ];
    let dialling = || is_dialling(&pair.client, 81) && is_dialling(&pair.client, 82);
    assert!(wait_for(PATIENCE, dialling), "nobody dials");

    // The one in the middle has nothing of its own to wait for.
    let old = [pair.near.upgrade().unwrap(), pair.near.upgrade().unwrap()];
    for (client, busy) in clients.iter().zip([outbound, inbound]) {
        exchange(client, &busy.relent()).unwrap();
    }
    for mut old in old {
        assert!(old.wait(PATIENCE).unwrap().success());
    }
}

/// Until the agent closes no more descriptors: what it gives away it closes.
fn await_quiet(agent: &Agent) {
    const QUIET: usize = 20;
    let (mut before, mut same) = (0, 0);
    let quiet = || {
        let open = fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count();
        same = if open == before { same + 1 } else { 0 };
        before = open;
        same == QUIET
    };
    assert!(wait_for(PATIENCE, quiet));
}

#[test]
fn what_the_new_agent_does_not_take_stays_with_the_old_one() {
    // More than what the socket between the two can hold.
    const COUNT: usize = 400;
    let mut pair = Pair::with(options(PATIENCE));
    let outsider = pair.outsider(pair.near.node(), "outsider");
    let listener = pair.client.listen(false, 80).unwrap();
    let mut connections = HashMap::new();
    for _ in 0..COUNT {
        let client = outsider.connect(pair.client.addr(80), TIMEOUT).unwrap();
        let (server, from) = listener.accept().unwrap();
        assert_eq!(from, client.local_addr().unwrap());
        exchange(&client, &server).unwrap();
        connections.insert(from, (client, server));
    }

    let stranger = Stranger::take_over(&pair.near);
    await_quiet(&pair.near);
    stranger.0.shutdown(Shutdown::Read).unwrap();
    let mut taken = HashSet::new();
    while let Some(message) = stranger.hear() {
        let message: Value = serde_json::from_str(&message).unwrap();
        let client =
            message["passthrough"]["state"]["client"].as_str().unwrap_or_else(|| panic!("{message}"));
        taken.insert(client.parse::<SocketAddr>().unwrap());
    }
    drop(stranger);
    assert!(taken.len() < COUNT, "all were taken, so that none stays");
    pair.near.wait_log(|log| log.contains("takes no more connections; they stay here"), TIMEOUT).unwrap();
    for (from, (client, server)) in &connections {
        if !taken.contains(from) {
            exchange(client, server).unwrap_or_else(|error| panic!("{from}: {error}"));
        }
    }
    assert!(pair.near.is_running(), "ended, and its drain timeout is not over");
    drop(connections);
    assert!(pair.near.wait(PATIENCE).unwrap().success());
}
