//! A mesh in a temporary directory, handshakes pumped by hand, and forged certificates.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use orlop_identity::{
    ALPN_H2, CertificateAuthority, CertificateRequest, Clock, DEFAULT_LIFETIME, EmbeddedCa, HandshakeFailure,
    Identities, IdentityError, WorkloadCertificate, classify, provider,
};
use orlop_model::{Identity, TrustDomain};
use rcgen::string::Ia5String;
use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, ExtendedKeyUsagePurpose, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::ResolvesServerCert;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, ServerConfig, ServerConnection,
    SignatureScheme,
};

/// A directory that goes away with its test.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("orlop-identity-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self(std::env::temp_dir().join(name))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub fn trust_domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

/// `name` is the service account.
pub fn identity(name: &str) -> Identity {
    Identity::new(&trust_domain(), "shop", name)
}

pub fn now() -> SystemTime {
    SystemTime::now()
}

pub fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

/// One trust domain with its embedded CA.
pub struct Mesh {
    pub dir: TempDir,
    pub ca: Arc<EmbeddedCa>,
}

impl Mesh {
    pub fn new() -> Self {
        let dir = TempDir::new();
        let ca = Arc::new(EmbeddedCa::open(dir.path(), &trust_domain()).unwrap());
        Self { dir, ca }
    }

    /// A node that holds certificates for `names`.
    pub fn node(&self, names: &[&str]) -> Identities {
        self.node_with_clock(names, Clock::system())
    }

    pub fn node_with_clock(&self, names: &[&str], clock: Clock) -> Identities {
        let node = Identities::with_clock(self.ca.clone(), trust_domain(), DEFAULT_LIFETIME, clock);
        for name in names {
            node.ensure(&identity(name)).unwrap();
        }
        node
    }

    /// A key and its certificate, asked for at `now`.
    pub fn obtain(
        &self,
        name: &str,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<WorkloadCertificate, IdentityError> {
        let request = CertificateRequest::new(&identity(name))?;
        let issued = self.ca.sign(&identity(name), request.der(), lifetime, now)?;
        request.complete(issued, now)
    }

    /// The root key, as a thief would have it.
    pub fn root_key(&self) -> KeyPair {
        KeyPair::from_pem(&fs::read_to_string(self.dir.path().join("root-key.pem")).unwrap()).unwrap()
    }

    pub fn root_certificate(&self) -> CertificateDer<'static> {
        self.ca.roots().remove(0)
    }

    /// A leaf like those of the CA but for what `change` does to it, signed by the CA's own root.
    pub fn forge(&self, change: impl FnOnce(&mut CertificateParams)) -> Arc<CertifiedKey> {
        let issuer = Issuer::from_ca_cert_der(&self.root_certificate(), self.root_key()).unwrap();
        let mut params = leaf_params(&identity("mallory"));
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        certified(vec![certificate.der().clone()], &key)
    }
}

/// What a good leaf holds.
pub fn leaf_params(identity: &Identity) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(identity.as_str())];
    params.not_before = (now() - minutes(2)).into();
    params.not_after = (now() + minutes(60)).into();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

pub fn uri(text: &str) -> SanType {
    SanType::URI(Ia5String::try_from(text).unwrap())
}

/// A subject alternative name extension with these URIs, byte for byte.
pub fn raw_uris(uris: &[&[u8]]) -> CustomExtension {
    let mut names = Vec::new();
    for uri in uris {
        names.extend([0x86, u8::try_from(uri.len()).unwrap()]);
        names.extend(*uri);
    }
    let mut content = vec![0x30, 0x81, u8::try_from(names.len()).unwrap()];
    if names.len() < 128 {
        content.remove(1);
    }
    content.extend(names);
    CustomExtension::from_oid_content(&[2, 5, 29, 17], content)
}

pub fn certified(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Arc<CertifiedKey> {
    let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = provider().key_provider.load_private_key(der).unwrap();
    Arc::new(CertifiedKey::new(chain, key))
}

/// A client that trusts anybody and shows `key`, or nothing.
pub fn rogue_client(key: Option<Arc<CertifiedKey>>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible));
    let mut config = match key {
        Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from((*key).clone()))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config
}

/// A server that shows `key` and asks for nothing.
pub fn rogue_server(key: Arc<CertifiedKey>) -> ServerConfig {
    let resolver: Arc<dyn ResolvesServerCert> = Arc::new(SingleCertAndKey::from((*key).clone()));
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config
}

/// Both ends after a handshake, with what each had to say.
pub struct Handshake {
    pub client: ClientConnection,
    pub server: ServerConnection,
    pub client_error: Option<Error>,
    pub server_error: Option<Error>,
}

impl Handshake {
    pub fn run(client: impl Into<Arc<ClientConfig>>, server: impl Into<Arc<ServerConfig>>) -> Self {
        let name = ServerName::try_from("bob.example").unwrap();
        let mut handshake = Self {
            client: ClientConnection::new(client.into(), name).unwrap(),
            server: ServerConnection::new(server.into()).unwrap(),
            client_error: None,
            server_error: None,
        };
        handshake.pump();
        handshake
    }

    /// Carries bytes both ways until there are none.
    pub fn pump(&mut self) {
        loop {
            let mut wire = Vec::new();
            while self.client.wants_write() {
                self.client.write_tls(&mut wire).unwrap();
            }
            let to_server = wire.len();
            let mut rest = wire.as_slice();
            while !rest.is_empty() && self.server_error.is_none() {
                self.server.read_tls(&mut rest).unwrap();
                self.server_error = self.server.process_new_packets().err();
            }

            let mut wire = Vec::new();
            while self.server.wants_write() {
                self.server.write_tls(&mut wire).unwrap();
            }
            let to_client = wire.len();
            let mut rest = wire.as_slice();
            while !rest.is_empty() && self.client_error.is_none() {
                self.client.read_tls(&mut rest).unwrap();
                self.client_error = self.client.process_new_packets().err();
            }
            if to_server + to_client == 0 {
                return;
            }
        }
    }

    pub fn succeeded(&self) -> bool {
        let done = !self.client.is_handshaking() && !self.server.is_handshaking();
        done && self.client_error.is_none() && self.server_error.is_none()
    }

    pub fn client_failure(&self) -> Option<HandshakeFailure> {
        self.client_error.as_ref().map(classify)
    }

    pub fn server_failure(&self) -> Option<HandshakeFailure> {
        self.server_error.as_ref().map(classify)
    }
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
