//! Whom a mesh trusts at one moment: the roots, and what they have revoked.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor, UnixTime};
use rustls::{CertificateError, Error, OtherError};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList,
    RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy, anchor_from_trusted_cert,
};

use crate::bundle::trust_in;
use crate::grpc::to_pem;
use crate::leaf::{Leaf, revoked_serials};
use crate::verify::Role;
use crate::{IdentityError, Signer, provider};

/// The roots that peers' chains may lead to, and the certificates that those have revoked.
///
/// Immutable: a change makes another one, which [`crate::CertificateAuthority::trust`] tells of, and every handshake
/// from then on is judged by that.
pub struct Trust {
    /// The one that signs first.
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    lists: Vec<CertificateRevocationListDer<'static>>,
    revocations: Vec<CertRevocationList<'static>>,
}

impl Trust {
    /// Trusts `issuer`, which signs this authority's certificates, and `others`; of two alike one is kept. Each of
    /// `lists` (RFC 5280 CRLs) counts for certificates of the root, or intermediate authority, that signed it.
    ///
    /// A root that is not an authority's certificate, or a list that can't be read, is an error.
    pub fn new(
        issuer: CertificateDer<'static>,
        others: impl IntoIterator<Item = CertificateDer<'static>>,
        lists: Vec<CertificateRevocationListDer<'static>>,
    ) -> Result<Self, IdentityError> {
        let mut roots = vec![issuer];
        for root in others {
            if !roots.contains(&root) {
                roots.push(root);
            }
        }
        let unusable = |error: webpki::Error| IdentityError::Trust(error.to_string());
        let anchor = |root| anchor_from_trusted_cert(root).map(|anchor| anchor.to_owned()).map_err(unusable);
        let anchors = roots.iter().map(anchor).collect::<Result<_, _>>()?;
        let revocation = |list: &CertificateRevocationListDer<'_>| {
            OwnedCertRevocationList::from_der(list).map(Into::into).map_err(unusable)
        };
        let revocations = lists.iter().map(revocation).collect::<Result<_, _>>()?;
        Ok(Self { roots, anchors, lists, revocations })
    }

    /// Trusts the certificates in a PEM text, the first of which signs, and the revocation lists in it.
    pub fn from_pem(text: &[u8]) -> Result<Self, IdentityError> {
        trust_in(text).map_err(IdentityError::Trust)
    }

    /// The roots as PEM, that which signs first.
    pub fn to_pem(&self) -> String {
        self.roots.iter().map(to_pem).collect()
    }

    /// Every root, that which signs first.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The same with the root first that `signer` leads to.
    pub fn led_by(&self, signer: &Signer) -> Result<Self, IdentityError> {
        let mut roots = self.roots.clone();
        for at in 0..roots.len() {
            let alone = Self::new(roots[at].clone(), [], self.lists.clone())?;
            if signer.leads_to(&alone).is_ok() {
                roots[..=at].rotate_right(1);
                break;
            }
        }
        let mut roots = roots.into_iter();
        let first = roots.next().ok_or_else(|| IdentityError::Trust("there is no root".to_owned()))?;
        Self::new(first, roots, self.lists.clone())
    }

    /// The root that signs: when it changes, certificates are renewed.
    pub(crate) fn issuer(&self) -> Option<&CertificateDer<'static>> {
        self.roots.first()
    }

    /// The roots' serial numbers, in lower-case hex.
    pub fn root_serials(&self) -> Vec<String> {
        self.roots.iter().filter_map(|root| Leaf::read(root).ok()).map(|root| root.serial).collect()
    }

    /// How many certificates are revoked: those of two roots count twice if both lists hold them.
    pub fn revoked(&self) -> usize {
        self.lists.iter().filter_map(|list| revoked_serials(list).ok()).map(|serials| serials.len()).sum()
    }

    /// Whether the issuer of a certificate has revoked it. Says nothing else about it.
    pub(crate) fn is_revoked(&self, certificate: &CertificateDer<'_>) -> bool {
        if self.revocations.is_empty() {
            return false;
        }
        let Ok(certificate) = EndEntityCert::try_from(certificate) else { return true };
        let lists = self.revocations.iter().filter(|list| list.issuer() == certificate.issuer());
        // A list that can't be searched vouches for nobody.
        lists.map(|list| list.find_serial(certificate.serial())).any(|found| !matches!(found, Ok(None)))
    }

    /// Whether the same root signs by both.
    pub fn signs_as(&self, other: &Self) -> bool {
        self.issuer() == other.issuer()
    }

    /// Checks that a chain leads to a root and is good for `role` at `now`, and that neither its leaf nor an
    /// intermediate is revoked.
    pub(crate) fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<(), Error> {
        let usage = match role {
            Role::Client => KeyUsage::client_auth(),
            Role::Server => KeyUsage::server_auth(),
        };
        let lists: Vec<_> = self.revocations.iter().collect();
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            options
                .with_depth(RevocationCheckDepth::Chain)
                // An authority without a list has revoked nothing; what an expired list revokes stays revoked.
                .with_status_policy(UnknownStatusPolicy::Allow)
                .with_expiration_policy(ExpirationPolicy::Ignore)
                .build()
        });
        let algorithms = provider().signature_verification_algorithms.all;
        EndEntityCert::try_from(leaf)
            .and_then(|leaf| {
                leaf.verify_for_usage(algorithms, &self.anchors, intermediates, now, usage, revocation, None)
                    .map(drop)
            })
            .map_err(refused)
    }
}

impl PartialEq for Trust {
    fn eq(&self, other: &Self) -> bool {
        self.roots == other.roots && self.lists == other.lists
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust")
            .field("roots", &self.root_serials())
            .field("revoked", &self.revoked())
            .finish()
    }
}

/// In rustls's words, which decide on the alert that the peer is sent.
fn refused(error: webpki::Error) -> Error {
    Error::InvalidCertificate(match error {
        webpki::Error::CertRevoked => CertificateError::Revoked,
        webpki::Error::CertExpired { time, not_after } => {
            CertificateError::ExpiredContext { time, not_after }
        }
        webpki::Error::CertNotValidYet { time, not_before } => {
            CertificateError::NotValidYetContext { time, not_before }
        }
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
        webpki::Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        webpki::Error::BadDer | webpki::Error::BadDerTime | webpki::Error::TrailingData(_) => {
            CertificateError::BadEncoding
        }
        error => CertificateError::Other(OtherError(Arc::new(error))),
    })
}
