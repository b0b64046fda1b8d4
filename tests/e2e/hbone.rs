//! A hand-made HBONE peer, as client and as server, and certificates good and forged.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use nix::libc;
use orlop_identity::{DEFAULT_LIFETIME, EmbeddedCa, Identities, peer_identity};
use orlop_model::{Identity, TrustDomain};
use orlop_tests::{Pod, Testbed};
use rustls::{NamedGroup, ProtocolVersion, ServerConfig};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{LocalSet, spawn_local};
use tokio_rustls::TlsAcceptor;

use crate::mesh::{NAMESPACE, TIMEOUT};

pub const HBONE_PORT: u16 = 15008;

pub fn trust_domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

/// Of a service account in the mesh's namespace.
pub fn identity(account: &str) -> Identity {
    Identity::new(&trust_domain(), NAMESPACE, account)
}

/// Certificates of the testbed's own CA for these service accounts.
pub fn identities(testbed: &Testbed, accounts: &[&str]) -> Identities {
    let ca = EmbeddedCa::open(&testbed.ca_dir(), &trust_domain()).unwrap();
    let identities = Identities::new(Arc::new(ca), trust_domain(), DEFAULT_LIFETIME);
    for account in accounts {
        identities.ensure(&identity(account)).unwrap();
    }
    identities
}

/// Runs `work` in a pod's network namespace, with a runtime of its own.
pub fn within<T: Send>(pod: &Pod, work: impl AsyncFnOnce() -> T + Send) -> T {
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let limited = async { tokio::time::timeout(6 * TIMEOUT, work()).await.expect("it hangs") };
        LocalSet::new().block_on(&runtime, limited)
    };
    pod.run(work).unwrap()
}

