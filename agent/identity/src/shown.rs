use std::fmt;
use std::time::SystemTime;

use rustls::pki_types::{CertificateDer, UnixTime};

use crate::verify::Role;
use crate::{HandshakeFailure, Trust, classify};

/// The chain that a peer showed in a handshake which succeeded: to be judged again when it changes whom to trust.
pub struct PeerChain {
    role: Role,
    /// Leaf first.
    certificates: Vec<CertificateDer<'static>>,
    /// When it was verified. That a certificate expires ends no connection.
    at: UnixTime,
}

impl PeerChain {
    /// What a server has shown. `None` if that is nothing.
    pub fn of_server(certificates: Vec<CertificateDer<'static>>) -> Option<Self> {
        Self::new(Role::Server, certificates)
    }

    /// What a client has shown. `None` if that is nothing.
    pub fn of_client(certificates: Vec<CertificateDer<'static>>) -> Option<Self> {
        Self::new(Role::Client, certificates)
    }

    fn new(role: Role, certificates: Vec<CertificateDer<'static>>) -> Option<Self> {
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        (!certificates.is_empty()).then_some(Self { role, certificates, at: UnixTime::since_unix_epoch(at) })
    }
}

impl fmt::Debug for PeerChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerChain").field("role", &self.role).finish_non_exhaustive()
    }
}

impl Trust {
    /// Whether a peer's chain is still good: it leads to one of the roots, and nothing in it is revoked.
    pub fn judge(&self, shown: &PeerChain) -> Result<(), HandshakeFailure> {
        let (leaf, intermediates) =
            shown.certificates.split_first().ok_or(HandshakeFailure::NoClientCertificate)?;
        self.verify(leaf, intermediates, shown.role, shown.at).map_err(|error| classify(&error))
    }
}
