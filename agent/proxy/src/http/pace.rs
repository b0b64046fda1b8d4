//! Whether a client is in the midst of a request's head, and since when: whoever never ends one holds what is kept for it.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

use super::clients::{Requests, Room};

/// The bytes that HTTP/2 begins with (RFC 9113, section 3.4).
const PREFACE: usize = 24;
/// Those that each frame begins with (section 4.1).
const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
/// The bit before a stream's number.
const RESERVED: u32 = 1 << 31;
/// What may come of a head before it counts as a request.
const FREE: usize = 16 << 10;

/// Told of all that is read of a connection.
#[derive(Debug)]
pub(super) struct Pace(Mutex<State>);

#[derive(Debug)]
struct State {
    /// When the first byte came of a head that has not ended.
    begun: Option<Instant>,
    /// Of HTTP/1, whether there is a request, whose body is none of this.
    is_asked: bool,
    /// Of HTTP/2.
    frames: Option<Frames>,
    /// How much of a head that has not ended there is.
    held: usize,
    /// Of a client from outside the mesh.
    budget: Option<Budget>,
    /// As what a large head counts.
    room: Option<Room>,
    is_refused: bool,
}

/// What large heads of a client count against.
#[derive(Debug)]
pub(super) struct Budget {
    pub(super) requests: Arc<Requests>,
    pub(super) client: IpAddr,
    /// Of all clients' requests.
    pub(super) limit: usize,
}

impl Pace {
    /// Of HTTP/1, where whoever reads it tells of requests.
    pub(super) fn of_http1(budget: Option<Budget>) -> Self {
        Self::new(None, budget)
    }

    /// Of HTTP/2, which is followed as far as its frames go.
    pub(super) fn of_http2(budget: Option<Budget>) -> Self {
        Self::new(Some(Frames { left: PREFACE, ..Frames::default() }), budget)
    }

    fn new(frames: Option<Frames>, budget: Option<Budget>) -> Self {
        let (begun, is_asked, held, room, is_refused) = (None, false, 0, None, false);
        Self(Mutex::new(State { begun, is_asked, frames, held, budget, room, is_refused }))
    }

    /// These came. False if so much of a head did that it would have to count as a request, for which there is no room.
    pub(super) fn read(&self, bytes: &[u8]) -> bool {
        let mut state = self.state();
        let is_asked = state.is_asked;
        let is_amid = state.frames.as_mut().map_or(!is_asked, |frames| frames.read(bytes));
        if is_amid {
            state.begun.get_or_insert_with(Instant::now);
            state.held = state.frames.as_ref().map_or(state.held + bytes.len(), |frames| frames.held);
            state.count();
        } else {
            state.forget();
        }
        !state.is_refused
    }

    /// Whether there was no room for a head.
    pub(super) fn is_refused(&self) -> bool {
        self.state().is_refused
    }

    /// A head has ended.
    pub(super) fn asked(&self) {
        let mut state = self.state();
        state.forget();
        state.is_asked = true;
    }

    /// The next may come.
    pub(super) fn answered(&self) {
        let mut state = self.state();
        state.forget();
        state.is_asked = false;
    }

    /// How many streams of HTTP/2 the client has opened.
    pub(super) fn streams(&self) -> u64 {
        self.state().frames.as_ref().map_or(0, |frames| frames.streams)
    }

