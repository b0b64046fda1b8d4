use orlop_model::{Identity, TrustDomain};
use rustls::pki_types::CertificateDer;
use thiserror::Error;

use crate::leaf::Leaf;

/// The identity in a peer's certificate: its one URI SAN, well formed and in `trust_domain`.
///
/// `certs` is what rustls holds after a handshake, leaf first. Only the names are read: the chain
/// has been verified by the handshake, whose configurations come from [`crate::Identities`].
pub fn peer_identity(
    certs: &[CertificateDer<'_>],
    trust_domain: &TrustDomain,
) -> Result<Identity, PeerError> {
    let leaf = Leaf::read(certs.first().ok_or(PeerError::NoCertificate)?).map_err(PeerError::Malformed)?;
    identity_of(&leaf, std::slice::from_ref(trust_domain))
}

/// Why a peer's certificate names nobody we talk to.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PeerError {
    /// It presented none.
    #[error("the peer presented no certificate")]
    NoCertificate,
    /// It can't be read, or says something twice.
    #[error("the peer's certificate is malformed: {0}")]
    Malformed(String),
    /// No URI SAN; a DNS name or a common name is no identity.
    #[error("the peer's certificate has no URI SAN")]
    NoUri,
    /// More than one URI SAN: which one is meant can't be told.
    #[error("the peer's certificate has {0} URI SANs, not one")]
    SeveralUris(usize),
    /// Not `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`.
    #[error("the peer's URI SAN {uri:?} is not a workload's: {reason}")]
    NotAWorkload {
        /// The SAN, cut to a length fit for a log.
        uri: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An identity of a trust domain that is not accepted here.
    #[error("the peer {0} is of another trust domain")]
    ForeignTrustDomain(Identity),
    /// It may sign certificates: an authority's, not a workload's (X509-SVID, section 4).
    #[error("the peer's certificate is an authority's, not a workload's")]
    Authority,
    /// Its extended key usage doesn't say that it may be used so.
    #[error("the peer's certificate is not for {0}")]
    Purpose(&'static str),
    /// A workload, but not the one we meant to reach.
    #[error("the peer is {presented}, not {expected}")]
    Mismatch {
        /// Whom we dialled.
        expected: Identity,
        /// Who answered.
        presented: Identity,
    },
}

/// The end of a connection that the certificate is shown by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

/// Everything asked of a peer's leaf beyond the chain. `trust_domains` are those accepted: its own,
/// and its aliases once there are some.
pub(crate) fn peer_in_role(
    leaf: &CertificateDer<'_>,
    role: Role,
    trust_domains: &[TrustDomain],
) -> Result<Identity, PeerError> {
    let leaf = Leaf::read(leaf).map_err(PeerError::Malformed)?;
    if leaf.ca || leaf.signs_certificates {
        return Err(PeerError::Authority);
    }
    // webpki lets a certificate without this extension pass for any purpose.
    match role {
        Role::Client if !leaf.client_auth => return Err(PeerError::Purpose("client authentication")),
        Role::Server if !leaf.server_auth => return Err(PeerError::Purpose("server authentication")),
        Role::Client | Role::Server => {}
    }
    identity_of(&leaf, trust_domains)
}

fn identity_of(leaf: &Leaf, trust_domains: &[TrustDomain]) -> Result<Identity, PeerError> {
    let uri = match leaf.uris.as_slice() {
        [] => return Err(PeerError::NoUri),
        [uri] => uri,
        several => return Err(PeerError::SeveralUris(several.len())),
    };
    let identity: Identity =
        uri.parse().map_err(|error: orlop_model::IdentityError| PeerError::NotAWorkload {
            uri: uri.chars().take(MAX_SHOWN).collect(),
            reason: error.to_string().chars().take(MAX_SHOWN).collect(),
        })?;
    if !trust_domains.iter().any(|accepted| accepted.as_str() == identity.trust_domain()) {
        return Err(PeerError::ForeignTrustDomain(identity));
    }
    Ok(identity)
}

/// A peer chooses the SAN, up to a record's worth of it: so much goes into a log line.
const MAX_SHOWN: usize = 128;
