//! Two honest nodes.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use orlop_identity::{Clock, HandshakeFailure, IdentityError, classify_io, peer_identity, require_h2};
use orlop_model::{Identity, TrustDomain};
use rustls::{HandshakeKind, NamedGroup, ProtocolVersion};

use crate::support::{Handshake, Mesh, identity, minutes, now, trust_domain};

/// `alice` dials `bob`, each on a node of its own.
fn alice_dials_bob(mesh: &Mesh) -> Handshake {
    let (one, two) = (mesh.node(&["alice"]), mesh.node(&["bob"]));
    let client = one.client_config(&identity("alice"), &identity("bob")).unwrap();
    Handshake::run(client, two.server_config(&identity("bob")).unwrap())
}

#[test]
fn each_end_learns_who_the_other_is() {
    let handshake = alice_dials_bob(&Mesh::new());
    assert!(handshake.succeeded(), "{:?} {:?}", handshake.client_error, handshake.server_error);
    let peer = |certs: Option<&[_]>| peer_identity(certs.unwrap(), &trust_domain()).unwrap();
    assert_eq!(peer(handshake.server.peer_certificates()), identity("alice"));
    assert_eq!(peer(handshake.client.peer_certificates()), identity("bob"));
    require_h2(handshake.client.alpn_protocol()).unwrap();
    require_h2(handshake.server.alpn_protocol()).unwrap();
}

