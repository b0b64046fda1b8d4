//! Whose signatures are believed of servers outside of the mesh, and what they have revoked.

use std::fmt;
use std::sync::{Arc, LazyLock};

use orlop_model::world::routing::Pem;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, Error, OtherError, RootCertStore};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList,
    RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
};

use crate::config_cache::ConfigCache;
use crate::error::{IdentityError, NO_CERTIFICATE, NO_LIST};

/// How many are kept ready. Each is of at most as much text as one policy may name.
const READY: usize = 64;

static PUBLIC: LazyLock<Arc<Authorities>> = LazyLock::new(|| {
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    Arc::new(Authorities { roots, revoked: Vec::new() })
});

/// Whose signatures are believed, and what they have revoked.
pub struct Authorities {
    roots: RootCertStore,
    /// Without any, nothing is asked about being revoked.
    revoked: Vec<CertRevocationList<'static>>,
}

impl Authorities {
    /// The public ones that browsers know.
    pub fn public() -> Arc<Self> {
        Arc::clone(&PUBLIC)
    }

    /// Those of these certificates alone, with lists of what they have revoked, all as PEM. Where there is a list, there
    /// must be one of everybody who has signed a certificate of a chain, and none that is out of date.
    pub fn from_pem(certificates: &[u8], revoked: Option<&[u8]>) -> Result<Self, IdentityError> {
        Self::new(&[certificates], revoked)
    }

    fn new(certificates: &[&[u8]], revoked: Option<&[u8]>) -> Result<Self, IdentityError> {
        let unusable = |error: &dyn fmt::Display| IdentityError::Trust(error.to_string());
        let mut roots = RootCertStore::empty();
        for root in certificates.iter().flat_map(|text| CertificateDer::pem_slice_iter(text)) {
            let root = root.map_err(|_| unusable(&NO_CERTIFICATE))?;
            roots.add(root).map_err(|error| unusable(&error))?;
        }
        if roots.is_empty() {
            return Err(unusable(&"there is no certificate in it"));
        }
        let lists = revoked.into_iter().flat_map(CertificateRevocationListDer::pem_slice_iter);
        let lists = lists.map(|list| {
            let list = list.map_err(|_| unusable(&NO_LIST))?;
            let list = OwnedCertRevocationList::from_der(&list).map_err(|error| unusable(&error))?;
            Ok(CertRevocationList::Owned(list))
        });
        let lists = lists.collect::<Result<Vec<_>, IdentityError>>()?;
        if revoked.is_some() && lists.is_empty() {
            return Err(unusable(&"there is no list of what is revoked in it"));
        }
        Ok(Self { roots, revoked: lists })
    }

    /// Whether one of them has signed the certificate, and none has taken that back.
    pub(crate) fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<(), Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let all = algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, all)?;
        let lists: Vec<_> = self.revoked.iter().collect();
        let Ok(revoked) = RevocationOptionsBuilder::new(&lists) else { return Ok(()) };
        let revoked = revoked
            .with_depth(RevocationCheckDepth::Chain)
            .with_status_policy(UnknownStatusPolicy::Deny)
            .with_expiration_policy(ExpirationPolicy::Enforce)
            .build();
        let certificate = EndEntityCert::try_from(end_entity).map_err(refused)?;
        let (anchors, usage) = (&self.roots.roots, KeyUsage::server_auth());
        let verified =
            certificate.verify_for_usage(all, anchors, intermediates, now, usage, Some(revoked), None);
        verified.map(drop).map_err(refused)
    }
}

/// As rustls says it.
fn refused(error: webpki::Error) -> Error {
    match error {
        webpki::Error::CertRevoked => CertificateError::Revoked,
        webpki::Error::UnknownRevocationStatus => CertificateError::UnknownRevocationStatus,
        webpki::Error::CrlExpired { .. } => CertificateError::ExpiredRevocationList,
        error => CertificateError::Other(OtherError(Arc::new(error))),
    }
    .into()
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { roots, revoked } = self;
        write!(f, "Authorities({} roots, {} lists)", roots.len(), revoked.len())
    }
}

/// Authorities by their texts, which are not read for each connection.
pub struct ReadyAuthorities(ConfigCache<Vec<Pem>, Authorities>);

impl ReadyAuthorities {
    /// Those of all of these.
    pub fn of(&self, texts: &[Pem]) -> Result<Arc<Authorities>, IdentityError> {
        self.0.get_or_make_apart(texts.to_vec(), || {
            let texts: Vec<_> = texts.iter().map(|text| text.as_str().as_bytes()).collect();
            Authorities::new(&texts, None)
        })
    }
}

impl Default for ReadyAuthorities {
    fn default() -> Self {
        Self(ConfigCache::new(READY))
    }
}
