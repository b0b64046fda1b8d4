use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use http::uri::{PathAndQuery, Scheme};
use http::{HeaderValue, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use orlop_model::{Identity, TrustDomain};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::metadata::AsciiMetadataValue;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use zeroize::Zeroizing;

use crate::bundle::Bundle;
use crate::grpc::{CREATE_CERTIFICATE, Request, Response, impersonating};
use crate::tls::ALPN_H2;
use crate::verify::Role;
use crate::{CertificateAuthority, IdentityError, IssuedChain, Issuing, Trust, provider};

/// An authority elsewhere, asked over Istio's certificate service.
///
/// Each request goes out with the service-account token that is in its file at that moment. The service proves by its
/// certificate that it is who the URL names, signed by a root of the bundle; peers' certificates must lead to one of
/// the same. The bundle is read again by [`RemoteCa::run`].
pub struct RemoteCa(Arc<Inner>);

struct Inner {
    address: CaAddress,
    token: PathBuf,
    bundle: Bundle,
    /// Kept as long as somebody uses it: whoever asks after a pause sees whether the service is still who it should
    /// be, and an authority of a thousand nodes holds no idle connections.
    connection: Mutex<Weak<Connection>>,
}

type Connection = SendRequest<Body>;

impl RemoteCa {
    /// Reads the bundle of roots, PEM; revocation lists may be in it too. Asks nobody yet.
    pub fn open(
        address: CaAddress,
        bundle: &Path,
        token: &Path,
        trust_domain: &TrustDomain,
    ) -> Result<Self, IdentityError> {
        let bundle = Bundle::open(bundle)?;
        tracing::info!(%address, %trust_domain, roots = ?bundle.trust().borrow().root_serials(), "certificates come from another process");
        Ok(Self(Arc::new(Inner { address, token: token.to_owned(), bundle, connection: Mutex::default() })))
    }

    /// Follows the bundle's file, for ever.
    pub async fn run(&self) {
        self.0.bundle.run().await;
    }
}

impl CertificateAuthority for RemoteCa {
    fn issue(&self, identity: &Identity, csr_der: &[u8], lifetime: Duration, _: SystemTime) -> Issuing {
        let (inner, identity) = (Arc::clone(&self.0), identity.clone());
        let request = Request {
            csr: pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", csr_der)),
            validity_duration: i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(impersonating(identity.as_str())),
        };
        Issuing::Asked(Box::pin(async move {
            let asked = timeout(CALL_TIMEOUT, inner.ask(&identity, request)).await;
            asked.unwrap_or_else(|_| Err(inner.unreachable(format_args!("nothing within {CALL_TIMEOUT:?}"))))
        }))
    }

    fn trust(&self) -> watch::Receiver<Arc<Trust>> {
        self.0.bundle.trust()
    }
}

impl Inner {
    async fn ask(&self, identity: &Identity, request: Request) -> Result<IssuedChain, IdentityError> {
        let mut request = tonic::Request::new(request);
        request.metadata_mut().insert("authorization", self.authorization()?);
        let connection = self.connection().await?;
        let mut client = Grpc::with_origin(Sender((*connection).clone()), self.address.uri.clone());
        client.ready().await.map_err(|error| self.unreachable(error))?;
        let codec = ProstCodec::<Request, Response>::new();
        let answer = client
            .unary(request, PathAndQuery::from_static(CREATE_CERTIFICATE), codec)
            .await
            .map_err(|status| self.failed(identity, &status))?;
        self.check(identity, answer.into_inner())
    }

    /// The token as it is now: the kubelet replaces it before it expires.
    fn authorization(&self) -> Result<AsciiMetadataValue, IdentityError> {
        let unusable = |reason: String| IdentityError::Client {
            reason: format!("the token in {} {reason}; check --ca-token", self.token.display()),
        };
        let token = fs::read_to_string(&self.token).map(Zeroizing::new);
        let token = token.map_err(|error| unusable(format!("can't be read: {error}")))?;
        let header = Zeroizing::new(format!("Bearer {}", token.trim()));
        let mut header = HeaderValue::from_str(&header)
            .ok()
            .and_then(|header| AsciiMetadataValue::try_from(header.as_bytes()).ok())
            .ok_or_else(|| unusable("is no token".to_owned()))?;
        header.set_sensitive(true);
        Ok(header)
    }

    async fn connection(&self) -> Result<Arc<Connection>, IdentityError> {
        let mut kept = self.connection.lock().await;
        if let Some(connection) = kept.upgrade().filter(|connection| !connection.is_closed()) {
            return Ok(connection);
        }
        let connection = Arc::new(self.connect().await?);
        *kept = Arc::downgrade(&connection);
        Ok(connection)
    }

    async fn connect(&self) -> Result<Connection, IdentityError> {
        let failed = |error: io::Error| self.unreachable(error);
        let tcp = TcpStream::connect(self.address.authority()).await.map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        let tls = TlsConnector::from(Arc::new(self.tls()?));
        let tls = tls.connect(self.address.name.clone(), tcp).await.map_err(failed)?;
        let (send, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .handshake(TokioIo::new(tls))
            .await
            .map_err(|error| self.unreachable(error))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to the certificate authority ended");
            }
        });
        Ok(send)
    }

    /// Made anew for each connection: the roots may have changed.
    fn tls(&self) -> Result<ClientConfig, IdentityError> {
        let mut roots = RootCertStore::empty();
        for root in self.bundle.trust().borrow().roots() {
            roots.add(root.clone())?;
        }
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        Ok(config)
    }

    /// What peers would not accept is not shown to them.
    fn check(&self, identity: &Identity, answer: Response) -> Result<IssuedChain, IdentityError> {
        let unusable = |reason: String| IdentityError::Issued { identity: identity.clone(), reason };
        let mut certificates = Vec::new();
        for text in &answer.cert_chain {
            for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
                certificates.push(certificate.map_err(|error| unusable(error.to_string()))?);
            }
        }
        let trust = self.bundle.trust().borrow().clone();
        certificates.retain(|certificate| !trust.roots().contains(certificate));
        let Some((leaf, intermediates)) = certificates.split_first() else {
            return Err(unusable("the chain is empty".to_owned()));
        };
        trust.verify(leaf, intermediates, Role::Server, UnixTime::now()).map_err(|error| {
            unusable(format!("{error}: it leads to no root in {}", self.bundle.path().display()))
        })?;
        Ok(IssuedChain { certificates })
    }

    fn failed(&self, identity: &Identity, status: &Status) -> IdentityError {
        let reason = format!("{} ({:?})", status.message(), status.code());
        match status.code() {
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => {
                self.unreachable(reason)
            }
            _ => IdentityError::Refused {
                address: self.address.to_string(),
                identity: identity.clone(),
                reason: reason.chars().take(MAX_SHOWN).collect(),
            },
        }
    }

    fn unreachable(&self, reason: impl fmt::Display) -> IdentityError {
        let reason = reason.to_string().chars().take(MAX_SHOWN).collect();
        IdentityError::Unreachable { address: self.address.to_string(), reason }
    }
}

