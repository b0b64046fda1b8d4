//! A pod that wants everything takes nothing from the others.

use std::net::{SocketAddr, TcpStream};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use orlop_tests::{Pod, PodSpec, wait_for};

use crate::mesh::{MANY_DESCRIPTORS, failed};
use crate::pair::{Pair, TIMEOUT, ping};

const CALLS: usize = 500;
const PATIENCE: Duration = Duration::from_secs(60);

/// What 99 of 100 calls from `pod` take at the most, each on a connection of its own.
fn p99(pod: &Pod, to: SocketAddr) -> Duration {
    let call = || {
        let start = Instant::now();
        let stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        ping(&stream, "anybody there?\n").unwrap();
        start.elapsed()
    };
    let mut times: Vec<_> = pod.run(|| (0..CALLS).map(|_| call()).collect()).unwrap();
    times.sort_unstable();
    times[CALLS * 99 / 100]
}

#[test]
fn a_pod_that_opens_all_it_can_does_not_slow_the_others() {
    let _alone = MANY_DESCRIPTORS.lock().unwrap_or_else(PoisonError::into_inner);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let pair = Pair::new();
    let modest = pair.pod(&pair.near, "modest", PodSpec::new());
    let outsider = pair.outsider(pair.far.node(), "outsider");
    let server = outsider.serve_echo(80).unwrap();
    // Nobody accepts these, which costs no descriptor.
    let sinks: Vec<_> = (0..4).map(|n| outsider.listen(false, 1000 + n).unwrap()).collect();
    let before = p99(&modest, server.addr());

    let (stop, open) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (while_it_opens, while_it_has) = thread::scope(|scope| {
        let (greedy, outsider, stop, open) = (&pair.client, &outsider, &stop, &open);
        let dial = move || {
            let mut streams = Vec::new();
            for n in (0..sinks.len() as u16).cycle() {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                if streams.len() < 10_000
                    && let Ok(stream) = TcpStream::connect_timeout(&outsider.addr(1000 + n), TIMEOUT)
                {
                    streams.push(stream);
                    open.store(streams.len(), Ordering::SeqCst);
                } else {
                    thread::sleep(Duration::from_millis(10));
                }
            }
        };
        scope.spawn(move || greedy.run(dial).unwrap());
        assert!(wait_for(PATIENCE, || open.load(Ordering::SeqCst) > 500));
        let while_it_opens = p99(&modest, server.addr());
        assert!(wait_for(PATIENCE, || failed(&pair.near, "connection_limit") > 0.0), "{open:?} is no limit");
        assert!(wait_for(PATIENCE, || open.load(Ordering::SeqCst) == 10_000));
        let while_it_has = p99(&modest, server.addr());
        stop.store(true, Ordering::SeqCst);
        (while_it_opens, while_it_has)
    });
    println!(
        "p99 of another pod: {before:?}, {while_it_opens:?} while it opens, {while_it_has:?} while it has"
    );
    // Twice as long, and what a busy machine adds.
    for during in [while_it_opens, while_it_has] {
        assert!(during < 2 * before + Duration::from_millis(100), "{during:?} instead of {before:?}");
    }
}
