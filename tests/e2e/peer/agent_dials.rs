//! The agent as client.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::Duration;

use h2::Reason;
use h2::server::Builder;
use http::{Method, StatusCode};
use orlop_tests::traffic::echo;
use rustls::{NamedGroup, ProtocolVersion};

use super::{MIB, peer};
use crate::hbone::{Reply, identity};
use crate::mesh::{Mesh, TIMEOUT, await_value, record, tunnels};
use crate::pattern::{assert_reset, assert_turned_away, receive, reset, send};

fn dial(mesh: &Mesh) -> TcpStream {
    mesh.client.connect(mesh.server.addr(80), TIMEOUT).unwrap()
}

fn ping(mut stream: &TcpStream) {
    stream.write_all(b"ping").unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"ping");
}

#[test]
fn its_request_is_a_connect_with_baggage_forwarded_and_traceparent() {
    let mesh = Mesh::first_only(&[]);
    let peer = peer(&mesh, &Builder::new(), Reply::Echo);
    let stream = dial(&mesh);
    ping(&stream);
    let asked = peer.next();
    assert_eq!(asked.method, Method::CONNECT);
    assert_eq!(asked.uri.to_string(), mesh.server.addr(80).to_string());
    assert_eq!((asked.uri.scheme(), asked.uri.path_and_query()), (None, None));
    let mut names: Vec<_> = asked.headers.keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["baggage", "forwarded", "traceparent"]);
    assert_eq!(
        asked.headers["baggage"],
        "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.pod.name=client,\
         service.name=client,service.version=latest"
    );
    assert_eq!(asked.headers["forwarded"], format!("for=\"{}\"", stream.local_addr().unwrap()));
    let trace: Vec<_> = asked.headers["traceparent"].to_str().unwrap().split('-').collect();
    assert_eq!(trace.iter().map(|part| part.len()).collect::<Vec<_>>(), [2, 32, 16, 2]);
    assert!(trace.concat().bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')), "{trace:?}");
}

#[test]
fn its_handshake_is_tls_1_3_with_h2_a_hybrid_key_exchange_its_identity_and_no_server_name() {
    let mesh = Mesh::first_only(&[]);
    let peer = peer(&mesh, &Builder::new(), Reply::Echo);
    ping(&dial(&mesh));
    let session = peer.sessions.recv_timeout(TIMEOUT).unwrap();
    assert_eq!(session.alpn.as_deref(), Some(&b"h2"[..]));
    assert_eq!(session.version, Some(ProtocolVersion::TLSv1_3));
    assert_eq!(session.group, Some(NamedGroup::X25519MLKEM768));
    assert_eq!(session.server_name, None);
    assert_eq!(session.client, identity("client"));
}

#[test]
fn an_ipv6_destination_is_in_brackets() {
    let mesh = Mesh::first_only(&[]);
    let peer = peer(&mesh, &Builder::new(), Reply::Echo);
    let stream = mesh.client.connect(mesh.server.addr6(80), TIMEOUT).unwrap();
    ping(&stream);
    let asked = peer.next();
    assert_eq!(asked.uri.to_string(), format!("[{}]:80", mesh.server.ipv6()));
    assert_eq!(asked.headers["forwarded"], format!("for=\"{}\"", stream.local_addr().unwrap()));
}

#[test]
fn every_refusal_of_the_peer_is_a_reset_for_the_client() {
    for status in [400, 401, 404, 503, 204] {
        let mesh = Mesh::first_only(&[]);
        let status = StatusCode::from_u16(status).unwrap();
        let _peer = peer(&mesh, &Builder::new(), Reply::Status(status));
        assert_turned_away(mesh.client.connect(mesh.server.addr(80), TIMEOUT));
        let refused = record(mesh.client_agent(), &[("result", "refused"), ("reason", "peer_refused")]);
        assert!(refused["detail"].as_str().unwrap().contains(status.as_str()), "{refused}");
    }
}

#[test]
fn a_peer_that_never_answers_is_given_up() {
    let mesh = Mesh::first_only(&["--connect-timeout", "2s"]);
    let peer = peer(&mesh, &Builder::new(), Reply::Silence);
    assert_turned_away(mesh.client.connect(mesh.server.addr(80), TIMEOUT));
    peer.next();
    record(mesh.client_agent(), &[("result", "refused"), ("reason", "connect_timeout")]);
}

#[test]
fn bulk_goes_through_a_peer_with_ztunnels_windows_and_frames() {
    let mesh = Mesh::first_only(&[]);
    let mut http = Builder::new();
    http.initial_window_size(4 * MIB).initial_connection_window_size(16 * MIB).max_frame_size(MIB);
    let _peer = peer(&mesh, &http, Reply::Echo);
    let streams: Vec<_> = (1..=5).map(|seed| (seed, dial(&mesh))).collect();
    thread::scope(|scope| {
        for (seed, stream) in &streams {
            scope.spawn(|| send(stream, *seed, 20_000_000, &[100_001]).unwrap());
            scope.spawn(|| receive(stream, *seed, 20_000_000).unwrap());
        }
    });
    assert_eq!(tunnels(mesh.client_agent(), "outbound"), 1.0);
}

