//! A request's body on its way: passed on frame by frame as it comes, trailers included, and remembered as far as it
//! takes to send it again.

use std::{
    cell::{Cell, RefCell},
    error::Error,
    fmt,
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::{
    sync::{
        Notify,
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    },
    time::Instant,
};

use super::{
    headers::{is_of_edge, is_unfit},
    passed::Passed,
};

/// So much of a body is remembered. A request whose body is longer is not sent again.
const MAX_REPLAY: usize = 64 << 10;
/// So much of a body waits for a mirror that is slower than the server. Past it, the mirror's request is broken off.
const MAX_BEHIND: usize = 256 << 10;

/// The body of one request of a client's.
pub(super) struct Replay(Rc<RefCell<State>>);

struct State {
    source: Option<Incoming>,
    http2: bool,
    /// Whether the client's trailers go on.
    trails: bool,
    size: SizeHint,
    /// What has come so far, if it is not too much. Copied: a frame of one byte may keep a whole buffer.
    kept: Vec<u8>,
    trailers: Option<HeaderMap>,
    length: usize,
    /// Nothing of it is forgotten, since nobody has sent it on.
    holding: bool,
    /// It is not sent again.
    last: bool,
    ended: Option<Instant>,
    /// Only the last of the bodies that were made of it reads on.
    attempt: usize,
    /// So much of what is kept that one has sent.
    position: usize,
    trailed: bool,
    sent: Rc<Passed>,
    /// So many bytes may be sent.
    most: u64,
    mirrors: Vec<Mirror>,
    told: Rc<Notify>,
}

struct Mirror {
    frames: UnboundedSender<Part>,
    behind: Rc<Cell<usize>>,
}

enum Part {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
}

/// A body that is sent to a server or to a mirror.
pub(super) struct RequestBody(Kind);

enum Kind {
    Empty,
    Whole(Option<Bytes>),
    Attempt { state: Rc<RefCell<State>>, attempt: usize },
    Mirror { frames: UnboundedReceiver<Part>, behind: Rc<Cell<usize>>, size: SizeHint, ended: bool },
}

impl Replay {
    /// Counts in `sent` what the client has sent, which may be so many bytes. Trailers go on where `trailers` says so, but for what nobody may write.
    pub(super) fn new(body: Incoming, http2: bool, trailers: bool, (sent, most): (Rc<Passed>, u64)) -> Self {
        let ended = body.is_end_stream();
        let state = State {
            size: body.size_hint(),
            source: (!ended).then_some(body),
            http2,
            trails: trailers,
            kept: Vec::new(),
            trailers: None,
            length: 0,
            holding: false,
            last: false,
            ended: ended.then(Instant::now),
            attempt: 0,
            position: 0,
            trailed: false,
            sent,
            most,
            mirrors: Vec::new(),
            told: Rc::default(),
        };
        Self(Rc::new(RefCell::new(state)))
    }

    /// The body for the next attempt; earlier ones end.
    pub(super) fn attempt(&self) -> RequestBody {
        let mut state = self.0.borrow_mut();
        if state.is_empty() {
            return RequestBody(Kind::Empty);
        }
        state.attempt += 1;
        (state.position, state.trailed) = (0, false);
        RequestBody(Kind::Attempt { state: Rc::clone(&self.0), attempt: state.attempt })
    }

    /// When the client has sent the last of it.
    pub(super) fn ended_at(&self) -> Option<Instant> {
        self.0.borrow().ended
    }

    /// Waits until the client has sent the last of it.
    pub(super) async fn ended(&self) -> Instant {
        let told = Rc::clone(&self.0.borrow().told);
        loop {
            let mut told = pin!(told.notified());
            told.as_mut().enable();
            if let Some(ended) = self.ended_at() {
                return ended;
            }
            told.await;
        }
    }

    /// Whether all that has come so far is remembered.
    pub(super) fn is_whole(&self) -> bool {
        let state = self.0.borrow();
        state.length == state.kept.len() && state.sent.bytes() <= state.most
    }

    /// It is not sent again: what an attempt has sent of it need not be remembered.
    pub(super) fn forget(&self) {
        let mut state = self.0.borrow_mut();
        state.last = true;
        if state.position == state.kept.len() {
            (state.kept, state.position) = (Vec::new(), 0);
        }
    }

    /// The beginning of the body, up to so many bytes, and whether that is all of it. Holds what has come for the first
    /// attempt. To be called before that reads.
    pub(super) async fn beginning(&self, most: usize) -> Result<(Bytes, bool), BodyError> {
        self.0.borrow_mut().holding = true;
        let held = poll_fn(|cx| {
            let mut state = self.0.borrow_mut();
            loop {
                if state.source.is_none() || state.length > most {
                    return Poll::Ready(Ok(()));
                }
                match ready!(state.poll_source(cx)) {
                    Some(Err(error)) => return Poll::Ready(Err(error)),
                    Some(Ok(_)) => {}
                    None => return Poll::Ready(Ok(())),
                }
            }
        });
        let held = held.await;
        let mut state = self.0.borrow_mut();
        state.holding = false;
        held?;
        let beginning = state.kept.get(..most).unwrap_or(&state.kept);
        Ok((Bytes::copy_from_slice(beginning), state.length <= most))
    }

    /// How many bytes it has, if that is known.
    pub(super) fn size(&self) -> Option<u64> {
        self.0.borrow().size.exact()
    }

    /// A body for a mirror, which gets what the server gets. To be made before the first attempt reads.
    pub(super) fn mirror(&self) -> RequestBody {
        let mut state = self.0.borrow_mut();
        if state.is_empty() {
            return RequestBody(Kind::Empty);
        }
        let (sender, frames) = unbounded_channel();
        // What was held, it gets as well.
        if !state.kept.is_empty() {
            let _ = sender.send(Part::Data(Bytes::copy_from_slice(&state.kept)));
        }
        let behind = Rc::new(Cell::new(state.kept.len()));
        if state.source.is_none() {
            let trailers = state.trailers.clone().map(Part::Trailers);
            trailers.into_iter().chain([Part::End]).for_each(|part| drop(sender.send(part)));
        } else {
            state.mirrors.push(Mirror { frames: sender, behind: Rc::clone(&behind) });
        }
        RequestBody(Kind::Mirror { frames, behind, size: state.size, ended: false })
    }
}

impl RequestBody {
    /// One that is there.
    pub(super) fn whole(bytes: Bytes) -> Self {
        Self(if bytes.is_empty() { Kind::Empty } else { Kind::Whole(Some(bytes)) })
    }
}

impl State {
    fn is_empty(&self) -> bool {
        self.source.is_none() && self.length == 0 && self.trailers.is_none()
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(source) = &mut self.source else { return Poll::Ready(None) };
        if self.sent.bytes() > self.most {
            return Poll::Ready(Some(Err(BodyError::new("the body is larger than may be"))));
        }
        let mut frame = match ready!(Pin::new(&mut *source).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                self.mirrors.clear();
                return Poll::Ready(Some(Err(BodyError(error.to_string()))));
            }
            None if broke_off(source, self.http2) => {
                self.mirrors.clear();
                return Poll::Ready(Some(Err(BodyError::new("the client broke off"))));
            }
            None => {
                self.end();
                return Poll::Ready(None);
            }
        };
        if let Some(trailers) = frame.trailers_mut() {
            keep_fit(trailers, self.trails);
            if trailers.is_empty() {
                return self.poll_source(cx);
            }
        }
        if let Some(data) = frame.data_ref() {
            self.sent.pass(data);
            if self.sent.bytes() > self.most {
                self.mirrors.clear();
                return Poll::Ready(Some(Err(BodyError::new("the body is larger than may be"))));
            }
            self.length += data.len();
            if self.holding || (self.length <= MAX_REPLAY && !self.last) {
                self.kept.extend_from_slice(data);
            } else {
                self.kept = Vec::new();
            }
            self.mirrors.retain(|mirror| {
                mirror.behind.set(mirror.behind.get() + data.len());
                mirror.behind.get() <= MAX_BEHIND && mirror.frames.send(Part::Data(data.clone())).is_ok()
            });
        } else if let Some(trailers) = frame.trailers_ref() {
            self.trailers = Some(trailers.clone());
            for mirror in &self.mirrors {
                let _ = mirror.frames.send(Part::Trailers(trailers.clone()));
            }
        }
        if self.source.as_ref().is_some_and(Body::is_end_stream) {
            self.end();
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn end(&mut self) {
        self.source = None;
        if self.ended.is_none() {
            self.ended = Some(Instant::now());
            self.told.notify_waiters();
            for mirror in self.mirrors.drain(..) {
                let _ = mirror.frames.send(Part::End);
            }
        }
    }
}

/// A server may take trailers for headers (RFC 9110, section 6.5.1): what a client must not write there it must not write
/// here.
fn keep_fit(trailers: &mut HeaderMap, trails: bool) {
    let is_unfit = |name: &http::HeaderName| is_unfit(name) || is_of_edge(name);
    let unfit = trailers.keys().filter(|name| !trails || is_unfit(name)).cloned();
    for name in unfit.collect::<Vec<_>>() {
        trailers.remove(name);
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.0 {
            Kind::Empty => Poll::Ready(None),
            Kind::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Attempt { state, attempt } => {
                let mut state = state.borrow_mut();
                if state.attempt != *attempt {
                    return Poll::Ready(Some(Err(BodyError("another attempt has begun".to_owned()))));
                }
                if let Some(rest) = state.kept.get(state.position..).filter(|rest| !rest.is_empty()) {
                    let rest = Bytes::copy_from_slice(rest);
                    state.position = state.kept.len();
                    return Poll::Ready(Some(Ok(Frame::data(rest))));
                }
                if let (Some(trailers), false) = (&state.trailers, state.trailed) {
                    let trailers = trailers.clone();
                    state.trailed = true;
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                let frame = ready!(state.poll_source(cx));
                state.position = state.kept.len();
                state.trailed = state.trailers.is_some();
                Poll::Ready(frame)
            }
            Kind::Mirror { frames, behind, ended, .. } => Poll::Ready(match ready!(frames.poll_recv(cx)) {
                Some(Part::Data(data)) => {
                    behind.set(behind.get().saturating_sub(data.len()));
                    Some(Ok(Frame::data(data)))
                }
                Some(Part::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
                Some(Part::End) => {
                    *ended = true;
                    None
                }
                None if *ended => None,
                None => Some(Err(BodyError("the mirror is too slow, or the client is gone".to_owned()))),
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Whole(bytes) => bytes.is_none(),
            Kind::Attempt { state, .. } => {
                let state = state.borrow();
                state.source.is_none()
                    && state.position >= state.kept.len()
                    && (state.trailed || state.trailers.is_none())
            }
            Kind::Mirror { ended, .. } => *ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Kind::Attempt { state, .. } => state.borrow().size,
            Kind::Mirror { size, .. } => *size,
        }
    }
}

/// Whether a body that is over was broken off: hyper takes a stream that was reset without an error, or cancelled, for
/// one that has ended.
pub(super) fn broke_off(body: &Incoming, http2: bool) -> bool {
    http2 && !body.is_end_stream()
}

/// Why a body broke off.
#[derive(Debug)]
pub(super) struct BodyError(String);

impl BodyError {
    pub(super) fn new(error: impl ToString) -> Self {
        Self(error.to_string())
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for BodyError {}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn trailers_say_nothing_that_headers_must_not() {
        let mut trailers = HeaderMap::new();
        for name in ["grpc-status", "x_forwarded_client_cert", "x_forwarded_for", "content-length", "host"] {
            trailers.insert(HeaderName::from_static(name), HeaderValue::from_static("0"));
        }
        keep_fit(&mut trailers, true);
        assert_eq!(trailers.keys().collect::<Vec<_>>(), ["grpc-status"]);
        keep_fit(&mut trailers, false);
        assert!(trailers.is_empty());
    }
}
