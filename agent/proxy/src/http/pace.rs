//! Whether a client is in the midst of a request's head, and since when: whoever never ends one holds what is kept for it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// The bytes that HTTP/2 begins with (RFC 9113, section 3.4).
const PREFACE: usize = 24;
/// Those that each frame begins with (section 4.1).
const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

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
}

impl Pace {
    /// Of HTTP/1, where whoever reads it tells of requests.
    pub(super) fn of_http1() -> Self {
        Self(Mutex::new(State { begun: None, is_asked: false, frames: None }))
    }

    /// Of HTTP/2, which is followed as far as its frames go.
    pub(super) fn of_http2() -> Self {
        let frames = Frames { left: PREFACE, ..Frames::default() };
        Self(Mutex::new(State { begun: None, is_asked: false, frames: Some(frames) }))
    }

    /// These came.
    pub(super) fn read(&self, bytes: &[u8]) {
        let mut state = self.state();
        let is_asked = state.is_asked;
        let is_amid = state.frames.as_mut().map_or(!is_asked, |frames| frames.read(bytes));
        match (is_amid, state.begun) {
            (true, None) => state.begun = Some(Instant::now()),
            (false, _) => state.begun = None,
            (true, Some(_)) => {}
        }
    }

    /// A head has ended.
    pub(super) fn asked(&self) {
        let mut state = self.state();
        (state.begun, state.is_asked) = (None, true);
    }

    /// The next may come.
    pub(super) fn answered(&self) {
        let mut state = self.state();
        (state.begun, state.is_asked) = (None, false);
    }

    pub(super) fn begun(&self) -> Option<Instant> {
        self.state().begun
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
}

impl Frames {
    /// Whether it is amid a request's head after these.
    fn read(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let passed = self.left.min(bytes.len());
            self.left -= passed;
            bytes = &bytes[passed..];
            if self.left > 0 {
                break;
            }
            let taken = (FRAME_HEAD - self.known).min(bytes.len());
            self.head[self.known..self.known + taken].copy_from_slice(&bytes[..taken]);
            self.known += taken;
            bytes = &bytes[taken..];
            if self.known == FRAME_HEAD {
                let [a, b, c, kind, flags, ..] = self.head;
                self.left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                self.known = 0;
                self.is_part = matches!(kind, HEADERS | CONTINUATION);
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

    #[tokio::test(start_paused = true)]
    async fn a_head_is_as_old_as_its_first_byte() {
        let pace = Pace::of_http1();
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
}