#[test]
fn bulk_goes_through_a_peer_with_the_smallest_windows() {
    let mesh = Mesh::first_only(&[]);
    // RFC 9113, 6.5.2 and 6.9.2: what an endpoint has that says nothing.
    let _peer = peer(&mesh, &Builder::new(), Reply::Echo);
    let stream = dial(&mesh);
    thread::scope(|scope| {
        scope.spawn(|| send(&stream, 1, 10_000_000, &[100_001]).unwrap());
        receive(&stream, 1, 10_000_000).unwrap();
    });
}

#[test]
fn after_goaway_streams_finish_and_new_ones_go_to_another_tunnel() {
    let mesh = Mesh::first_only(&[]);
    let peer = peer(&mesh, &Builder::new(), Reply::Echo);
    let old = dial(&mesh);
    ping(&old);
    assert_eq!(peer.next().tunnel, 0);
    peer.go_away();
    // The peer takes streams until its GOAWAY was answered: whichever tunnel they go to, they are served.
    let mut tunnel = 0;
    while tunnel == 0 {
        let new = dial(&mesh);
        assert_eq!(echo(&new, b"hello").unwrap(), b"hello");
        tunnel = peer.next().tunnel;
    }
    assert_eq!(tunnel, 1);
    thread::scope(|scope| {
        scope.spawn(|| send(&old, 2, 1_000_000, &[10_001]).unwrap());
        receive(&old, 2, 1_000_000).unwrap();
    });
    assert_eq!(echo(&old, b"good bye").unwrap(), b"good bye");
}

#[test]
fn a_reset_by_the_peer_is_a_reset_for_the_client() {
    let mesh = Mesh::first_only(&[]);
    let _peer = peer(&mesh, &Builder::new(), Reply::ByteThenReset);
    let stream = dial(&mesh);
    let mut byte = [0];
    (&stream).read_exact(&mut byte).unwrap();
    (&stream).write_all(b"?").unwrap();
    assert_reset(&stream);
    record(mesh.client_agent(), &[("result", "cut"), ("reason", "reset")]);
}

#[test]
fn a_reset_by_the_client_is_a_reset_for_the_peer() {
    let mesh = Mesh::first_only(&[]);
    let peer = peer(&mesh, &Builder::new(), Reply::Echo);
    let stream = dial(&mesh);
    ping(&stream);
    reset(stream);
    assert_eq!(peer.resets.recv_timeout(TIMEOUT).unwrap(), Some(Reason::CANCEL));
}

#[test]
fn a_peer_that_takes_one_stream_at_a_time_gets_a_tunnel_for_each() {
    let mesh = Mesh::first_only(&[]);
    let mut http = Builder::new();
    http.max_concurrent_streams(1);
    let peer = peer(&mesh, &http, Reply::Echo);
    let first = dial(&mesh);
    ping(&first);
    let others: Vec<_> = (0..4).map(|_| dial(&mesh)).collect();
    others.iter().for_each(ping);
    let mut used: Vec<_> = (0..5).map(|_| peer.next().tunnel).collect();
    used.sort_unstable();
    assert_eq!(used, [0, 1, 2, 3, 4]);
    assert_eq!(peer.asked.recv_timeout(Duration::ZERO).unwrap_err(), RecvTimeoutError::Timeout);
    assert_eq!(tunnels(mesh.client_agent(), "outbound"), 5.0);
}

#[test]
fn a_burst_to_a_peer_that_takes_one_stream_at_a_time_is_served() {
    let mesh = Mesh::first_only(&[]);
    let mut http = Builder::new();
    http.max_concurrent_streams(1);
    let _peer = peer(&mesh, &http, Reply::Echo);
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| assert_eq!(echo(&dial(&mesh), b"hello").unwrap(), b"hello"));
        }
    });
}

#[test]
fn a_peer_that_vanished_without_a_word_costs_no_connection() {
    let mesh = Mesh::first_only(&[]);
    let first = peer(&mesh, &Builder::new(), Reply::Echo);
    assert_eq!(echo(&dial(&mesh), b"hello").unwrap(), b"hello");
    first.vanish();
    let _second = peer(&mesh, &Builder::new(), Reply::Echo);
    assert_eq!(tunnels(mesh.client_agent(), "outbound"), 1.0, "nobody has noticed yet");
    assert_eq!(echo(&dial(&mesh), b"hello").unwrap(), b"hello");
}

#[test]
fn a_peer_that_is_gone_without_goaway_costs_no_connection() {
    let mesh = Mesh::first_only(&[]);
    let first = peer(&mesh, &Builder::new(), Reply::Echo);
    assert_eq!(echo(&dial(&mesh), b"hello").unwrap(), b"hello");
    drop(first);
    let _second = peer(&mesh, &Builder::new(), Reply::Echo);
    assert_eq!(echo(&dial(&mesh), b"hello").unwrap(), b"hello");
    await_value(1.0, || tunnels(mesh.client_agent(), "outbound"));
}
