//! Roots that come and go, and certificates that are revoked, on one directory.

use std::sync::Arc;
use std::time::Duration;

use orlop_identity::{
    CertificateAuthority, DEFAULT_LIFETIME, EmbeddedCa, HandshakeFailure, Identities, IdentityError,
    parse_serial,
};

use crate::support::{Handshake, Mesh, identity, trust_domain};

/// Two nodes of one mesh, each with an authority of its own on the shared directory.
struct Two {
    mesh: Mesh,
    other: Arc<EmbeddedCa>,
    alice: Identities,
    bob: Identities,
}

impl Two {
    fn new() -> Self {
        let mesh = Mesh::new();
        let alice = mesh.node(&["alice"]);
        let other = Arc::new(EmbeddedCa::open(mesh.dir.path(), &trust_domain()).unwrap());
        let bob = Identities::new(other.clone(), trust_domain(), DEFAULT_LIFETIME);
        bob.ensure(&identity("bob")).unwrap();
        Self { mesh, other, alice, bob }
    }

    fn refresh(&self) {
        self.mesh.ca.refresh().unwrap();
        self.other.refresh().unwrap();
    }

    fn shake_hands(&self) -> Handshake {
        let client = self.alice.client_config(&identity("alice"), &identity("bob")).unwrap();
        Handshake::run(client, self.bob.server_config(&identity("bob")).unwrap())
    }

    fn revoke(&self, node: &Identities) {
        let serial = node.dump()[0].serial.clone().unwrap();
        EmbeddedCa::revoke(self.mesh.dir.path(), &trust_domain(), &[parse_serial(&serial).unwrap()]).unwrap();
        self.refresh();
    }
}

#[test]
fn at_no_step_of_a_rotation_does_a_handshake_fail() {
    let two = Two::new();
    let dir = two.mesh.dir.path();
    let old = two.mesh.root_certificate();
    EmbeddedCa::begin_rotation(dir, &trust_domain()).unwrap();
    EmbeddedCa::begin_rotation(dir, &trust_domain()).unwrap();
    two.refresh();
    assert_eq!(two.mesh.ca.roots().len(), 2);
    assert!(two.shake_hands().succeeded());

    EmbeddedCa::switch_root(dir, &trust_domain()).unwrap();
    // One node has seen it and renewed, the other has not.
    two.mesh.ca.refresh().unwrap();
    assert_ne!(two.mesh.root_certificate(), old);
    let renewed = two.mesh.node(&["alice"]);
    let client = renewed.client_config(&identity("alice"), &identity("bob")).unwrap();
    let server = two.bob.server_config(&identity("bob")).unwrap();
    assert!(Handshake::run(client.clone(), server.clone()).succeeded());
    two.refresh();
    assert!(matches!(
        EmbeddedCa::begin_rotation(dir, &trust_domain()),
        Err(IdentityError::RotationUnfinished { .. })
    ));

    let hour = Duration::from_secs(3600);
    assert!(EmbeddedCa::finish_rotation(dir, hour).unwrap() < hour);
    two.refresh();
    assert_eq!(two.mesh.ca.roots().len(), 2, "not finished before its time");
    EmbeddedCa::finish_rotation(dir, Duration::ZERO).unwrap();
    two.refresh();
    assert_eq!(two.mesh.ca.roots().len(), 1);
    let failure = Handshake::run(client, server).client_failure();
    assert_eq!(failure, Some(HandshakeFailure::UntrustedCertificate), "bob shows one of the old root");
    assert!(matches!(
        EmbeddedCa::finish_rotation(dir, Duration::ZERO),
        Err(IdentityError::NoRotation { .. })
    ));
}

#[test]
fn a_rotation_that_was_broken_off_between_its_renames_is_completed() {
    let two = Two::new();
    let at = |name: &str| two.mesh.dir.path().join(name);
    EmbeddedCa::begin_rotation(two.mesh.dir.path(), &trust_domain()).unwrap();
    let next = std::fs::read(at("next-cert.pem")).unwrap();
    std::fs::rename(at("next-key.pem"), at("root-key.pem")).unwrap();
    two.refresh();
    assert_eq!(std::fs::read(at("root-cert.pem")).unwrap(), next);
    assert!(!at("next-cert.pem").exists());
}

