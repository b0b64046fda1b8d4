//! Too much of everything.

use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, PoisonError};
use std::thread;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use orlop_tests::traffic::echo;
use orlop_tests::{Pod, PodSpec};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::Siege;
use super::forge::{certificate, client};
use crate::hbone::{hbone, within};
use crate::mesh::{MANY_DESCRIPTORS, NAMESPACE, TIMEOUT, await_value, failed};

const MIB: u64 = 1 << 20;

#[test]
fn ten_thousand_half_open_handshakes() {
    const HALF_OPEN: usize = 10_000;
    let _alone = MANY_DESCRIPTORS.lock().unwrap_or_else(PoisonError::into_inner);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let siege = Siege::with(&["--handshake-timeout", "5s"]);
    let newcomer =
        siege.mesh.nodes[0].pod(NAMESPACE, "newcomer", PodSpec::new().service_account("newcomer")).unwrap();
    siege.mesh.client_agent().wait_enrolled([&siege.mesh.client, &newcomer]).unwrap();
    let attackers: Vec<Pod> = (0..4)
        .map(|n| siege.mesh.nodes[0].pod("outside", &format!("attacker-{n}"), PodSpec::new()).unwrap())
        .collect();
    let to = hbone(&siege.mesh.server);
    let agent = siege.mesh.server_agent();
    let held: Vec<Vec<TcpStream>> = thread::scope(|scope| {
        let flood = |attacker: &Pod| {
            let dial = || (0..HALF_OPEN / 4).map(|_| TcpStream::connect_timeout(&to, TIMEOUT).unwrap());
            attacker.run(|| dial().collect()).unwrap()
        };
        let threads: Vec<_> = attackers.iter().map(|attacker| scope.spawn(move || flood(attacker))).collect();
        while !threads.iter().all(thread::ScopedJoinHandle::is_finished) {
            siege.assert_serves();
        }
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(held.iter().map(Vec::len).sum::<usize>(), HALF_OPEN);
    // A pod that has no tunnel yet needs a handshake of its own.
    let stream = newcomer.connect(siege.echo.addr(), TIMEOUT).unwrap();
    assert_eq!(echo(&stream, b"hello").unwrap(), b"hello");
    siege.assert_serves();
    let refused = || failed(agent, "handshake_limit") + failed(agent, "tls_timeout");
    await_value(HALF_OPEN as f64, refused);
    assert!(failed(agent, "handshake_limit") > 0.0);
    siege.assert_serves();
    drop(held);
}

/// A tunnel of a good workload that says what HTTP/2 does not allow, until the agent hangs up.
fn misbehave(siege: &Siege, frames: Vec<u8>) {
    let config = client(Some(certificate(&siege.mesh.testbed, |_| {})), &[b"h2"]);
    let to = hbone(&siege.mesh.server);
    within(&siege.attacker, async move || say(to, config, &frames).await);
}

/// Opens a tunnel and says these frames in it, until the other side hangs up.
pub async fn say(to: SocketAddr, config: Arc<ClientConfig>, frames: &[u8]) {
    let tcp = tokio::net::TcpStream::connect(to).await.unwrap();
    let name = ServerName::IpAddress(to.ip().into());
    let tls = TlsConnector::from(config).connect(name, tcp).await.unwrap();
    let (mut from, mut into) = tokio::io::split(tls);
    let speak = async {
        // It hangs up before all is said.
        let _ = into.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        let _ = into.write_all(&frame(4, 0, 0, &[])).await;
        for part in frames.chunks(64 * 1024) {
            if into.write_all(part).await.is_err() {
                break;
            }
        }
        let _ = into.flush().await;
    };
    let listen = async {
        let mut said = vec![0; 64 * 1024];
        while from.read(&mut said).await.is_ok_and(|read| read > 0) {}
    };
    tokio::join!(speak, listen);
}

/// RFC 9113, 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// A CONNECT's headers in HPACK (RFC 7541, 6.2.2): literals with names of the static table.
fn connect_block(authority: &str) -> Vec<u8> {
    let length = u8::try_from(authority.len()).unwrap();
    [&[0x02, 7][..], b"CONNECT", &[0x01, length], authority.as_bytes()].concat()
}

fn assert_stays_small(siege: &Siege, before: u64) {
    let now = siege.mesh.server_agent().rss().unwrap();
    assert!(now < before + 64 * MIB, "the agent grew from {before} to {now} bytes");
}

/// Streams that are reset as fast as they are opened.
pub fn resets(authority: &str) -> Vec<u8> {
    let block = connect_block(authority);
    let mut frames = Vec::new();
    for n in 0..20_000 {
        let stream = 2 * n + 1;
        frames.extend(frame(HEADERS, END_HEADERS, stream, &block));
        frames.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
    }
    frames
}

/// Headers that never end.
pub fn endless_headers(authority: &str) -> Vec<u8> {
    let mut frames = frame(HEADERS, 0, 1, &connect_block(authority));
    // Literals with new names, 100 bytes each.
    let header = [&[0, 49][..], &[b'a'; 49], &[48], &[b'b'; 48]].concat();
    for _ in 0..5000 {
        frames.extend(frame(CONTINUATION, 0, 1, &header.repeat(100)));
    }
    frames
}

/// Empty pieces of headers without end.
pub fn empty_pieces(authority: &str) -> Vec<u8> {
    let mut frames = frame(HEADERS, 0, 1, &connect_block(authority));
    frames.extend(frame(CONTINUATION, 0, 1, &[]).repeat(200_000));
    frames
}

/// DATA for a stream that was never opened: a connection error (RFC 9113, section 5.1).
pub fn nonsense() -> Vec<u8> {
    frame(0, 0, 99, b"data")
}

#[test]
fn streams_that_are_reset_as_fast_as_they_are_opened() {
    let siege = Siege::new();
    let before = siege.mesh.server_agent().rss().unwrap();
    let frames = resets(&siege.mesh.server.addr(80).to_string());
    let record = siege.assert_refused("stream_limit", || misbehave(&siege, frames));
    assert_eq!(record["src_identity"], crate::hbone::identity("mallory").as_str());
    await_value(1.0, || siege.mesh.server_agent().metric("orlop_connections_active", &[]).unwrap());
    assert_stays_small(&siege, before);
}

#[test]
fn headers_that_never_end() {
    let siege = Siege::new();
    let before = siege.mesh.server_agent().rss().unwrap();
    let frames = endless_headers(&siege.mesh.server.addr(80).to_string());
    siege.assert_refused("stream_limit", || misbehave(&siege, frames));
    assert_stays_small(&siege, before);
}

#[test]
fn empty_pieces_of_headers_without_end() {
    let siege = Siege::new();
    let before = siege.mesh.server_agent().rss().unwrap();
    let frames = empty_pieces(&siege.mesh.server.addr(80).to_string());
    siege.assert_refused("stream_limit", || misbehave(&siege, frames));
    assert_stays_small(&siege, before);
}

#[test]
fn frames_that_make_no_sense() {
    let siege = Siege::new();
    siege.assert_refused("bad_connect_request", || misbehave(&siege, nonsense()));
}
