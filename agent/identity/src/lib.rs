//! SPIFFE identities on the wire: the certificate authority, workload certificates and their
//! renewal, and the rustls configurations that make and check them.
//!
//! [`Identities`] is the way in: [`Identities::ensure`] a certificate when a pod is enrolled, take
//! [`Identities::server_config`] for its HBONE listener and [`Identities::client_config`] for each
//! peer, and keep [`Identities::run`] going for renewal. Whom to trust is a [`Trust`], read at every
//! handshake: roots may be several and change, and certificates may be revoked while connections are open. After a handshake [`require_h2`] and
//! [`peer_identity`] say who is there; after a failed one [`classify_io`] says why.
//!
//! Everything fails closed: with no valid certificate in hand there is no handshake, and a peer is
//! who its one URI SAN says, or nobody. Private keys are never printed and never leave the process,
//! the embedded authority's own key file aside.
#![forbid(unsafe_code)]

mod authorities;
mod bundle;
mod ca;
mod clock;
mod config_cache;
mod credential;
mod error;
mod failure;
mod given;
mod grpc;
mod held;
pub mod jwt;
mod leaf;
mod outside;
mod renewal;
mod root_files;
mod served;
mod shown;
mod signer;
mod store;
mod tls;
mod trust;
mod verify;
mod workload;

pub use authorities::{Authorities, ReadyAuthorities};
pub use ca::{CertificateAuthority, EmbeddedCa, IssuedChain, Issuing, POLL};
pub use clock::Clock;
pub use credential::{ClientCredential, ClientCredentials};
pub use error::IdentityError;
pub use failure::{CertificateUnavailable, HandshakeFailure, classify, classify_io, require_h2};
pub use given::{GivenCa, ServingTls};
pub use grpc::{Admission, CaAddress, CertificateService, Gate, Refusal, RemoteCa};
pub use held::{CertificateInfo, CertificateState};
pub use leaf::{parse_serial, serials_in};
pub use outside::outside_config;
pub use served::{ServedCertificate, ServedCertificates, outsiders_config};
pub use shown::PeerChain;
pub use signer::{NewRoot, Signer};
pub use store::Identities;
pub use tls::{ALPN_H2, provider};
pub use trust::Trust;
pub use verify::{PeerError, peer_identity};
pub use workload::{CertificateRequest, DEFAULT_LIFETIME, WorkloadCertificate};

/// What fuzz targets reach.
#[cfg(fuzzing)]
pub mod fuzzing {
    use orlop_model::{Identity, TrustDomain};
    use rustls::pki_types::CertificateDer;

    use crate::verify::{Role, peer_in_role};

    /// Whom the handshake would take the owner of `leaf` for, as a client and as a server.
    pub fn in_either_role<'a>(
        leaf: &'a CertificateDer<'_>,
        trust_domain: &'a TrustDomain,
    ) -> impl Iterator<Item = Identity> {
        let accepted = std::slice::from_ref(trust_domain);
        [Role::Client, Role::Server]
            .into_iter()
            .filter_map(move |role| peer_in_role(leaf, role, accepted).ok())
    }
}
