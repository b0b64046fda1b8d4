use std::collections::HashSet;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use orlop_model::{Identity, TrustDomain};
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::{Notify, watch};

use crate::config_cache::ConfigCache;
use crate::held::Held;
use crate::tls::{self, Accepted, OwnCertificate};
use crate::workload::CertificateRequest;
use crate::{
    CertificateAuthority, CertificateInfo, Clock, IdentityError, Issuing, Trust, WorkloadCertificate,
};

/// The identities of this node's pods: their certificates, renewed in time, and the rustls
/// configurations that show them. Cheap to clone.
#[derive(Clone)]
pub struct Identities(Arc<Inner>);

struct Inner {
    authority: Arc<dyn CertificateAuthority>,
    trust: watch::Receiver<Arc<Trust>>,
    trust_domain: TrustDomain,
    lifetime: Duration,
    clock: Clock,
    held: Arc<Held>,
    servers: ConfigCache<Identity, ServerConfig>,
    clients: ConfigCache<(Identity, Identity), ClientConfig>,
    changed: Notify,
}

impl Identities {
    /// A store with nothing in it. `lifetime` is that of certificates, [`crate::DEFAULT_LIFETIME`] as a rule.
    pub fn new(ca: Arc<dyn CertificateAuthority>, trust_domain: TrustDomain, lifetime: Duration) -> Self {
        Self::with_clock(ca, trust_domain, lifetime, Clock::system())
    }

    /// [`Identities::new`] with a clock other than the system's.
    pub fn with_clock(
        ca: Arc<dyn CertificateAuthority>,
        trust_domain: TrustDomain,
        lifetime: Duration,
        clock: Clock,
    ) -> Self {
        Self(Arc::new(Inner {
            trust: ca.trust(),
            authority: ca,
            trust_domain,
            lifetime,
            held: Arc::new(Held::new(clock.clone())),
            clock,
            servers: ConfigCache::new(MAX_CONFIGS),
            clients: ConfigCache::new(MAX_CONFIGS),
            changed: Notify::new(),
        }))
    }

    /// Keeps a certificate for `identity` from now on, issuing one if no valid one is in hand. If the authority is
    /// elsewhere, [`Identities::run`] asks it: see [`Identities::attempted`].
    ///
    /// After an error the identity is kept all the same and [`Identities::run`] goes on trying; until it
    /// succeeds, handshakes of this identity fail. An identity of another trust domain is not kept.
    pub fn ensure(&self, identity: &Identity) -> Result<(), IdentityError> {
        self.check_trust_domain(identity)?;
        let held = &self.0.held;
        held.add(identity);
        if held.valid_key(identity).is_some() {
            return Ok(());
        }
        let outcome = match self.attempt(identity) {
            Attempt::Settled(outcome) => outcome,
            // Not polled, it has asked nobody.
            Attempt::Asked(_) => Ok(()),
        };
        self.0.changed.notify_one();
        outcome
    }

    /// Waits until there is a certificate for `identity`, or a first attempt to have one has failed, which a handshake
    /// then says.
    pub async fn attempted(&self, identity: &Identity) {
        self.0.held.attempted(identity).await;
    }

    /// Whether a handshake of `identity` has a certificate to show.
    pub fn is_valid(&self, identity: &Identity) -> bool {
        self.0.held.valid_key(identity).is_some()
    }

    /// Forgets the keys of all identities but `wanted`. Connections go on, new handshakes of the
    /// forgotten fail, also with configurations handed out before.
    pub fn retain(&self, wanted: &HashSet<Identity>) {
        self.0.held.retain(wanted);
        self.0.servers.retain(|identity| wanted.contains(identity));
        self.0.clients.retain(|(source, _)| wanted.contains(source));
    }

    /// For the HBONE listener of a pod that is `identity`, which must have been [`Identities::ensure`]d:
    /// accepts any workload of the trust domain. Stays good across renewals.
    pub fn server_config(&self, identity: &Identity) -> Result<Arc<ServerConfig>, IdentityError> {
        let own = self.own(identity)?;
        self.0.servers.get_or_make(identity.clone(), || tls::server_config(own, self.accepted()))
    }

    /// For connections from a pod that is `source`, which must have been [`Identities::ensure`]d, to a
    /// workload that must prove to be `expected`. Stays good across renewals. Any server name will do.
    pub fn client_config(
        &self,
        source: &Identity,
        expected: &Identity,
    ) -> Result<Arc<ClientConfig>, IdentityError> {
        self.check_trust_domain(expected)?;
        let own = self.own(source)?;
        let make = || tls::client_config(own, expected.clone(), self.accepted());
        self.0.clients.get_or_make((source.clone(), expected.clone()), make)
    }

