//! The rustls configurations: TLS 1.3 only, mutual, ALPN `h2`, no SNI, no resumption.

use std::fmt;
use std::sync::{Arc, LazyLock};

use orlop_model::{Identity, TrustDomain};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    ServerConfig, SignatureScheme,
};
use tokio::sync::watch;

use crate::failure::CertificateUnavailable;
use crate::held::Held;
use crate::verify::{PeerError, Role, peer_in_role};
use crate::{Clock, IdentityError, Trust};

/// HTTP/2, the one protocol of HBONE.
pub const ALPN_H2: &[u8] = b"h2";

/// The cryptography of every connection: aws-lc-rs, X25519MLKEM768 first. Never the process's default.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    PROVIDER.clone()
}

/// Whom a configuration accepts. What is trusted is looked up at each handshake, so that a change needs no new
/// configuration.
pub(crate) struct Accepted {
    pub(crate) trust: watch::Receiver<Arc<Trust>>,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) clock: Clock,
}

impl Accepted {
    /// Who a peer is.
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<Identity, Error> {
        let trust = self.trust.borrow().clone();
        trust.verify(leaf, intermediates, role, now)?;
        peer_in_role(leaf, role, std::slice::from_ref(&self.trust_domain)).map_err(refused)
    }
}

pub(crate) fn server_config(own: OwnCertificate, accepted: Accepted) -> Result<ServerConfig, IdentityError> {
    let clock = accepted.clock.clone();
    let verifier = AnyWorkload { accepted, provider: provider() };
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(clock))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(own));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    // A resumed session would skip the verification of the peer's certificate: one that has expired or
    // was revoked since would go on being believed.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    // The proxy seals and opens records itself.
    config.enable_secret_extraction = true;
    Ok(config)
}

pub(crate) fn client_config(
    own: OwnCertificate,
    expected: Identity,
    accepted: Accepted,
) -> Result<ClientConfig, IdentityError> {
    let clock = accepted.clock.clone();
    let verifier = OneWorkload { accepted, provider: provider(), own: own.clone(), expected };
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(clock))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(own));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    // The peer is known by its URI SAN: a server name would only tell onlookers something.
    config.enable_sni = false;
    // As in server_config: each connection verifies anew whom it reached.
    config.resumption = Resumption::disabled();
    config.enable_secret_extraction = true;
    Ok(config)
}

/// The certificate this side shows, looked up at each handshake so that renewal needs no new
/// configuration. Expired or forgotten, there is none, and no handshake.
#[derive(Clone)]
pub(crate) struct OwnCertificate {
    pub(crate) held: Arc<Held>,
    pub(crate) identity: Identity,
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.held.valid_key(&self.identity)
    }
}

impl ResolvesClientCert for OwnCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.held.valid_key(&self.identity)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl fmt::Debug for OwnCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnCertificate").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// A server's view: any workload of the trust domains. Policy decides later what it may do.
struct AnyWorkload {
    accepted: Accepted,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AnyWorkload {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.accepted.verify(end_entity, intermediates, Role::Client, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for AnyWorkload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnyWorkload").finish_non_exhaustive()
    }
}

/// A client's view: the one workload it means to reach.
struct OneWorkload {
    accepted: Accepted,
    provider: Arc<CryptoProvider>,
    own: OwnCertificate,
    expected: Identity,
}

impl ServerCertVerifier for OneWorkload {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // Going on without one would end in an alert that says nothing to whoever reads our log.
        if self.own.held.valid_key(&self.own.identity).is_none() {
            let unavailable = CertificateUnavailable(self.own.identity.clone());
            return Err(Error::Other(OtherError(Arc::new(unavailable))));
        }
        let presented = self.accepted.verify(end_entity, intermediates, Role::Server, now)?;
        if presented != self.expected {
            return Err(refused(PeerError::Mismatch { expected: self.expected.clone(), presented }));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for OneWorkload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OneWorkload").field("expected", &self.expected).finish_non_exhaustive()
    }
}

fn refused(error: PeerError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}
