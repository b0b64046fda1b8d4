use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use orlop_model::Identity;
use rcgen::string::Ia5String;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::leaf::Leaf;
use crate::{IdentityError, IssuedChain};

/// How long workload certificates are valid unless told otherwise.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// A workload's certificate with its key, which never leaves this process.
#[derive(Clone)]
pub struct WorkloadCertificate {
    /// Whose it is.
    pub identity: Identity,
    /// Leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Chain and private key, as rustls takes them.
    pub key: Arc<CertifiedKey>,
    /// From when it is valid.
    pub not_before: SystemTime,
    /// Until when it is valid.
    pub not_after: SystemTime,
    /// Lower-case hex.
    pub serial: String,
}

impl WorkloadCertificate {
    /// Whether it can be shown at `now`.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        self.not_before <= now && now < self.not_after
    }

    fn check(identity: &Identity, key: CertifiedKey, now: SystemTime) -> Result<Self, IdentityError> {
        let unusable = |reason: String| IdentityError::Issued { identity: identity.clone(), reason };
        let certificate = key.cert.first().ok_or_else(|| unusable("the chain is empty".to_owned()))?;
        let leaf = Leaf::read(certificate).map_err(unusable)?;
        key.keys_match().map_err(|error| unusable(error.to_string()))?;
        if leaf.uris != [identity.as_str()] {
            return Err(unusable(format!("its URI SANs are {:?}", leaf.uris)));
        }
        if leaf.ca || leaf.signs_certificates || !leaf.server_auth || !leaf.client_auth {
            return Err(unusable("it is not for server and client authentication alone".to_owned()));
        }
        let made = Self {
            identity: identity.clone(),
            chain: key.cert.clone(),
            key: Arc::new(key),
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            serial: leaf.serial,
        };
        if made.is_valid_at(now) { Ok(made) } else { Err(unusable(format!("it is not valid now: {made:?}"))) }
    }
}

/// A new key, and the request for its certificate.
pub struct CertificateRequest {
    identity: Identity,
    key: Zeroizing<KeyPair>,
    request: rcgen::CertificateSigningRequest,
}

impl CertificateRequest {
    /// Makes a key for `identity`.
    pub fn new(identity: &Identity) -> Result<Self, IdentityError> {
        let key = Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?);
        let mut request = CertificateParams::default();
        request.distinguished_name = DistinguishedName::new();
        request.subject_alt_names = vec![SanType::URI(Ia5String::try_from(identity.as_str())?)];
        let request = request.serialize_request(&*key)?;
        Ok(Self { identity: identity.clone(), key, request })
    }

    /// The request, PKCS#10.
    pub fn der(&self) -> &[u8] {
        self.request.der()
    }

    /// With what the authority has issued, which is checked before it is used.
    pub fn complete(
        self,
        issued: IssuedChain,
        now: SystemTime,
    ) -> Result<WorkloadCertificate, IdentityError> {
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.serialized_der()));
        let key = CertifiedKey::new(issued.certificates, any_ecdsa_type(&der)?);
        WorkloadCertificate::check(&self.identity, key, now)
    }
}

impl fmt::Debug for CertificateRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateRequest").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl fmt::Debug for WorkloadCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadCertificate")
            .field("identity", &self.identity)
            .field("serial", &self.serial)
            .field("not_before", &OffsetDateTime::from(self.not_before))
            .field("not_after", &OffsetDateTime::from(self.not_after))
            .finish_non_exhaustive()
    }
}
