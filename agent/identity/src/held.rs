use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime};

use orlop_model::Identity;
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::renewal::{renew_at, retry_after};
use crate::{Clock, IdentityError, WorkloadCertificate};

/// What the store knows of one identity; no key in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// Whose certificate.
    pub identity: Identity,
    /// How it stands.
    pub state: CertificateState,
    /// Lower-case hex; none while [`CertificateState::Pending`].
    pub serial: Option<String>,
    /// From when it is valid.
    pub not_before: Option<SystemTime>,
    /// Until when it is valid.
    pub not_after: Option<SystemTime>,
    /// When it is renewed, or the next attempt made.
    pub next_attempt: SystemTime,
    /// Why the last attempt failed, if it did.
    pub last_error: Option<String>,
}

/// How the certificate of an identity stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CertificateState {
    /// None could be had so far; handshakes fail.
    Pending,
    /// In use.
    Valid,
    /// In use, though its renewal fails.
    RenewalFailing,
    /// Not valid any more; handshakes fail.
    Expired,
}

impl CertificateState {
    /// The state in snake case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Valid => "valid",
            Self::RenewalFailing => "renewal_failing",
            Self::Expired => "expired",
        }
    }
}

/// The certificates in hand, shared by the store and the configurations made from it.
pub(crate) struct Held {
    clock: Clock,
    entries: RwLock<HashMap<Identity, Entry>>,
    /// Moves when an attempt has ended.
    settled: watch::Sender<()>,
}

struct Entry {
    certificate: Option<Arc<WorkloadCertificate>>,
    next_attempt: SystemTime,
    failures: u32,
    last_error: Option<String>,
    /// An attempt is under way.
    asked: bool,
    /// What it brings is to be renewed at once.
    outdated: bool,
}