    pub(super) fn begun(&self) -> Option<Instant> {
        self.state().begun
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// No head is coming.
    fn forget(&mut self) {
        (self.begun, self.held, self.room) = (None, 0, None);
    }

    /// A head that has become large counts as long as it is coming.
    fn count(&mut self) {
        if self.held <= FREE {
            self.room = None;
            return;
        }
        let Some(budget) = self.budget.as_ref().filter(|_| self.room.is_none()) else { return };
        match budget.requests.enter(budget.client, budget.limit) {
            room @ Room::Given { .. } => self.room = Some(room),
            Room::Refused { .. } | Room::Abused => self.is_refused = true,
        }
    }
}

/// How far the frames have come.
#[derive(Debug, Default)]
struct Frames {
    /// Bytes of the frame's payload that are still to come.
    left: usize,
    head: [u8; FRAME_HEAD],
    /// How much of the next frame's head there is.
    known: usize,
    /// Whether the frame holds a part of a request's head.
    is_part: bool,
    /// Whether more of it is to come in other frames.
    goes_on: bool,
    /// How much there is of a head that has not ended.
    held: usize,
    /// How many streams there were, and the last one's number: each is higher than those before (section 5.1.1).
    streams: u64,
    last: u32,
}

impl Frames {
    /// Whether it is amid a request's head after these.
    fn read(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let passed = self.left.min(bytes.len());
            self.left -= passed;
            bytes = &bytes[passed..];
            if self.is_part {
                self.held += passed;
            }
            if self.left > 0 {
                break;
            }
            if !self.goes_on {
                self.held = 0;
            }
            let taken = (FRAME_HEAD - self.known).min(bytes.len());
            self.head[self.known..self.known + taken].copy_from_slice(&bytes[..taken]);
            self.known += taken;
            bytes = &bytes[taken..];
            if self.known == FRAME_HEAD {
                let [a, b, c, kind, flags, stream @ ..] = self.head;
                self.left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                self.known = 0;
                self.is_part = matches!(kind, HEADERS | CONTINUATION);
                let stream = u32::from_be_bytes(stream) & !RESERVED;
                if kind == HEADERS && stream > self.last {
                    (self.streams, self.last) = (self.streams + 1, stream);
                }
                if self.is_part {
                    self.goes_on = flags & END_HEADERS == 0;
                }
            }
        }
        self.goes_on || self.known > 0 || (self.is_part && self.left > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(length: u8, kind: u8, flags: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        frame.resize(FRAME_HEAD + usize::from(length), 0);
        frame
    }

    #[test]
    fn a_head_of_http2_lasts_from_its_first_byte_to_its_last_however_it_comes() {
        let ping = frame(8, 6, 0);
        let all = [
            (vec![b'x'; PREFACE], false),
            (frame(0, 4, 0), false),
            (ping.clone(), false),
            (frame(5, HEADERS, END_HEADERS), false),
            (frame(200, 0, 0), false),
            (frame(5, HEADERS, 0), true),
            (frame(3, CONTINUATION, 0), true),
            (frame(3, CONTINUATION, END_HEADERS), false),
            (ping, false),
        ];
        for size in [1, 2, 7, 1000] {
            let mut frames = Frames { left: PREFACE, ..Frames::default() };
            for (bytes, wanted) in &all {
                let mut found = false;
                bytes.chunks(size).for_each(|chunk| found = frames.read(chunk));
                assert_eq!(found, *wanted, "{bytes:?} in pieces of {size}");
            }
        }
        let mut frames = Frames::default();
        assert!(frames.read(&frame(5, HEADERS, END_HEADERS)[..12]));
        assert!(!Frames::default().read(&frame(5, 0, 0)[..12]));
        assert!(Frames::default().read(&[0]));
    }

    #[test]
    fn streams_are_counted_by_their_first_heads() {
        let pace = Pace::of_http2(None);
        pace.read(&[b'x'; PREFACE]);
        let of = |stream: u8, kind: u8| {
            let mut frame = frame(5, kind, END_HEADERS);
            (frame[5], frame[8]) = (0x80, stream);
            frame
        };
        // The second one of a stream has its trailers; the rest opens none.
        for (frame, wanted) in [
            (of(1, HEADERS), 1),
            (of(1, 0), 1),
            (of(1, HEADERS), 1),
            (of(5, HEADERS), 2),
            (of(7, 3), 2),
            (of(7, HEADERS), 3),
        ] {
            frame.chunks(4).for_each(|part| assert!(pace.read(part)));
            assert_eq!(pace.streams(), wanted, "{frame:?}");
        }
        assert_eq!(Pace::of_http1(None).streams(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_is_as_old_as_its_first_byte() {
        let pace = Pace::of_http1(None);
        pace.read(b"G");
        let begun = pace.begun();
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        pace.read(b"ET");
        assert!(begun.is_some() && pace.begun() == begun);
        pace.asked();
        pace.read(b"body");
        assert_eq!(pace.begun(), None);
        pace.answered();
        pace.read(b"G");
        assert!(pace.begun() > begun);
    }
    #[test]
    fn a_large_head_counts_as_a_request_for_as_long_as_it_is_coming() {
        let requests = Arc::<Requests>::default();
        let client: IpAddr = "192.0.2.1".parse().unwrap();
        let pace = || Pace::of_http1(Some(Budget { requests: Arc::clone(&requests), client, limit: 2 }));
        let (one, other) = (pace(), pace());
        let part = [b'x'; FREE];
        assert!(one.read(&part) && requests.count() == 0);
        assert!(one.read(b"x") && one.read(&part) && requests.count() == 1);
        // It has its half.
        assert!(other.read(&part) && !other.read(b"x") && other.is_refused());
        one.asked();
        assert_eq!((requests.count(), one.is_refused()), (0, false));
        let third = pace();
        assert!(third.read(&part) && third.read(b"x") && requests.count() == 1);
        drop(third);
        assert_eq!(requests.count(), 0);
    }

    #[test]
    fn of_http2_each_head_counts_by_itself_and_bodies_do_not() {
        let requests = Arc::<Requests>::default();
        let client = "192.0.2.1".parse().unwrap();
        let budget = Budget { requests: Arc::clone(&requests), client, limit: 2 };
        let pace = Pace::of_http2(Some(budget));
        assert!(pace.read(&[b'x'; PREFACE]));
        // However many short ones come, and wherever one ends what is read at once.
        let short: Vec<u8> = (0..1000).flat_map(|_| frame(200, HEADERS, END_HEADERS)).collect();
        for bytes in short.chunks(1000) {
            assert!(pace.read(bytes) && requests.count() == 0);
        }
        let body: Vec<u8> = (0..1000).flat_map(|_| frame(200, 0, 0)).collect();
        for bytes in body.chunks(1003) {
            assert!(pace.read(bytes) && requests.count() == 0);
        }
        assert!(pace.read(&frame(200, HEADERS, 0)));
        let more = frame(200, CONTINUATION, 0);
        for _ in 0..=FREE / 200 {
            assert!(pace.read(&more));
        }
        assert_eq!(requests.count(), 1);
        assert!(pace.read(&frame(5, CONTINUATION, END_HEADERS)));
        assert_eq!(requests.count(), 0);
    }
}
