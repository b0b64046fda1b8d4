//! Pods that change, or go, while they are in the mesh.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use orlop_tests::{Pod, wait_for};

use crate::pair::{Pair, TIMEOUT, apply, assert_refused, dial, settle};
use crate::strict::{peer_authentication, refused};

/// Ends what runs beside a test, however the test ends.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// The world's object of the pod, with these addresses and this UID.
fn object(pod: &Pod, addresses: &[Ipv4Addr], uid: &str) -> String {
    let addresses: Vec<_> = addresses.iter().map(|address| format!("{{ip: {address}}}")).collect();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {}\n  namespace: shop\n  uid: {uid:?}\n  annotations:\n    \
         orlop.dev/netns: {}\nspec:\n  nodeName: {}\n  serviceAccountName: {}\nstatus:\n  podIPs: [{}]\n",
        pod.name(),
        pod.netns_path().display(),
        pod.node().name(),
        pod.service_account(),
        addresses.join(", ")
    )
}

#[test]
fn a_pod_whose_address_or_uid_changes_is_in_the_mesh_all_the_while() {
    let pair = Pair::new();
    let (server, own) = (pair.server.serve_echo(80).unwrap(), pair.client.serve_echo(80).unwrap());
    // Whatever comes in clear is refused, and counted.
    apply(&pair, "strict.yaml", &peer_authentication("{mtls: {mode: STRICT}}"));
    let first = pair.client.ipv4();
    let second = Ipv4Addr::from_bits(first.to_bits() + 100);
    pair.client.output("ip", &["addr", "add", &format!("{second}/16"), "dev", "eth0"]).unwrap();
    let file = "pod.shop.client.yaml";
    assert!(pair.testbed.world().dir().join(file).exists());

    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let _ended = Stop(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                served.fetch_add(usize::from(dial(&pair.client, server.addr()).is_ok()), Ordering::SeqCst);
            }
        });
        let change = |addresses: &[Ipv4Addr], uid: &str| {
            pair.testbed.world().write(file, &object(&pair.client, addresses, uid)).unwrap();
            settle(pair.testbed.world(), [&pair.near, &pair.far]);
            let before = served.load(Ordering::SeqCst);
            let more = || served.load(Ordering::SeqCst) > before;
            // One that was dialled from an address that is gone may hang first.
            assert!(wait_for(6 * TIMEOUT, more), "{addresses:?} {uid} is not served");
        };
        for _ in 0..5 {
            change(&[first, second], "a");
            change(&[first], "b");
        }
        // Renumbered: what it dials meanwhile may fail, and that is all.
        pair.client
            .run(|| fs::write("/proc/sys/net/ipv4/conf/all/promote_secondaries", "1"))
            .unwrap()
            .unwrap();
        pair.client.output("ip", &["addr", "del", &format!("{first}/16"), "dev", "eth0"]).unwrap();
        change(&[second], "b");
    });
    assert_eq!(refused(&pair.far), 0.0, "something came in clear");
    let log = pair.near.log().unwrap();
    assert!(!log.contains("withdrawn"), "{log}");

    let own = SocketAddr::from((second, own.addr().port()));
    assert!(!pair.in_clear(&pair.server, own));
    assert_refused(&pair.outsider(pair.far.node(), "outsider"), own);
}

#[test]
fn a_pod_that_cannot_be_withdrawn_is_not_said_to_be_enrolled() {
    let pair = Pair::new();
    let own = pair.client.serve_echo(80).unwrap();
    let pods = pair.near.node().pins_dir().unwrap().join("pods");
    let pin = fs::read_dir(&pods).unwrap().next().unwrap().unwrap().path();
    // No link can be read from a directory.
    fs::rename(&pin, pods.join("aside")).unwrap();
    fs::create_dir(&pin).unwrap();
    pair.client.set_label("orlop.dev/mesh", Some("disabled")).unwrap();
    pair.near.wait_log(|log| log.contains("cannot withdraw it"), TIMEOUT).unwrap();
    pair.near.wait_enrolled([]).unwrap();
    assert!(pair.near.config_dump().unwrap().contains("\"not_enrolled\": {\n    \"shop/client\""));

    fs::remove_dir(&pin).unwrap();
    fs::rename(pods.join("aside"), &pin).unwrap();
    assert!(wait_for(TIMEOUT, || !pin.exists()), "it is tried again");
    let outsider = pair.outsider(pair.far.node(), "outsider");
    assert!(pair.in_clear(&outsider, own.addr()));
    let done = |dump: &str| dump.contains("\"not_enrolled\": {}");
    pair.near.wait_until(done).unwrap();
}
