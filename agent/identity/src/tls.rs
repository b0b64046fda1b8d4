//! The rustls configurations: TLS 1.3 only, mutual, ALPN `h2`, no SNI, no resumption.

use std::fmt;
use std::sync::{Arc, LazyLock};

use orlop_model::{Identity, TrustDomain};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    RootCertStore, ServerConfig, SignatureScheme,
};

use crate::failure::CertificateUnavailable;
use crate::held::Held;
use crate::verify::{PeerError, Role, peer_in_role};
use crate::{Clock, IdentityError};

/// HTTP/2, the one protocol of HBONE.
pub const ALPN_H2: &[u8] = b"h2";

/// The cryptography of every connection: aws-lc-rs, X25519MLKEM768 first. Never the process's default.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    PROVIDER.clone()
}

/// Whom a configuration accepts.
pub(crate) struct Trust {
    pub(crate) roots: Vec<CertificateDer<'static>>,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) clock: Clock,
}

impl Trust {
    fn root_store(&self) -> Result<Arc<RootCertStore>, Error> {
        let mut store = RootCertStore::empty();
        for root in &self.roots {
            store.add(root.clone())?;
        }
        Ok(Arc::new(store))
    }
}

pub(crate) fn server_config(own: OwnCertificate, trust: Trust) -> Result<ServerConfig, IdentityError> {
    let chain = WebPkiClientVerifier::builder_with_provider(trust.root_store()?, provider())
        .clear_root_hint_subjects()
        .build()?;
    let verifier = AnyWorkload { chain, trust_domains: vec![trust.trust_domain] };
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(trust.clock))
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
    trust: Trust,
) -> Result<ClientConfig, IdentityError> {
    let verifier = OneWorkload {
        roots: trust.root_store()?,
        provider: provider(),
        own: own.clone(),
        expected,
        trust_domains: vec![trust.trust_domain],
    };
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(trust.clock))
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
#[derive(Debug)]
struct AnyWorkload {
    chain: Arc<dyn ClientCertVerifier>,
    trust_domains: Vec<TrustDomain>,
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
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        peer_in_role(end_entity, Role::Client, &self.trust_domains).map_err(refused)?;
        Ok(verified)
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
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// A client's view: the one workload it means to reach.
struct OneWorkload {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    own: OwnCertificate,
    expected: Identity,
    trust_domains: Vec<TrustDomain>,
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
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        let presented = peer_in_role(end_entity, Role::Server, &self.trust_domains).map_err(refused)?;
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
