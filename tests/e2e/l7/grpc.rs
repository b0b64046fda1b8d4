//! A server of gRPC whose calls have one message each, and protobuf's encoding, both written by the book: nothing of it
//! is the program's.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use h2::RecvStream;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use nix::sys::socket::{Shutdown, shutdown};
use orlop_tests::Pod;
use tokio::sync::watch;
use tokio::task::spawn_local;

use super::h2c;
use crate::hbone::{within, write};
use crate::mesh::TIMEOUT;

/// What is done about a call.
#[derive(Clone)]
pub enum Reply {
    Message(Vec<u8>),
    /// A status of gRPC, without a message.
    Status(u16),
    /// What is no gRPC.
    Garbage(Vec<u8>),
    /// The stream is refused, as if nothing of it had been read.
    Refused,
    /// The stream is reset, in the midst of an answer.
    Reset,
    /// Nothing, for as long as it takes.
    Nothing,
}

type Script = dyn Fn(&[u8]) -> Reply + Send + Sync;

/// Serves until it is dropped.
pub struct Server {
    stop: watch::Sender<bool>,
    asked: Seen,
    connections: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(pod: &Pod, script: impl Fn(&[u8]) -> Reply + Send + Sync + 'static) -> Self {
        let (stop, mut stopped) = watch::channel(false);
        let (ready, started) = channel();
        let asked = Arc::<Mutex<Vec<_>>>::default();
        let script: Arc<Script> = Arc::new(script);
        let connections = Arc::<AtomicUsize>::default();
        let (pod, seen, counted) = (pod.clone(), Arc::clone(&asked), Arc::clone(&connections));
        let thread = thread::spawn(move || {
            within(&pod, async move || {
                let listener = tokio::net::TcpListener::bind(("::", 80)).await.unwrap();
                ready.send(()).unwrap();
                loop {
                    tokio::select! {
                        accepted = listener.accept() => {
                            counted.fetch_add(1, Ordering::SeqCst);
                            let (script, seen) = (Arc::clone(&script), Arc::clone(&seen));
                            spawn_local(serve(accepted.unwrap().0, script, seen));
                        }
                        _ = stopped.wait_for(|stop| *stop) => {
                            // A process that another test has just forked may hold it for a moment.
                            let _ = shutdown(listener.as_raw_fd(), Shutdown::Both);
                            return;
                        }
                    }
                }
            });
        });
        started.recv_timeout(TIMEOUT).unwrap();
        Self { stop, asked, connections, thread: Some(thread) }
    }

    /// The paths and the messages of the calls so far.
    pub fn asked(&self) -> Vec<(String, Vec<u8>)> {
        self.asked.lock().unwrap().clone()
    }

    /// Connections that it took.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
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

type Seen = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

async fn serve(tcp: tokio::net::TcpStream, script: Arc<Script>, seen: Seen) {
    let Ok(mut connection) = h2::server::handshake(tcp).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        let (script, seen) = (Arc::clone(&script), Arc::clone(&seen));
        spawn_local(async move {
            let _ = answer(request, respond, &*script, &seen).await;
        });
    }
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    script: &Script,
    seen: &Seen,
) -> Result<(), h2::Error> {
    let (parts, mut receive) = request.into_parts();
    let mut bytes = Vec::new();
    while let Some(data) = receive.data().await {
        let data = data?;
        receive.flow_control().release_capacity(data.len())?;
        bytes.extend_from_slice(&data);
    }
    assert_eq!(parts.headers["content-type"], "application/grpc");
    assert_eq!(parts.headers["te"], "trailers");
    assert_eq!(
        usize::try_from(u32::from_be_bytes(bytes[1..5].try_into().unwrap())).unwrap(),
        bytes.len() - 5
    );
    assert_eq!(bytes[0], 0);
    let message = bytes.split_off(5);
    seen.lock().unwrap().push((parts.uri.path().to_owned(), message.clone()));
    let head = Response::builder().header("content-type", "application/grpc");
    let message = match script(&message) {
        Reply::Message(message) => {
            let length = u32::try_from(message.len()).unwrap().to_be_bytes();
            [&[0][..], &length, &message].concat()
        }
        Reply::Garbage(bytes) => bytes,
        Reply::Status(status) => {
            respond.send_response(head.header("grpc-status", status).body(()).unwrap(), true)?;
            return Ok(());
        }
        Reply::Refused => {
            respond.send_reset(h2::Reason::REFUSED_STREAM);
            return Ok(());
        }
        Reply::Reset => {
            let mut send = respond.send_response(head.body(()).unwrap(), false)?;
            write(&mut send, Bytes::from_static(&[0])).await?;
            send.send_reset(h2::Reason::INTERNAL_ERROR);
            return Ok(());
        }
        Reply::Nothing => return std::future::pending().await,
    };
    let mut send = respond.send_response(head.body(()).unwrap(), false)?;
    write(&mut send, message.into()).await?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    send.send_trailers(trailers)
}

