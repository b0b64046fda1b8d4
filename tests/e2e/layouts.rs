//! Pins of another layout than the agent's: in force until this agent has the same pods, and then gone.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use orlop_tests::wait_for;

use crate::pair::{Pair, TIMEOUT, apply, assert_kernel_refuses, assert_refused, dial, ping, program};
use crate::strict::{peer_authentication, refused};
use crate::upgrade::PATIENCE;

/// Renames what an agent that has ended has pinned to what one of another layout would have. Its programs stay
/// in force, and this build does not know its maps.
fn of_another_layout(pair: &Pair) -> PathBuf {
    let own = pair.near.node().pins_dir().unwrap();
    let other = own.with_file_name("v1000");
    fs::rename(&own, &other).unwrap();
    other
}

#[test]
fn an_agent_of_another_layout_is_followed_without_anything_in_clear() {
    let mut pair = Pair::new();
    let (server, own) = (pair.server.serve_echo(80).unwrap(), pair.client.serve_echo(80).unwrap());
    // What leaves the client in clear is refused, and counted.
    apply(&pair, "strict.yaml", &peer_authentication("{mtls: {mode: STRICT}}"));
    let outsider = pair.outsider(pair.far.node(), "outsider");
    pair.near.kill().unwrap();
    let other = of_another_layout(&pair);
    assert_kernel_refuses(&pair.client, server.addr());

    let stop = AtomicBool::new(false);
    let (client, near) = (&pair.client, &mut pair.near);
    thread::scope(|scope| {
        let knock = || -> io::Result<()> {
            while !stop.load(Ordering::SeqCst) {
                for to in [server.addr(), server.addr6()] {
                    if let Ok(stream) = dial(client, to) {
                        ping(&stream, "through a tunnel\n")?;
                    }
                }
            }
            Ok(())
        };
        let knocking = scope.spawn(knock);
        near.restart().unwrap();
        assert!(wait_for(TIMEOUT, || dial(client, server.addr()).is_ok()), "not served again");
        stop.store(true, Ordering::SeqCst);
        knocking.join().unwrap().unwrap();
    });
    assert_eq!(refused(&pair.far), 0.0, "something came in clear");
    assert!(!other.exists(), "{} is left", other.display());
    assert_refused(&outsider, own.addr());
    assert_refused(&outsider, own.addr6());
}

#[test]
fn a_pod_that_the_agent_cannot_enrol_stays_refused() {
    let mut pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    let later = pair.pod(&pair.near, "later", Default::default());
    pair.near.kill().unwrap();
    let other = of_another_layout(&pair);
    let pod = |netns: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: later\n  namespace: shop\n  annotations:\n    \
             orlop.dev/netns: {netns}\nspec:\n  nodeName: n1\n  serviceAccountName: default\nstatus:\n  phase: \
             Running\n  podIPs:\n  - ip: {}\n",
            later.ipv4()
        )
    };
    let world = pair.testbed.world();
    world.write("pod.shop.later.yaml", &pod("/run/netns/no-such-namespace")).unwrap();
    pair.near.restart().unwrap();
    dial(&pair.client, server.addr()).unwrap();
    assert_kernel_refuses(&later, server.addr());
    assert!(other.exists());

    world.write("pod.shop.later.yaml", &pod(&later.netns_path().to_string_lossy())).unwrap();
    assert!(wait_for(TIMEOUT, || dial(&later, server.addr()).is_ok()), "no way back");
    assert!(wait_for(TIMEOUT, || !other.exists()), "{} is left", other.display());
}

#[test]
fn maps_that_only_claim_to_be_of_the_layout_are_not_read() {
    let mut pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    let program = program(&pair.near);
    pair.near.kill().unwrap();
    let maps = pair.near.node().pins_dir().unwrap().join("maps");
    fs::rename(maps.join("STRICT"), maps.join("aside")).unwrap();
    fs::rename(maps.join("PODS"), maps.join("STRICT")).unwrap();
    pair.near.start_again().unwrap();
    assert!(!pair.near.wait(PATIENCE).unwrap().success());
    let log = pair.near.log().unwrap();
    assert!(log.contains("map STRICT") && log.contains("another layout"), "{log}");
    assert_kernel_refuses(&pair.client, server.addr());

    let directory = pair.near.node().bpffs_dir();
    let clean = Command::new(program).arg("clean").arg("--bpffs").arg(&directory).output();
    assert!(clean.unwrap().status.success());
    pair.near.restart().unwrap();
    dial(&pair.client, server.addr()).unwrap();
}