    /// Renews certificates around half their life, for ever. Connections are not touched: the next
    /// handshake shows the new certificate. Failed attempts are repeated with growing pauses.
    ///
    /// When another root signs, all are renewed at once; when one of them is revoked, that one.
    pub async fn run(&self) {
        let mut trust = self.trust();
        let mut issuer = trust.borrow_and_update().issuer().cloned();
        let mut asked = FuturesUnordered::new();
        loop {
            if trust.has_changed().unwrap_or(false) {
                let trust = trust.borrow_and_update().clone();
                let other_issuer = trust.issuer() != issuer.as_ref();
                let outdated = |certificate: &WorkloadCertificate| {
                    other_issuer || certificate.chain.first().is_some_and(|leaf| trust.is_revoked(leaf))
                };
                self.0.held.renew_now(outdated, self.0.clock.now());
                issuer = trust.issuer().cloned();
            }
            for identity in self.0.held.due(self.0.clock.now()) {
                if asked.len() == MAX_ASKED {
                    break;
                }
                match self.attempt(&identity) {
                    // Logged, and kept for the next attempt.
                    Attempt::Settled(_) => tokio::task::yield_now().await,
                    Attempt::Asked(answer) => {
                        self.0.held.asked(&identity);
                        asked.push(answer);
                    }
                }
            }
            let wait = match asked.len() {
                MAX_ASKED => LONGEST_SLEEP,
                _ => self.0.held.next_attempt_in(self.0.clock.now()).unwrap_or(LONGEST_SLEEP),
            };
            tokio::select! {
                () = tokio::time::sleep(wait.clamp(SHORTEST_SLEEP, LONGEST_SLEEP)) => {}
                () = self.0.changed.notified() => {}
                Some(()) = asked.next() => {}
                // Without its authority nothing changes any more.
                Ok(()) = trust.changed() => trust.mark_changed(),
            }
        }
    }

    /// Whom to trust: now, and whenever it changes.
    pub fn trust(&self) -> watch::Receiver<Arc<Trust>> {
        self.0.trust.clone()
    }

    /// What is kept, in the order of names.
    pub fn dump(&self) -> Vec<CertificateInfo> {
        self.0.held.info()
    }

    /// The trust domain whose workloads are accepted.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.0.trust_domain
    }

    fn attempt(&self, identity: &Identity) -> Attempt {
        let now: SystemTime = self.0.clock.now();
        let request = match CertificateRequest::new(identity) {
            Ok(request) => request,
            Err(error) => return Attempt::Settled(self.0.held.settle(identity, Err(error), now)),
        };
        match self.0.authority.issue(identity, request.der(), self.0.lifetime, now) {
            Issuing::Done(issued) => {
                let outcome = issued.and_then(|chain| request.complete(chain, now));
                Attempt::Settled(self.0.held.settle(identity, outcome, now))
            }
            Issuing::Asked(answer) => {
                let (held, clock, identity) = (self.0.held.clone(), self.0.clock.clone(), identity.clone());
                Attempt::Asked(Box::pin(async move {
                    let issued = answer.await;
                    let now = clock.now();
                    let outcome = issued.and_then(|chain| request.complete(chain, now));
                    // Logged, and kept for the next attempt.
                    let _ = held.settle(&identity, outcome, now);
                }))
            }
        }
    }

    fn own(&self, identity: &Identity) -> Result<OwnCertificate, IdentityError> {
        if !self.0.held.contains(identity) {
            return Err(IdentityError::NotKept(identity.clone()));
        }
        Ok(OwnCertificate { held: self.0.held.clone(), identity: identity.clone() })
    }

    fn accepted(&self) -> Accepted {
        Accepted {
            trust: self.trust(),
            trust_domain: self.0.trust_domain.clone(),
            clock: self.0.clock.clone(),
        }
    }

    fn check_trust_domain(&self, identity: &Identity) -> Result<(), IdentityError> {
        if identity.trust_domain() == self.0.trust_domain.as_str() {
            return Ok(());
        }
        Err(IdentityError::ForeignTrustDomain {
            identity: identity.clone(),
            trust_domain: self.0.trust_domain.clone(),
        })
    }
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identities").field("trust_domain", &self.0.trust_domain).finish_non_exhaustive()
    }
}

/// How an attempt to have a certificate goes on.
enum Attempt {
    Settled(Result<(), IdentityError>),
    Asked(Pin<Box<dyn Future<Output = ()> + Send>>),
}

/// Of each kind. One is about 2 KiB.
const MAX_CONFIGS: usize = 1024;

/// How many certificates are asked for at once.
const MAX_ASKED: usize = 32;

/// Timers stand still while a machine is suspended, and the wall clock may be set: look again this often.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// Whatever the clock does, the loop doesn't spin.
const SHORTEST_SLEEP: Duration = Duration::from_millis(10);
