use std::fmt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use orlop_model::{Identity, TrustDomain};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use crate::root_files;
use crate::{IdentityError, Signer, Trust};

/// Whoever signs workload certificates.
pub trait CertificateAuthority: Send + Sync + 'static {
    /// A certificate for `identity`, for the key that `csr_der` (PKCS#10) proves to have, valid at `now` and for
    /// `lifetime`, or as long as its issuer if that is shorter.
    fn issue(&self, identity: &Identity, csr_der: &[u8], lifetime: Duration, now: SystemTime) -> Issuing;

    /// What peers' chains must lead to, and what was revoked: now, and whenever it changes.
    fn trust(&self) -> watch::Receiver<Arc<Trust>>;

    /// The roots that are trusted now.
    fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.trust().borrow().roots().to_vec()
    }
}

/// What becomes of a request for a certificate.
pub enum Issuing {
    /// An authority in this process has answered: it only computes, some 0.1 ms a certificate.
    Done(Result<IssuedChain, IdentityError>),
    /// One elsewhere will. Nothing is asked before this is polled, and it ends within seconds.
    Asked(Pin<Box<dyn Future<Output = Result<IssuedChain, IdentityError>> + Send>>),
}

/// What an authority returns: the leaf, then its issuers, without the root.
#[derive(Clone, Debug)]
pub struct IssuedChain {
    /// Never empty; leaf first.
    pub certificates: Vec<CertificateDer<'static>>,
}

/// An authority in this process, with its root in a directory that the nodes of one machine share.
///
/// The directory is looked at again by [`EmbeddedCa::run`], so that a root can be rotated and certificates revoked
/// while the nodes run: see [`EmbeddedCa::begin_rotation`] and [`EmbeddedCa::revoke`].
pub struct EmbeddedCa {
    dir: PathBuf,
    trust_domain: TrustDomain,
    signer: RwLock<Arc<Signer>>,
    trust: watch::Sender<Arc<Trust>>,
}

impl EmbeddedCa {
    /// Takes the root in `dir`, making it (`root-key.pem` and `root-cert.pem`, mode 0600) on first use.
    ///
    /// Processes that start at once end up with one root.
    pub fn open(dir: &Path, trust_domain: &TrustDomain) -> Result<Self, IdentityError> {
        Self::open_at(dir, trust_domain, SystemTime::now())
    }

    /// [`EmbeddedCa::open`] at a given time.
    pub fn open_at(dir: &Path, trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, IdentityError> {
        let (signer, trust) = root_files::open(dir, trust_domain, now)?;
        Ok(Self {
            dir: dir.to_owned(),
            trust_domain: trust_domain.clone(),
            signer: RwLock::new(Arc::new(signer)),
            trust: watch::Sender::new(Arc::new(trust)),
        })
    }

    /// Looks every [`POLL`] whether the directory has changed, for ever. What can't be read is logged, and what was
    /// read before stays in force.
    pub async fn run(&self) {
        let mut known = None;
        let mut problem = String::new();
        loop {
            // Taken before reading: what changes meanwhile is read again.
            let stamp = root_files::stamp(&self.dir);
            if known != Some(stamp) {
                let found = self.refresh();
                let now = found.as_ref().err().map(ToString::to_string).unwrap_or_default();
                if !now.is_empty() && now != problem {
                    tracing::error!("{now} (what was read before stays in force)");
                }
                // What could not be read is tried again, changed or not.
                known = found.is_ok().then_some(stamp);
                problem = now;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Reads the directory again. A root that is gone is an error, and not made anew.
    pub fn refresh(&self) -> Result<(), IdentityError> {
        let (signer, trust) = root_files::reopen(&self.dir, &self.trust_domain, SystemTime::now())?;
        *self.signer.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(signer);
        let trust = Arc::new(trust);
        self.trust.send_if_modified(|current| {
            let changed = **current != *trust;
            if changed {
                tracing::info!(roots = ?trust.root_serials(), revoked = trust.revoked(), "trust has changed");
                *current = trust;
            }
            changed
        });
        Ok(())
    }

    /// Begins to rotate the root in `dir`: makes the next one, which every node trusts after one [`POLL`], and which
    /// signs nothing yet. Does nothing if that was done before.
    pub fn begin_rotation(dir: &Path, trust_domain: &TrustDomain) -> Result<(), IdentityError> {
        root_files::begin_rotation(dir, trust_domain, SystemTime::now())
    }

    /// Makes the next root sign, once every node trusts it. Nodes renew all certificates; the root that signed so
    /// far stays trusted.
    pub fn switch_root(dir: &Path, trust_domain: &TrustDomain) -> Result<(), IdentityError> {
        root_files::switch_root(dir, trust_domain, SystemTime::now())
    }

    /// Ends a rotation: the previous root is no longer trusted. To be done once every node has renewed its
    /// certificates: if the root has been the previous one for less than `at_least`, nothing is done. Returns how
    /// long it has been.
    pub fn finish_rotation(dir: &Path, at_least: Duration) -> Result<Duration, IdentityError> {
        root_files::finish_rotation(dir, at_least, SystemTime::now())
    }

    /// Revokes certificates by their serial numbers, big-endian as in the certificate.
    pub fn revoke(dir: &Path, trust_domain: &TrustDomain, serials: &[Vec<u8>]) -> Result<(), IdentityError> {
        root_files::revoke(dir, trust_domain, serials, SystemTime::now())
    }

    /// A certificate for `identity`, for the key that `csr_der` (PKCS#10) proves to have: see [`Signer::sign`].
    pub fn sign(
        &self,
        identity: &Identity,
        csr_der: &[u8],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<IssuedChain, IdentityError> {
        self.signer().sign(identity, csr_der, lifetime, now)
    }

    fn signer(&self) -> Arc<Signer> {
        self.signer.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl CertificateAuthority for EmbeddedCa {
    fn issue(&self, identity: &Identity, csr_der: &[u8], lifetime: Duration, now: SystemTime) -> Issuing {
        Issuing::Done(self.sign(identity, csr_der, lifetime, now))
    }

    fn trust(&self) -> watch::Receiver<Arc<Trust>> {
        self.trust.subscribe()
    }
}

impl fmt::Debug for EmbeddedCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedCa").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

/// How often [`EmbeddedCa::run`] looks at its directory.
pub const POLL: Duration = Duration::from_millis(200);
