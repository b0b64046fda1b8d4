use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONNECTION, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use orlop_identity::ServingTls;
use orlop_kube::admission::{Endpoint, NotReviewed, Validator};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

use super::strangers::{Stranger, Strangers};

/// A review holds an object twice, each of which an API server takes up to 3 MiB of.
const MAX_BODY: usize = 7 << 20;
/// So many bodies are held at once.
const BODIES: usize = 8;
/// An API server sends it with the head.
const BODY_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a connection may be idle.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// Accepts connections and answers reviews.
pub(super) struct Webhook {
    validator: Validator,
    tls: Arc<ServingTls>,
    endpoint: watch::Receiver<Endpoint>,
    bodies: Semaphore,
    strangers: Strangers,
    /// Whether connections are to end with the next answer.
    leaving: watch::Receiver<bool>,
}

impl Webhook {
    pub fn new(
        validator: Validator,
        tls: Arc<ServingTls>,
        endpoint: watch::Receiver<Endpoint>,
        leaving: watch::Receiver<bool>,
    ) -> Self {
        let (bodies, strangers) = (Semaphore::new(BODIES), Strangers::default());
        Self { validator, tls, endpoint, bodies, strangers, leaving }
    }

    /// For ever.
    pub async fn serve(self, listener: TcpListener) {
        let webhook = Arc::new(self);
        loop {
            match listener.accept().await {
                Ok((tcp, peer)) => {
                    let (webhook, stranger) = (Arc::clone(&webhook), webhook.strangers.enter(peer.ip()));
                    tokio::spawn(async move {
                        tokio::select! {
                            () = stranger.must_go() => tracing::debug!(%peer, "it asked for no review"),
                            () = webhook.connection(tcp, peer, &stranger) => {}
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection to the webhook");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(self: &Arc<Self>, tcp: TcpStream, peer: SocketAddr, stranger: &Arc<Stranger>) {
        let acceptor = TlsAcceptor::from(over_http1(&self.tls.current()));
        let tls = match acceptor.accept(tcp).await {
            Ok(tls) => tls,
            Err(error) => return tracing::debug!(%peer, %error, "the handshake failed"),
        };
        let answer = service_fn(move |request| async move {
            let answered = self.answer(request, stranger).await;
            let mut response = answered.map_or_else(Unanswered::into_response, reviewed);
            if *self.leaving.borrow() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_TIMEOUT)
            .max_buf_size(64 << 10)
            .serve_connection(TokioIo::new(tls), answer)
            .await;
        if let Err(error) = served {
            tracing::debug!(%peer, %error, "the connection broke off");
        }
    }

    async fn answer(&self, request: Request<Incoming>, stranger: &Stranger) -> Result<Vec<u8>, Unanswered> {
        let is_review =
            request.method() == Method::POST && request.uri().path() == self.endpoint.borrow().path;
        if !is_review {
            return Err(Unanswered(StatusCode::NOT_FOUND, "no reviews here".to_owned()));
        }
        stranger.is_known_now();
        let held = timeout(BODY_TIMEOUT, self.bodies.acquire()).await;
        let busy =
            |_| Unanswered(StatusCode::SERVICE_UNAVAILABLE, "busy with other reviews; ask again".to_owned());
        let held = held.map_err(busy)?;
        let body = timeout(BODY_TIMEOUT, Limited::new(request.into_body(), MAX_BODY).collect()).await;
        let body = body.map_err(|_| Unanswered(StatusCode::REQUEST_TIMEOUT, "it did not come".to_owned()))?;
        let body = body.map_err(|error| Unanswered(StatusCode::BAD_REQUEST, error.to_string()))?;
        let reviewed = self.validator.review(body.to_bytes().to_vec()).await;
        drop(held);
        Ok(reviewed?)
    }
}

/// The same certificate, for a protocol in which a connection has one request at a time.
fn over_http1(tls: &ServerConfig) -> Arc<ServerConfig> {
    let mut config = tls.clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// A status and why.
struct Unanswered(StatusCode, String);

impl From<NotReviewed> for Unanswered {
    fn from(error: NotReviewed) -> Self {
        let status = match error {
            NotReviewed::NotOne(_) => StatusCode::BAD_REQUEST,
            NotReviewed::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, error.to_string())
    }
}

impl Unanswered {
    fn into_response(self) -> Response<Full<Bytes>> {
        let Self(status, text) = self;
        let mut response = Response::new(Full::new((text + "\n").into()));
        *response.status_mut() = status;
        // Whoever asks for what is no review has a connection no longer.
        if status == StatusCode::NOT_FOUND {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

fn reviewed(review: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(review.into()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
