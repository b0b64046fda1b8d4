//! HTTP/2 without TLS, as client and as server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use orlop_tests::Pod;
use tokio::sync::watch;
use tokio::task::spawn_local;

use crate::hbone::{within, write};
use crate::mesh::TIMEOUT;

/// What is asked for here begins, and is cancelled once data comes.
pub const BROKEN_OFF: &str = "/broken-off";
/// What is asked for here is reset before it is answered.
pub const RESET: &str = "/reset";
/// What is asked for here is [`BULK`] bytes.
pub const LARGE: &str = "/large";
pub const BULK: usize = 2 << 20;

/// The answer to what is asked for here has these trailers as well.
pub const UNFIT: &str = "/unfit";
/// The answer to what is asked for here has so many headers more.
pub const MANY: &str = "/many";
pub const MANY_HEADERS: usize = 30;
/// The answer to what is asked for here has a header of this size.
pub const LARGE_HEAD: &str = "/large-head";
pub const LARGE_HEADER: usize = 9 << 10;
/// What nobody has a say in who writes trailers.
pub const UNFIT_NAMES: [&str; 5] =
    ["host", "content-length", "x-forwarded-client-cert", "x_forwarded_client_cert", "content_length"];

/// An HTTP/2 server that answers with what comes, as gRPC would: data as soon as it is there, and at the end trailers
/// with the status. What it was asked is in the headers `seen-path`, `seen-host` and `seen-caller`, and the names of the
/// trailers in the trailer `seen-trailers`.
pub struct Server {
    stop: watch::Sender<bool>,
    count: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(pod: &Pod, port: u16) -> Self {
        let (stop, mut stopped) = watch::channel(false);
        let (ready, started) = channel();
        let pod = pod.clone();
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let thread = thread::spawn(move || {
            within(&pod, async move || {
                let listener = tokio::net::TcpListener::bind(("::", port)).await.unwrap();
                ready.send(()).unwrap();
                loop {
                    tokio::select! {
                        accepted = listener.accept() => {
                            drop(spawn_local(serve(accepted.unwrap().0, Arc::clone(&counted))));
                        }
                        _ = stopped.wait_for(|stop| *stop) => return,
                    }
                }
            });
        });
        started.recv_timeout(TIMEOUT).unwrap();
        Self { stop, count, thread: Some(thread) }
    }

    /// How often it was asked.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(tcp: tokio::net::TcpStream, count: Arc<AtomicUsize>) {
    let Ok(mut connection) = h2::server::handshake(tcp).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        count.fetch_add(1, Ordering::SeqCst);
        if request.uri().path() == RESET {
            respond.send_reset(h2::Reason::INTERNAL_ERROR);
            continue;
        }
        spawn_local(async move {
            let _ = answer(request, respond).await;
        });
    }
}

async fn answer(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Result<(), h2::Error> {
    let (parts, mut receive) = request.into_parts();
    let mut response = Response::builder()
        .header("content-type", "application/grpc")
        .header("seen-path", parts.uri.path())
        .header("seen-host", parts.uri.authority().map_or("none", |authority| authority.as_str()));
    for (name, seen) in [("x-forwarded-client-cert", "seen-caller"), ("x-set", "seen-set")] {
        if let Some(value) = parts.headers.get(name) {
            response = response.header(seen, value);
        }
    }
    match parts.uri.path() {
        MANY => response = (0..MANY_HEADERS).fold(response, |response, n| response.header("many", n)),
        LARGE_HEAD => response = response.header("large", "x".repeat(LARGE_HEADER)),
        _ => {}
    }
    let mut send = respond.send_response(response.body(()).unwrap(), false)?;
    if parts.uri.path() == BROKEN_OFF {
        write(&mut send, Bytes::from_static(b"half")).await?;
        // Whoever asks has it.
        receive.data().await;
        send.send_reset(h2::Reason::CANCEL);
        return Ok(());
    }
    if parts.uri.path() == LARGE {
        write(&mut send, Bytes::from(vec![0; BULK])).await?;
    }
    while let Some(data) = receive.data().await {
        let data = data?;
        receive.flow_control().release_capacity(data.len())?;
        write(&mut send, data).await?;
    }
    let asked = receive.trailers().await?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    if let Some(asked) = asked {
        if let Some(mark) = asked.get("mark").cloned() {
            trailers.insert("mark", mark);
        }
        let names: Vec<_> = asked.keys().map(http::HeaderName::as_str).collect();
        trailers.insert("seen-trailers", HeaderValue::try_from(names.join(" ")).unwrap());
    }
    if parts.uri.path() == UNFIT {
        for name in UNFIT_NAMES {
            trailers.insert(name, HeaderValue::from_static("5"));
        }
    }
    send.send_trailers(trailers)
}

/// Opens a connection, in the runtime of [`within`].
pub async fn connect(to: SocketAddr) -> SendRequest<Bytes> {
    connect_with(to, h2::client::Builder::new()).await
}

/// The same, with settings of its own.
pub async fn connect_with(to: SocketAddr, settings: h2::client::Builder) -> SendRequest<Bytes> {
    let tcp = tokio::net::TcpStream::connect(to).await.unwrap();
    let (send, connection) = settings.handshake(tcp).await.unwrap();
    spawn_local(async move {
        let _ = connection.await;
    });
    send
}

/// Asks for `path`; the body is still to come.
pub async fn ask(client: &SendRequest<Bytes>, path: &str) -> (h2::client::ResponseFuture, SendStream<Bytes>) {
    ask_with(client, path, &[]).await
}

/// The same, with more headers.
pub async fn ask_with(
    client: &SendRequest<Bytes>,
    path: &str,
    headers: &[(&str, &str)],
) -> (h2::client::ResponseFuture, SendStream<Bytes>) {
    let request = Request::post(format!("http://web{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let request = request.body(()).unwrap();
    client.clone().ready().await.unwrap().send_request(request, false).unwrap()
}

/// The next `length` bytes.
pub async fn read(receive: &mut RecvStream, length: usize) -> Vec<u8> {
    let mut read = Vec::new();
    while read.len() < length {
        let data = receive.data().await.expect("the stream ended").unwrap();
        receive.flow_control().release_capacity(data.len()).unwrap();
        read.extend_from_slice(&data);
    }
    read
}
