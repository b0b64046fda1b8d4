//! The store over a day, in virtual time.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use orlop_identity::{
    CertificateAuthority, CertificateInfo, CertificateState, Clock, DEFAULT_LIFETIME, HandshakeFailure,
    Identities, IdentityError, IssuedChain, Issuing, Trust,
};
use orlop_model::Identity;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::support::{Handshake, Mesh, identity, minutes, trust_domain};

/// The embedded authority behind a switch, counting what it signs.
struct Switched {
    mesh: Mesh,
    up: AtomicBool,
    calls: AtomicU32,
    /// Done once, in the middle of signing.
    meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Switched {
    fn sign(
        &self,
        identity: &Identity,
        csr_der: &[u8],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<IssuedChain, IdentityError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if let Some(act) = self.meanwhile.lock().unwrap().take() {
            act();
        }
        if !self.up.load(Ordering::Relaxed) {
            return Err(IdentityError::Request("the authority is down".to_owned()));
        }
        self.mesh.ca.sign(identity, csr_der, lifetime, now)
    }
}

impl CertificateAuthority for Switched {
    fn issue(&self, identity: &Identity, csr_der: &[u8], lifetime: Duration, now: SystemTime) -> Issuing {
        Issuing::Done(self.sign(identity, csr_der, lifetime, now))
    }

    fn trust(&self) -> watch::Receiver<Arc<Trust>> {
        self.mesh.ca.trust()
    }
}

struct Node {
    authority: Arc<Switched>,
    identities: Identities,
}

impl Node {
    /// With its renewal loop running, and a wall clock that follows tokio's.
    fn start() -> Self {
        let authority = Arc::new(Switched {
            mesh: Mesh::new(),
            up: AtomicBool::new(true),
            calls: AtomicU32::new(0),
            meanwhile: Mutex::new(None),
        });
        let (wall, start) = (SystemTime::now(), Instant::now());
        let clock = Clock::new(move || wall + start.elapsed());
        let identities = Identities::with_clock(authority.clone(), trust_domain(), DEFAULT_LIFETIME, clock);
        let looping = identities.clone();
        tokio::spawn(async move { looping.run().await });
        Self { authority, identities }
    }

    fn switch(&self, up: bool) {
        self.authority.up.store(up, Ordering::Relaxed);
    }

    fn calls(&self) -> u32 {
        self.authority.calls.load(Ordering::Relaxed)
    }

    fn info(&self, name: &str) -> CertificateInfo {
        self.identities.dump().into_iter().find(|info| info.identity == identity(name)).unwrap()
    }