/// Sends a call with this message on a connection of its own, and returns the status of gRPC that it is answered with.
pub async fn call(to: SocketAddr, path: &str, message: &[u8]) -> String {
    let client = h2c::connect(to).await;
    let answer = ask(&client, path, message).await.await.unwrap();
    let (head, mut body) = answer.into_parts();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    let trailers = body.trailers().await.unwrap().unwrap_or_default();
    let status = head.headers.get("grpc-status").or_else(|| trailers.get("grpc-status"));
    status.expect("a status of gRPC").to_str().unwrap().to_owned()
}

/// Sends a call with this message.
pub async fn ask(client: &SendRequest<Bytes>, path: &str, message: &[u8]) -> ResponseFuture {
    let (answer, mut send) = h2c::ask(client, path).await;
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    send.send_data([&[0][..], &length, message].concat().into(), true).unwrap();
    answer
}

/// A field that is a number.
pub fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

/// A field that is a text, bytes or a message.
pub fn bytes(field: u64, value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    [varint(field << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut encoded = Vec::new();
    while value > 0x7f {
        encoded.push(value as u8 | 0x80);
        value >>= 7;
    }
    encoded.push(value as u8);
    encoded
}

/// What a message has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Number(u64),
    Bytes(Vec<u8>),
}

/// All fields of a message.
pub fn fields(mut message: &[u8]) -> Vec<(u64, Value)> {
    let mut found = Vec::new();
    while !message.is_empty() {
        let tag = read_varint(&mut message);
        let value = match tag & 7 {
            0 => Value::Number(read_varint(&mut message)),
            2 => {
                let length = usize::try_from(read_varint(&mut message)).unwrap();
                let (value, rest) = message.split_at(length);
                message = rest;
                Value::Bytes(value.to_vec())
            }
            other => panic!("wire type {other}"),
        };
        found.push((tag >> 3, value));
    }
    found
}

/// The messages, texts or bytes at the end of a way through messages.
pub fn at(message: &[u8], way: &[u64]) -> Vec<Vec<u8>> {
    let [first, rest @ ..] = way else { return vec![message.to_vec()] };
    let of_field = fields(message).into_iter().filter(|(field, _)| field == first);
    let inner = of_field.filter_map(|(_, value)| match value {
        Value::Bytes(bytes) => Some(bytes),
        Value::Number(_) => None,
    });
    inner.flat_map(|bytes| at(&bytes, rest)).collect()
}

/// The text there.
pub fn text(message: &[u8], way: &[u64]) -> String {
    let found = at(message, way);
    assert!(found.len() < 2, "{way:?}: {found:?}");
    found.first().map(|bytes| String::from_utf8(bytes.clone()).unwrap()).unwrap_or_default()
}

fn read_varint(message: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = message[0];
        *message = &message[1..];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}
