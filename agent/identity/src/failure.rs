use std::error::Error as StdError;
use std::fmt;
use std::io;

use orlop_model::Identity;
use rustls::{AlertDescription, CertificateError, Error, OtherError};
use thiserror::Error;

use crate::tls::ALPN_H2;
use crate::verify::PeerError;

/// Why a handshake failed, as few fixed words for logs and metric labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HandshakeFailure {
    /// The client showed no certificate.
    NoClientCertificate,
    /// The peer's certificate is not one we trust: unknown issuer, expired, for another purpose, of
    /// another trust domain, without exactly one workload identity.
    UntrustedCertificate,
    /// The peer's certificate was revoked.
    RevokedCertificate,
    /// A trusted workload, but not the one we meant to reach.
    IdentityMismatch,
    /// The peer doesn't speak HTTP/2.
    AlpnMismatch,
    /// This side has no valid certificate to show.
    CertificateUnavailable,
    /// The peer refused what this side showed, or anything else about it.
    RefusedByPeer,
    /// Not TLS 1.3, broken off, or broken.
    Other,
}

impl HandshakeFailure {
    /// The reason in snake case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoClientCertificate => "no_client_certificate",
            Self::UntrustedCertificate => "untrusted_certificate",
            Self::RevokedCertificate => "revoked_certificate",
            Self::IdentityMismatch => "identity_mismatch",
            Self::AlpnMismatch => "alpn_mismatch",
            Self::CertificateUnavailable => "certificate_unavailable",
            Self::RefusedByPeer => "refused_by_peer",
            Self::Other => "tls_error",
        }
    }
}

impl fmt::Display for HandshakeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// This side's certificate is missing or expired, so it doesn't go on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("no valid certificate in hand for {0}; is the certificate authority answering?")]
pub struct CertificateUnavailable(pub Identity);

/// Says why rustls gave up on a handshake.
pub fn classify(error: &Error) -> HandshakeFailure {
    match error {
        Error::NoCertificatesPresented => HandshakeFailure::NoClientCertificate,
        Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) => {
            match cause.downcast_ref::<PeerError>() {
                Some(PeerError::Mismatch { .. }) => HandshakeFailure::IdentityMismatch,
                _ => HandshakeFailure::UntrustedCertificate,
            }
        }
        Error::InvalidCertificate(CertificateError::Revoked) => HandshakeFailure::RevokedCertificate,
        Error::InvalidCertificate(_) => HandshakeFailure::UntrustedCertificate,
        Error::Other(OtherError(cause)) if cause.is::<CertificateUnavailable>() => {
            HandshakeFailure::CertificateUnavailable
        }
        Error::NoApplicationProtocol | Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
            HandshakeFailure::AlpnMismatch
        }
        // What rustls says when a ResolvesServerCert has nothing; a test holds it to that.
        Error::General(text) if text == "no server certificate chain resolved" => {
            HandshakeFailure::CertificateUnavailable
        }
        Error::AlertReceived(_) => HandshakeFailure::RefusedByPeer,
        _ => HandshakeFailure::Other,
    }
}

/// [`classify`] for the [`io::Error`] that tokio-rustls wraps it in.
pub fn classify_io(error: &io::Error) -> HandshakeFailure {
    let mut cause = inner(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<Error>() {
            return classify(error);
        }
        // The source of an io::Error is its inner error's source, which passes that one over.
        cause = match error.downcast_ref::<io::Error>() {
            Some(error) => inner(error),
            None => error.source(),
        };
    }
    HandshakeFailure::Other
}

/// To be called after each handshake, on both ends: a peer that offers no ALPN at all gets through one.
///
/// `alpn` is the protocol that the handshake agreed on.
pub fn require_h2(alpn: Option<&[u8]>) -> Result<(), HandshakeFailure> {
    if alpn == Some(ALPN_H2) { Ok(()) } else { Err(HandshakeFailure::AlpnMismatch) }
}

fn inner(error: &io::Error) -> Option<&(dyn StdError + 'static)> {
    error.get_ref().map(|inner| inner as &(dyn StdError + 'static))
}
