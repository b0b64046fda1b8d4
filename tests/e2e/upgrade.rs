//! Upgrades: a new agent takes over from the one that runs, and nobody notices.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use orlop_tests::traffic::ReadUninterrupted;
use orlop_tests::{AgentOptions, Pod, PodSpec, Process, wait_for};

use crate::handover::Stranger;
use crate::mesh::MANY_DESCRIPTORS;
use crate::pair::{Pair, TIMEOUT, dial, ping, record, wait_enrolled};
use crate::pattern;

/// A new agent's start and the old one's end, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn options(drain_timeout: Duration) -> AgentOptions {
    AgentOptions {
        drain_timeout: Some(drain_timeout),
        args: ["--log-format", "json"].map(str::to_owned).into(),
        ready_timeout: PATIENCE,
        ..AgentOptions::default()
    }
}

/// Every way of a connection through a node: from whom, and to where.
struct Ways {
    ways: Vec<(Pod, SocketAddr)>,
    _servers: Vec<orlop_tests::traffic::EchoServer>,
}

impl Ways {
    fn new(pair: &Pair) -> Self {
        let near = pair.outsider(pair.near.node(), "near");
        let far = pair.outsider(pair.far.node(), "far");
        let servers = [&pair.client, &pair.server, &far].map(|pod| pod.serve_echo(80).unwrap());
        let [client, server, outside] = &servers;
        let ways = vec![
            (pair.client.clone(), server.addr()),
            (pair.client.clone(), outside.addr6()),
            (near, client.addr()),
            (pair.server.clone(), client.addr6()),
        ];
        Self { ways, _servers: servers.into() }
    }
}

#[test]
fn load_a_thousand_connections_a_second_notice_nothing() {
    const EACH_WAY: Duration = Duration::from_millis(4);
    let mut pair = Pair::with(options(Duration::from_secs(5)));
    let ways = Ways::new(&pair);
    let (stop, served, failures) = (AtomicBool::new(false), AtomicUsize::new(0), Mutex::new(Vec::new()));
    let start = Instant::now();
    let mut old = Vec::new();
    thread::scope(|scope| {
        for (from, to) in &ways.ways {
            let (stop, served, failures) = (&stop, &served, &failures);
            let call = move || {
                let mut next = Instant::now();
                while !stop.load(Ordering::SeqCst) {
                    match call(*to) {
                        Ok(()) => drop(served.fetch_add(1, Ordering::SeqCst)),
                        Err(error) => failures.lock().unwrap().push(format!("{to}: {error}")),
                    }
                    next += EACH_WAY;
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                }
            };
            scope.spawn(move || from.run(call).unwrap());
        }
        let more = |than: usize| wait_for(PATIENCE, || served.load(Ordering::SeqCst) > than + 500);
        for _ in 0..2 {
            for agent in [&mut pair.near, &mut pair.far] {
                let before = served.load(Ordering::SeqCst);
                old.push(agent.upgrade().unwrap());
                assert!(more(before), "nobody is served");
            }
        }
        stop.store(true, Ordering::SeqCst);
    });
    let rate = served.load(Ordering::SeqCst) as f64 / start.elapsed().as_secs_f64();
    println!("{rate:.0} connections a second");
    assert_eq!(*failures.lock().unwrap(), Vec::<String>::new());
    for mut old in old {
        assert!(old.wait(PATIENCE).unwrap().success());
    }
}

/// A connection of its own for a question.
fn call(to: SocketAddr) -> io::Result<()> {
    let stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    ping(&stream, "anybody there?\n")
}

