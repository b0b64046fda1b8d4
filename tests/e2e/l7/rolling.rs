//! Waypoints that are started anew, come and go while requests are made.

use std::io::BufReader;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use orlop_tests::traffic::request;
use orlop_tests::{Pod, PodSpec, ServiceSpec, TargetPort, Waypoint};

use super::{Stage, h2c, settle_with};
use crate::hbone::{HBONE_PORT, within};
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

impl Load {
    /// Calls as gRPC does, over connections that it keeps until they go away. A call that GOAWAY says was not taken is made
    /// again elsewhere (RFC 9113, section 6.8), and no other.
    async fn call(&self, to: SocketAddr) {
        let mut due = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            let connection = h2c::connect(to).await;
            while !self.stop.load(Ordering::Relaxed) {
                tokio::time::sleep(due.saturating_duration_since(Instant::now())).await;
                due = (due + PACE).max(Instant::now() - 8 * PACE);
                let Ok(mut ready) = connection.clone().ready().await else { break };
                let request =
                    http::Request::post("http://web/s/m").header("content-type", "application/grpc");
                let (answer, mut send) = ready.send_request(request.body(()).unwrap(), false).unwrap();
                send.send_data(Bytes::from_static(b"x"), true).unwrap();
                let answer = match answer.await {
                    Err(error) if error.is_go_away() && error.is_remote() => {
                        assert_eq!(error.reason(), Some(h2::Reason::NO_ERROR));
                        break;
                    }
                    answer => answer.unwrap(),
                };
                assert_eq!(answer.status(), 200);
                let mut body = answer.into_body();
                assert_eq!(h2c::read(&mut body, 1).await, b"x");
                assert!(body.data().await.is_none());
                let trailers = body.trailers().await.unwrap().unwrap();
                assert_eq!(trailers["grpc-status"], "0");
                self.asked.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn tell(&self, begun: Instant) {
        let asked = self.asked.load(Ordering::Relaxed);
        println!(
            "{asked} requests, {:.0} a second, none failed",
            asked as f64 / begun.elapsed().as_secs_f64()
        );
        assert!(asked > CLIENTS * 20);
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

/// Waypoints come and go: one in its own place, three instead of one and one instead of three, and another in its place,
/// which is left.
#[must_use]
fn roll(mesh: &Mesh, gate: &Pod, gate_vip: &[IpAddr], waypoint: Waypoint) -> (Pod, Waypoint) {
    let gates = |pods: &[&Pod]| {
        let spec = ServiceSpec::new(NAMESPACE, "gate", HBONE_PORT, TargetPort::Number(HBONE_PORT));
        let spec = spec.cluster_ips(gate_vip.to_vec()).endpoints(pods.iter().copied());
        mesh.testbed.world().service(&spec).unwrap();
    };
    thread::sleep(CALM);
    // The only one, in its place.
    end(waypoint);
    let first = Waypoint::start(gate, &[]).unwrap();
    thread::sleep(CALM);
    // From one to three, and back: the world hears of one before it ends, and of one after.
    let (second_pod, second) = start(mesh, "gate-2");
    let (third_pod, third) = start(mesh, "gate-3");
    gates(&[gate, &second_pod, &third_pod]);
    settle_with(mesh, [&first, &second, &third]);
    thread::sleep(CALM);
    gates(&[gate, &second_pod]);
    settle_with(mesh, [&first, &second, &third]);
    end(third);
    end(second);
    gates(&[gate]);
    settle_with(mesh, [&first]);
    thread::sleep(CALM);
    // One in the place of another.
    let (new_pod, new) = start(mesh, "gate-4");
    gates(&[gate, &new_pod]);
    settle_with(mesh, [&first, &new]);
    end(first);
    gates(&[&new_pod]);
    settle_with(mesh, [&new]);
    thread::sleep(CALM);
    (new_pod, new)
}

#[test]
fn started_anew_scaled_and_rolled_they_fail_no_request() {
    let Stage { waypoint, gate, gate_vip, vip, mesh } = Stage::new();
    let _server = mesh.server.serve_http(80).unwrap();
    let load = Load { stop: AtomicBool::new(false), asked: AtomicUsize::new(0) };
    let to = SocketAddr::new(vip[0], 80);
    let begun = Instant::now();
    thread::scope(|scope| {
        let (load, mesh) = (&load, &mesh);
        let client = |asks| scope.spawn(move || load.ask(&mesh.client, to, asks));
        let clients: Vec<_> = REQUESTS.into_iter().cycle().take(CLIENTS).map(client).collect();
        let stop = Stop(load);
        let _last = roll(mesh, &gate, &gate_vip, waypoint);
        drop(stop);
        clients.into_iter().for_each(|client| client.join().unwrap());
    });
    load.tell(begun);
}

/// None may be made twice.
#[test]
fn started_anew_scaled_and_rolled_they_fail_no_call_over_http2() {
    let Stage { waypoint, gate, gate_vip, vip, mesh } = Stage::new();
    let server = h2c::Server::start(&mesh.server, 80);
    let load = Load { stop: AtomicBool::new(false), asked: AtomicUsize::new(0) };
    let to = SocketAddr::new(vip[0], 80);
    let begun = Instant::now();
    thread::scope(|scope| {
        let (load, mesh) = (&load, &mesh);
        let client = |_| scope.spawn(move || within(&mesh.client, async move || load.call(to).await));
        let clients: Vec<_> = (0..CLIENTS).map(client).collect();
        let stop = Stop(load);
        let _last = roll(mesh, &gate, &gate_vip, waypoint);
        drop(stop);
        clients.into_iter().for_each(|client| client.join().unwrap());
    });
    assert_eq!(server.count(), load.asked.load(Ordering::Relaxed));
    load.tell(begun);
}