#[test]
fn it_is_tls_13_with_hybrid_key_exchange_and_no_server_name() {
    let handshake = alice_dials_bob(&Mesh::new());
    assert_eq!(handshake.server.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    let group = handshake.server.negotiated_key_exchange_group().unwrap();
    assert_eq!(group.name(), NamedGroup::X25519MLKEM768);
    assert_eq!(handshake.server.server_name(), None);
}

#[test]
fn no_session_is_resumed() {
    let mesh = Mesh::new();
    let node = mesh.node(&["alice", "bob"]);
    let client = node.client_config(&identity("alice"), &identity("bob")).unwrap();
    let server = node.server_config(&identity("bob")).unwrap();
    for _ in 0..3 {
        let handshake = Handshake::run(client.clone(), server.clone());
        assert_eq!(handshake.client.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(handshake.client.tls13_tickets_received(), 0);
    }
}

#[test]
fn another_workload_than_the_expected_one_is_refused() {
    let node = Mesh::new().node(&["alice", "bob", "carol"]);
    let client = node.client_config(&identity("alice"), &identity("bob")).unwrap();
    let handshake = Handshake::run(client, node.server_config(&identity("carol")).unwrap());
    assert_eq!(handshake.client_failure(), Some(HandshakeFailure::IdentityMismatch));
    assert_eq!(handshake.server_failure(), Some(HandshakeFailure::RefusedByPeer));
}

#[test]
fn the_reason_survives_the_way_through_io() {
    let node = Mesh::new().node(&["alice", "bob", "carol"]);
    let client = node.client_config(&identity("alice"), &identity("bob")).unwrap();
    let error = Handshake::run(client, node.server_config(&identity("carol")).unwrap()).client_error.unwrap();
    let error = io::Error::new(io::ErrorKind::InvalidData, error);
    assert_eq!(classify_io(&error), HandshakeFailure::IdentityMismatch);
    let wrapped = io::Error::other(error);
    assert_eq!(classify_io(&wrapped), HandshakeFailure::IdentityMismatch);
    assert_eq!(classify_io(&io::Error::from(io::ErrorKind::UnexpectedEof)), HandshakeFailure::Other);
}

#[test]
fn two_meshes_of_one_name_do_not_trust_each_other() {
    let (ours, theirs) = (Mesh::new().node(&["alice"]), Mesh::new().node(&["bob"]));
    let client = ours.client_config(&identity("alice"), &identity("bob")).unwrap();
    let handshake = Handshake::run(client, theirs.server_config(&identity("bob")).unwrap());
    assert_eq!(handshake.client_failure(), Some(HandshakeFailure::UntrustedCertificate));
}

#[test]
fn a_clock_two_minutes_ahead_is_tolerated_and_more_is_not() {
    for (ahead, tolerated) in [(110, true), (200, false)] {
        let mesh = Mesh::new();
        let behind = mesh.node(&["alice"]);
        let fast = Clock::new(move || now() + std::time::Duration::from_secs(ahead));
        let fast = mesh.node_with_clock(&["bob"], fast);
        let client = behind.client_config(&identity("alice"), &identity("bob")).unwrap();
        let handshake = Handshake::run(client, fast.server_config(&identity("bob")).unwrap());
        assert_eq!(handshake.succeeded(), tolerated, "{ahead} s: {:?}", handshake.client_error);
    }
}

/// A node whose certificates have run out, with nobody to renew them.
fn expired_node(mesh: &Mesh, names: &[&str]) -> orlop_identity::Identities {
    let offset = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let read = offset.clone();
    let clock = Clock::new(move || now() + minutes(read.load(std::sync::atomic::Ordering::Relaxed)));
    let node = mesh.node_with_clock(names, clock);
    offset.store(25 * 60, std::sync::atomic::Ordering::Relaxed);
    node
}

#[test]
fn an_expired_server_certificate_is_never_shown() {
    let mesh = Mesh::new();
    let (fresh, expired) = (mesh.node(&["alice"]), expired_node(&mesh, &["bob"]));
    let client = fresh.client_config(&identity("alice"), &identity("bob")).unwrap();
    let handshake = Handshake::run(client, expired.server_config(&identity("bob")).unwrap());
    assert_eq!(handshake.server_failure(), Some(HandshakeFailure::CertificateUnavailable));
    assert_eq!(handshake.client_failure(), Some(HandshakeFailure::RefusedByPeer));
    assert!(handshake.client.peer_certificates().is_none());
}

#[test]
fn an_expired_client_certificate_is_never_shown() {
    let mesh = Mesh::new();
    let (fresh, expired) = (mesh.node(&["bob"]), expired_node(&mesh, &["alice"]));
    let client = expired.client_config(&identity("alice"), &identity("bob")).unwrap();
    let handshake = Handshake::run(client, fresh.server_config(&identity("bob")).unwrap());
    assert_eq!(handshake.client_failure(), Some(HandshakeFailure::CertificateUnavailable));
    assert!(!handshake.succeeded());
    assert!(handshake.server.peer_certificates().is_none());
}

#[test]
fn ensure_replaces_an_expired_certificate() {
    let mesh = Mesh::new();
    let node = expired_node(&mesh, &["alice", "bob"]);
    for name in ["alice", "bob"] {
        node.ensure(&identity(name)).unwrap();
    }
    let client = node.client_config(&identity("alice"), &identity("bob")).unwrap();
    assert!(Handshake::run(client, node.server_config(&identity("bob")).unwrap()).succeeded());
}

#[test]
fn a_forgotten_identity_shows_nothing_and_works_again_when_ensured() {
    let mesh = Mesh::new();
    let node = mesh.node(&["alice", "bob"]);
    let client = node.client_config(&identity("alice"), &identity("bob")).unwrap();
    let server = node.server_config(&identity("bob")).unwrap();
    node.retain(&HashSet::from([identity("alice")]));

    let handshake = Handshake::run(client.clone(), server.clone());
    assert_eq!(handshake.server_failure(), Some(HandshakeFailure::CertificateUnavailable));
    assert!(matches!(node.server_config(&identity("bob")), Err(IdentityError::NotKept(_))));

    node.ensure(&identity("bob")).unwrap();
    assert!(Handshake::run(client, server).succeeded(), "a configuration handed out before is good again");
}

#[test]
fn configurations_are_made_once() {
    let node = Mesh::new().node(&["alice", "bob"]);
    let (alice, bob) = (identity("alice"), identity("bob"));
    let client = || node.client_config(&alice, &bob).unwrap();
    assert!(Arc::ptr_eq(&client(), &client()));
    let server = || node.server_config(&bob).unwrap();
    assert!(Arc::ptr_eq(&server(), &server()));
}

#[test]
fn other_trust_domains_are_neither_issued_nor_dialled() {
    let node = Mesh::new().node(&["alice"]);
    let elsewhere: TrustDomain = "elsewhere.example".parse().unwrap();
    let foreign = Identity::new(&elsewhere, "shop", "bob");
    assert!(matches!(node.ensure(&foreign), Err(IdentityError::ForeignTrustDomain { .. })));
    let refused = node.client_config(&identity("alice"), &foreign);
    assert!(matches!(refused, Err(IdentityError::ForeignTrustDomain { .. })));
    assert_eq!(node.dump().len(), 1);
}
