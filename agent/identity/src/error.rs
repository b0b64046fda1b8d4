use std::io;
use std::path::PathBuf;

use orlop_model::{Identity, TrustDomain};
use thiserror::Error;
use time::OffsetDateTime;

/// Said of a private key instead of what its parser says, which is what it has read: that would be in logs.
pub(crate) const NO_KEY: &str = "it is no private key in PEM";
/// The same of what may be one in the wrong place.
pub(crate) const NO_CERTIFICATE: &str = "it is no certificate in PEM";
/// And of what is beside one.
pub(crate) const NO_LIST: &str = "it is no list of what is revoked in PEM";

/// Why the authority, a certificate or a configuration can't be had.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// A file of the CA directory can't be made, opened, read or written.
    #[error("cannot {action} {}: {source}; check --ca-dir, its owner and its permissions", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody other than the owner can replace files in the CA directory.
    #[error("{} can be written by others (mode {mode:04o}), who could swap the root; run: chmod 700 {}", path.display(), path.display())]
    DirectoryExposed {
        /// The CA directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Somebody other than the owner can read the root key.
    #[error("{} can be used by others (mode {mode:04o}); run: chmod 600 {}, and make a new root if it may have been read", path.display(), path.display())]
    KeyExposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// One of the root's two files is gone.
    #[error("{} is there but {} is not; restore it, or remove the first to start a new root (certificates of the old one are then refused)", present.display(), missing.display())]
    HalfPresent {
        /// The file that is there.
        present: PathBuf,
        /// The file that is not.
        missing: PathBuf,
    },
    /// A file of the root doesn't hold what it should.
    #[error("{} holds no usable {what}: {reason}; restore it, or remove both root files to start a new root", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What was looked for in it.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A rotation of the root was begun and not ended.
    #[error("{} is there: the last rotation is not finished; run: orlop ca rotate --finish", path.display())]
    RotationUnfinished {
        /// The previous root's certificate.
        path: PathBuf,
    },
    /// There is no rotation to end.
    #[error("{} is not there: no rotation has been begun; run: orlop ca rotate", path.display())]
    NoRotation {
        /// The previous root's certificate.
        path: PathBuf,
    },
    /// A root or a revocation list is not what it should be.
    #[error("a trusted root or revocation list can't be used: {0}; check trust.pem in --ca-dir")]
    Trust(String),
    /// A certificate for clients from outside the mesh can't be shown.
    #[error("{0}")]
    Served(String),
    /// The root's key and certificate don't belong together.
    #[error("{} is not the key of {}; restore the right one, or remove both to start a new root", key.display(), certificate.display())]
    KeyMismatch {
        /// The key file.
        key: PathBuf,
        /// The certificate file.
        certificate: PathBuf,
    },
    /// The root certificate's time is over.
    #[error("the root certificate expired at {not_after}; remove both root files to start a new root")]
    RootExpired {
        /// When it ended.
        not_after: OffsetDateTime,
    },
    /// The root certificate's time has not begun.
    #[error("the root certificate is valid only from {not_before}; check this machine's clock")]
    RootNotYetValid {
        /// When it begins.
        not_before: OffsetDateTime,
    },
    /// The root belongs to another trust domain.
    #[error(
        "the root certificate is of {found}, not of spiffe://{expected}; give another --ca-dir or --trust-domain"
    )]
    RootTrustDomain {
        /// What its SAN says.
        found: String,
        /// The trust domain that was asked for.
        expected: TrustDomain,
    },
    /// An authority's certificate with its key is not what it should be.
    #[error("the certificate authority can't be used: {reason}; restore what it was given")]
    Authority {
        /// What is wrong with it.
        reason: String,
    },
    /// The authority elsewhere has not answered.
    #[error("no answer from the certificate authority {address}: {reason}")]
    Unreachable {
        /// Its URL.
        address: String,
        /// What went wrong.
        reason: String,
    },
    /// The authority elsewhere has refused.
    #[error("the certificate authority {address} refuses a certificate for {identity}: {reason}")]
    Refused {
        /// Its URL.
        address: String,
        /// Whom it was to be for.
        identity: Identity,
        /// In its own words.
        reason: String,
    },
    /// What is needed to ask the authority elsewhere can't be used.
    #[error("cannot ask a certificate authority: {reason}")]
    Client {
        /// What is wrong.
        reason: String,
    },
    /// An identity of another trust domain was asked for.
    #[error(
        "{identity} is not in trust domain {trust_domain}; only its own identities can be issued or dialled"
    )]
    ForeignTrustDomain {
        /// The identity.
        identity: Identity,
        /// The trust domain served here.
        trust_domain: TrustDomain,
    },
    /// The request is malformed, or not signed with the key it holds.
    #[error(
        "the certificate request was refused: {0}; it must be PKCS#10, signed with its own ECDSA P-256 key"
    )]
    Request(String),
    /// A key or certificate could not be made.
    #[error("cannot make a key or certificate: {0}")]
    Generate(#[from] rcgen::Error),
    /// The system gave no random bytes.
    #[error("the system gave no random bytes for a serial number")]
    Random,
    /// The authority returned something else than was asked for.
    #[error("the certificate issued for {identity} can't be used: {reason}; check the certificate authority")]
    Issued {
        /// Whom it was to be for.
        identity: Identity,
        /// What is wrong with it.
        reason: String,
    },
    /// No certificate was ever asked for on behalf of this identity.
    #[error("no certificate is kept for {0}; it has no enrolled pod on this node")]
    NotKept(Identity),
    /// rustls refused a key, a root or a configuration.
    #[error("TLS can't be set up: {0}")]
    Tls(#[from] rustls::Error),
}
