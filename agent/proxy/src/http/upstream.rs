//! Connections to servers: through tunnels to pods' own proxies, and in plain to what takes no tunnels.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use http::{HeaderValue, Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
    rt::Executor,
};
use orlop_model::{Identity, Reason, ports::HBONE_PORT};
use tokio::{
    net::TcpStream,
    task::spawn_local,
    time::{Instant, timeout},
};

use super::{Local, hosts::RequestGuard, io::Io, replay::RequestBody, session::Session};
use crate::{
    hbone, limits,
    pool::{self, Slot},
    refusal::Refusal,
    shared::InFlightGuard,
    tunnel,
};

/// Requests in one HTTP/2 connection to a server; for more, another is opened.
const MAX_STREAMS: usize = 100;

/// What connections are shared by: nothing that differs in one of these may share one. The caller is in it, since
/// the server's node judges each connection by whom it is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) address: SocketAddr,
    /// Whose certificate the endpoint's proxy must show; `None` for one that is reached in plain.
    pub(super) destination: Option<Identity>,
    /// For whom it is; `None` for the waypoint itself.
    pub(super) caller: Option<Identity>,
    pub(super) client: IpAddr,
    pub(super) http2: bool,
}

impl Key {
    /// Where its tunnel leads to, if it has one.
    pub(super) fn tunnel(&self) -> Option<SocketAddr> {
        self.destination.as_ref().map(|_| SocketAddr::new(self.address.ip(), HBONE_PORT))
    }
}

/// One worker's connections.
#[derive(Default)]
pub(crate) struct Upstreams {
    idle: RefCell<HashMap<Key, Vec<Idle>>>,
    shared: RefCell<HashMap<Key, Vec<Shared>>>,
}

/// An HTTP/1 connection between two requests.
struct Idle {
    sender: http1::SendRequest<RequestBody>,
    since: Instant,
}

/// An HTTP/2 connection.
#[derive(Clone)]
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    usage: Rc<Usage>,
}

struct Usage {
    streams: Cell<usize>,
    last: Cell<Instant>,
}

/// A connection for the time of one request.
pub(super) struct Lease {
    local: Rc<Local>,
    key: Key,
    hold: Hold,
    /// Whether it was open before: it may have died unnoticed.
    pub(super) reused: bool,
    /// Whether there is nothing of a request or an answer still to come.
    clean: bool,
    /// The request as one of its service's.
    pub(super) counted: Option<RequestGuard>,
    _in_flight: InFlightGuard,
}

enum Hold {
    /// `None` once it is given back.
    Http1(Option<http1::SendRequest<RequestBody>>),
    Http2(Shared),
}

/// Why a request got no answer.
pub(super) struct Unanswered {
    pub(super) refusal: Refusal,
    /// The request, where nothing of it has been sent.
    pub(super) request: Option<Request<RequestBody>>,
    /// Whether there was a connection to send it on.
    pub(super) connected: bool,
    /// The server says that it has not begun to do anything about it.
    pub(super) refused: bool,
    /// What the server says is no HTTP of the version that it was asked in.
    pub(super) garbled: bool,
}

impl Upstreams {
    /// A connection for one request: one that waits, or a new one.
    pub(super) async fn lease(session: &Rc<Session>, key: &Key) -> Result<Lease, Refusal> {
        let local = &session.local;
        if let Some(hold) = local.upstreams.waiting(key) {
            return Ok(Lease::new(local, key, hold, true));
        }
        Self::open(session, key).await
    }

