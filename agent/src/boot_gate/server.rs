//! gRPC on a Unix socket.

use std::{
    convert::Infallible,
    fs,
    io::{self, ErrorKind},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use anyhow::Context as _;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prost::Message;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tonic::{Request, Response, Status, body::Body, server::Grpc};
use tonic_prost::ProstCodec;

/// What answers calls.
pub trait Answers: Send + Sync + 'static {
    /// Answers a call of the method with this path.
    fn answer<'a>(&'a self, method: &'a str, request: http::Request<Incoming>) -> Answer<'a>;
}

/// Of a call, once it is known.
pub type Answer<'a> = Pin<Box<dyn Future<Output = http::Response<Body>> + Send + 'a>>;

/// Listens at `path`, for root alone, in the place of whoever did before; nobody finds the path empty meanwhile.
pub fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let replace = || -> io::Result<UnixListener> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // kubelet leaves names with a dot alone.
        let new = path.with_file_name(format!(".{name}.new"));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&new)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
        fs::rename(&new, path)?;
        Ok(listener)
    };
    replace().with_context(|| format!("cannot listen at {}", path.display()))
}

/// Accepts connections, for ever.
pub async fn serve(listener: UnixListener, answers: Arc<impl Answers>) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // Never closed.
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection of kubelet's");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let answers = Arc::clone(&answers);
        tokio::spawn(async move {
            if let Err(error) = connection(stream, answers).await {
                tracing::debug!(error, "connection of kubelet's ended");
            }
            drop(permit);
        });
    }
}

async fn connection(stream: UnixStream, answers: Arc<impl Answers>) -> Result<(), String> {
    let service = service_fn(move |request: http::Request<Incoming>| {
        let answers = Arc::clone(&answers);
        async move {
            let method = request.uri().path().to_owned();
            let answer = timeout(CALL_TIMEOUT, answers.answer(&method, request)).await;
            let late = || Status::deadline_exceeded("the request took too long").into_http();
            Ok::<_, Infallible>(answer.unwrap_or_else(|_| late()))
        }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    let ended = timeout(LONGEST_CONNECTION, connection).await.map_err(|error| error.to_string())?;
    ended.map_err(|error| error.to_string())
}

/// Answers a call with one message for one.
pub async fn unary<Q, A, F>(
    request: http::Request<Incoming>,
    call: impl Fn(Q) -> F + Send + Sync,
) -> http::Response<Body>
where
    Q: Message + Default + Send + 'static,
    A: Message + Default + Send + 'static,
    F: Future<Output = Result<A, Status>> + Send,
{
    let mut grpc = Grpc::new(ProstCodec::<A, Q>::new()).max_decoding_message_size(MAX_MESSAGE);
    grpc.unary(Call(call), request).await
}

struct Call<C>(C);

impl<Q, A, C, F> tower_service::Service<Request<Q>> for Call<C>
where
    C: Fn(Q) -> F,
    F: Future<Output = Result<A, Status>>,
{
    type Response = Response<A>;
    type Error = Status;
    type Future = Replied<F>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        Replied(Box::pin((self.0)(request.into_inner())))
    }
}

struct Replied<F>(Pin<Box<F>>);

impl<A, F: Future<Output = Result<A, Status>>> Future for Replied<F> {
    type Output = Result<Response<A>, Status>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(context).map(|result| result.map(Response::new))
    }
}

/// kubelet makes one for each call.
const MAX_CONNECTIONS: usize = 1024;
const MAX_STREAMS: u32 = 16;
const MAX_HEADERS: u32 = 16 << 10;
/// A request takes some 500 bytes.
const MAX_MESSAGE: usize = 64 << 10;
/// kubelet waits two minutes, and asks again.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
const LONGEST_CONNECTION: Duration = Duration::from_secs(600);
/// Out of descriptors, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