    fn handshake(&self) -> Handshake {
        let client = self.identities.client_config(&identity("alice"), &identity("bob")).unwrap();
        Handshake::run(client, self.identities.server_config(&identity("bob")).unwrap())
    }
}

fn hours(count: u64) -> Duration {
    minutes(60 * count)
}

#[tokio::test(start_paused = true)]
async fn certificates_are_renewed_around_half_their_life() {
    let node = Node::start();
    node.identities.ensure(&identity("alice")).unwrap();
    let first = node.info("alice").serial;
    sleep(hours(11)).await;
    assert_eq!(node.info("alice").serial, first);
    sleep(hours(2)).await;
    assert_ne!(node.info("alice").serial, first);
    assert_eq!(node.info("alice").state, CertificateState::Valid);
    assert_eq!(node.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_renewed_certificate_serves_new_handshakes_while_old_connections_go_on() {
    let node = Node::start();
    node.identities.ensure(&identity("alice")).unwrap();
    node.identities.ensure(&identity("bob")).unwrap();
    let server = node.identities.server_config(&identity("bob")).unwrap();
    let mut old = node.handshake();
    assert!(old.succeeded());

    sleep(hours(13)).await;
    let new = node.handshake();
    assert!(new.succeeded());
    assert_ne!(new.client.peer_certificates(), old.client.peer_certificates());
    assert_ne!(new.server.peer_certificates(), old.server.peer_certificates());
    assert!(Arc::ptr_eq(&server, &node.identities.server_config(&identity("bob")).unwrap()));

    old.client.writer().write_all(b"still here").unwrap();
    old.pump();
    let mut got = [0; 10];
    old.server.reader().read_exact(&mut got).unwrap();
    assert_eq!(&got, b"still here");
}

#[tokio::test(start_paused = true)]
async fn an_authority_that_is_down_is_asked_again_until_expiry_and_after() {
    let node = Node::start();
    node.identities.ensure(&identity("alice")).unwrap();
    node.identities.ensure(&identity("bob")).unwrap();
    node.switch(false);
    sleep(hours(13)).await;
    assert_eq!(node.info("bob").state, CertificateState::RenewalFailing);
    assert!(node.info("bob").last_error.unwrap().contains("the authority is down"));
    assert!(node.handshake().succeeded(), "the certificate in hand is still good");

    sleep(hours(12)).await;
    assert_eq!(node.info("bob").state, CertificateState::Expired);
    assert_eq!(node.handshake().server_failure(), Some(HandshakeFailure::CertificateUnavailable));
    // Two identities: some twelve hours each, at most one attempt in 2.5 minutes once settled, and one hour without a
    // certificate, at most one in 7.5 s.
    assert!((300..700 + 960).contains(&node.calls()), "{}", node.calls());

    node.switch(true);
    sleep(minutes(6)).await;
    assert_eq!(node.info("bob").state, CertificateState::Valid);
    assert_eq!(node.info("bob").last_error, None);
    assert!(node.handshake().succeeded());
}

#[tokio::test(start_paused = true)]
async fn an_identity_that_could_not_be_had_at_first_follows_soon() {
    let node = Node::start();
    // Between two of the loop's own awakenings, which are 30 s apart.
    sleep(Duration::from_secs(65)).await;
    node.switch(false);
    node.identities.ensure(&identity("alice")).unwrap_err();
    node.identities.ensure(&identity("bob")).unwrap_err();
    assert_eq!(node.info("bob").state, CertificateState::Pending);
    assert_eq!(node.handshake().server_failure(), Some(HandshakeFailure::CertificateUnavailable));

    node.switch(true);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(node.info("bob").state, CertificateState::Valid);
    assert!(node.handshake().succeeded());
}

#[tokio::test(start_paused = true)]
async fn what_is_in_hand_is_not_issued_again() {
    let node = Node::start();
    for _ in 0..3 {
        node.identities.ensure(&identity("alice")).unwrap();
    }
    assert_eq!(node.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_forgotten_are_not_renewed() {
    let node = Node::start();
    node.identities.ensure(&identity("alice")).unwrap();
    node.identities.ensure(&identity("bob")).unwrap();
    node.identities.retain(&HashSet::from([identity("alice")]));
    sleep(hours(20)).await;
    assert_eq!(node.identities.dump().len(), 1);
    assert_eq!(node.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_is_forgotten_while_it_is_signed_stays_forgotten() {
    let node = Node::start();
    let store = node.identities.clone();
    let forget: Box<dyn FnOnce() + Send> = Box::new(move || store.retain(&HashSet::new()));
    *node.authority.meanwhile.lock().unwrap() = Some(forget);
    node.identities.ensure(&identity("alice")).unwrap();
    assert_eq!(node.identities.dump(), []);
}

#[tokio::test(start_paused = true)]
async fn renewals_of_many_are_spread() {
    let node = Node::start();
    let names: Vec<String> = (0..50).map(|index| format!("pod-{index}")).collect();
    for name in &names {
        node.identities.ensure(&identity(name)).unwrap();
    }
    let times: Vec<SystemTime> = names.iter().map(|name| node.info(name).next_attempt).collect();
    let spread = times.iter().max().unwrap().duration_since(*times.iter().min().unwrap()).unwrap();
    assert!(spread > minutes(30), "{spread:?}");
}