#[test]
fn open_connections_survive() {
    const IDLE: usize = 10_000;
    const ACTIVE: usize = 1000;
    const THREADS: usize = 4;
    let _alone = MANY_DESCRIPTORS.lock().unwrap_or_else(PoisonError::into_inner);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let mut options = options(PATIENCE * 5);
    let many = ["--max-connections", "20000", "--max-connections-per-pod", "20000"];
    options.args.extend(many.map(str::to_owned));
    let mut pair = Pair::with(options);
    let outsider = pair.outsider(pair.far.node(), "outsider");
    // Idle ones wait to be accepted, which costs no descriptor.
    let listeners: Vec<TcpListener> =
        (0..THREADS as u16).map(|n| pair.server.listen(false, 1000 + n).unwrap()).collect();
    let (client, server) = (&pair.client, &pair.server);
    let to = |n| server.addr(1000 + n as u16);
    let idle: Vec<Vec<TcpStream>> = thread::scope(|scope| {
        let dial = |to: SocketAddr| -> Vec<TcpStream> {
            (0..IDLE / THREADS).map(|_| TcpStream::connect_timeout(&to, PATIENCE).unwrap()).collect()
        };
        let start = |n| scope.spawn(move || client.run(|| dial(to(n))).unwrap());
        let threads: Vec<_> = (0..THREADS).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let open = || pair.near.metric("istio_tcp_connections_opened_total", &["reporter=\"source\""]).unwrap();
    assert!(wait_for(PATIENCE, || open() as usize == IDLE), "{} of {IDLE}", open());
    // Through a tunnel, and passed on.
    let servers = [&pair.server, &outsider].map(|pod| pod.serve_echo(80).unwrap());
    let active: Vec<TcpStream> = (0..ACTIVE).map(|n| dial(client, servers[n % 2].addr()).unwrap()).collect();

    let stop = AtomicBool::new(false);
    let mut old = None;
    thread::scope(|scope| {
        for part in active.chunks(ACTIVE / THREADS) {
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    part.iter().for_each(|stream| ping(stream, "still there?\n").unwrap());
                }
            });
        }
        old = Some(pair.near.upgrade().unwrap());
        let moved = || pair.near.metric("orlop_connections_active", &[]).unwrap();
        assert!(wait_for(PATIENCE, || moved() as usize == ACTIVE / 2), "{} moved", moved());
        stop.store(true, Ordering::SeqCst);
    });
    active.iter().for_each(|stream| ping(stream, "and now?\n").unwrap());
    for (listener, streams) in listeners.iter().zip(idle) {
        let mut waiting: std::collections::HashMap<_, _> =
            streams.into_iter().map(|stream| (stream.local_addr().unwrap(), stream)).collect();
        while !waiting.is_empty() {
            let (mut server, from) = listener.accept().unwrap();
            let mut client = waiting.remove(&from).unwrap();
            client.write_all(b"you").unwrap();
            let mut said = [0; 3];
            server.read_exact(&mut said).unwrap();
            server.write_all(&said).unwrap();
            client.read_exact(&mut said).unwrap();
            assert_eq!(&said, b"you");
        }
    }
    drop(active);
    let mut old = old.unwrap();
    assert!(old.wait(PATIENCE).unwrap().success(), "nothing is left for it to keep");
}

