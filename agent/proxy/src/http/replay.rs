//! A request's body on its way: passed on frame by frame as it comes, trailers included, and remembered as far as it
//! takes to send it again.

use std::{
    cell::{Cell, RefCell},
    error::Error,
    fmt,
    future::poll_fn,
    pin::Pin,
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
pub(super) struct Replay {
    state: Rc<RefCell<State>>,
    pub(super) ended: Rc<Notify>,
}

struct State {
    source: Option<Incoming>,
    http2: bool,
    /// Whether the client's trailers go on.
    trails: bool,
    size: SizeHint,
    /// What has come so far, if it is not too much.
    frames: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    length: usize,
    /// Nothing of it is forgotten, since nobody has sent it on.
    holding: bool,
    ended: Option<Instant>,
    /// Only the last of the bodies that were made of it reads on.
    attempt: usize,
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
    Attempt { state: Rc<RefCell<State>>, attempt: usize, position: usize, trailed: bool },
    Mirror { frames: UnboundedReceiver<Part>, behind: Rc<Cell<usize>>, size: SizeHint, ended: bool },
}

impl Replay {
    /// Counts in `sent` what the client has sent, which may be so many bytes. Trailers go on where `trailers` says so, but for what nobody may write.
    pub(super) fn new(body: Incoming, http2: bool, trailers: bool, (sent, most): (Rc<Passed>, u64)) -> Self {
        let ended = body.is_end_stream();
        let told = Rc::new(Notify::new());
        if ended {
            told.notify_one();
        }
        let state = State {
            size: body.size_hint(),
            source: (!ended).then_some(body),
            http2,
            trails: trailers,
            frames: Vec::new(),
            trailers: None,
            length: 0,
            holding: false,
            ended: ended.then(Instant::now),
            attempt: 0,
            sent,
            most,
            mirrors: Vec::new(),
            told: Rc::clone(&told),
        };
        Self { state: Rc::new(RefCell::new(state)), ended: told }
    }

    /// The body for the next attempt; earlier ones end.
    pub(super) fn attempt(&self) -> RequestBody {
        let mut state = self.state.borrow_mut();
        if state.source.is_none() && state.frames.is_empty() && state.trailers.is_none() {
            return RequestBody(Kind::Empty);
        }
        state.attempt += 1;
        let (attempt, state) = (state.attempt, Rc::clone(&self.state));
        RequestBody(Kind::Attempt { state, attempt, position: 0, trailed: false })
    }

    /// When the client has sent the last of it.
    pub(super) fn ended_at(&self) -> Option<Instant> {
        self.state.borrow().ended
    }

    /// Whether all that has come so far is remembered.
    pub(super) fn is_whole(&self) -> bool {
        let state = self.state.borrow();
        state.length <= MAX_REPLAY && state.sent.bytes() <= state.most
    }

    /// The beginning of the body, up to so many bytes, and whether that is all of it. Holds what has come for the first
    /// attempt. To be called before that reads.
    pub(super) async fn beginning(&self, most: usize) -> Result<(Bytes, bool), BodyError> {
        self.state.borrow_mut().holding = true;
        let held = poll_fn(|cx| {
            let mut state = self.state.borrow_mut();
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
        let mut state = self.state.borrow_mut();
        state.holding = false;
        held?;
        let mut bytes: Vec<u8> = state.frames.iter().flatten().copied().take(most).collect();
        bytes.shrink_to_fit();
        Ok((bytes.into(), state.length <= most))
    }

    /// How many bytes it has, if that is known.
    pub(super) fn size(&self) -> Option<u64> {
        self.state.borrow().size.exact()
    }

    /// A body for a mirror, which gets what the server gets. To be made before the first attempt reads.
    pub(super) fn mirror(&self) -> RequestBody {
        let mut state = self.state.borrow_mut();
        if state.source.is_none() && state.frames.is_empty() && state.trailers.is_none() {
            return RequestBody(Kind::Empty);
        }
        let (sender, frames) = unbounded_channel();
        // What was held, it gets as well.
        for data in &state.frames {
            let _ = sender.send(Part::Data(data.clone()));
        }
        let behind = Rc::new(Cell::new(state.frames.iter().map(Bytes::len).sum()));
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
            if self.length <= MAX_REPLAY || self.holding {
                self.frames.push(data.clone());
            } else {
                self.frames.clear();
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
            self.told.notify_one();
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
            Kind::Attempt { state, attempt, position, trailed } => {
                let mut state = state.borrow_mut();
                if state.attempt != *attempt {
                    return Poll::Ready(Some(Err(BodyError("another attempt has begun".to_owned()))));
                }
                if let Some(frame) = state.frames.get(*position) {
                    *position += 1;
                    return Poll::Ready(Some(Ok(Frame::data(frame.clone()))));
                }
                if let (Some(trailers), false) = (&state.trailers, *trailed) {
                    *trailed = true;
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers.clone()))));
                }
                let frame = ready!(state.poll_source(cx));
                *position = state.frames.len();
                *trailed = state.trailers.is_some();
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
            Kind::Attempt { state, position, trailed, .. } => {
                let state = state.borrow();
                state.source.is_none()
                    && *position >= state.frames.len()
                    && (*trailed || state.trailers.is_none())
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
