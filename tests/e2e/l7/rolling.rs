//! Waypoints that are started anew, come and go while requests are made.

use std::io::BufReader;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use orlop_tests::traffic::request;
use orlop_tests::{Pod, PodSpec, ServiceSpec, TargetPort, Waypoint};

use super::{Stage, settle_with};
use crate::hbone::HBONE_PORT;
use crate::mesh::{Mesh, NAMESPACE, TIMEOUT};

const CLIENTS: usize = 16;
/// From when one request of a client is due to when the next is, late answers or not: all of them ask 1,280 times a second
/// where the machine lets them.
const PACE: Duration = Duration::from_micros(12_500);
/// How long all is well before the next change.
const CALM: Duration = Duration::from_millis(500);

/// Clients that keep a connection for as long as they may.
struct Load {
    stop: AtomicBool,
    asked: AtomicUsize,
}

/// One that may be sent again where a connection has died, and one that may not.
const REQUESTS: [&str; 2] =
    ["GET /x HTTP/1.1\r\nhost: web\r\n\r\n", "POST /x HTTP/1.1\r\nhost: web\r\ncontent-length: 1\r\n\r\nx"];

impl Load {
    fn ask(&self, client: &Pod, to: SocketAddr, asks: &str) {
        let mut due = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            let mut stream = BufReader::new(client.connect(to, TIMEOUT).unwrap());
            loop {
                thread::sleep(due.saturating_duration_since(Instant::now()));
                // What is late is made up for, but not all of a long stall at once.
                due = (due + PACE).max(Instant::now() - 8 * PACE);
                let answer = request(&mut stream, asks).unwrap();
                assert_eq!(answer.status, 200, "{}", answer.text());
                self.asked.fetch_add(1, Ordering::Relaxed);
                if answer.header("connection") == Some("close") || self.stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        }
    }
}

/// Stops the load also where a change panics.
struct Stop<'a>(&'a Load);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

fn start(mesh: &Mesh, name: &str) -> (Pod, Waypoint) {
    let spec = PodSpec::new().service_account("gate").opt_out();
    let pod = mesh.nodes[1].pod(NAMESPACE, name, spec).unwrap();
    let waypoint = Waypoint::named(&pod, "gate", &[]).unwrap();
    (pod, waypoint)
}

fn end(mut waypoint: Waypoint) {
    waypoint.terminate().unwrap();
    assert!(waypoint.wait(TIMEOUT).unwrap().success());
}

#[test]
fn started_anew_scaled_and_rolled_they_fail_no_request() {
    let Stage { waypoint, gate, gate_vip, vip, mesh } = Stage::new();
    let _server = mesh.server.serve_http(80).unwrap();
    let gates = |pods: &[&Pod]| {
        let spec = ServiceSpec::new(NAMESPACE, "gate", HBONE_PORT, TargetPort::Number(HBONE_PORT));
        let spec = spec.cluster_ips(gate_vip.clone()).endpoints(pods.iter().copied());
        mesh.testbed.world().service(&spec).unwrap();
    };
    let load = Load { stop: AtomicBool::new(false), asked: AtomicUsize::new(0) };
    let to = SocketAddr::new(vip[0], 80);
    let begun = Instant::now();
    thread::scope(|scope| {
        let (load, mesh) = (&load, &mesh);
        let client = |asks| scope.spawn(move || load.ask(&mesh.client, to, asks));
        let clients: Vec<_> = REQUESTS.into_iter().cycle().take(CLIENTS).map(client).collect();
        let stop = Stop(load);
        thread::sleep(CALM);
        // The only one, in its place.
        end(waypoint);
        let first = Waypoint::start(&gate, &[]).unwrap();
        thread::sleep(CALM);
        // From one to three, and back: the world hears of one before it ends, and of one after.
        let (second_pod, second) = start(mesh, "gate-2");
        let (third_pod, third) = start(mesh, "gate-3");
        gates(&[&gate, &second_pod, &third_pod]);
        settle_with(mesh, [&first, &second, &third]);
        thread::sleep(CALM);
        gates(&[&gate, &second_pod]);
        settle_with(mesh, [&first, &second, &third]);
        end(third);
        end(second);
        gates(&[&gate]);
        settle_with(mesh, [&first]);
        thread::sleep(CALM);
        // One in the place of another.
        let (new_pod, new) = start(mesh, "gate-4");
        gates(&[&gate, &new_pod]);
        settle_with(mesh, [&first, &new]);
        end(first);
        gates(&[&new_pod]);
        settle_with(mesh, [&new]);
        thread::sleep(CALM);
        drop(stop);
        clients.into_iter().for_each(|client| client.join().unwrap());
    });
    let asked = load.asked.load(Ordering::Relaxed);
    println!("{asked} requests, {:.0} a second, none failed", asked as f64 / begun.elapsed().as_secs_f64());
    assert!(asked > CLIENTS * 20);
}
