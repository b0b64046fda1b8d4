//! Certificates that nobody should believe, and configurations that believe anybody.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use orlop_identity::{CertificateAuthority, EmbeddedCa, provider};
use orlop_tests::Testbed;
use rcgen::string::Ia5String;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme};

use crate::hbone::{identity, trust_domain};

/// A workload's certificate but for what `change` does to it, signed by the testbed's own root.
pub fn certificate(testbed: &Testbed, change: impl FnOnce(&mut CertificateParams)) -> Arc<CertifiedKey> {
    let ca = EmbeddedCa::open(&testbed.ca_dir(), &trust_domain()).unwrap();
    let key = fs::read_to_string(testbed.ca_dir().join("root-key.pem")).unwrap();
    signed(&ca.roots()[0], KeyPair::from_pem(&key).unwrap(), change)
}

/// A good certificate, but of a CA that nobody trusts.
pub fn foreign(testbed: &Testbed) -> Arc<CertifiedKey> {
    let dir = testbed.dir().join("foreign-ca");
    let ca = EmbeddedCa::open(&dir, &trust_domain()).unwrap();
    let key = fs::read_to_string(dir.join("root-key.pem")).unwrap();
    signed(&ca.roots()[0], KeyPair::from_pem(&key).unwrap(), |_| {})
}

pub fn uri(text: &str) -> SanType {
    SanType::URI(Ia5String::try_from(text).unwrap())
}

/// Trusts anybody, shows `key` or nothing, and offers these protocols.
pub fn client(key: Option<Arc<CertifiedKey>>, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible));
    let mut config = match key {
        Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from((*key).clone()))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

/// Asks for no certificate and shows `key`.
pub fn server(key: &CertifiedKey, alpn: &[&[u8]]) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone())));
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

fn signed(
    root: &CertificateDer<'_>,
    root_key: KeyPair,
    change: impl FnOnce(&mut CertificateParams),
) -> Arc<CertifiedKey> {
    let issuer = Issuer::from_ca_cert_der(root, root_key).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(identity("mallory").as_str())];
    let now = SystemTime::now();
    params.not_before = (now - Duration::from_secs(7200)).into();
    params.not_after = (now + Duration::from_secs(3600)).into();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let chain = vec![params.signed_by(&key, &issuer).unwrap().der().clone()];
    let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Arc::new(CertifiedKey::new(chain, provider().key_provider.load_private_key(der).unwrap()))
}

#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
