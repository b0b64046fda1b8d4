//! Servers that are not whom the client means to reach.

use std::io::Read;
use std::net::TcpListener;
use std::sync::Arc;

use h2::server::Builder;
use orlop_tests::traffic::ReadUninterrupted;
use rustls::ServerConfig;

use super::forge::{certificate, foreign, server, uri};
use crate::hbone::{Peer, Reply, identities, identity};
use crate::mesh::{Mesh, TIMEOUT, failed, record};
use crate::pattern::{assert_reset, assert_turned_away};
use crate::tunnel::accept;

/// The client's agent must find out about a server with this configuration before it says anything.
fn assert_found_out(mesh: &Mesh, config: Arc<ServerConfig>, reason: &str) {
    let peer = Peer::start(&mesh.server, config, Builder::new(), Reply::Echo);
    assert_turned_away(mesh.client.connect(mesh.server.addr(80), TIMEOUT));
    let refused = record(mesh.client_agent(), &[("result", "refused"), ("reason", reason)]);
    assert_eq!(refused["dst_workload"], "shop/server");
    assert!(failed(mesh.client_agent(), reason) > 0.0);
    assert!(peer.asked.try_recv().is_err(), "it was asked for something");
}

#[test]
fn a_good_certificate_of_another_service_account() {
    let mesh = Mesh::first_only(&[]);
    let config = identities(&mesh.testbed, &["impostor"]).server_config(&identity("impostor")).unwrap();
    assert_found_out(&mesh, config, "identity_mismatch");
}

#[test]
fn the_same_service_account_of_another_namespace() {
    let mesh = Mesh::first_only(&[]);
    let key = certificate(&mesh.testbed, |params| {
        params.subject_alt_names = vec![uri("spiffe://cluster.local/ns/other/sa/server")];
    });
    assert_found_out(&mesh, server(&key, &[b"h2"]), "identity_mismatch");
}

#[test]
fn the_right_name_from_another_authority() {
    let mesh = Mesh::first_only(&[]);
    let key = foreign(&mesh.testbed);
    assert_found_out(&mesh, server(&key, &[b"h2"]), "untrusted_certificate");
}

#[test]
fn a_server_that_does_not_speak_h2() {
    let mesh = Mesh::first_only(&[]);
    let key = certificate(&mesh.testbed, |params| {
        params.subject_alt_names = vec![uri(identity("server").as_str())];
    });
    assert_found_out(&mesh, server(&key, &[b"http/1.1"]), "alpn_mismatch");
}

#[test]
fn a_server_without_tls_gets_no_byte_of_the_application() {
    let mesh = Mesh::first_only(&[]);
    let listener = mesh.server.listen(false, 15008).unwrap();
    let mut client = mesh.client.connect(mesh.server.addr(80), TIMEOUT).unwrap();
    std::io::Write::write_all(&mut client, b"secret").unwrap();
    let said = hear_and_answer(&listener, b"HTTP/1.1 200 OK\r\n\r\n");
    assert_eq!(said.first(), Some(&22), "a TLS handshake record");
    assert!(!said.windows(6).any(|window| window == b"secret"));
    assert_reset(&client);
    record(mesh.client_agent(), &[("result", "refused"), ("reason", "tls_failed")]);
}

/// What somebody says until they hang up, after they were answered.
fn hear_and_answer(listener: &TcpListener, answer: &[u8]) -> Vec<u8> {
    let mut stream = accept(listener).unwrap();
    let mut said = vec![0; 16 * 1024];
    let first = stream.read_uninterrupted(&mut said).unwrap();
    said.truncate(first);
    std::io::Write::write_all(&mut stream, answer).unwrap();
    // It may hang up with a reset.
    let _ = stream.read_to_end(&mut said);
    said
}

#[test]
fn nobody_at_the_tunnels_port_is_no_reason_to_talk_in_clear() {
    let mesh = Mesh::first_only(&[]);
    let _echo = mesh.server.serve_echo(80).unwrap();
    assert_turned_away(mesh.client.connect(mesh.server.addr(80), TIMEOUT));
    record(mesh.client_agent(), &[("result", "refused"), ("reason", "connect_failed")]);
}