#[test]
fn passthrough_connections_move_whole_and_without_regard_to_the_timeout() {
    const LENGTH: u64 = 64 << 20;
    const SIZES: &[usize] = &[1, 70_000, 1400, 300_000];
    let mut pair = Pair::with(options(Duration::from_millis(1)));
    let outsider = pair.outsider(pair.far.node(), "outsider");
    for (from, to, direction) in
        [(&pair.client, outsider.addr(80), "outbound"), (&outsider, pair.client.addr6(80), "inbound")]
    {
        let pod = if direction == "outbound" { &outsider } else { &pair.client };
        let listener = pod.listen(to.is_ipv6(), to.port()).unwrap();
        let client = from.connect(to, PATIENCE).unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let upgrades = |near: &mut orlop_tests::Agent| {
            for _ in 0..3 {
                let mut old = near.upgrade().unwrap();
                assert!(old.wait(PATIENCE).unwrap().success());
            }
        };
        let reading = AtomicBool::new(false);
        thread::scope(|scope| {
            let near = &mut pair.near;
            let (client, server, reading) = (&client, &server, &reading);
            let send = scope.spawn(|| {
                pattern::send(client, 1, LENGTH, SIZES).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
            });
            let back = scope.spawn(|| pattern::send(server, 2, LENGTH, SIZES).unwrap());
            // Everything on the way is full when it moves first.
            let read = scope.spawn(move || {
                assert!(wait_for(PATIENCE, || reading.load(Ordering::SeqCst)));
                thread::scope(|scope| {
                    scope.spawn(|| pattern::receive(server, 1, LENGTH).unwrap());
                    scope.spawn(|| pattern::receive(client, 2, LENGTH).unwrap());
                });
            });
            upgrades(near);
            reading.store(true, Ordering::SeqCst);
            upgrades(near);
            for thread in [send, back, read] {
                thread.join().unwrap();
            }
            // One half has ended, and moves once more.
            assert_eq!((&mut &*server).read_uninterrupted(&mut [0]).unwrap(), 0);
            upgrades(near);
            ping_back(server, client);
        });
        drop((client, server));
        let record = record(&pair.near, |record| {
            record["direction"] == direction && record["result"] == "ok" && record["dst"] == to.to_string()
        });
        assert_eq!(record["bytes_received"], LENGTH, "{record}");
        assert_eq!(record["bytes_sent"], LENGTH + 4, "{record}");
        assert!(record["duration_us"].as_u64().unwrap() > 0, "{record}");
    }
}

fn ping_back(mut from: &TcpStream, mut to: &TcpStream) {
    from.write_all(b"back").unwrap();
    let mut said = [0; 4];
    to.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"back");
}

#[test]
fn a_policy_applies_to_what_has_moved_and_to_what_stays() {
    let mut pair = Pair::with(options(PATIENCE));
    let outsider = pair.outsider(pair.far.node(), "outsider");
    let server = pair.client.serve_echo(80).unwrap();
    let [moved, stays] = [&outsider, &pair.server].map(|from| dial(from, server.addr()).unwrap());
    let mut old = pair.near.upgrade().unwrap();
    ping(&moved, "moved\n").unwrap();
    ping(&stays, "stays\n").unwrap();
    let deny = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                metadata: {name: nobody, namespace: shop}\nspec: {}\n";
    pair.testbed.world().write("nobody.yaml", deny).unwrap();
    for stream in [moved, stays] {
        pattern::assert_reset(&stream);
    }
    assert!(old.wait(PATIENCE).unwrap().success());
}

/// The agent serves on as if nobody had come.
fn assert_serves_on(pair: &Pair, open: &[TcpStream], ways: &Ways) {
    open.iter().for_each(|stream| ping(stream, "still there?\n").unwrap());
    for (from, to) in &ways.ways {
        dial(from, *to).unwrap();
    }
    let name = format!("pod-{}", pair.near.log().unwrap().len());
    let pod = pair.pod(&pair.near, &name, PodSpec::new());
    dial(&pod, pair.server.addr(80)).unwrap();
    assert!(!pair.in_clear(&pod, pair.server.addr(80)));
    pod.delete().unwrap();
    wait_enrolled(&pair.near, &pod, false);
}

fn assert_gives_up(pair: &Pair, mut new: Process, why: &str) {
    let status = new.wait(PATIENCE).unwrap();
    assert!(!status.success(), "{status}");
    let said = |log: &str| log.rsplit("orlop: ").next().is_some_and(|last| last.contains(why));
    pair.near.wait_log(said, TIMEOUT).unwrap();
}

/// A new agent asks for its name before it is ready, and waits for the answer.
const SOMEWHERE: &str = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
     metadata: {name: somewhere, namespace: shop}\n\
     spec:\n  hosts: [somewhere.example]\n  resolution: DNS\n  ports: [{number: 80, name: http}]\n";

/// A new agent that waits, for a second, since nobody tells it where a name is.
fn waiting(pair: &Pair) -> Process {
    let mute = pair.outsider(pair.near.node(), "mute");
    let resolver = mute.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53))).unwrap().unwrap();
    resolver.set_read_timeout(Some(PATIENCE)).unwrap();
    pair.change(|world| world.write("somewhere.yaml", SOMEWHERE));
    let new = pair.near.start_beside(&["--host-resolver", &mute.addr(53).to_string()]).unwrap();
    resolver.recv(&mut [0; 512]).unwrap();
    new
}

