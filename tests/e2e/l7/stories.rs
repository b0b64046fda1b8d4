//! What people have a mesh for, each while clients ask without pause.

use std::io::BufReader;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{Shutdown, shutdown};
use orlop_tests::traffic::{Response, request};
use orlop_tests::wait_for;

use super::Stage;
use super::routes::Versions;
use super::scripted::{Reply, Scripted};
use crate::mesh::{TIMEOUT, await_value};

const CLIENTS: usize = 8;
/// One is waited for so long on a busy machine.
const PATIENCE: Duration = TIMEOUT.saturating_mul(4);

/// Clients that ask until this is over, each on a connection of its own.
struct Load {
    over: AtomicBool,
    asked: AtomicUsize,
}

impl Load {
    /// `ask` is given the connection and the number of the request.
    fn during<T>(
        stage: &Stage,
        ask: impl Fn(&mut BufReader<TcpStream>, usize) + Sync,
        story: impl FnOnce(&Load) -> T,
    ) -> T {
        let load = Load { over: AtomicBool::new(false), asked: AtomicUsize::new(0) };
        let (load, ask) = (&load, &ask);
        thread::scope(|scope| {
            // Also if the story ends in a panic.
            let _over = Over(load);
            for _ in 0..CLIENTS {
                let mut stream = stage.connect();
                scope.spawn(move || {
                    // A client that fails ends the story too.
                    let _over = Over(load);
                    while !load.over.load(Ordering::SeqCst) {
                        ask(&mut stream, load.asked.fetch_add(1, Ordering::SeqCst));
                    }
                    std::mem::forget(_over);
                });
            }
            story(load)
        })
    }

    /// Waits until so many more were asked.
    #[track_caller]
    fn await_asked(&self, more: usize) {
        let wanted = self.asked.load(Ordering::SeqCst) + more;
        self.await_true(|| self.asked.load(Ordering::SeqCst) >= wanted);
    }

    #[track_caller]
    fn await_true(&self, mut is: impl FnMut() -> bool) {
        let mut held = false;
        wait_for(PATIENCE, || {
            held = is();
            held || self.over.load(Ordering::SeqCst)
        });
        assert!(held, "a client failed, or it took too long");
    }
}

struct Over<'a>(&'a Load);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::SeqCst);
    }
}

fn get(stream: &mut BufReader<TcpStream>, headers: &str) -> Response {
    let answer = request(stream, &format!("GET / HTTP/1.1\r\nhost: web\r\n{headers}\r\n")).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer
}

fn split(v1: u32, v2: u32) -> String {
    format!(
        "- route:\n  - {{destination: {{host: web, subset: v1}}, weight: {v1}}}\n  \
         - {{destination: {{host: web, subset: v2}}, weight: {v2}}}"
    )
}

#[test]
fn a_canary_gets_its_share_and_more_without_a_failed_request() {
    const EACH: usize = 1250;
    let versions = Versions::new();
    let stage = &versions.stage;
    let _servers = versions.pods.each_ref().map(|pod| pod.serve_http(80).unwrap());
    versions.route(&split(90, 10));
    let count = || {
        let mut v2 = 0;
        thread::scope(|scope| {
            let counting = [(); CLIENTS].map(|()| {
                let mut stream = stage.connect();
                scope.spawn(move || {
                    let pods = (0..EACH).map(|_| get(&mut stream, "").field("pod").unwrap());
                    pods.filter(|pod| pod == "shop/v2").count()
                })
            });
            v2 = counting.into_iter().map(|thread| thread.join().unwrap()).sum();
        });
        v2
    };
    let tenth = count();
    assert!(tenth.abs_diff(1000) <= 100, "{tenth} of 10000 went to v2, not a tenth within 1 %");
    // Moved while requests are under way, none of which may fail.
    let ask = |stream: &mut BufReader<TcpStream>, _| drop(get(stream, ""));
    Load::during(stage, ask, |load| {
        load.await_asked(200);
        versions.route(&split(50, 50));
        load.await_asked(200);
    });
    let half = count();
    assert!(half.abs_diff(5000) <= 100, "{half} of 10000 went to v2, not half within 1 %");
}

#[test]
fn a_header_chooses_the_version() {
    let versions = Versions::new();
    let stage = &versions.stage;
    let _servers = versions.pods.each_ref().map(|pod| pod.serve_http(80).unwrap());
    versions.route(
        "- name: beta\n  match: [{headers: {beta: {exact: \"true\"}}}]\n  route: [{destination: {host: web, subset: v2}}]\n\
         - name: rest\n  route: [{destination: {host: web, subset: v1}}]",
    );
    // Clients share the waypoint's connections to servers, and none gets another's version.
    let ask = |stream: &mut BufReader<TcpStream>, number: usize| {
        let wanted = [("beta: true\r\n", "shop/v2"), ("beta: false\r\n", "shop/v1"), ("", "shop/v1")];
        let (header, pod) = wanted[number % 3];
        assert_eq!(get(stream, header).field("pod").as_deref(), Some(pod));
    };
    Load::during(stage, ask, |load| load.await_asked(3000));
    let record = stage.record(|record| record["rule_name"] == "beta");
    assert_eq!((&record["rule"], &record["dst_workload"]), (&"shop/web".into(), &"shop/v2".into()));
}

