//! A pod that wants everything takes nothing from the others.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::PoisonError;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::{self, IPPROTO_TCP, TCP_SYNCNT};
use nix::sys::signal::Signal;
use nix::sys::socket::{getsockopt, setsockopt};
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};
use orlop_tests::{Greed, Pod, PodSpec, call_times, raise_descriptors, wait_for};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::mesh::{MANY_DESCRIPTORS, failed};
use crate::pair::{Pair, TIMEOUT, ping, record};

const CALLS: usize = 500;
const DIALS: usize = 50_000;
/// A listener's queue holds 4096.
const SINKS: u16 = 16;
const THREADS: usize = 4;
const OPEN_FILES: &str = "open files that this process may have";
const PATIENCE: Duration = Duration::from_secs(240);

/// What 99 of 100 calls from `pod` take at the most. Each of them is served.
fn p99(pod: &Pod, to: SocketAddr) -> Duration {
    call_times(pod, to, CALLS, Duration::ZERO).unwrap()[CALLS * 99 / 100]
}

/// Whether others are slowed is measured by `cargo xtask bench fairness`, where nothing else runs.
#[test]
fn a_pod_that_opens_fifty_thousand_connections_takes_nothing_from_the_others() {
    let _alone = MANY_DESCRIPTORS.lock().unwrap_or_else(PoisonError::into_inner);
    raise_descriptors().unwrap();
    let pair = Pair::new();
    let share = share(&pair);
    let modest = pair.pod(&pair.near, "modest", PodSpec::new());
    let outsider = pair.outsider(pair.far.node(), "outsider");
    let (server, outside) = (pair.server.serve_echo(80).unwrap(), outsider.serve_echo(80).unwrap());
    // Nobody accepts these, which costs no descriptor.
    let sinks: Vec<_> = (0..SINKS).map(|n| outsider.listen(false, 1000 + n).unwrap()).collect();
    let to: Vec<_> = (0..SINKS).map(|n| outsider.addr(1000 + n)).collect();
    let before = p99(&modest, server.addr());

    let greed = Greed::default();
    let (while_it_opens, while_it_has) = thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| greed.run(&pair.client, &to, DIALS / THREADS).unwrap());
        }
        let measure = || {
            assert!(wait_for(PATIENCE, || greed.dialled() > 500));
            let while_it_opens = p99(&modest, server.addr());
            assert!(wait_for(PATIENCE, || greed.dialled() == DIALS), "{greed:?}");
            // The proxy takes a connection before it knows whether it can carry it.
            let shed = || failed(&pair.near, "connection_limit") as usize;
            assert!(wait_for(PATIENCE, || shed() >= DIALS - share), "{} shed", shed());
            let while_it_has = p99(&modest, server.addr());
            call_times(&modest, outside.addr(), CALLS, Duration::ZERO).unwrap();
            (while_it_opens, while_it_has)
        };
        let measured = catch_unwind(AssertUnwindSafe(measure));
        greed.stop();
        measured.unwrap_or_else(|panic| resume_unwind(panic))
    });
    println!(
        "p99 of another pod: {before:?}, {while_it_opens:?} while it opens, {while_it_has:?} while it has"
    );
    let refused = record(&pair.near, |record| record["reason"] == "connection_limit");
    assert_eq!(
        (&refused["result"], &refused["direction"]),
        (&"refused".into(), &"outbound".into()),
        "{refused}"
    );
    assert_eq!(
        failed(&pair.near, "connection_limit") as usize,
        DIALS - share,
        "what is past its share, and no more"
    );
    assert_eq!(failed(&pair.near, "descriptor_limit") + failed(&pair.near, "memory_limit"), 0.0);
    drop(sinks);
}

/// How many connections a pod may have by default, by what the agent says of its descriptors.
fn share(pair: &Pair) -> usize {
    let log = pair.near.log().unwrap();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut limits =
        lines.filter_map(|line| line["limit"].as_u64().filter(|_| line["message"] == OPEN_FILES));
    let descriptors = limits.next().expect("the agent says how many it has") as usize;
    (descriptors / 16 * 7).min(100_000) / 2
}

