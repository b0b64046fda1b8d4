use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use orlop_model::{Identity, TrustDomain};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};

use crate::root_files::{self, Root};
use crate::{IdentityError, provider};

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

    /// What peers' chains must lead to.
    fn roots(&self) -> Vec<CertificateDer<'static>>;
}

/// What an authority returns: the leaf, then its issuers, without the root.
#[derive(Clone)]
pub struct IssuedChain {
    /// Never empty; leaf first.
    pub certificates: Vec<CertificateDer<'static>>,
}

/// An authority in this process, with its root in a directory that the nodes of one machine share.
pub struct EmbeddedCa {
    root: Root,
    trust_domain: TrustDomain,
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
        let root = root_files::open(dir, trust_domain, now)?;
        Ok(Self { root, trust_domain: trust_domain.clone() })
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
        self.root.check_time(now)?;
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr_der))
            .map_err(|error| IdentityError::Request(error.to_string()))?;
        // The request's algorithm is that of its signature: a P-384 key can sign with SHA-256 too.
        let key = &request.public_key;
        if PublicKeyData::algorithm(key) != &PKCS_ECDSA_P256_SHA256 || key.der_bytes().len() != P256_POINT {
            return Err(IdentityError::Request("its key is not ECDSA P-256".to_owned()));
        }

        let not_after = self.root.not_after.min(now.checked_add(lifetime).unwrap_or(self.root.not_after));
        let mut params = validity(now, not_after)?;
        params.subject_alt_names = vec![uri(identity.as_str())?];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_der(&self.root.certificate, &*self.root.key)?;
        let certificate = params.signed_by(key, &issuer)?;
        Ok(IssuedChain { certificates: vec![certificate.der().clone()] })
    }

    fn roots(&self) -> Vec<CertificateDer<'static>> {
        vec![self.root.certificate.clone()]
    }
}

impl fmt::Debug for EmbeddedCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedCa").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

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
    params.distinguished_name.push(DnType::CommonName, "root");
    params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))?];
    // It signs workloads and no further authority.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params.self_signed(key)?)
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
