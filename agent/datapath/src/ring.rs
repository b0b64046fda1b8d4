//! The consumer's side of a BPF ring buffer (5.8), whose layout is that of kernel/bpf/ringbuf.c: a page with
//! the consumer's position, a page with the producer's, and the data, mapped twice in a row so that a record
//! that wraps is in one piece.

use std::{
    io,
    mem::size_of,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use nix::libc;

use crate::maps::Plain;

/// Before each record: its length and two flags, then four bytes that are the kernel's.
const HEADER: usize = 8;
/// The record is still being written.
const BUSY: u32 = 1 << 31;
/// The record was given up.
const DISCARDED: u32 = 1 << 30;

/// The one reader of a ring buffer: two at once would take each other's records.
#[derive(Debug)]
pub struct Ring {
    fd: OwnedFd,
    consumer: Mapping,
    producer: Mapping,
    page: usize,
    /// Of the data; a power of two.
    bytes: usize,
}

impl Ring {
    /// Maps the ring buffer, which was made with room for `bytes`.
    pub fn open(fd: OwnedFd, bytes: usize) -> io::Result<Self> {
        // SAFETY: takes and gives numbers.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) })
            .map_err(|_| io::Error::last_os_error())?;
        let consumer = Mapping::new(&fd, 0, page, libc::PROT_READ | libc::PROT_WRITE)?;
        let producer = Mapping::new(&fd, page, page + 2 * bytes, libc::PROT_READ)?;
        Ok(Self { fd, consumer, producer, page, bytes })
    }

    /// Waits until there is something to read, at most for `limit`. True if there is.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        let mut descriptor =
            libc::pollfd { fd: self.fd.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let limit = libc::c_int::try_from(limit.as_millis()).unwrap_or(libc::c_int::MAX);
        // SAFETY: one descriptor, which outlives the call.
        match unsafe { libc::poll(&raw mut descriptor, 1, limit) } {
            -1 => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
                error => Err(error),
            },
            ready => Ok(ready > 0),
        }
    }

    /// The next record, if it is there and whole: `Some(None)` for one that is no `T`, such as one of another
    /// version's.
    pub fn next<T: Plain>(&mut self) -> Option<Option<T>> {
        // SAFETY: the mapping begins with the consumer's position, which only we write.
        let position = unsafe { self.consumer.start.cast::<AtomicU64>().as_ref() };
        // SAFETY: and this one with the producer's, which the kernel writes.
        let produced = unsafe { self.producer.start.cast::<AtomicU64>().as_ref() };
        let consumed = position.load(Ordering::Relaxed);
        if consumed >= produced.load(Ordering::Acquire) {
            return None;
        }
        let offset = self.page + (consumed as usize & (self.bytes - 1));
        // SAFETY: the offset is inside the data, and records begin at multiples of 8.
        let record = unsafe { self.producer.start.add(offset) };
        // SAFETY: a record begins with its length, which the kernel writes last.
        let length = unsafe { record.cast::<AtomicU32>().as_ref() }.load(Ordering::Acquire);
        if length & BUSY != 0 {
            return None;
        }
        let payload = (length & !(BUSY | DISCARDED)) as usize;
        let whole = length & DISCARDED == 0 && payload == size_of::<T>();
        // SAFETY: the record is complete, as long as a T, and in one piece; T takes any bits.
        let value = whole.then(|| unsafe { record.add(HEADER).cast::<T>().read() });
        position.store(consumed + (HEADER + payload).next_multiple_of(8) as u64, Ordering::Release);
        Some(value)
    }
}

/// A piece of a map in our memory.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: memory shared with the kernel is not bound to a thread.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(fd: &OwnedFd, offset: usize, length: usize, protection: libc::c_int) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let start = unsafe {
            libc::mmap(ptr::null_mut(), length, protection, libc::MAP_SHARED, fd.as_raw_fd(), offset)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, length })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and nothing refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}
