use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use orlop_model::{Identity, TrustDomain};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, RevokedCertParams, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use tokio::sync::watch;

use crate::leaf::hex;
use crate::root_files::{self, Root};
use crate::{IdentityError, Trust, provider};

/// Whoever signs workload certificates.
///
/// Synchronous, as the embedded authority only computes (some 0.1 ms a certificate).
pub trait CertificateAuthority: Send + Sync + 'static {
    /// A certificate for `identity`, for the key that `csr_der` (PKCS#10) proves to have.
    ///
    /// Names in the request are ignored. The certificate is valid from two minutes before `now`
    /// until `lifetime` after it, or as long as its issuer if that is shorter.
    fn issue(
        &self,
        identity: &Identity,
        csr_der: &[u8],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<IssuedChain, IdentityError>;

    /// What peers' chains must lead to, and what was revoked: now, and whenever it changes.
    fn trust(&self) -> watch::Receiver<Arc<Trust>>;

    /// The roots that are trusted now.
    fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.trust().borrow().roots().to_vec()
    }
}

/// What an authority returns: the leaf, then its issuers, without the root.
#[derive(Clone)]
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
    root: RwLock<Arc<Root>>,
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
        let (root, trust) = root_files::open(dir, trust_domain, now)?;
        Ok(Self {
            dir: dir.to_owned(),
            trust_domain: trust_domain.clone(),
            root: RwLock::new(Arc::new(root)),
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
        let (root, trust) = root_files::reopen(&self.dir, &self.trust_domain, SystemTime::now())?;
        *self.root.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(root);
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

    fn root(&self) -> Arc<Root> {
        self.root.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl CertificateAuthority for EmbeddedCa {
    fn issue(
        &self,
        identity: &Identity,
        csr_der: &[u8],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<IssuedChain, IdentityError> {
        if identity.trust_domain() != self.trust_domain.as_str() {
            return Err(IdentityError::ForeignTrustDomain {
                identity: identity.clone(),
                trust_domain: self.trust_domain.clone(),
            });
        }
        let root = self.root();
        root.check_time(now)?;
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr_der))
            .map_err(|error| IdentityError::Request(error.to_string()))?;
        // The request's algorithm is that of its signature: a P-384 key can sign with SHA-256 too.
        let key = &request.public_key;
        if PublicKeyData::algorithm(key) != &PKCS_ECDSA_P256_SHA256 || key.der_bytes().len() != P256_POINT {
            return Err(IdentityError::Request("its key is not ECDSA P-256".to_owned()));
        }

        let not_after = root.not_after.min(now.checked_add(lifetime).unwrap_or(root.not_after));
        let mut params = validity(now, not_after)?;
        params.subject_alt_names = vec![uri(identity.as_str())?];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_der(&root.certificate, &*root.key)?;
        let certificate = params.signed_by(key, &issuer)?;
        Ok(IssuedChain { certificates: vec![certificate.der().clone()] })
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

/// How long before their making certificates become valid, as clocks of nodes differ.
pub(crate) const BACKDATE: Duration = Duration::from_secs(120);

const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// An uncompressed point.
const P256_POINT: usize = 65;

/// A new root for `trust_domain`, signed by `key`.
pub(crate) fn self_signed_root(
    key: &KeyPair,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<rcgen::Certificate, IdentityError> {
    let mut params = validity(now, now + ROOT_LIFETIME)?;
    params.distinguished_name.push(DnType::OrganizationName, "orlop");
    // A revocation list is told by its issuer's name: no two roots may have the same.
    let serial = params.serial_number.as_ref().map(|serial| hex(serial.as_ref())).unwrap_or_default();
    params.distinguished_name.push(DnType::CommonName, format!("root {serial}"));
    params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))?];
    // It signs workloads and no further authority.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params.self_signed(key)?)
}

/// A revocation list (PEM) of these serial numbers, signed by `root`, that stays good for as long as it does.
pub(crate) fn signed_revocations(
    root: &Root,
    revoked: &BTreeMap<Vec<u8>, SystemTime>,
    now: SystemTime,
) -> Result<String, IdentityError> {
    let since_1970 = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let revoked = revoked.iter().map(|(serial, time)| RevokedCertParams {
        serial_number: SerialNumber::from_slice(serial),
        revocation_time: (*time).into(),
        reason_code: None,
        invalidity_date: None,
    });
    let list = CertificateRevocationListParams {
        this_update: now.checked_sub(BACKDATE).unwrap_or(now).into(),
        next_update: root.not_after.into(),
        // Grows with each list (RFC 5280, 5.2.3).
        crl_number: SerialNumber::from(since_1970.as_millis() as u64),
        issuing_distribution_point: None,
        revoked_certs: revoked.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let issuer = Issuer::from_ca_cert_der(&root.certificate, &*root.key)?;
    Ok(list.signed_by(&issuer)?.pem()?)
}

/// Parameters with a random serial number, no subject, and a time from [`BACKDATE`] ago to `not_after`.
fn validity(now: SystemTime, not_after: SystemTime) -> Result<CertificateParams, IdentityError> {
    let mut serial = [0; 16];
    provider().secure_random.fill(&mut serial).map_err(|_| IdentityError::Random)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = now.checked_sub(BACKDATE).unwrap_or(now).into();
    params.not_after = not_after.into();
    Ok(params)
}

fn uri(text: &str) -> Result<SanType, IdentityError> {
    Ok(SanType::URI(Ia5String::try_from(text)?))
}
