use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use orlop_model::{Identity, TrustDomain};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, RevokedCertParams, SanType, SerialNumber,
};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime,
};
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::error::{NO_CERTIFICATE, NO_KEY};
use crate::leaf::{Leaf, hex};
use crate::verify::Role;
use crate::workload::CertificateRequest;
use crate::{IdentityError, IssuedChain, Trust, provider};

/// An authority's certificate with its key: a root, or an intermediate of one.
pub struct Signer {
    pub(crate) key: Zeroizing<KeyPair>,
    pub(crate) certificate: CertificateDer<'static>,
    /// What leads from a leaf to the root, without either: this certificate first, unless it is the root.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
}

impl Signer {
    /// A new root for `trust_domain`, valid for ten years, and its key as PEM.
    pub fn generate(trust_domain: &TrustDomain, now: SystemTime) -> Result<NewRoot, IdentityError> {
        let key = Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?);
        let certificate = self_signed_root(&key, trust_domain, now)?;
        Ok(NewRoot { key: Zeroizing::new(key.serialize_pem()), certificate: certificate.pem() })
    }

    /// Reads `key` (PKCS#8, PKCS#1 or SEC1), the certificate that it signs with, and `chain`, which leads from that to
    /// a root: the certificate may be its first. All are PEM. Nothing is said about whether the chain holds.
    pub fn from_pem(
        key: &[u8],
        certificate: &[u8],
        chain: &[u8],
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, IdentityError> {
        let unusable = |reason: String| IdentityError::Authority { reason };
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|_| unusable(format!("its key can't be read: {NO_KEY}")))?;
        let key = KeyPair::try_from(&key).map(Zeroizing::new);
        let key = key.map_err(|error| unusable(format!("its key can't be used: {error}")))?;
        let certificate = CertificateDer::from_pem_slice(certificate)
            .map_err(|_| unusable(format!("its certificate can't be read: {NO_CERTIFICATE}")))?;
        let mut path = vec![certificate.clone()];
        for next in CertificateDer::pem_slice_iter(chain) {
            let next = next.map_err(|_| unusable(format!("its chain can't be read: {NO_CERTIFICATE}")))?;
            if !path.contains(&next) {
                path.push(next);
            }
        }
        let mut intermediates = Vec::new();
        for one in path {
            if !Leaf::read(&one).map_err(unusable)?.self_issued {
                intermediates.push(one);
            }
        }
        let leaf = Leaf::read(&certificate).map_err(unusable)?;
        if !leaf.ca || !leaf.signs_certificates {
            return Err(unusable("its certificate may not sign certificates".to_owned()));
        }
        if leaf.public_key != key.subject_public_key_info() {
            return Err(unusable("its key is not its certificate's".to_owned()));
        }
        let (not_before, not_after) = (leaf.not_before, leaf.not_after);
        let trust_domain = trust_domain.clone();
        let signer = Self { key, certificate, chain: intermediates, trust_domain, not_before, not_after };
        signer.check_time(now)?;
        Ok(signer)
    }

    /// A certificate for `identity`, for the key that `csr_der` (PKCS#10) proves to have.
    ///
    /// Names in the request are ignored. The certificate is valid from two minutes before `now`
    /// until `lifetime` after it, or as long as its issuer if that is shorter.
    pub fn sign(
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
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr_der))
            .map_err(|error| IdentityError::Request(error.to_string()))?;
        // The request's algorithm is that of its signature: a P-384 key can sign with SHA-256 too.
        let key = &request.public_key;
        if PublicKeyData::algorithm(key) != &PKCS_ECDSA_P256_SHA256 || key.der_bytes().len() != P256_POINT {
            return Err(IdentityError::Request("its key is not ECDSA P-256".to_owned()));
        }
        let mut params = self.leaf(lifetime, now)?;
        params.subject_alt_names = vec![uri(identity.as_str())?];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.certify(&params, key)
    }

    /// A certificate, with a new key, for a server that is called by these DNS names.
    pub fn serving(
        &self,
        names: &[String],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<CertifiedKey, IdentityError> {
        let key = Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?);
        let mut params = self.leaf(lifetime, now)?;
        let name = |name: &String| Ok(SanType::DnsName(Ia5String::try_from(name.as_str())?));
        params.subject_alt_names = names.iter().map(name).collect::<Result<_, IdentityError>>()?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let chain = self.certify(&params, &*key)?.certificates;
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialized_der()));
        Ok(CertifiedKey::new(chain, any_supported_type(&der)?))
    }

    pub(crate) fn check_time(&self, now: SystemTime) -> Result<(), IdentityError> {
        if now >= self.not_after {
            return Err(IdentityError::RootExpired { not_after: self.not_after.into() });
        }
        if now < self.not_before {
            return Err(IdentityError::RootNotYetValid { not_before: self.not_before.into() });
        }
        Ok(())
    }

    /// Whether peers with `trust` accept what it signs: tried, since a key without its chain, or a bundle without the
    /// root, would be noticed by every one of them and by nobody here.
    pub fn leads_to(&self, trust: &Trust) -> Result<(), IdentityError> {
        let trial = Identity::new(&self.trust_domain, "orlop", "trial");
        let request = CertificateRequest::new(&trial)?;
        let (lifetime, now) = (Duration::from_secs(60), SystemTime::now());
        let issued = self.sign(&trial, request.der(), lifetime, now)?.certificates;
        let found = match issued.split_first() {
            Some((leaf, chain)) => trust.verify(leaf, chain, Role::Server, UnixTime::now()),
            None => Ok(()),
        };
        found.map_err(|error| IdentityError::Authority {
            reason: format!("its certificate leads to none of the roots beside it ({error})"),
        })
    }

    fn leaf(&self, lifetime: Duration, now: SystemTime) -> Result<CertificateParams, IdentityError> {
        self.check_time(now)?;
        let mut params = validity(now, self.end(lifetime, now))?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }

    fn certify(
        &self,
        params: &CertificateParams,
        key: &impl PublicKeyData,
    ) -> Result<IssuedChain, IdentityError> {
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &*self.key)?;
        let leaf = params.signed_by(key, &issuer)?.der().clone();
        Ok(IssuedChain { certificates: [vec![leaf], self.chain.clone()].concat() })
    }

    fn end(&self, lifetime: Duration, now: SystemTime) -> SystemTime {
        self.not_after.min(now.checked_add(lifetime).unwrap_or(self.not_after))
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("trust_domain", &self.trust_domain)
            .field("not_after", &OffsetDateTime::from(self.not_after))
            .finish_non_exhaustive()
    }
}

/// What [`Signer::generate`] makes, as PEM.
pub struct NewRoot {
    /// PKCS#8.
    pub key: Zeroizing<String>,
    /// Self-signed.
    pub certificate: String,
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
    root: &Signer,
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