impl Held {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, entries: RwLock::new(HashMap::new()), settled: watch::Sender::new(()) }
    }

    /// What a handshake may show for `identity`: never an expired certificate.
    pub(crate) fn valid_key(&self, identity: &Identity) -> Option<Arc<CertifiedKey>> {
        let now = self.clock.now();
        let entries = self.read();
        let certificate = entries.get(identity)?.certificate.as_ref()?;
        certificate.is_valid_at(now).then(|| certificate.key.clone())
    }

    pub(crate) fn contains(&self, identity: &Identity) -> bool {
        self.read().contains_key(identity)
    }

    /// Keeps `identity` from now on, to be had as soon as an attempt succeeds.
    pub(crate) fn add(&self, identity: &Identity) {
        let next_attempt = self.clock.now();
        self.write().entry(identity.clone()).or_insert(Entry {
            certificate: None,
            next_attempt,
            failures: 0,
            last_error: None,
            asked: false,
            outdated: false,
        });
    }

    /// An attempt is under way: until it is settled, no other is due.
    pub(crate) fn asked(&self, identity: &Identity) {
        if let Some(entry) = self.write().get_mut(identity) {
            entry.asked = true;
        }
    }

    /// Waits while nothing is known of `identity` but that an attempt will be made.
    pub(crate) async fn attempted(&self, identity: &Identity) {
        let mut settled = self.settled.subscribe();
        let open = |entry: &Entry| entry.certificate.is_none() && entry.failures == 0;
        while self.read().get(identity).is_some_and(open) {
            // The sender is this struct's.
            let _ = settled.changed().await;
        }
    }

    /// Takes the outcome of an attempt made at `now`, unless the identity was forgotten meanwhile.
    pub(crate) fn settle(
        &self,
        identity: &Identity,
        outcome: Result<WorkloadCertificate, IdentityError>,
        now: SystemTime,
    ) -> Result<(), IdentityError> {
        let outcome = self.settle_entry(identity, outcome, now);
        self.settled.send_replace(());
        outcome
    }

    fn settle_entry(
        &self,
        identity: &Identity,
        outcome: Result<WorkloadCertificate, IdentityError>,
        now: SystemTime,
    ) -> Result<(), IdentityError> {
        let mut entries = self.write();
        let Some(entry) = entries.get_mut(identity) else { return Ok(()) };
        entry.asked = false;
        match outcome {
            Ok(certificate) => {
                tracing::debug!(
                    %identity,
                    serial = certificate.serial,
                    not_after = %OffsetDateTime::from(certificate.not_after),
                    "certificate issued"
                );
                let renewal = renew_at(now, certificate.not_after, fastrand::f64());
                *entry = Entry {
                    next_attempt: if entry.outdated { now } else { renewal },
                    certificate: Some(Arc::new(certificate)),
                    failures: 0,
                    last_error: None,
                    asked: false,
                    outdated: false,
                };
                Ok(())
            }
            Err(error) => {
                entry.failures = entry.failures.saturating_add(1);
                let in_hand =
                    entry.certificate.as_ref().is_some_and(|certificate| certificate.is_valid_at(now));
                let wait = retry_after(entry.failures, in_hand, fastrand::f64());
                entry.next_attempt = now + wait;
                entry.last_error = Some(error.to_string());
                log_failure(identity, &error, entry, wait, now);
                Err(error)
            }
        }
    }

    /// Those whose next attempt is due at `now`.
    pub(crate) fn due(&self, now: SystemTime) -> Vec<Identity> {
        let due = |entry: &Entry| !entry.asked && (entry.next_attempt <= now || entry.clock_went_back(now));
        self.read().iter().filter(|(_, entry)| due(entry)).map(|(identity, _)| identity.clone()).collect()
    }

    /// Makes the renewal of these certificates due at `now`, and of those that are under way.
    pub(crate) fn renew_now(&self, which: impl Fn(&WorkloadCertificate) -> bool, now: SystemTime) {
        for entry in self.write().values_mut() {
            entry.outdated = entry.asked;
            if entry.certificate.as_deref().is_some_and(&which) {
                entry.next_attempt = now;
            }
        }
    }

    /// How long after `now` the next attempt is due.
    pub(crate) fn next_attempt_in(&self, now: SystemTime) -> Option<Duration> {
        let entries = self.read();
        let next = entries.values().filter(|entry| !entry.asked).map(|entry| entry.next_attempt).min()?;
        Some(next.duration_since(now).unwrap_or_default())
    }

    pub(crate) fn retain(&self, wanted: &HashSet<Identity>) {
        self.write().retain(|identity, _| wanted.contains(identity));
    }

    /// All, in the order of their names.
    pub(crate) fn info(&self) -> Vec<CertificateInfo> {
        let now = self.clock.now();
        let mut info: Vec<_> =
            self.read().iter().map(|(identity, entry)| entry.info(identity, now)).collect();
        info.sort_by(|a, b| a.identity.cmp(&b.identity));
        info
    }

    // Nothing that runs under the lock leaves the map half changed, so a poisoned one is still good.
    fn read(&self) -> RwLockReadGuard<'_, HashMap<Identity, Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<Identity, Entry>> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// A certificate from the future, whose renewal would be further off than its own lifetime.
    fn clock_went_back(&self, now: SystemTime) -> bool {
        self.failures == 0
            && self.certificate.as_ref().is_some_and(|certificate| now < certificate.not_before)
    }

    fn info(&self, identity: &Identity, now: SystemTime) -> CertificateInfo {
        let certificate = self.certificate.as_deref();
        let state = match certificate {
            None => CertificateState::Pending,
            Some(certificate) if !certificate.is_valid_at(now) => CertificateState::Expired,
            Some(_) if self.failures > 0 => CertificateState::RenewalFailing,
            Some(_) => CertificateState::Valid,
        };
        CertificateInfo {
            identity: identity.clone(),
            state,
            serial: certificate.map(|certificate| certificate.serial.clone()),
            not_before: certificate.map(|certificate| certificate.not_before),
            not_after: certificate.map(|certificate| certificate.not_after),
            next_attempt: self.next_attempt,
            last_error: self.last_error.clone(),
        }
    }
}

fn log_failure(identity: &Identity, error: &IdentityError, entry: &Entry, wait: Duration, now: SystemTime) {
    match &entry.certificate {
        Some(certificate) if certificate.is_valid_at(now) => tracing::warn!(
            %identity, %error, retry_in = ?wait,
            not_after = %OffsetDateTime::from(certificate.not_after),
            "certificate could not be renewed; the one in hand goes on"
        ),
        _ => tracing::error!(
            %identity, %error, retry_in = ?wait,
            "no valid certificate: new connections of this identity are refused"
        ),
    }
}