/// tonic's view of a connection.
struct Sender(Connection);

impl tower_service::Service<http::Request<Body>> for Sender {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

impl fmt::Debug for RemoteCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteCa").field("address", &self.0.address).finish_non_exhaustive()
    }
}

/// Where an authority serves: `https://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaAddress {
    uri: Uri,
    name: ServerName<'static>,
}

impl CaAddress {
    fn authority(&self) -> (&str, u16) {
        let host = self.uri.host().unwrap_or_default().trim_matches(['[', ']']);
        (host, self.uri.port_u16().unwrap_or(DEFAULT_PORT))
    }
}

impl FromStr for CaAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|error| format!("{error}"))?;
        if uri.scheme() != Some(&Scheme::HTTPS) || !matches!(uri.path(), "" | "/") {
            return Err("want https://HOST:PORT".to_owned());
        }
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned()).map_err(|error| format!("{host:?}: {error}"))?;
        Ok(Self { uri, name })
    }
}

impl fmt::Display for CaAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, port) = self.authority();
        if host.contains(':') {
            write!(f, "https://[{host}]:{port}")
        } else {
            write!(f, "https://{host}:{port}")
        }
    }
}

/// Istio's, for certificates over TLS.
const DEFAULT_PORT: u16 = 15012;

/// Shorter than a handshake may take, so that what waits for a certificate hears why there is none.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// An authority chooses its words: so many characters of them go into a log line.
const MAX_SHOWN: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        let address = |text: &str| text.parse::<CaAddress>().map(|address| address.to_string());
        assert_eq!(
            address("https://istiod.istio-system.svc").unwrap(),
            "https://istiod.istio-system.svc:15012"
        );
        assert_eq!(address("https://[fd00::1]:443/").unwrap(), "https://[fd00::1]:443");
        for wrong in ["http://a:1", "a:1", "https://a:1/path", "https://", "https://a b"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }
}