#[test]
fn a_root_that_is_gone_is_not_made_anew() {
    let two = Two::new();
    let before = two.mesh.ca.roots();
    std::fs::remove_file(two.mesh.dir.path().join("root-key.pem")).unwrap();
    std::fs::remove_file(two.mesh.dir.path().join("root-cert.pem")).unwrap();
    assert!(matches!(two.mesh.ca.refresh(), Err(IdentityError::File { .. })));
    assert_eq!(two.mesh.ca.roots(), before);
    assert!(two.shake_hands().succeeded());
    let nowhere = two.mesh.dir.path().join("nowhere");
    assert!(EmbeddedCa::begin_rotation(&nowhere, &trust_domain()).is_err());
    assert!(!nowhere.exists());
}

#[test]
fn the_revoked_are_refused_on_either_side() {
    let two = Two::new();
    assert!(two.shake_hands().succeeded());
    two.revoke(&two.alice);
    let handshake = two.shake_hands();
    assert_eq!(handshake.server_failure(), Some(HandshakeFailure::RevokedCertificate));
    assert_eq!(handshake.client_failure(), Some(HandshakeFailure::RefusedByPeer));

    let two = Two::new();
    two.revoke(&two.bob);
    assert_eq!(two.shake_hands().client_failure(), Some(HandshakeFailure::RevokedCertificate));
}

#[test]
fn revocations_add_up_and_outlast_a_rotation() {
    let two = Two::new();
    let dir = two.mesh.dir.path();
    two.revoke(&two.bob);
    EmbeddedCa::begin_rotation(dir, &trust_domain()).unwrap();
    EmbeddedCa::switch_root(dir, &trust_domain()).unwrap();
    two.revoke(&two.alice);
    let trust = two.mesh.ca.trust().borrow().clone();
    // Both lists hold both: nobody can tell from a serial number who has signed.
    assert_eq!(trust.revoked(), 4);
    assert_eq!(two.shake_hands().client_failure(), Some(HandshakeFailure::RevokedCertificate));
    // A certificate of the new root is none of them.
    let fresh = two.mesh.node(&["carol", "dave"]);
    let client = fresh.client_config(&identity("carol"), &identity("dave")).unwrap();
    assert!(Handshake::run(client, fresh.server_config(&identity("dave")).unwrap()).succeeded());
}

#[tokio::test(start_paused = true)]
async fn certificates_are_renewed_when_another_root_signs_or_they_are_revoked() {
    let two = Two::new();
    let dir = two.mesh.dir.path();
    let node = two.alice.clone();
    let running = tokio::spawn(async move { node.run().await });
    let serial = || two.alice.dump()[0].serial.clone().unwrap();
    let renewed = async |before: String| {
        while serial() == before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::task::yield_now().await;

    let before = serial();
    EmbeddedCa::begin_rotation(dir, &trust_domain()).unwrap();
    EmbeddedCa::switch_root(dir, &trust_domain()).unwrap();
    two.refresh();
    tokio::time::timeout(Duration::from_secs(60), renewed(before)).await.unwrap();

    let before = serial();
    two.revoke(&two.alice);
    tokio::time::timeout(Duration::from_secs(60), renewed(before)).await.unwrap();
    assert!(two.shake_hands().succeeded());
    running.abort();
}

#[test]
fn serial_numbers_are_read_as_people_write_them() {
    assert_eq!(parse_serial("0a:FF").unwrap(), [0x0a, 0xff]);
    assert_eq!(parse_serial("00ff").unwrap(), [0xff]);
    for text in ["", "abc", "xyz0", "0x12"] {
        assert_eq!(parse_serial(text), None, "{text}");
    }
}
