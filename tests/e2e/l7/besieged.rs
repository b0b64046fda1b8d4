//! Whoever knocks at a waypoint's HBONE port to do harm: refused for a reason that log and metrics give, while others go on.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::PoisonError;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use orlop_tests::traffic::request;
use orlop_tests::{Pod, PodSpec};
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio_rustls::TlsConnector;

use super::Stage;
use super::caller::other;
use super::scripted::Scripted;
use crate::attacks::floods::{self, say};
use crate::attacks::forge::{certificate, client};
use crate::hbone::{hbone, within};
use crate::mesh::{MANY_DESCRIPTORS, TIMEOUT, await_value};

const GET: &str = "GET / HTTP/1.1\r\nhost: web\r\n\r\n";
const MIB: u64 = 1 << 20;

/// A waypoint at work, and a pod outside of the mesh that wants to do it harm.
struct Siege {
    /// A connection that is to outlive everything.
    open: BufReader<TcpStream>,
    attacker: Pod,
    _server: Scripted,
    stage: Stage,
}

impl Siege {
    fn new() -> Self {
        let stage = Stage::with(&["--workers", "1"]);
        let server = Scripted::status(&stage.mesh.server, 200);
        let attacker = stage.mesh.nodes[0].pod("outside", "attacker", PodSpec::new()).unwrap();
        let open = stage.connect();
        let mut siege = Self { open, attacker, _server: server, stage };
        siege.assert_serves();
        siege
    }

    /// The waypoint's HBONE port.
    fn to(&self) -> SocketAddr {
        hbone(&self.stage.gate)
    }

    fn failed(&self, reason: &str) -> f64 {
        let reason = format!("reason=\"{reason}\"");
        self.stage.waypoint.metric("orlop_connections_failed_total", &[&reason]).unwrap()
    }

    /// Does `attack`; it must be refused for `reason`, in the access log and in the metrics. Gives the record.
    #[track_caller]
    fn assert_refused(&mut self, reason: &str, attack: impl FnOnce(&Self)) -> Value {
        let before = self.failed(reason);
        attack(self);
        await_value(true, || self.failed(reason) > before);
        let by = format!("{}:", self.attacker.ipv4());
        let record = self.stage.record(|record| {
            let src = record["src"].as_str().unwrap_or_default();
            record["reason"] == reason && record["direction"] == "waypoint" && src.starts_with(&by)
        });
        self.assert_serves();
        record
    }

    /// The connection that was open goes on, and a new one works.
    #[track_caller]
    fn assert_serves(&mut self) {
        assert_eq!(request(&mut self.open, GET).unwrap().status, 200);
        assert_eq!(self.stage.get("/").status, 200);
    }

    /// A tunnel of a good workload that says what HTTP/2 does not allow, until the waypoint hangs up.
    fn misbehave(&self, frames: Vec<u8>) {
        let config = client(Some(certificate(&self.stage.mesh.testbed, |_| {})), &[b"h2"]);
        let to = self.to();
        within(&self.attacker, async move || say(to, config, &frames).await);
    }
}

#[test]
fn handshakes_that_never_end() {
    let mut siege = Siege::new();
    siege.assert_refused("tls_timeout", |siege| {
        let mut stream = siege.attacker.connect(siege.to(), TIMEOUT).unwrap();
        stream.write_all(&[22, 3, 1, 2, 0, 1, 0, 1]).unwrap();
        // A handshake has 10 s.
        stream.set_read_timeout(Some(3 * TIMEOUT)).unwrap();
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        assert!(said.len() < 64, "it talks: {said:?}");
    });
    // TLS is done, HTTP/2 never begins.
    siege.assert_refused("tls_timeout", |siege| {
        let config = client(Some(certificate(&siege.stage.mesh.testbed, |_| {})), &[b"h2"]);
        let to = siege.to();
        within(&siege.attacker, async move || {
            let tcp = tokio::net::TcpStream::connect(to).await.unwrap();
            let name = ServerName::IpAddress(to.ip().into());
            let mut tls = TlsConnector::from(config).connect(name, tcp).await.unwrap();
            // Its settings, and then the end.
            let _ = tls.read_to_end(&mut Vec::new()).await;
        });
    });
    siege.assert_refused("no_client_certificate", |siege| {
        let to = siege.to();
        within(&siege.attacker, async move || say(to, client(None, &[b"h2"]), &[]).await);
    });
}

#[test]
fn two_thousand_half_open_handshakes() {
    const HALF_OPEN: usize = 2000;
    let _alone = MANY_DESCRIPTORS.lock().unwrap_or_else(PoisonError::into_inner);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let mut siege = Siege::new();
    let newcomer = other(&siege.stage);
    let to = siege.to();
    let dial = || (0..HALF_OPEN).map(|_| TcpStream::connect_timeout(&to, TIMEOUT).unwrap());
    let held: Vec<_> = siege.attacker.run(|| dial().collect()).unwrap();
    // It has no tunnel yet, and needs a handshake of its own.
    assert_eq!(newcomer.http_get(siege.stage.web(), "/", TIMEOUT).unwrap().status, 200);
    siege.assert_serves();
    let refused = || siege.failed("handshake_limit") + siege.failed("tls_timeout");
    assert!(orlop_tests::wait_for(3 * TIMEOUT, || refused() >= HALF_OPEN as f64), "{}", refused());
    assert!(siege.failed("handshake_limit") > 0.0);
    siege.assert_serves();
    drop(held);
}

#[test]
fn floods_of_frames_cost_a_tunnel_and_nobody_else() {
    let mut siege = Siege::new();
    let before = siege.stage.waypoint.process().rss().unwrap();
    let authority = siege.stage.web().to_string();
    for (frames, reason) in [
        (floods::resets(&authority), "stream_limit"),
        (floods::endless_headers(&authority), "stream_limit"),
        (floods::empty_pieces(&authority), "stream_limit"),
        (floods::nonsense(), "bad_connect_request"),
    ] {
        siege.assert_refused(reason, |siege| siege.misbehave(frames));
    }
    let now = siege.stage.waypoint.process().rss().unwrap();
    assert!(now < before + 64 * MIB, "the waypoint grew from {before} to {now} bytes");
}