/// A CONNECT to `authority` with these headers.
pub fn connect_request(authority: &str, headers: &[(&'static str, &str)]) -> Request<()> {
    let mut request =
        Request::builder().method(Method::CONNECT).uri(Uri::builder().authority(authority).build().unwrap());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

/// What a peer was asked for, and in which of its tunnels, from 0 on.
#[derive(Debug)]
pub struct Asked {
    pub tunnel: usize,
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
}

/// What the handshake of a tunnel came to.
#[derive(Debug)]
pub struct Session {
    pub alpn: Option<Vec<u8>>,
    pub version: Option<ProtocolVersion>,
    pub group: Option<NamedGroup>,
    pub server_name: Option<String>,
    /// From the client's certificate, which must hold exactly one URI.
    pub client: Identity,
}

/// How a peer treats every CONNECT.
#[derive(Clone, Copy, Debug)]
pub enum Reply {
    /// 200, and back what comes.
    Echo,
    /// This status, and no more.
    Status(StatusCode),
    /// 200, one byte, and a reset once a byte has come.
    ByteThenReset,
    /// Nothing at all.
    Silence,
}

/// An HBONE server in a pod whose agent does not run.
pub struct Peer {
    pub asked: Receiver<Asked>,
    pub sessions: Receiver<Session>,
    /// Why clients' streams ended, unless in good order.
    pub resets: Receiver<Option<Reason>>,
    told: watch::Sender<Order>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Order {
    Serve,
    GoAway,
    Vanish,
    Stop,
}

#[derive(Clone)]
struct Reports {
    asked: Sender<Asked>,
    sessions: Sender<Session>,
    resets: Sender<Option<Reason>>,
    orders: watch::Receiver<Order>,
}

impl Peer {
    pub fn start(pod: &Pod, config: Arc<ServerConfig>, http: Builder, reply: Reply) -> Self {
        let (asked_sender, asked) = channel();
        let (session_sender, sessions) = channel();
        let (reset_sender, resets) = channel();
        let told = watch::Sender::new(Order::Serve);
        let reports = Reports {
            asked: asked_sender,
            sessions: session_sender,
            resets: reset_sender,
            orders: told.subscribe(),
        };
        let (ready, started) = channel();
        let pod = pod.clone();
        let thread = thread::spawn(move || {
            within(&pod, async move || {
                let listener = listen().await;
                ready.send(()).unwrap();
                serve(listener, TlsAcceptor::from(config), http, reply, reports).await;
            });
        });
        started.recv_timeout(TIMEOUT).unwrap();
        Self { asked, sessions, resets, told, thread: Some(thread) }
    }

    /// Tells all clients to take new streams elsewhere.
    pub fn go_away(&self) {
        self.told.send_replace(Order::GoAway);
    }

    /// Ends as if its machine had lost power.
    pub fn vanish(self) {
        self.told.send_replace(Order::Vanish);
    }

    /// The next CONNECT.
    #[track_caller]
    pub fn next(&self) -> Asked {
        self.asked.recv_timeout(TIMEOUT).unwrap()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.told.send_if_modified(|order| {
            let serves = *order != Order::Vanish;
            *order = if serves { Order::Stop } else { Order::Vanish };
            serves
        });
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A process that another test is just starting may hold a peer's old socket for a moment more.
async fn listen() -> TcpListener {
    loop {
        match TcpListener::bind(("::", HBONE_PORT)).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            result => return result.unwrap(),
        }
    }
}

async fn serve(listener: TcpListener, tls: TlsAcceptor, http: Builder, reply: Reply, mut reports: Reports) {
    let mut sockets: Vec<Weak<OwnedFd>> = Vec::new();
    for tunnel in 0.. {
        let orders = reports.orders.clone();
        let tcp = tokio::select! {
            accepted = listener.accept() => accepted.unwrap().0,
            order = reports.orders.wait_for(|order| matches!(order, Order::Stop | Order::Vanish)) => {
                if *order.unwrap() == Order::Vanish {
                    for socket in sockets.iter().filter_map(Weak::upgrade) {
                        close_silently(&socket).unwrap();
                    }
                }
                return;
            }
        };
        let socket = Rc::new(tcp.as_fd().try_clone_to_owned().unwrap());
        sockets.push(Rc::downgrade(&socket));
        let reports = Reports { orders, ..reports.clone() };
        let (tls, http) = (tls.clone(), http.clone());
        spawn_local(async move {
            let _socket = socket;
            let Ok(tls) = tls.accept(tcp).await else { return };
            let session = tls.get_ref().1;
            let _ = reports.sessions.send(Session {
                alpn: session.alpn_protocol().map(<[u8]>::to_vec),
                version: session.protocol_version(),
                group: session.negotiated_key_exchange_group().map(|group| group.name()),
                server_name: session.server_name().map(str::to_owned),
                client: peer_identity(session.peer_certificates().unwrap(), &trust_domain()).unwrap(),
            });
            if let Ok(connection) = http.handshake(tls).await {
                serve_tunnel(connection, tunnel, reply, reports).await;
            }
        });
    }
}

/// Puts a socket under repair, as for a checkpoint: then its close says nothing to its peer.
fn close_silently(socket: &OwnedFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = size_of_val(&on) as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes, the size of `on`.
    let result = unsafe {
        let (level, option) = (libc::IPPROTO_TCP, libc::TCP_REPAIR);
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

async fn serve_tunnel<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    mut connection: h2::server::Connection<T, Bytes>,
    tunnel: usize,
    reply: Reply,
    reports: Reports,
) {
    let mut orders = reports.orders.clone();
    let mut told = *orders.borrow() == Order::GoAway;
    loop {
        let stream = tokio::select! {
            stream = connection.accept() => stream,
            _ = orders.wait_for(|order| *order == Order::GoAway), if !told => {
                told = true;
                connection.graceful_shutdown();
                continue;
            }
        };
        let Some(Ok((request, respond))) = stream else { return };
        let (request, receive) = request.into_parts();
        let asked = Asked { tunnel, method: request.method, uri: request.uri, headers: request.headers };
        let _ = reports.asked.send(asked);
        let resets = reports.resets.clone();
        spawn_local(async move {
            if let Err(error) = answer(reply, receive, respond).await {
                let _ = resets.send(error.reason());
            }
        });
    }
}

async fn answer(
    reply: Reply,
    mut receive: RecvStream,
    mut respond: SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    match reply {
        Reply::Silence => std::future::pending().await,
        Reply::Status(status) => {
            let mut response = Response::new(());
            *response.status_mut() = status;
            respond.send_response(response, true).map(drop)
        }
        Reply::Echo => {
            let mut send = respond.send_response(Response::new(()), false)?;
            echo(&mut send, &mut receive).await
        }
        Reply::ByteThenReset => {
            let mut send = respond.send_response(Response::new(()), false)?;
            write(&mut send, Bytes::from_static(b"!")).await?;
            receive.data().await;
            send.send_reset(Reason::INTERNAL_ERROR);
            Ok(())
        }
    }
}

async fn echo(send: &mut SendStream<Bytes>, receive: &mut RecvStream) -> Result<(), h2::Error> {
    while let Some(data) = receive.data().await {
        let data = data?;
        receive.flow_control().release_capacity(data.len())?;
        write(send, data).await?;
    }
    send.send_data(Bytes::new(), true)
}

/// Sends as much as the windows allow, until all is sent.
pub async fn write(send: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), h2::Error> {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let room = std::future::poll_fn(|cx| send.poll_capacity(cx)).await;
        let room = room.ok_or(Reason::CANCEL)??;
        send.send_data(data.split_to(room.min(data.len())), false)?;
    }
    Ok(())
}

/// Where a pod's HBONE listener is.
pub fn hbone(pod: &Pod) -> SocketAddr {
    pod.addr(HBONE_PORT)
}
