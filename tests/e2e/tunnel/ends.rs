//! How connections end: half-close and reset are carried as what they are, both ways.

use std::io::{Read, Write};
use std::net::Shutdown;

use super::{PORT, accept, connect, pair};
use crate::mesh::{Mesh, TIMEOUT, failed, record};
use crate::pattern::{assert_reset, assert_turned_away, receive, reset, send};
use orlop_tests::traffic::ReadUninterrupted;

const LENGTH: u64 = 3_000_000;

#[test]
fn a_client_that_has_said_all_still_gets_the_answer() {
    let mesh = Mesh::new();
    let (client, server) = pair(&mesh);
    let (mut from_client, mut from_server) = (&client, &server);
    from_client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut question = Vec::new();
    from_server.read_to_end(&mut question).unwrap();
    assert_eq!(question, b"question");
    send(&server, 1, LENGTH, &[10_000]).unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    receive(&client, 1, LENGTH).unwrap();
    assert_eq!(from_client.read_uninterrupted(&mut [0]).unwrap(), 0, "the answer ends in good order");
    record(mesh.client_agent(), &[("result", "ok")]);
    record(mesh.server_agent(), &[("result", "ok")]);
}

#[test]
fn a_server_that_has_said_all_still_takes_what_comes() {
    let mesh = Mesh::new();
    let (client, server) = pair(&mesh);
    let (mut from_client, mut from_server) = (&client, &server);
    from_server.write_all(b"greeting").unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    let mut greeting = Vec::new();
    from_client.read_to_end(&mut greeting).unwrap();
    assert_eq!(greeting, b"greeting");
    std::thread::scope(|scope| {
        scope.spawn(|| send(&client, 2, LENGTH, &[10_000]).unwrap());
        receive(&server, 2, LENGTH).unwrap();
    });
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(from_server.read_uninterrupted(&mut [0]).unwrap(), 0, "what comes ends in good order");
    record(mesh.client_agent(), &[("result", "ok")]);
    record(mesh.server_agent(), &[("result", "ok")]);
}

#[test]
fn a_reset_by_the_client_reaches_the_server() {
    let mesh = Mesh::new();
    let (client, server) = pair(&mesh);
    send(&client, 3, 1000, &[1000]).unwrap();
    receive(&server, 3, 1000).unwrap();
    reset(client);
    assert_reset(&server);
    record(mesh.client_agent(), &[("result", "cut"), ("reason", "reset")]);
    record(mesh.server_agent(), &[("result", "cut"), ("reason", "reset")]);
}

#[test]
fn a_reset_by_the_server_reaches_the_client() {
    let mesh = Mesh::new();
    let (client, server) = pair(&mesh);
    send(&server, 4, 1000, &[1000]).unwrap();
    receive(&client, 4, 1000).unwrap();
    reset(server);
    assert_reset(&client);
    record(mesh.client_agent(), &[("result", "cut"), ("reason", "reset")]);
    record(mesh.server_agent(), &[("result", "cut"), ("reason", "reset")]);
}

#[test]
fn a_reset_reaches_a_side_that_has_said_all() {
    let mesh = Mesh::new();
    let listener = mesh.server.listen(false, PORT).unwrap();
    for by_client in [true, false] {
        let (client, server) = connect(&mesh.client, &mesh.server, &listener);
        let (actor, other) = if by_client { (client, server) } else { (server, client) };
        other.shutdown(Shutdown::Write).unwrap();
        assert_eq!((&actor).read_uninterrupted(&mut [0]).unwrap(), 0);
        reset(actor);
        assert_reset(&other);
    }
}

#[test]
fn a_reset_ends_a_side_that_only_writes() {
    let mesh = Mesh::new();
    let listener = mesh.server.listen(false, PORT).unwrap();
    for by_client in [true, false] {
        let (client, server) = connect(&mesh.client, &mesh.server, &listener);
        let (actor, other) = if by_client { (client, server) } else { (server, client) };
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| send(&other, 5, u64::MAX, &[64 * 1024]));
            receive(&actor, 5, LENGTH).unwrap();
            reset(actor);
            let error = writer.join().unwrap().unwrap_err();
            let kind = error.kind();
            assert!(
                matches!(kind, std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe),
                "{error}"
            );
        });
    }
}

#[test]
fn a_refusing_server_is_a_reset_for_the_client_and_connect_failed_at_the_server() {
    let mesh = Mesh::new();
    assert_turned_away(mesh.client.connect(mesh.server.addr(PORT), TIMEOUT));
    let inbound = record(mesh.server_agent(), &[("direction", "inbound"), ("reason", "connect_failed")]);
    assert_eq!(inbound["result"], "refused");
    assert_eq!(inbound["dst"], mesh.server.addr(PORT).to_string());
    assert!(failed(mesh.server_agent(), "connect_failed") > 0.0);
    record(mesh.client_agent(), &[("direction", "outbound"), ("reason", "peer_refused")]);
}

#[test]
fn a_tunnel_goes_on_after_a_stream_was_reset_or_refused() {
    let mesh = Mesh::new();
    let listener = mesh.server.listen(false, PORT).unwrap();
    let (kept_client, kept_server) = connect(&mesh.client, &mesh.server, &listener);
    assert_turned_away(mesh.client.connect(mesh.server.addr(PORT + 1), TIMEOUT));
    let (client, server) = connect(&mesh.client, &mesh.server, &listener);
    reset(client);
    assert_reset(&server);
    send(&kept_client, 6, LENGTH / 10, &[10_000]).unwrap();
    receive(&kept_server, 6, LENGTH / 10).unwrap();
    assert_eq!(crate::mesh::tunnels(mesh.client_agent(), "outbound"), 1.0);
}

#[test]
fn a_connection_that_says_nothing_ends_in_good_order() {
    let mesh = Mesh::new();
    let listener = mesh.server.listen(true, PORT).unwrap();
    let client = mesh.client.connect(mesh.server.addr6(PORT), TIMEOUT).unwrap();
    let server = accept(&listener).unwrap();
    drop(client);
    assert_eq!((&server).read_uninterrupted(&mut [0]).unwrap(), 0);
}