#[test]
fn whatever_a_mirror_does_the_caller_gets_the_servers_answer() {
    /// More than waits for a mirror.
    const LARGE: usize = 1 << 20;
    let versions = Versions::new();
    let stage = &versions.stage;
    let server = Scripted::start(&versions.pods[0], |asked| Reply::Answer(200, asked.body.len().to_string()));
    versions.route(
        "- mirrors: [{destination: {host: web, subset: v2}}]\n  route: [{destination: {host: web, subset: v1}}]",
    );
    let small = "x".repeat(100);
    let large = "x".repeat(LARGE);
    let ask = |stream: &mut BufReader<TcpStream>, number: usize| {
        let body = if number.is_multiple_of(50) { &large } else { &small };
        let head = format!("POST / HTTP/1.1\r\nhost: web\r\ncontent-length: {}\r\n\r\n", body.len());
        let answer = request(stream, &(head + body)).unwrap();
        assert_eq!((answer.status, answer.text()), (200, body.len().to_string()));
    };
    Load::during(stage, ask, |load| {
        // Down.
        load.await_asked(400);
        let failing = Scripted::status(&versions.pods[1], 500);
        load.await_true(|| failing.count() >= 100);
        drop(failing);
        // It answers nobody before everybody was asked. What it is sent, nobody reads.
        let silent = versions.pods[1].listen(false, 80).unwrap();
        load.await_asked(1000);
        // A process that is being started may have it open still.
        shutdown(silent.as_raw_fd(), Shutdown::Both).unwrap();
        drop(silent);
        // It is well again, and gets copies as before.
        let well = Scripted::status(&versions.pods[1], 200);
        load.await_true(|| well.count() >= 100);
    });
    await_value(server.count() as f64, || stage.counted(&["response_code=\"200\"", "response_flags=\"-\""]));
}

#[test]
fn who_is_mirrored_is_not_slower_for_it() {
    const ASKED: usize = 300;
    /// So many times slower it might be by chance.
    const SLOWER: usize = 4;
    let versions = Versions::new();
    let stage = &versions.stage;
    let _server = Scripted::status(&versions.pods[0], 200);
    // It takes connections and answers nobody.
    let _silent = versions.pods[1].listen(false, 80).unwrap();
    versions.route(
        "- match: [{uri: {exact: /mirrored}}]\n  mirrors: [{destination: {host: web, subset: v2}}]\n\
         \x20 route: [{destination: {host: web, subset: v1}}]\n\
         - route: [{destination: {host: web, subset: v1}}]",
    );
    let ask = |stream: &mut BufReader<TcpStream>, path: &str| {
        let answer = request(stream, &format!("GET {path} HTTP/1.1\r\nhost: web\r\n\r\n")).unwrap();
        assert_eq!(answer.status, 200, "{path}");
    };
    // Of two clients at once, each as fast as it can, one is mirrored.
    let (over, plain) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = stage.connect();
            while !over.load(Ordering::SeqCst) && plain.load(Ordering::SeqCst) < 100 * ASKED {
                ask(&mut stream, "/plain");
                plain.fetch_add(1, Ordering::SeqCst);
            }
        });
        let mut stream = stage.connect();
        assert!(wait_for(TIMEOUT, || plain.load(Ordering::SeqCst) > 0));
        let before = plain.load(Ordering::SeqCst);
        (0..ASKED).for_each(|_| ask(&mut stream, "/mirrored"));
        let meanwhile = plain.load(Ordering::SeqCst) - before;
        over.store(true, Ordering::SeqCst);
        assert!(meanwhile < SLOWER * ASKED, "{meanwhile} to {ASKED} that were mirrored");
    });
}

#[test]
fn five_errors_in_a_row_eject_an_endpoint_and_it_comes_back() {
    let versions = Versions::new();
    let stage = &versions.stage;
    let (ill, failed) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let (is_ill, fails) = (Arc::clone(&ill), Arc::clone(&failed));
    let one = Scripted::start(&versions.pods[0], move |_| {
        let status = if is_ill.load(Ordering::SeqCst) { 500 } else { 200 };
        fails.fetch_add(usize::from(status == 500), Ordering::SeqCst);
        Reply::Answer(status, String::new())
    });
    let other = Scripted::status(&versions.pods[1], 200);
    let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web, namespace: shop}\n\
        spec:\n  host: web\n  trafficPolicy:\n    loadBalancer: {simple: ROUND_ROBIN}\n\
        \x20   outlierDetection: {consecutive5xxErrors: 5, interval: 100ms, baseEjectionTime: 8s}\n";
    stage.change(|| stage.mesh.testbed.world().write("subsets.yaml", rule).unwrap());
    let seen = AtomicUsize::new(0);
    let ask = |stream: &mut BufReader<TcpStream>, _| {
        let answer = request(stream, "GET / HTTP/1.1\r\nhost: web\r\n\r\n").unwrap();
        assert!([200, 500].contains(&answer.status), "{}", answer.text());
        seen.fetch_add(usize::from(answer.status == 500), Ordering::SeqCst);
    };
    let ejected = || stage.waypoint.metric("orlop_endpoints_ejected_total", &[]).unwrap();
    Load::during(stage, ask, |load| {
        load.await_true(|| ejected() >= 1.0);
        ill.store(false, Ordering::SeqCst);
        // What was under way ends.
        load.await_asked(50 * CLIENTS);
        let (before, without) = (one.count(), other.count());
        load.await_true(|| other.count() > without + 100);
        assert_eq!(one.count(), before, "it is asked before its time is over");
        // Then it is.
        load.await_true(|| one.count() > before + 100);
        assert_eq!(ejected(), 1.0);
    });
    // What was under way when it was ejected got its answer.
    let failed = failed.load(Ordering::SeqCst);
    assert!((5..=5 + CLIENTS).contains(&failed), "{failed} were answered with 500");
    assert_eq!(seen.load(Ordering::SeqCst), failed);
}
