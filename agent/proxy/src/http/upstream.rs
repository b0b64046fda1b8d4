//! Connections to servers: through tunnels to pods' own proxies, and in plain to what takes no tunnels.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
    pin::pin,
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
    rt::Executor,
};
use orlop_model::{Reason, http::Reach, world::routing::ConnectionPool};
use tokio::{
    task::spawn_local,
    time::{Instant, sleep_until},
};

use super::{
    Local,
    connections::Place,
    dial::connect,
    flags::Flag,
    headers,
    hosts::{ClusterState, RequestGuard},
    key::Key,
    replay::RequestBody,
    session::Session,
    stream::Bounds,
    unanswered::Unanswered,
};
use crate::{pool::Slot, refusal::Refusal, shared::InFlightGuard, tunnel};

/// Requests in one HTTP/2 connection to a server; for more, another is opened.
const MAX_STREAMS: usize = tunnel::MAX_STREAMS as usize;
/// What an answer to a stranger may have on the way, or a stranger's request: they have many, and may read none.
pub(super) const STRANGERS_WINDOW: u32 = 64 << 10;

/// Whose connections they are, and what is said of these.
#[derive(Clone, Copy)]
pub(super) struct Lane<'a> {
    pub(super) cluster: Option<&'a Arc<ClusterState>>,
    pub(super) pool: Option<&'a ConnectionPool>,
}

/// One worker's connections.
#[derive(Default)]
pub(crate) struct Upstreams {
    idle: RefCell<HashMap<Key, Vec<Idle>>>,
    shared: RefCell<HashMap<Key, Vec<Shared>>>,
    /// How many requests wait for a connection that there may not be yet.
    wanted: RefCell<HashMap<Key, usize>>,
}

/// An HTTP/1 connection between two requests.
struct Idle {
    sender: http1::SendRequest<RequestBody>,
    usage: Rc<Usage>,
}

/// An HTTP/2 connection.
#[derive(Clone)]
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    usage: Rc<Usage>,
}

/// What is known of an open connection.
struct Usage {
    /// Requests under way.
    streams: Cell<usize>,
    /// When the last request ended.
    last: Cell<Instant>,
    /// How many more requests it takes.
    left: Cell<u32>,
    /// Requests at once.
    max_streams: usize,
    begun: Instant,
    /// How long it may be there.
    max_duration: Option<Duration>,
    /// How long it may be idle.
    idle_timeout: Option<Duration>,
    /// Once it has left HTTP.
    bounds: Bounds,
    /// Whose requests alone it is for.
    owner: Option<Weak<Session>>,
    /// `None` once it is over, or where nobody counts.
    place: RefCell<Option<Place>>,
    /// The connection is gone.
    ended: Cell<bool>,
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
    /// The sender is `None` once it is given back.
    Http1(Option<http1::SendRequest<RequestBody>>, Rc<Usage>),
    Http2(Shared),
}

/// What one answer may have on the way. A connection has the sum of all, so that readers who stop can't stop the others.
pub(super) fn stream_window(session: &Session) -> u32 {
    if session.is_from_outside() { STRANGERS_WINDOW } else { tunnel::STREAM_WINDOW }
}

impl Upstreams {
    /// A connection for one request: one that waits, unless it is to be `fresh`, or a new one. Where there are as many as
    /// there may be, the request waits for one.
    pub(super) async fn lease(
        session: &Rc<Session>,
        key: &Key,
        lane: Lane<'_>,
        fresh: bool,
    ) -> Result<Lease, Refusal> {
        let local = &session.local;
        if key.preface.is_some() && !session.only_its.borrow().contains(key) {
            session.only_its.borrow_mut().insert(key.clone());
        }
        let waiting = || local.upstreams.waiting(key).map(|hold| Lease::new(local, key, hold, true));
        if !fresh && let Some(lease) = waiting() {
            return Ok(lease);
        }
        let Some(cluster) = lane.cluster else { return Self::open(session, key, lane, None).await };
        let limits = lane.pool.map_or((None, None), |pool| (pool.max_connections, pool.max_pending));
        let connections = &cluster.connections;
        let too_many = || Refusal::new(Reason::Overflow, "as many requests wait for a connection as may");
        let _pending = connections.pend(limits.1).ok_or_else(too_many)?;
        let mut blocked = None;
        let place = loop {
            let mut freed = pin!(connections.freed());
            freed.as_mut().enable();
            if let Some(place) = connections.open(limits.0) {
                break place;
            }
            if blocked.is_none() {
                blocked = Some((connections.block(), local.upstreams.want(key)));
                continue;
            }
            if let Some(lease) = waiting() {
                return Ok(lease);
            }
            connections.ask_for_room();
            freed.await;
        };
        drop(blocked);
        Self::open(session, key, lane, Some(place)).await
    }

