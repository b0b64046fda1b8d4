//! Streams whose every byte is known, so that one that is lost, doubled or out of place is found, and
//! sockets that are treated unkindly.

use std::io::{self, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::time::Duration;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use orlop_tests::traffic::ReadUninterrupted;

/// Not a power of two: no buffer or frame is a multiple of it.
const PERIOD: usize = 1_048_573;

/// The bytes of a stream, from any position on.
#[derive(Clone, Debug)]
pub struct Pattern {
    seed: u8,
    position: u64,
}

impl Pattern {
    pub fn new(seed: u8) -> Self {
        Self { seed, position: 0 }
    }

    /// How many bytes went by.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next `length` bytes.
    pub fn take(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let (start, mask) = self.place();
            let part = &table()[start..PERIOD.min(start + length - bytes.len())];
            bytes.extend(part.iter().map(|byte| byte ^ mask));
            self.position += part.len() as u64;
        }
        bytes
    }

    /// Checks that `bytes` are the next ones.
    #[track_caller]
    pub fn check(&mut self, bytes: &[u8]) {
        let start = self.position;
        let wanted = self.take(bytes.len());
        if wanted != bytes {
            let at = wanted.iter().zip(bytes).position(|(a, b)| a != b);
            panic!("byte {} of the stream is not what was sent", start + at.unwrap_or_default() as u64);
        }
    }

    fn place(&self) -> (usize, u8) {
        let round = self.position / PERIOD as u64;
        ((self.position % PERIOD as u64) as usize, self.seed ^ (round % 251) as u8)
    }
}

fn table() -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut step = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        (0..PERIOD).map(|_| step()).collect()
    })
}

/// Writes `length` bytes of a pattern in pieces of these sizes, over and over.
pub fn send(mut stream: &TcpStream, seed: u8, length: u64, sizes: &[usize]) -> io::Result<()> {
    let mut pattern = Pattern::new(seed);
    for size in sizes.iter().cycle() {
        let left = length - pattern.position();
        if left == 0 {
            break;
        }
        stream.write_all(&pattern.take((*size).min(usize::try_from(left).unwrap_or(usize::MAX))))?;
    }
    Ok(())
}

/// Reads `length` bytes of a pattern and checks them.
#[track_caller]
pub fn receive(mut stream: &TcpStream, seed: u8, length: u64) -> io::Result<()> {
    let mut pattern = Pattern::new(seed);
    let mut buffer = vec![0; 256 * 1024];
    while pattern.position() < length {
        let left = usize::try_from(length - pattern.position()).unwrap_or(usize::MAX);
        let room = buffer.len().min(left);
        let read = stream.read_uninterrupted(&mut buffer[..room])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        pattern.check(&buffer[..read]);
    }
    Ok(())
}

/// Writes a pattern until the socket has taken nothing for as long as `patience`; gives how much it took.
pub fn fill(stream: &TcpStream, seed: u8, patience: Duration) -> io::Result<Pattern> {
    let mut pattern = Pattern::new(seed);
    stream.set_nonblocking(true)?;
    'stuck: loop {
        let mut ahead = pattern.clone();
        let piece = ahead.take(64 * 1024);
        let written = loop {
            match (&*stream).write(&piece) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !ready(stream, PollFlags::POLLOUT, patience)? {
                        break 'stuck;
                    }
                }
                result => break result?,
            }
        };
        pattern.take(written);
    }
    stream.set_nonblocking(false)?;
    Ok(pattern)
}

/// Waits until the socket is ready for `what`, or `patience` is over.
pub fn ready(stream: &impl AsFd, what: PollFlags, patience: Duration) -> io::Result<bool> {
    let mut fds = [PollFd::new(stream.as_fd(), what)];
    let timeout = PollTimeout::try_from(patience).map_err(io::Error::other)?;
    Ok(poll(&mut fds, timeout)? > 0)
}

/// Closes with a reset.
pub fn reset(stream: TcpStream) {
    setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
}

/// Checks that a connection was reset, be it before connect returned.
#[track_caller]
pub fn assert_turned_away(connected: io::Result<TcpStream>) {
    match connected {
        Ok(stream) => assert_reset(&stream),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}"),
    }
}

/// Reads on, and checks that the stream ends with a reset and not in good order.
#[track_caller]
pub fn assert_reset(mut stream: &TcpStream) {
    let mut buffer = vec![0; 64 * 1024];
    let error = loop {
        match stream.read_uninterrupted(&mut buffer) {
            Ok(0) => panic!("the stream ended in good order"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
}
