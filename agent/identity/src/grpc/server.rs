use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use orlop_model::Identity;
use rustls::ServerConfig;
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::server::Grpc;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use tower_service::Service;

use crate::grpc::{CREATE_CERTIFICATE, Request, Response, impersonated, to_pem};
use crate::{CertificateAuthority, IdentityError, Issuing};

/// Decides who gets which certificate.
pub trait Gate: Send + Sync + 'static {
    /// The identity that the bearer of `token` is given, who asks for `wanted`, or for its own.
    fn admit<'a>(&'a self, token: Option<&'a str>, wanted: Option<Identity>) -> Admission<'a>;
}

/// What a [`Gate`] says, once it knows.
pub type Admission<'a> = Pin<Box<dyn Future<Output = Result<Identity, Refusal>> + Send + 'a>>;

/// Why a certificate is refused, in words for whoever asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The token is not good.
    Unauthenticated(String),
    /// The bearer may not have this identity.
    Denied(String),
    /// It can't be told now.
    Unavailable(String),
}

/// An authority served over Istio's certificate service.
pub struct CertificateService {
    authority: Arc<dyn CertificateAuthority>,
    gate: Arc<dyn Gate>,
    longest: Duration,
}

impl CertificateService {
    /// `authority` signs what `gate` admits, for `longest` at most.
    pub fn new(authority: Arc<dyn CertificateAuthority>, gate: Arc<dyn Gate>, longest: Duration) -> Self {
        Self { authority, gate, longest }
    }

    /// Accepts connections, for ever. `tls` must offer ALPN `h2`; it is asked for at each handshake.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, tls: impl Fn() -> Arc<ServerConfig>) {
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            // Never closed.
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
            let tcp = match listener.accept().await {
                Ok((tcp, _)) => tcp,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (service, tls) = (Arc::clone(&self), tls());
            tokio::spawn(async move {
                if let Err(error) = service.connection(tcp, tls).await {
                    tracing::debug!(error, "connection to the certificate service ended");
                }
                drop(permit);
            });
        }
    }

    async fn connection(self: Arc<Self>, tcp: TcpStream, tls: Arc<ServerConfig>) -> Result<(), String> {
        let tls = timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(tls).accept(tcp)).await;
        let tls = tls.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        let serve = service_fn(move |request| {
            let service = Arc::clone(&self);
            async move { Ok::<_, Infallible>(service.call(request).await) }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADERS)
            .keep_alive_interval(KEEP_ALIVE)
            .serve_connection(TokioIo::new(tls), serve);
        // Its tokens may have been withdrawn since, and it holds one of few places.
        timeout(LONGEST_CONNECTION, connection)
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| error.to_string())
    }

    async fn call(self: Arc<Self>, request: http::Request<Incoming>) -> http::Response<Body> {
        if request.uri().path() != CREATE_CERTIFICATE {
            return Status::unimplemented("only CreateCertificate is served here").into_http();
        }
        let codec = ProstCodec::<Response, Request>::new();
        let answer = async {
            Grpc::new(codec).max_decoding_message_size(MAX_MESSAGE).unary(Call(self), request).await
        };
        let answer = timeout(CALL_TIMEOUT, answer).await;
        answer.unwrap_or_else(|_| Status::deadline_exceeded("the request took too long").into_http())
    }

    async fn create(&self, metadata: &MetadataMap, request: &Request) -> Result<Response, Status> {
        let token = bearer(metadata);
        let wanted = request.metadata.as_ref().and_then(impersonated).map(str::parse::<Identity>).transpose();
        let wanted = wanted.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let csr = CertificateSigningRequestDer::from_pem_slice(request.csr.as_bytes())
            .map_err(|error| Status::invalid_argument(format!("the request's CSR can't be read: {error}")))?;
        let identity = self.gate.admit(token, wanted).await.map_err(|refusal| {
            tracing::info!(?refusal, "certificate refused");
            Status::from(refusal)
        })?;
        let asked = u64::try_from(request.validity_duration).ok().filter(|seconds| *seconds > 0);
        let lifetime = asked.map_or(self.longest, Duration::from_secs).min(self.longest);
        let issued = match self.authority.issue(&identity, &csr, lifetime, SystemTime::now()) {
            Issuing::Done(issued) => issued,
            Issuing::Asked(answer) => answer.await,
        };
        let issued = issued.map_err(|error| {
            tracing::warn!(%identity, %error, "certificate not issued");
            match error {
                IdentityError::Request(_) | IdentityError::ForeignTrustDomain { .. } => {
                    Status::invalid_argument(error.to_string())
                }
                _ => Status::unavailable("the authority can't sign; its log says why"),
            }
        })?;
        tracing::info!(%identity, lifetime = ?lifetime, "certificate issued");
        let mut cert_chain: Vec<String> = issued.certificates.iter().map(to_pem).collect();
        cert_chain.push(self.authority.roots().iter().map(to_pem).collect());
        Ok(Response { cert_chain })
    }
}

impl fmt::Debug for CertificateService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateService").field("longest", &self.longest).finish_non_exhaustive()
    }
}

struct Call(Arc<CertificateService>);

impl Service<tonic::Request<Request>> for Call {
    type Response = tonic::Response<Response>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Status>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::Request<Request>) -> Self::Future {
        let service = Arc::clone(&self.0);
        Box::pin(async move {
            let (metadata, _, request) = request.into_parts();
            service.create(&metadata, &request).await.map(tonic::Response::new)
        })
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let (code, message) = match refusal {
            Refusal::Unauthenticated(message) => (Code::Unauthenticated, message),
            Refusal::Denied(message) => (Code::PermissionDenied, message),
            Refusal::Unavailable(message) => (Code::Unavailable, message),
        };
        Self::new(code, message)
    }
}

fn bearer(metadata: &MetadataMap) -> Option<&str> {
    let (scheme, token) = metadata.get("authorization")?.to_str().ok()?.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Nodes hold a connection only while they ask.
const MAX_CONNECTIONS: usize = 4096;
const MAX_STREAMS: u32 = 128;
/// A service-account token takes some 1,200 bytes.
const MAX_HEADERS: u32 = 32 << 10;
/// A request takes some 700 bytes.
const MAX_MESSAGE: usize = 64 << 10;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const LONGEST_CONNECTION: Duration = Duration::from_secs(600);
/// Out of descriptors, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