    /// A new connection.
    pub(super) async fn open(session: &Rc<Session>, key: &Key) -> Result<Lease, Refusal> {
        let local = &session.local;
        let (io, slot) = connect(session, key).await?;
        let lost = |error: hyper::Error| Refusal::new(Reason::UpstreamReset, error);
        let hold = if key.http2 {
            let (sender, connection) = http2::Builder::new(LocalExecutor)
                .initial_stream_window_size(tunnel::STREAM_WINDOW)
                .initial_connection_window_size(tunnel::STREAM_WINDOW * 4)
                .max_header_list_size(u32::try_from(local.own.limits.max_header_size).unwrap_or(u32::MAX))
                .handshake(io)
                .await
                .map_err(lost)?;
            spawn_local(async move {
                let _ = connection.await;
                drop(slot);
            });
            let usage = Rc::new(Usage { streams: Cell::new(0), last: Cell::new(Instant::now()) });
            let shared = Shared { sender, usage };
            local.upstreams.shared.borrow_mut().entry(key.clone()).or_default().push(shared.clone());
            shared.enter()
        } else {
            let (sender, connection) = http1::Builder::new()
                .max_headers(local.own.limits.max_headers)
                .max_header_size(local.own.limits.max_header_size)
                .handshake(io)
                .await
                .map_err(lost)?;
            spawn_local(async move {
                let _ = connection.with_upgrades().await;
                drop(slot);
            });
            Hold::Http1(Some(sender))
        };
        Ok(Lease::new(local, key, hold, false))
    }

    fn waiting(&self, key: &Key) -> Option<Hold> {
        if key.http2 {
            let mut shared = self.shared.borrow_mut();
            let connections = shared.get_mut(key)?;
            connections.retain(|connection| !connection.sender.is_closed());
            return connections.iter().find(|connection| connection.has_room()).map(Shared::enter);
        }
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(key)?;
        connections.retain(|connection| !connection.sender.is_closed());
        // The one that was used last is the likeliest to live. Some may have an answer's end still to read.
        let ready = connections.iter().rposition(|connection| connection.sender.is_ready())?;
        Some(Hold::Http1(Some(connections.remove(ready).sender)))
    }

    /// Closes those that nobody has used for this long.
    pub(super) fn forget_idle(&self, idle: Duration) {
        let now = Instant::now();
        self.idle.borrow_mut().retain(|_, connections| {
            connections.retain(|one| !one.sender.is_closed() && now - one.since < idle);
            !connections.is_empty()
        });
        self.shared.borrow_mut().retain(|_, connections| {
            connections.retain(|one| {
                let used = one.usage.streams.get() > 0 || now - one.usage.last.get() < idle;
                !one.sender.is_closed() && used
            });
            !connections.is_empty()
        });
    }
}

impl Shared {
    fn has_room(&self) -> bool {
        self.usage.streams.get() < MAX_STREAMS
    }

    fn enter(&self) -> Hold {
        self.usage.streams.set(self.usage.streams.get() + 1);
        Hold::Http2(self.clone())
    }
}

impl Lease {
    pub(super) fn is_http2(&self) -> bool {
        self.key.http2
    }

    fn new(local: &Rc<Local>, key: &Key, hold: Hold, reused: bool) -> Self {
        let in_flight = local.worker.shared.in_flight.enter(key.address);
        Self {
            local: Rc::clone(local),
            key: key.clone(),
            hold,
            reused,
            clean: true,
            counted: None,
            _in_flight: in_flight,
        }
    }

    /// Sends the request and waits for the head of its answer.
    pub(super) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, Unanswered> {
        self.clean = false;
        let answer = match &mut self.hold {
            Hold::Http1(Some(sender)) => sender.try_send_request(request).await,
            Hold::Http1(None) => return Err(Refusal::internal("a connection was given back").into()),
            Hold::Http2(shared) => shared.sender.try_send_request(request).await,
        };
        answer.map_err(|mut error: TrySendError<Request<RequestBody>>| {
            let request = error.take_message();
            let error = error.into_error();
            let (refused, garbled) = (is_refused(&error), is_garbled(&error));
            let refusal = Refusal::new(Reason::UpstreamReset, described(&error));
            Unanswered { refusal, request, connected: true, refused, garbled }
        })
    }

    /// The answer was read to its end: the connection can have another request.
    pub(super) fn finish(&mut self) {
        self.clean = true;
    }
}

impl Drop for Lease {
    /// An HTTP/1 connection waits for the next request; one in the midst of an exchange is closed.
    fn drop(&mut self) {
        let clean = self.clean;
        match &mut self.hold {
            Hold::Http1(sender) => {
                let sender = sender.take().filter(|sender| clean && !sender.is_closed());
                let Some(sender) = sender else { return };
                let mut idle = self.local.upstreams.idle.borrow_mut();
                let idle = match idle.get_mut(&self.key) {
                    Some(idle) => idle,
                    None => idle.entry(self.key.clone()).or_default(),
                };
                if idle.len() < self.local.own.limits.max_idle {
                    idle.push(Idle { sender, since: Instant::now() });
                }
            }
            Hold::Http2(shared) => {
                shared.usage.streams.set(shared.usage.streams.get() - 1);
                shared.usage.last.set(Instant::now());
            }
        }
    }
}