    async fn open(
        session: &Rc<Session>,
        key: &Key,
        lane: Lane<'_>,
        place: Option<Place>,
    ) -> Result<Lease, Refusal> {
        let local = &session.local;
        let (io, slot) = connect(session, key, lane.pool).await?;
        let lost = |error: hyper::Error| Refusal::new(Reason::UpstreamReset, error);
        let usage = Rc::new(Usage::new(session, key, lane.pool, place));
        let makes_room = lane.pool.is_some_and(|pool| pool.max_connections.is_some());
        let hold = if key.http2 {
            let (sender, connection) = http2::Builder::new(LocalExecutor)
                .initial_stream_window_size(stream_window(session))
                .initial_connection_window_size(stream_window(session) * tunnel::MAX_STREAMS)
                .max_header_list_size(u32::try_from(local.own.limits.max_header_size).unwrap_or(u32::MAX))
                .handshake(io)
                .await
                .map_err(lost)?;
            spawn_local(keep(connection, Rc::clone(&usage), slot, makes_room));
            let shared = Shared { sender, usage };
            local.upstreams.shared.borrow_mut().entry(key.clone()).or_default().push(shared.clone());
            Hold::Http2(shared)
        } else {
            let (sender, connection) = http1::Builder::new()
                .max_headers(local.own.limits.max_headers)
                .max_header_size(local.own.limits.max_header_size)
                .handshake(io)
                .await
                .map_err(lost)?;
            spawn_local(keep(connection.with_upgrades(), Rc::clone(&usage), slot, makes_room));
            Hold::Http1(Some(sender), usage)
        };
        Ok(Lease::new(local, key, hold, false))
    }

    fn waiting(&self, key: &Key) -> Option<Hold> {
        if key.http2 {
            let mut shared = self.shared.borrow_mut();
            let connections = shared.get_mut(key)?;
            connections.retain(|connection| !connection.sender.is_closed());
            return connections.iter().find(|of| of.usage.has_room()).cloned().map(Hold::Http2);
        }
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(key)?;
        connections.retain(|connection| !connection.sender.is_closed() && connection.usage.has_room());
        // The one that was used last is the likeliest to live. Some may have an answer's end still to read.
        let ready = connections.iter().rposition(|connection| connection.sender.is_ready())?;
        let Idle { sender, usage } = connections.remove(ready);
        Some(Hold::Http1(Some(sender), usage))
    }

    /// Says that a request waits for such a connection, until the guard is dropped.
    fn want<'u>(&'u self, key: &Key) -> Wanted<'u> {
        *self.wanted.borrow_mut().entry(key.clone()).or_default() += 1;
        Wanted { upstreams: self, key: key.clone() }
    }

    /// Closes those that nobody else may share than a client's connection that is gone.
    pub(super) fn forget(&self, keys: &HashSet<Key>) {
        for key in keys {
            self.idle.borrow_mut().remove(key);
            self.shared.borrow_mut().remove(key);
        }
    }

    /// Closes those that nobody has used for this long.
    pub(super) fn forget_idle(&self, idle: Duration) {
        let now = Instant::now();
        let is_used = |usage: &Usage| !usage.is_idle() || now - usage.last.get() < idle;
        self.idle.borrow_mut().retain(|_, connections| {
            connections.retain(|one| !one.sender.is_closed() && is_used(&one.usage));
            !connections.is_empty()
        });
        self.shared.borrow_mut().retain(|_, connections| {
            connections.retain(|one| !one.sender.is_closed() && is_used(&one.usage));
            !connections.is_empty()
        });
    }
}

/// A request that waits for a connection.
struct Wanted<'u> {
    upstreams: &'u Upstreams,
    key: Key,
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        let mut wanted = self.upstreams.wanted.borrow_mut();
        if let Some(count) = wanted.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                wanted.remove(&self.key);
            }
        }
    }
}