/// As long as the agent stands still nobody accepts what is dialled. What its queue has no room for is dialled again by
/// the kernel, soon and often, and nothing of it is lost, nor of what a socket was told.
#[test]
fn what_finds_the_queue_full_is_let_in_soon_after_there_is_room() {
    /// As many as the queue holds, somewhat more than `net.core.somaxconn`, and these.
    const WAITING: usize = 200;
    const OWN_RETRIES: u32 = 3;
    let _alone = MANY_DESCRIPTORS.lock().unwrap_or_else(PoisonError::into_inner);
    raise_descriptors().unwrap();
    let pair = Pair::new();
    let (server, outsider) = (&pair.server, pair.outsider(pair.far.node(), "outsider"));
    let echoes = [server.serve_echo(80).unwrap(), outsider.serve_echo(80).unwrap()];
    let to = [echoes[0].addr(), server.addr6(80), echoes[1].addr(), outsider.addr6(80)];
    pair.near.signal(Signal::SIGSTOP).unwrap();
    let dialled: Vec<_> = pair
        .client
        .run(|| {
            let mut dialled = Vec::new();
            let waiting = |all: &[Socket]| all.iter().filter(|socket| socket.peer_addr().is_err()).count();
            while waiting(dialled.get(4000..).unwrap_or_default()) < WAITING {
                assert!(dialled.len() < 20_000, "the queue is never full");
                let next = to[dialled.len() % to.len()];
                dialled.push(begin(next, (dialled.len() % 8 < 4).then_some(OWN_RETRIES)).unwrap());
            }
            dialled
        })
        .unwrap();
    let waiting = dialled.iter().filter(|socket| socket.peer_addr().is_err()).count();
    // By itself the kernel takes seconds for so many.
    let tried = || retries(&pair.client).unwrap();
    assert!(wait_for(TIMEOUT, || tried().iter().all(|n| *n >= 6)), "{:?}", tried());
    assert_eq!(tried().len(), waiting);
    pair.near.signal(Signal::SIGCONT).unwrap();
    let usual = syn_retries(&begin(to[0], None).unwrap()).unwrap();
    for (n, socket) in dialled.into_iter().enumerate() {
        assert!(wait_for(TIMEOUT, || socket.peer_addr().is_ok()));
        assert_eq!(syn_retries(&socket).unwrap(), if n % 8 < 4 { OWN_RETRIES } else { usual });
        if n % 16 == 0 || n > 4000 {
            socket.set_nonblocking(false).unwrap();
            ping(&TcpStream::from(socket), "and now?\n").unwrap();
        }
    }
}

/// A socket that dials, and is not waited for.
fn begin(to: SocketAddr, retries: Option<u32>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if let Some(retries) = retries {
        setsockopt(&socket, SynRetries, &retries)?;
    }
    socket.set_nonblocking(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => Err(error),
        _ => Ok(socket),
    }
}

sockopt_impl!(
    /// How often a SYN is sent again (tcp(7)).
    SynRetries,
    Both,
    IPPROTO_TCP,
    TCP_SYNCNT,
    u32
);

fn syn_retries(socket: &Socket) -> io::Result<u32> {
    Ok(getsockopt(socket, SynRetries)?)
}

/// Of each of the pod's sockets that wait for an answer to their SYN, how often they have sent it again (proc(5),
/// `/proc/net/tcp`).
fn retries(pod: &Pod) -> io::Result<Vec<u32>> {
    const SYN_SENT: &str = "02";
    let read = |file| fs::read_to_string(format!("/proc/thread-self/net/{file}"));
    let tables =
        pod.run(|| Ok::<_, io::Error>([read("tcp")?, read("tcp6")?])).map_err(io::Error::other)??;
    let sockets = tables.iter().flat_map(|table| table.lines()).map(|line| line.split_whitespace().collect());
    let waiting = sockets.filter(|fields: &Vec<_>| fields.get(3) == Some(&SYN_SENT));
    waiting.map(|fields| u32::from_str_radix(fields[6], 16).map_err(io::Error::other)).collect()
}
