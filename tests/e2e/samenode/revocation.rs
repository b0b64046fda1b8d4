//! Whatever takes a pair's right to talk without the proxy away closes what it has open, before that is in force.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::sync::PoisonError;
use std::time::Instant;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use orlop_tests::traffic::ReadUninterrupted;
use orlop_tests::{Pod, PodSpec, wait_for};

use super::{NO_NEIGHBOURS, Neighbours, authorization_policy, is_straight};
use crate::mesh::MANY_DESCRIPTORS;
use crate::pair::{apply, assert_refused, dial, ping, wait_applied};
use crate::upgrade::PATIENCE;

/// One pod's, and of how many pods.
const CONNECTIONS: usize = 500;
const PODS: usize = 10;

/// Whether the kernel has ended it. Asks and does not wait.
fn is_closed(mut stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let read = stream.read_uninterrupted(&mut [0]);
    read.is_err_and(|error| error.kind() != ErrorKind::WouldBlock)
}

const LOCKED: &str = "{selector: {matchLabels: {app: locked}}, action: DENY, rules: [{}]}";
const WAYPOINT: &str = "istio.io/use-waypoint";

#[test]
fn a_label_that_a_policy_goes_by_closes_what_is_open() {
    let set = Neighbours::new();
    apply(&set.pair, "locked.yaml", &authorization_policy(LOCKED));
    let open = set.straight(set.server.addr());
    wait_applied(&set.pair.far, || set.pair.server.set_label("app", Some("locked")).unwrap());
    assert!(is_closed(&open));
    assert_refused(&set.neighbour, set.server.addr());
    wait_applied(&set.pair.far, || set.pair.server.set_label("app", None).unwrap());
    ping(&set.straight(set.server.addr()), "free again\n").unwrap();
}

#[test]
fn a_waypoint_that_comes_closes_what_goes_past_it() {
    let set = Neighbours::new();
    let world = set.pair.testbed.world();
    let of_pod = |name| wait_applied(&set.pair.far, || set.pair.server.set_label(WAYPOINT, name).unwrap());
    let of_namespace =
        |labels: &[_]| wait_applied(&set.pair.far, || world.namespace("shop", labels).unwrap());
    let enabled = ("orlop.dev/mesh", "enabled");

    let open = set.straight(set.server.addr());
    of_pod(Some("way"));
    assert!(is_closed(&open));
    // There is none yet.
    assert_refused(&set.neighbour, set.server.addr());
    of_pod(None);
    let open = set.straight(set.server.addr());
    of_namespace(&[enabled, (WAYPOINT, "way")]);
    assert!(is_closed(&open));
    assert_refused(&set.neighbour, set.server.addr());
    of_namespace(&[enabled]);
    ping(&set.straight(set.server.addr()), "as before\n").unwrap();
}

#[test]
fn an_agent_that_is_to_encrypt_everything_closes_what_one_before_it_let_talk() {
    let mut set = Neighbours::new();
    let open = set.straight(set.server.addr());
    set.pair.far.kill().unwrap();
    ping(&open, "still here?\n").unwrap();
    let encrypts = set.pair.far.start_beside(&["--same-node", "hbone"]).unwrap();
    assert!(wait_for(PATIENCE, || is_closed(&open)), "{}", set.pair.far.log().unwrap());
    assert!(!is_straight(&set.neighbour, &dial(&set.neighbour, set.server.addr()).unwrap()));
    drop(encrypts);
}

/// Thousands of connections of many pods are closed by the time that a policy is in force.
#[test]
fn a_policy_closes_thousands_before_it_is_in_force() {
    let _alone = MANY_DESCRIPTORS.lock().unwrap_or_else(PoisonError::into_inner);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let set = Neighbours::new();
    let name = |n: usize| format!("neighbour-{n}");
    let spec = || PodSpec::new().service_account("neighbour");
    let pods: Vec<Pod> = (0..PODS).map(|n| set.pair.pod(&set.pair.far, &name(n), spec())).collect();
    let open = |pod: &Pod| {
        dial(pod, set.server.addr()).unwrap();
        (0..CONNECTIONS).map(|_| dial(pod, set.server.addr()).unwrap()).collect::<Vec<_>>()
    };
    let open: Vec<_> = pods.iter().flat_map(open).collect();
    let unharmed = set.pair.pod(&set.pair.far, "other", PodSpec::new().service_account("other"));
    dial(&unharmed, set.server.addr()).unwrap();
    let unharmed = dial(&unharmed, set.server.addr()).unwrap();
    let start = Instant::now();
    apply(&set.pair, "policy.yaml", &authorization_policy(NO_NEIGHBOURS));
    let closed = open.iter().filter(|stream| is_closed(stream)).count();
    println!(
        "{closed} connections of {PODS} pods closed, and the policy in force, after {:.0?}",
        start.elapsed()
    );
    assert_eq!(closed, open.len());
    ping(&unharmed, "still here?\n").unwrap();
}