#[test]
fn a_new_agent_that_hangs_is_given_up_and_harms_nothing() {
    let pair = Pair::with(options(PATIENCE));
    let ways = Ways::new(&pair);
    let open: Vec<_> = ways.ways.iter().map(|(from, to)| dial(from, *to).unwrap()).collect();
    let new = waiting(&pair);
    new.signal(Signal::SIGSTOP).unwrap();
    pair.near.wait_log(|log| log.contains("not handed over; serving on"), PATIENCE).unwrap();
    assert_serves_on(&pair, &open, &ways);

    // It goes on where it was, and hears then that it came to nothing.
    new.signal(Signal::SIGCONT).unwrap();
    assert_gives_up(&pair, new, "does not hand over");
    assert_serves_on(&pair, &open, &ways);
}

#[test]
fn a_new_agent_that_is_ended_before_it_serves_leaves_the_sockets_as_they_are() {
    let pair = Pair::with(options(PATIENCE));
    let ways = Ways::new(&pair);
    let open: Vec<_> = ways.ways.iter().map(|(from, to)| dial(from, *to).unwrap()).collect();
    // The old agent has given it everything, and does not get to say that it is the new one's.
    let mut new = waiting(&pair);
    let enrolled = |log: &str| log.matches("\"enrolled\"").count();
    let before = enrolled(&pair.near.log().unwrap());
    pair.near.signal(Signal::SIGSTOP).unwrap();
    pair.near.wait_log(|log| enrolled(log) > before, PATIENCE).unwrap();
    new.signal(Signal::SIGTERM).unwrap();
    assert!(new.wait(PATIENCE).unwrap().success());
    pair.near.signal(Signal::SIGCONT).unwrap();
    assert_serves_on(&pair, &open, &ways);
}

#[test]
fn failures_leave_the_old_agent_serving() {
    let mut pair = Pair::with(options(PATIENCE));
    let ways = Ways::new(&pair);
    let open: Vec<_> = ways.ways.iter().map(|(from, to)| dial(from, *to).unwrap()).collect();

    // It can't begin.
    for (args, why) in [
        (["--cgroup", "/no/such/cgroup"], "/no/such/cgroup"),
        (["--metrics", "127.0.0.1:15000"], "--metrics"),
        (["--node", "n2"], "this is the agent of node n1, not of n2"),
    ] {
        assert_gives_up(&pair, pair.near.start_beside(&args).unwrap(), why);
        assert_serves_on(&pair, &open, &ways);
    }

    // It breaks off in the middle, or is something else.
    let strangers = |words: &[&str]| {
        let stranger = Stranger::come(&pair.near);
        words.iter().for_each(|word| stranger.say(word));
        let mut heard = String::new();
        while !heard.contains("enrolled") && !heard.contains("refused") {
            let Some(message) = stranger.hear() else { break };
            heard += &message;
        }
        heard
    };
    let hello = |version| Stranger::hello(&pair.near, version);
    assert!(strangers(&[&hello(2)]).contains("enrolled"));
    assert_serves_on(&pair, &open, &ways);
    for words in [&["nonsense"][..], &[""], &["\"ready\""], &[]] {
        let heard = strangers(words);
        assert!(!heard.contains("socket") && !heard.contains("enrolled"), "{words:?}: {heard}");
        assert_serves_on(&pair, &open, &ways);
    }
    assert!(strangers(&[&hello(999)]).contains("stop it first"));
    assert!(strangers(&[&hello(2), "\"hello again\""]).contains("enrolled"));
    assert_serves_on(&pair, &open, &ways);

    let path = pair.near.node().run_dir().join("handover.sock");
    assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut old = pair.near.upgrade().unwrap();
    assert_serves_on(&pair, &open, &ways);
    drop(open);
    assert!(old.wait(PATIENCE).unwrap().success());
}
