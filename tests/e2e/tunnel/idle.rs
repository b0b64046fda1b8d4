//! Timeouts, peers that go away, and the handshake.

use orlop_tests::traffic::echo;

use super::{PORT, connect, pair};
use crate::mesh::{Mesh, TIMEOUT, await_value, failed, record, tunnels};
use crate::pattern::assert_reset;

#[test]
fn an_idle_connection_is_closed() {
    let mesh = Mesh::with(&["--idle-timeout", "1s"]);
    let (client, server) = pair(&mesh);
    assert_reset(&client);
    assert_reset(&server);
    let reasons = || mesh.agents().map(|agent| failed(agent, "idle_timeout"));
    await_value(true, || reasons().iter().sum::<f64>() >= 1.0);
    let reasons = reasons();
    let first = if reasons[0] > 0.0 { mesh.client_agent() } else { mesh.server_agent() };
    record(first, &[("result", "cut"), ("reason", "idle_timeout")]);
}

#[test]
fn an_idle_connection_in_clear_is_closed() {
    let mesh = Mesh::with(&["--idle-timeout", "1s"]);
    let listener = mesh.server.listen(false, PORT).unwrap();
    // From a node: plaintext, inbound.
    let client = mesh.nodes[0].connect(mesh.server.addr(PORT), TIMEOUT).unwrap();
    let server = super::accept(&listener).unwrap();
    assert_reset(&client);
    assert_reset(&server);
    record(mesh.server_agent(), &[("result", "cut"), ("reason", "idle_timeout")]);
}

#[test]
fn an_idle_tunnel_is_closed_and_the_next_connection_opens_another() {
    let mesh = Mesh::with(&["--tunnel-idle-timeout", "300ms"]);
    let server = mesh.server.serve_echo(PORT).unwrap();
    for _ in 0..2 {
        let stream = mesh.client.connect(server.addr(), TIMEOUT).unwrap();
        assert_eq!(echo(&stream, b"hello").unwrap(), b"hello");
        await_value(0.0, || tunnels(mesh.client_agent(), "outbound"));
        await_value(0.0, || tunnels(mesh.server_agent(), "inbound"));
    }
    assert!(mesh.client_agent().metric("orlop_connections_failed_total", &[]).unwrap() < 0.5);
}

#[test]
fn a_tunnel_in_use_is_not_closed_as_idle() {
    let mesh = Mesh::with(&["--tunnel-idle-timeout", "100ms"]);
    let listener = mesh.server.listen(false, PORT).unwrap();
    let (client, server) = connect(&mesh.client, &mesh.server, &listener);
    // A tunnel of another pod of the same age comes and goes meanwhile.
    let echoing = mesh.client.serve_echo(PORT).unwrap();
    let back = mesh.server.connect(echoing.addr(), TIMEOUT).unwrap();
    assert_eq!(echo(&back, b"hello").unwrap(), b"hello");
    await_value(1.0, || tunnels(mesh.server_agent(), "inbound"));
    await_value(0.0, || tunnels(mesh.server_agent(), "outbound"));
    crate::pattern::send(&client, 1, 1000, &[1000]).unwrap();
    crate::pattern::receive(&server, 1, 1000).unwrap();
}

#[test]
fn the_next_connection_works_after_the_peers_agent_was_restarted() {
    let mut mesh = Mesh::new();
    let server = mesh.server.serve_echo(PORT).unwrap();
    let open = mesh.client.connect(server.addr(), TIMEOUT).unwrap();
    mesh.server_agent_mut().restart().unwrap();
    assert_reset(&open);
    let stream = mesh.client.connect(server.addr(), TIMEOUT).unwrap();
    assert_eq!(echo(&stream, b"hello").unwrap(), b"hello");
    await_value(1.0, || tunnels(mesh.client_agent(), "outbound"));
}

#[test]
fn the_next_connection_works_after_the_peers_agent_ended_in_good_order() {
    let mut mesh = Mesh::new();
    let server = mesh.server.serve_echo(PORT).unwrap();
    let stream = mesh.client.connect(server.addr(), TIMEOUT).unwrap();
    assert_eq!(echo(&stream, b"hello").unwrap(), b"hello");
    mesh.server_agent_mut().terminate().unwrap();
    mesh.server_agent_mut().wait(TIMEOUT).unwrap();
    mesh.server_agent_mut().start_again().unwrap();
    mesh.server_agent_mut().wait_ready().unwrap();
    let stream = mesh.client.connect(server.addr(), TIMEOUT).unwrap();
    assert_eq!(echo(&stream, b"hello").unwrap(), b"hello");
}

#[test]
fn the_handshake_is_tls_1_3_with_h2_and_a_hybrid_key_exchange_and_no_server_name() {
    let mesh = Mesh::new();
    let server = mesh.server.serve_echo(PORT).unwrap();
    let capture = mesh.testbed.capture().unwrap();
    let stream = mesh.client.connect(server.addr(), TIMEOUT).unwrap();
    assert_eq!(echo(&stream, b"hello").unwrap(), b"hello");
    let frames = capture.stop().unwrap();
    assert!(frames.is_all_tls(15008));
    let sent_by = |ip| -> Vec<u8> {
        let mut streams = frames.tcp_streams().filter(|(from, ..)| from.ip() == ip);
        streams.next().unwrap().2.to_vec()
    };
    let client_hello = sent_by(mesh.client.ips()[0]);
    let server_hello = sent_by(mesh.server.ips()[0]);
    // RFC 8446, 4.2: extension, length, content.
    assert!(find(&server_hello, &[0, 43, 0, 2, 3, 4]), "supported_versions: TLS 1.3");
    assert!(find(&server_hello, &[0, 51, 4, 100, 0x11, 0xec, 4, 96]), "key_share: X25519MLKEM768");
    let alpn = [&[0, 16, 0, 5, 0, 3, 2][..], b"h2"].concat();
    assert!(find(&client_hello, &alpn), "ALPN: h2 and nothing else");
    assert!(!find(&client_hello, mesh.server.ipv4().to_string().as_bytes()), "no server name");
}

fn find(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|window| window == needle)
}
