//! Certificates of others: what is shown to clients from outside the mesh, who know servers by their host names.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use orlop_model::http::ListenerId;
use rustls::ServerConfig;
use rustls::client::verify_server_name;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::error::{IdentityError, NO_CERTIFICATE, NO_KEY};
use crate::tls::{ALPN_H2, provider};

/// HTTP/1.1, as TLS names it.
const ALPN_HTTP1: &[u8] = b"http/1.1";

/// A certificate chain with its key, which is never printed.
#[derive(Clone)]
pub struct ServedCertificate(Arc<CertifiedKey>);

impl ServedCertificate {
    /// Of PEM, as a Secret of type `kubernetes.io/tls` has it. The key must be the certificate's.
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Self, IdentityError> {
        let unusable = |error: &dyn fmt::Display| IdentityError::Served(error.to_string());
        let chain = CertificateDer::pem_slice_iter(certificates).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|_| unusable(&format_args!("tls.crt: {NO_CERTIFICATE}")))?;
        if chain.is_empty() {
            return Err(unusable(&"tls.crt: there is no certificate in it"));
        }
        let key =
            PrivateKeyDer::from_pem_slice(key).map_err(|_| unusable(&format_args!("tls.key: {NO_KEY}")))?;
        let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| unusable(&error))?;
        Ok(Self(Arc::new(key)))
    }

    /// The certificate and its key, for clients that show it, too.
    pub(crate) fn key(&self) -> &Arc<CertifiedKey> {
        &self.0
    }

    fn is_for(&self, host: &ServerName<'_>) -> bool {
        let leaf = self.0.end_entity_cert().and_then(ParsedCertificate::try_from);
        leaf.is_ok_and(|leaf| verify_server_name(&leaf, host).is_ok())
    }
}

impl fmt::Debug for ServedCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServedCertificate").finish_non_exhaustive()
    }
}

/// Those of each listener, in the order in which they count. A new one is shown from the next handshake on.
#[derive(Debug, Default)]
pub struct ServedCertificates(RwLock<HashMap<ListenerId, Vec<ServedCertificate>>>);

impl ServedCertificates {
    /// Puts these in place of all that there were.
    pub fn replace(&self, with: HashMap<ListenerId, Vec<ServedCertificate>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = with;
    }

    /// Of this listener's, the first that the client can verify by its signature and that is for the host it names, or else
    /// the first that it can verify.
    pub fn choose(&self, listener: &ListenerId, hello: &ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let fits = |of: &&ServedCertificate| of.0.key.choose_scheme(hello.signature_schemes()).is_some();
        let own = known.get(listener)?;
        let fitting = || own.iter().filter(fits);
        let host = hello.server_name().and_then(|host| ServerName::try_from(host).ok());
        let named = host.and_then(|host| fitting().find(|of| of.is_for(&host)));
        named.or_else(|| fitting().next()).map(|of| Arc::clone(&of.0))
    }
}

/// A configuration for clients from outside the mesh: TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1.
pub fn outsiders_config(shown: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, IdentityError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(shown);
    config.alpn_protocols = vec![ALPN_H2.to_vec(), ALPN_HTTP1.to_vec()];
    // Whoever comes back is shown the certificate that is there then, and nothing is kept for those who don't.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
    use rustls::{ClientConfig, RootCertStore};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;

    fn pair(name: &str) -> (String, String) {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    #[derive(Debug)]
    struct Of(Arc<ServedCertificates>, ListenerId);

    impl ResolvesServerCert for Of {
        fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            self.0.choose(&self.1, &hello)
        }
    }

    /// Whether a client that trusts this certificate alone gets on with it by this name.
    async fn gets_on(config: &Arc<ServerConfig>, trusted: &str, name: &str) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(trusted.as_bytes()).unwrap()).unwrap();
        let client = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let client = client.unwrap().with_root_certificates(roots).with_no_client_auth();
        let (here, there) = tokio::io::duplex(1 << 16);
        let accept = TlsAcceptor::from(Arc::clone(config)).accept(there);
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connect = TlsConnector::from(Arc::new(client)).connect(name, here);
        let (connected, _) = tokio::join!(connect, accept);
        connected.is_ok()
    }

    #[test]
    fn what_is_said_of_a_key_shows_nothing_of_it() {
        let (certificate, key) = pair("a.example");
        let whole = key.replace('\n', "");
        let spoilt = [
            whole.clone(),
            key.replace('\n', "\\n"),
            key.replace("-----BEGIN PRIVATE KEY-----", "----BEGIN PRIVATE KEY----"),
            key.replace("-----END PRIVATE KEY-----", "-----END KEY-----"),
            format!("-----BEGIN {whole}\n"),
        ];
        let domain = "cluster.local".parse().unwrap();
        let signer = |key: &[u8], certificate: &[u8]| {
            crate::Signer::from_pem(key, certificate, b"", &domain, std::time::SystemTime::now())
        };
        let part = |text: &str| format!("{:?}", &text.as_bytes()[40..44]).replace(['[', ']'], "");
        let (clear, bytes) = (&key[40..60], part(&key));
        for wrong in &spoilt {
            let said = [
                ServedCertificate::from_pem(certificate.as_bytes(), wrong.as_bytes()).map(drop),
                ServedCertificate::from_pem(wrong.as_bytes(), key.as_bytes()).map(drop),
                signer(wrong.as_bytes(), certificate.as_bytes()).map(drop),
                signer(key.as_bytes(), wrong.as_bytes()).map(drop),
            ];
            for said in said {
                let said = said.unwrap_err().to_string();
                assert!(!said.contains(clear) && !said.contains(&bytes) && said.len() < 200, "{said}");
            }
        }
    }

    #[tokio::test]
    async fn a_client_is_shown_the_certificate_for_its_host_as_long_as_that_is_there() {
        let (a, b) = (pair("a.example"), pair("b.example"));
        let served =
            |of: &(String, String)| ServedCertificate::from_pem(of.0.as_bytes(), of.1.as_bytes()).unwrap();
        let listener = ListenerId { port: 443, hostname: "*".to_owned() };
        let there = Arc::new(ServedCertificates::default());
        let of = Of(Arc::clone(&there), listener.clone());
        let config = Arc::new(outsiders_config(Arc::new(of)).unwrap());
        assert!(!gets_on(&config, &a.0, "a.example").await);
        there.replace([(listener.clone(), vec![served(&a), served(&b)])].into());
        assert!(gets_on(&config, &a.0, "a.example").await);
        assert!(gets_on(&config, &b.0, "b.example").await);
        let renewed = pair("a.example");
        there.replace([(listener, vec![served(&renewed), served(&b)])].into());
        assert!(gets_on(&config, &renewed.0, "a.example").await);
        assert!(!gets_on(&config, &a.0, "a.example").await);
        there.replace(HashMap::new());
        assert!(!gets_on(&config, &renewed.0, "a.example").await);
    }

    #[test]
    fn a_key_that_is_not_the_certificate_s_is_refused() {
        let (a, b) = (pair("a.example"), pair("b.example"));
        assert!(ServedCertificate::from_pem(a.0.as_bytes(), a.1.as_bytes()).is_ok());
        for (certificates, key) in [(&a.0, &b.1), (&a.1, &a.1), (&a.0, &a.0)] {
            assert!(ServedCertificate::from_pem(certificates.as_bytes(), key.as_bytes()).is_err());
        }
        assert!(ServedCertificate::from_pem(b"", a.1.as_bytes()).is_err());
    }
}