impl From<Refusal> for Unanswered {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, request: None, connected: false, refused: false, garbled: false }
    }
}

/// Connects to an endpoint on behalf of the session's client. The slot is the place in the tunnel, if there is one.
pub(super) async fn connect(session: &Rc<Session>, key: &Key) -> Result<(Io, Option<Slot>), Refusal> {
    let local = &session.local;
    let shared = &local.worker.shared;
    let Some(destination) = &key.destination else {
        return Ok((Io::tcp(dial(session, key.address).await?), None));
    };
    let tunnel = pool::Key {
        source: local.own.workload.identity.clone(),
        destination: destination.clone(),
        netns: 0,
        address: SocketAddr::new(key.address.ip(), HBONE_PORT),
    };
    let open = async || tunnel::open_over(shared, &tunnel, dial(session, tunnel.address)).await;
    loop {
        let mut slot = local.worker.pool.slot(&tunnel, open).await?;
        let request = connect_request(session, key)?;
        match tunnel::ask(shared, &mut slot.send, request).await {
            Ok((send, receive)) => return Ok((Io::stream(send, receive), Some(slot))),
            // Nothing of the client's has been sent: a tunnel that died unnoticed costs no connection.
            Err(refusal) if refusal.reason == Reason::TunnelClosed && slot.reused => slot.retire(),
            Err(refusal) => return Err(refusal),
        }
    }
}

/// Asks the endpoint's proxy, and says whom it is for.
fn connect_request(session: &Session, key: &Key) -> Result<Request<()>, Refusal> {
    let own = &session.local.own.workload;
    let unfit = || Refusal::internal("a name of the source does not fit a header");
    let Some(caller) = &key.caller else {
        let anywhere = SocketAddr::new(key.client, 0);
        return hbone::connect_request(key.address, own, anywhere).ok_or_else(unfit);
    };
    let source = session.source.as_deref().unwrap_or(own);
    let mut request = hbone::connect_request(key.address, source, session.client).ok_or_else(unfit)?;
    let caller = HeaderValue::from_str(&format!("By={};URI={caller}", own.identity));
    request.headers_mut().insert(hbone::CLIENT_CERT, caller.map_err(|_| unfit())?);
    Ok(request)
}

async fn dial(session: &Session, address: SocketAddr) -> Result<TcpStream, Refusal> {
    let shared = &session.local.worker.shared;
    let tcp = match timeout(shared.config.connect_timeout, TcpStream::connect(address)).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(error)) => {
            let text = format!("connect to {address}: {error}");
            return Err(match limits::no_socket(error) {
                refusal if refusal.reason == Reason::Internal => Refusal::new(Reason::ConnectFailed, text),
                refusal => refusal,
            });
        }
        Err(_) => {
            return Err(Refusal::new(Reason::ConnectTimeout, format!("no answer from {address} in time")));
        }
    };
    shared.limits.keep_dialled(&tcp)?;
    let _ = tcp.set_nodelay(true);
    Ok(tcp)
}

/// Whether the server has reset the stream before it did anything (RFC 9113, section 8.7).
fn is_refused(error: &hyper::Error) -> bool {
    of_http2(error).is_some_and(|error| error.reason() == Some(h2::Reason::REFUSED_STREAM))
}

/// Whether it is our side that could not go on.
fn is_garbled(error: &hyper::Error) -> bool {
    error.is_parse() || of_http2(error).is_some_and(h2::Error::is_library)
}

fn of_http2(error: &hyper::Error) -> Option<&h2::Error> {
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        if let Some(error) = cause.downcast_ref::<h2::Error>() {
            return Some(error);
        }
        next = cause.source();
    }
    None
}

/// The whole chain in one line.
fn described(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// Runs what hyper wants to run beside a connection, on the same thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct LocalExecutor;

impl<F: Future<Output: 'static> + 'static> Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        spawn_local(future);
    }
}
