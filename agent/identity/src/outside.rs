//! TLS with servers outside of the mesh, which are known by the names in their certificates.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, SignatureScheme};

use crate::authorities::Authorities;
use crate::error::IdentityError;
use crate::served::ServedCertificate;
use crate::tls::provider;

/// A configuration for connections to a server whose certificate one of these has signed and that has one of these names
/// or, if there are none, that which it is connected to by. Without authorities the server may be anyone. It is shown this
/// certificate, or none.
pub fn outside_config(
    authorities: Option<Arc<Authorities>>,
    names: &[String],
    alpn: Option<&[u8]>,
    shown: Option<&ServedCertificate>,
) -> Result<ClientConfig, IdentityError> {
    let verifier = Named { authorities, names: names.to_vec(), provider: provider() };
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
    authorities: Option<Arc<Authorities>>,
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
        let Some(authorities) = &self.authorities else { return Ok(ServerCertVerified::assertion()) };
        let algorithms = &self.provider.signature_verification_algorithms;
        authorities.verify(end_entity, intermediates, now, algorithms)?;
        let certificate = ParsedCertificate::try_from(end_entity)?;
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
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod,
        KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
    };
    use rustls::ServerConfig;
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;
    use crate::failure::{HandshakeFailure, classify_io};

    const SERIAL: u64 = 77;

    /// Who signs certificates, and takes that back.
    struct Root {
        issuer: Issuer<'static, KeyPair>,
        pem: String,
    }

    impl Root {
        fn new(name: &str) -> Self {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            let pem = params.self_signed(&key).unwrap().pem();
            Self { issuer: Issuer::new(params, key), pem }
        }

        /// A server with a certificate for these names.
        fn server(&self, names: Vec<SanType>) -> Arc<ServerConfig> {
            let key = KeyPair::generate().unwrap();
            let mut own = CertificateParams::new(Vec::new()).unwrap();
            own.subject_alt_names = names;
            own.serial_number = Some(SerialNumber::from(SERIAL));
            let certificate = own.signed_by(&key, &self.issuer).unwrap();
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
            let config = ServerConfig::builder_with_provider(provider());
            let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
            Arc::new(config.with_single_cert(vec![certificate.der().clone()], key).unwrap())
        }

        /// A list that says that this certificate is revoked, to be replaced in this year.
        fn revokes(&self, serial: u64, year: i32) -> String {
            let revoked = RevokedCertParams {
                serial_number: SerialNumber::from(serial),
                revocation_time: date_time_ymd(2020, 1, 1),
                reason_code: None,
                invalidity_date: None,
            };
            let params = CertificateRevocationListParams {
                this_update: date_time_ymd(2020, 1, 1),
                next_update: date_time_ymd(year, 1, 1),
                crl_number: SerialNumber::from(1),
                issuing_distribution_point: None,
                revoked_certs: vec![revoked],
                key_identifier_method: KeyIdMethod::Sha256,
            };
            params.signed_by(&self.issuer).unwrap().pem().unwrap()
        }

        fn only(&self) -> Option<Arc<Authorities>> {
            Some(Arc::new(Authorities::from_pem(self.pem.as_bytes(), None).unwrap()))
        }

        fn with_list(&self, list: &str) -> Option<Arc<Authorities>> {
            Some(Arc::new(Authorities::from_pem(self.pem.as_bytes(), Some(list.as_bytes())).unwrap()))
        }
    }

    /// Why a client that wants this does not take the server for whom it meant.
    async fn refuses(
        server: &Arc<ServerConfig>,
        authorities: Option<Arc<Authorities>>,
        names: &[&str],
        asked: &str,
    ) -> Option<HandshakeFailure> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let config = outside_config(authorities, &names, None, None).unwrap();
        let (here, there) = tokio::io::duplex(1 << 16);
        let accept = TlsAcceptor::from(Arc::clone(server)).accept(there);
        let name = ServerName::try_from(asked.to_owned()).unwrap();
        let connect = TlsConnector::from(Arc::new(config)).connect(name, here);
        let (connected, _) = tokio::join!(connect, accept);
        connected.err().map(|error| classify_io(&error))
    }

    fn dns(name: &str) -> SanType {
        SanType::DnsName(Ia5String::try_from(name).unwrap())
    }

    #[tokio::test]
    async fn a_server_is_believed_for_its_names_and_roots_alone() {
        let uri = "spiffe://example/a";
        let names = vec![dns("a.example"), SanType::URI(Ia5String::try_from(uri).unwrap())];
        let (root, other) = (Root::new("a"), Root::new("b"));
        let server = root.server(names);
        let (only, public) = (root.only(), Some(Authorities::public()));
        for (authorities, names, asked, wanted) in [
            (&only, &[][..], "a.example", true),
            (&only, &[], "b.example", false),
            // Whatever is asked for, these names count alone.
            (&only, &["a.example"], "b.example", true),
            (&only, &["b.example"], "a.example", false),
            (&only, &["b.example", uri], "b.example", true),
            (&only, &["spiffe://example"], "a.example", false),
            (&other.only(), &[], "a.example", false),
            (&public, &[], "a.example", false),
            (&None, &["b.example"], "b.example", true),
        ] {
            let refused = refuses(&server, authorities.clone(), names, asked).await;
            assert_eq!(refused.is_none(), wanted, "{names:?} {asked} {authorities:?}");
        }
    }

    #[tokio::test]
    async fn what_is_revoked_or_may_be_is_not_believed() {
        let (root, other) = (Root::new("a"), Root::new("b"));
        let server = root.server(vec![dns("a.example")]);
        let untrusted = Some(HandshakeFailure::UntrustedCertificate);
        for (list, wanted) in [
            (root.revokes(SERIAL + 1, 2100), None),
            (root.revokes(SERIAL, 2100), Some(HandshakeFailure::RevokedCertificate)),
            // It may have been revoked meanwhile.
            (root.revokes(SERIAL + 1, 2021), untrusted),
            // Who has signed it says nothing, or says so of somebody else's.
            (other.revokes(SERIAL + 1, 2100), untrusted),
            (other.revokes(SERIAL, 2100) + &root.revokes(SERIAL + 1, 2100), None),
        ] {
            assert_eq!(refuses(&server, root.with_list(&list), &[], "a.example").await, wanted, "{list}");
        }
    }

    #[test]
    fn authorities_that_are_none_are_refused() {
        let root = Root::new("a").pem;
        for text in ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(Authorities::from_pem(text.as_bytes(), None).is_err(), "{text}");
            let list = text.replace("CERTIFICATE", "X509 CRL");
            assert!(Authorities::from_pem(root.as_bytes(), Some(list.as_bytes())).is_err(), "{list}");
        }
        // A key in the wrong place is told to nobody.
        let line = format!("-----BEGIN {}", "z".repeat(1 << 20));
        let errors = [
            Authorities::from_pem(line.as_bytes(), None).unwrap_err(),
            Authorities::from_pem(root.as_bytes(), Some(line.as_bytes())).unwrap_err(),
        ];
        errors.iter().for_each(|error| assert!(error.to_string().len() < 200));
    }
}
