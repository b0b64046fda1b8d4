//! TLS with servers outside of the mesh, which are known by the names in their certificates.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ResolvesClientCert, Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name,
};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};

use crate::error::IdentityError;
use crate::served::ServedCertificate;
use crate::tls::provider;

/// Whose signatures are believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutsideRoots<'a> {
    /// The public authorities that browsers know.
    Public,
    /// These certificates alone, as PEM.
    Only(&'a str),
    /// Anybody's, and whatever name there is: the server may be anyone.
    Anybody,
}

/// A configuration for connections to a server that has one of these names or, if there are none, that which it is
/// connected to by. It shows this certificate, or none of its own.
pub fn outside_config(
    roots: OutsideRoots<'_>,
    names: &[String],
    alpn: Option<&[u8]>,
    shown: Option<&ServedCertificate>,
) -> Result<ClientConfig, IdentityError> {
    let unusable = |error: &dyn fmt::Display| IdentityError::Trust(error.to_string());
    let mut store = RootCertStore::empty();
    match roots {
        OutsideRoots::Public => store.roots = webpki_roots::TLS_SERVER_ROOTS.to_vec(),
        OutsideRoots::Only(text) => {
            for root in CertificateDer::pem_slice_iter(text.as_bytes()) {
                let root = root.map_err(|error| unusable(&error))?;
                store.add(root).map_err(|error| unusable(&error))?;
            }
            if store.is_empty() {
                return Err(unusable(&"there is no certificate in it"));
            }
        }
        OutsideRoots::Anybody => {}
    }
    let roots = (roots != OutsideRoots::Anybody).then_some(store);
    let verifier = Named { roots, names: names.to_vec(), provider: provider() };
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match shown {
        Some(shown) => config.with_client_cert_resolver(Arc::new(Shown(shown.clone()))),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.into_iter().map(<[u8]>::to_vec).collect();
    // Each connection verifies anew whom it reached.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Shows one certificate to whoever asks for any.
#[derive(Debug)]
struct Shown(ServedCertificate);

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let key = self.0.key();
        key.key.choose_scheme(schemes).map(|_| Arc::clone(key))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct Named {
    /// `None` believes anybody.
    roots: Option<RootCertStore>,
    names: Vec<String>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(roots) = &self.roots else { return Ok(ServerCertVerified::assertion()) };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, roots, intermediates, now, algorithms)?;
        if self.names.is_empty() {
            verify_server_name(&certificate, server_name)?;
        } else if !self.names.iter().any(|name| is_named(end_entity, &certificate, name)) {
            let wanted = NotNamed(self.names.join(", "));
            return Err(CertificateError::Other(OtherError(Arc::new(wanted))).into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
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

/// Whether one of the certificate's names is this: a host, an address or a URI.
fn is_named(end_entity: &CertificateDer<'_>, certificate: &ParsedCertificate<'_>, name: &str) -> bool {
    if let Ok(host) = ServerName::try_from(name)
        && verify_server_name(certificate, &host).is_ok()
    {
        return true;
    }
    let Ok(certificate) = webpki::EndEntityCert::try_from(end_entity) else { return false };
    certificate.valid_uri_names().any(|uri| uri == name)
        || certificate.valid_dns_names().any(|host| host.eq_ignore_ascii_case(name))
}

/// The certificate has none of the names.
#[derive(Debug, thiserror::Error)]
#[error("its certificate has none of the names {0}")]
struct NotNamed(String);

#[cfg(test)]
mod tests {
    use rcgen::string::Ia5String;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
    use rustls::ServerConfig;
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;

    /// A root, and a server whose certificate it has signed for these names.
    fn server(names: Vec<SanType>) -> (String, Arc<ServerConfig>) {
        let root = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&root).unwrap().pem();
        let key = KeyPair::generate().unwrap();
        let mut own = CertificateParams::new(Vec::new()).unwrap();
        own.subject_alt_names = names;
        let certificate = own.signed_by(&key, &Issuer::new(params, root)).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let config = config.unwrap().with_no_client_auth();
        (pem, Arc::new(config.with_single_cert(vec![certificate.der().clone()], key).unwrap()))
    }

    /// Whether a client that wants this takes the server for whom it meant.
    async fn takes(server: &Arc<ServerConfig>, roots: OutsideRoots<'_>, names: &[&str], asked: &str) -> bool {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let config = outside_config(roots, &names, None, None).unwrap();
        let (here, there) = tokio::io::duplex(1 << 16);
        let accept = TlsAcceptor::from(Arc::clone(server)).accept(there);
        let name = ServerName::try_from(asked.to_owned()).unwrap();
        let connect = TlsConnector::from(Arc::new(config)).connect(name, here);
        let (connected, _) = tokio::join!(connect, accept);
        connected.is_ok()
    }

    fn dns(name: &str) -> SanType {
        SanType::DnsName(Ia5String::try_from(name).unwrap())
    }

    #[tokio::test]
    async fn a_server_is_believed_for_its_names_and_roots_alone() {
        let uri = "spiffe://example/a";
        let names = vec![dns("a.example"), SanType::URI(Ia5String::try_from(uri).unwrap())];
        let (other, _) = server(Vec::new());
        let (root, server) = server(names);
        let only = OutsideRoots::Only(&root);
        for (roots, names, asked, wanted) in [
            (only, &[][..], "a.example", true),
            (only, &[], "b.example", false),
            // Whatever is asked for, these names count alone.
            (only, &["a.example"], "b.example", true),
            (only, &["b.example"], "a.example", false),
            (only, &["b.example", uri], "b.example", true),
            (only, &["spiffe://example"], "a.example", false),
            (OutsideRoots::Only(&other), &[], "a.example", false),
            (OutsideRoots::Public, &[], "a.example", false),
            (OutsideRoots::Anybody, &["b.example"], "b.example", true),
        ] {
            assert_eq!(takes(&server, roots, names, asked).await, wanted, "{names:?} {asked} {roots:?}");
        }
    }

    #[test]
    fn roots_that_are_none_are_refused() {
        for text in ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(outside_config(OutsideRoots::Only(text), &[], None, None).is_err(), "{text}");
        }
    }
}