/// Drives a connection until it ends, has been there or idle for as long as it may, or makes room for another.
async fn keep(connection: impl Future, usage: Rc<Usage>, slot: Option<Slot>, makes_room: bool) {
    let connections = usage.place.borrow().as_ref().map(|place| Arc::clone(place.connections()));
    let connections = connections.filter(|_| makes_room);
    let mut connection = pin!(connection);
    loop {
        let due = usage.due();
        let crowded = async {
            match &connections {
                None => std::future::pending().await,
                Some(connections) => {
                    let mut crowded = pin!(connections.crowded());
                    crowded.as_mut().enable();
                    if usage.is_idle() && connections.takes_room() {
                        return true;
                    }
                    crowded.await;
                    false
                }
            }
        };
        let over = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = connection.as_mut() => break,
            makes_room = crowded => if makes_room { break },
            () = over => if usage.is_over() { break },
        }
    }
    usage.end();
    drop(slot);
}

impl Usage {
    fn new(session: &Rc<Session>, key: &Key, pool: Option<&ConnectionPool>, place: Option<Place>) -> Self {
        let max_streams = pool.and_then(|pool| pool.max_streams).map_or(MAX_STREAMS, |max| max as usize);
        Self {
            streams: Cell::new(0),
            last: Cell::new(Instant::now()),
            left: Cell::new(pool.and_then(|pool| pool.max_per_connection).unwrap_or(u32::MAX)),
            max_streams: max_streams.min(MAX_STREAMS),
            begun: Instant::now(),
            max_duration: pool.and_then(|pool| pool.max_duration),
            idle_timeout: pool.and_then(|pool| pool.idle_timeout),
            bounds: Bounds::new(session, pool),
            owner: key.preface.as_ref().map(|_| Rc::downgrade(session)),
            place: RefCell::new(place),
            ended: Cell::new(false),
        }
    }

    fn is_idle(&self) -> bool {
        self.streams.get() == 0
    }

    /// Whether it takes another request.
    fn has_room(&self) -> bool {
        self.streams.get() < self.max_streams && !self.is_spent()
    }

    /// Whether it takes no more requests.
    fn is_spent(&self) -> bool {
        let old = self.max_duration.is_some_and(|most| self.begun.elapsed() >= most);
        let idle = self.idle_timeout.is_some_and(|most| self.is_idle() && self.last.get().elapsed() >= most);
        self.ended.get() || self.left.get() == 0 || old || idle
    }

    /// When to look next whether it is over.
    fn due(&self) -> Option<Instant> {
        let idle = self.idle_timeout.map(|most| {
            // One that is in use can't be over before this has passed once more.
            if self.is_idle() { self.last.get() + most } else { Instant::now() + most }
        });
        let old = self.max_duration.map(|most| self.begun + most);
        let old = old.filter(|old| self.is_idle() || *old > Instant::now());
        idle.into_iter().chain(old).min()
    }

    /// Whether nobody is left who could use it.
    fn is_orphan(&self) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.strong_count() == 0)
    }

    fn is_over(&self) -> bool {
        self.is_idle() && self.is_spent()
    }

    fn enter(&self) {
        self.streams.set(self.streams.get() + 1);
        if self.left.get() != u32::MAX {
            self.left.set(self.left.get().saturating_sub(1));
        }
        if let Some(place) = self.place.borrow_mut().as_mut() {
            place.set_idle(false);
        }
    }

    fn leave(&self) {
        self.streams.set(self.streams.get() - 1);
        self.last.set(Instant::now());
        if !self.is_idle() {
            return;
        }
        if self.ended.get() {
            self.place.take();
        } else if let Some(place) = self.place.borrow_mut().as_mut() {
            place.set_idle(true);
        }
    }

    /// The connection is gone; what was made of it may still be in use.
    fn end(&self) {
        self.ended.set(true);
        if self.is_idle() {
            self.place.take();
        }
    }

    /// Whether others wait for a connection, of whom none here wants this one.
    fn is_in_the_way(&self, upstreams: &Upstreams, key: &Key) -> bool {
        let place = self.place.borrow();
        let waited = place.as_ref().is_some_and(|place| place.connections().is_waited_for());
        waited && !upstreams.wanted.borrow().contains_key(key)
    }

    /// Tells one who waits that there is room.
    fn wake_one(&self) {
        if let Some(place) = self.place.borrow().as_ref() {
            place.connections().wake_one();
        }
    }
}

impl Lease {
    pub(super) fn is_http2(&self) -> bool {
        self.key.http2
    }

