//! A pod that wants everything takes nothing from the others.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::PoisonError;
use std::thread;
use std::time::Duration;

use orlop_tests::{Greed, Pod, PodSpec, call_times, raise_descriptors, wait_for};
use serde_json::Value;

use crate::mesh::{MANY_DESCRIPTORS, failed};
use crate::pair::{Pair, record};

const CALLS: usize = 500;
const DIALS: usize = 50_000;
/// A listener's queue holds 4096.
const SINKS: u16 = 16;
const THREADS: usize = 4;
const OPEN_FILES: &str = "open files that this agent may have";
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
