//! What has passed of a body.

use std::cell::Cell;

/// Bytes, and of a body of gRPC its messages.
#[derive(Debug, Default)]
pub(super) struct Passed {
    bytes: Cell<u64>,
    messages: Option<Messages>,
}

impl Passed {
    /// Nothing yet.
    pub(super) fn new(grpc: bool) -> Self {
        Self { bytes: Cell::default(), messages: grpc.then(Messages::default) }
    }

    /// The next of its bytes.
    pub(super) fn pass(&self, data: &[u8]) {
        self.bytes.set(self.bytes.get() + data.len() as u64);
        if let Some(messages) = &self.messages {
            messages.pass(data);
        }
    }

    /// So many bytes in all, which nobody has looked at.
    pub(super) fn set_bytes(&self, bytes: u64) {
        self.bytes.set(bytes);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// Messages that have begun; none where it is not gRPC.
    pub(super) fn messages(&self) -> u64 {
        self.messages.as_ref().map_or(0, |messages| messages.begun.get())
    }
}

/// Length-prefixed messages, by their prefixes alone: a byte that says whether one is compressed, and its length in four.
#[derive(Debug, Default)]
struct Messages {
    begun: Cell<u64>,
    /// Of the prefix so many bytes have come.
    seen: Cell<usize>,
    length: Cell<u32>,
    /// Of a message so many bytes are to come.
    left: Cell<u32>,
}

const PREFIX: usize = 5;

impl Messages {
    fn pass(&self, mut data: &[u8]) {
        while !data.is_empty() {
            let left = usize::try_from(self.left.get()).unwrap_or(usize::MAX);
            if left > 0 {
                let here = left.min(data.len());
                self.left.set(self.left.get().saturating_sub(u32::try_from(here).unwrap_or(u32::MAX)));
                data = &data[here..];
                continue;
            }
            let (byte, rest) = (data[0], &data[1..]);
            let length = if self.seen.get() == 0 { 0 } else { self.length.get() << 8 | u32::from(byte) };
            self.length.set(length);
            self.seen.set((self.seen.get() + 1) % PREFIX);
            if self.seen.get() == 0 {
                self.begun.set(self.begun.get() + 1);
                self.left.set(length);
            }
            data = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let lengths = [0_usize, 1, 300, 4, 0, 70_000, 5];
        let mut body = Vec::new();
        for length in lengths {
            body.push(0);
            body.extend(u32::try_from(length).unwrap().to_be_bytes());
            body.extend(std::iter::repeat_n(7, length));
        }
        for cut in (1..50).chain([body.len() - 1, body.len()]) {
            let passed = Passed::new(true);
            body.chunks(cut).for_each(|chunk| passed.pass(chunk));
            assert_eq!((passed.bytes(), passed.messages()), (body.len() as u64, 7), "{cut}");
        }
    }

    #[test]
    fn a_message_counts_once_its_prefix_is_there() {
        let passed = Passed::new(true);
        passed.pass(&[0, 0xff, 0xff, 0xff]);
        assert_eq!(passed.messages(), 0);
        passed.pass(&[0xff, 1]);
        assert_eq!(passed.messages(), 1);
        let other = Passed::new(false);
        other.pass(&[0; 50]);
        assert_eq!((other.bytes(), other.messages()), (50, 0));
    }
}