    fn new(local: &Rc<Local>, key: &Key, hold: Hold, reused: bool) -> Self {
        let in_flight = local.worker.shared.in_flight.enter(key.address);
        match &hold {
            Hold::Http1(_, usage) => usage.enter(),
            Hold::Http2(shared) => shared.usage.enter(),
        }
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
            Hold::Http1(Some(sender), _) => sender.try_send_request(request).await,
            Hold::Http1(None, _) => {
                return Err(Unanswered::refused_here(Refusal::internal("a connection was given back")));
            }
            Hold::Http2(shared) => shared.sender.try_send_request(request).await,
        };
        let response = answer.map_err(Unanswered::on_connection)?;
        // Of HTTP/1 they are counted as they are read.
        let problem = if headers::count(response.headers()) > self.local.own.limits.max_headers {
            "an answer with more headers than may be"
        } else if !headers::ends_clearly(response.headers()) {
            "an answer without one clear end"
        } else {
            return Ok(response);
        };
        let refusal = Refusal::new(Reason::UpstreamReset, problem);
        let flag = Some(Flag::UpstreamProtocolError);
        Err(Unanswered { garbled: true, flag, ..Unanswered::new(refusal, Reach::Sent) })
    }

    /// How long it may be there and idle once it has left HTTP.
    pub(super) fn bounds(&self) -> Bounds {
        match &self.hold {
            Hold::Http1(_, usage) => usage.bounds,
            Hold::Http2(shared) => shared.usage.bounds,
        }
    }

    /// The answer was read to its end: the connection can have another request.
    pub(super) fn finish(&mut self) {
        self.clean = true;
    }
}

impl Drop for Lease {
    /// An HTTP/1 connection waits for the next request; one in the midst of an exchange is closed, and so is one that has
    /// had its time, or is in others' way.
    fn drop(&mut self) {
        let clean = self.clean;
        let upstreams = &self.local.upstreams;
        let stays = |usage: &Usage| {
            usage.leave();
            let in_the_way = || usage.is_idle() && usage.is_in_the_way(upstreams, &self.key);
            !(usage.is_orphan() || usage.is_spent() || in_the_way())
        };
        match &mut self.hold {
            Hold::Http1(sender, usage) => {
                let sender = sender.take();
                let stays = stays(usage);
                let sender = sender.filter(|sender| clean && stays && !sender.is_closed());
                let Some(sender) = sender else { return };
                let mut idle = upstreams.idle.borrow_mut();
                let idle = match idle.get_mut(&self.key) {
                    Some(idle) => idle,
                    None => idle.entry(self.key.clone()).or_default(),
                };
                if idle.len() < self.local.own.limits.max_idle {
                    idle.push(Idle { sender, usage: Rc::clone(usage) });
                    usage.wake_one();
                }
            }
            Hold::Http2(shared) => {
                let usage = &shared.usage;
                if stays(usage) {
                    return usage.wake_one();
                }
                if let Some(connections) = upstreams.shared.borrow_mut().get_mut(&self.key) {
                    connections.retain(|one| !Rc::ptr_eq(&one.usage, usage));
                }
            }
        }
    }
}

/// Whether the server has reset the stream before it did anything (RFC 9113, section 8.7).
pub(super) fn is_refused(error: &hyper::Error) -> bool {
    of_http2(error).is_some_and(|error| error.reason() == Some(h2::Reason::REFUSED_STREAM))
}

/// Whether it is our side that could not go on.
pub(super) fn is_garbled(error: &hyper::Error) -> bool {
    error.is_parse() || of_http2(error).is_some_and(h2::Error::is_library)
}

/// Whether the connection ended before there was an answer.
pub(super) fn is_severed(error: &hyper::Error) -> bool {
    match of_http2(error) {
        Some(error) => error.is_io() || (error.is_go_away() && error.is_remote()),
        None => !error.is_parse() && !error.is_user(),
    }
}

/// How the server broke off, if it did otherwise than by closing the connection.
pub(super) fn flag_of(error: &hyper::Error) -> Option<Flag> {
    if of_http2(error).is_some_and(|error| error.is_reset() && error.is_remote()) {
        return Some(Flag::UpstreamRemoteReset);
    }
    is_garbled(error).then_some(Flag::UpstreamProtocolError)
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
pub(super) fn described(error: &hyper::Error) -> String {
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
