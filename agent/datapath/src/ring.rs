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
/// So much of the data is mapped at a time: it counts as the process's resident memory, all of it and at once.
const WINDOW: usize = 64 << 10;
const SMALLEST_PAGE: usize = 4096;

/// The one reader of a ring buffer: two at once would take each other's records.
#[derive(Debug)]
pub struct Ring {
    fd: OwnedFd,
    consumer: Mapping,
    producer: Mapping,
    window: Window,
    page: usize,
    /// Of the data; a power of two.
    bytes: usize,
}

/// The part of the data that is mapped, and a page more for a record that begins in it and ends after it.
#[derive(Debug)]
struct Window {
    /// Where in the data it begins.
    start: usize,
    length: usize,
    mapping: Mapping,
}

impl Ring {
    /// Maps the ring buffer, which was made with room for `bytes`.
    pub fn open(fd: OwnedFd, bytes: usize) -> io::Result<Self> {
        // SAFETY: takes and gives numbers.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) })
            .map_err(|_| io::Error::last_os_error())?;
        let consumer = Mapping::new(&fd, 0, page, libc::PROT_READ | libc::PROT_WRITE)?;
        let producer = Mapping::new(&fd, page, page, libc::PROT_READ)?;
        let window = Window::new(&fd, page, 0, WINDOW.max(page).min(bytes))?;
        Ok(Self { fd, consumer, producer, window, page, bytes })
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
    /// version's. A `T` fits into a page.
    pub fn next<T: Plain>(&mut self) -> io::Result<Option<Option<T>>> {
        const { assert!(HEADER + size_of::<T>() <= SMALLEST_PAGE) };
        // SAFETY: the mapping begins with the consumer's position, which only we write.
        let position = unsafe { self.consumer.start.cast::<AtomicU64>().as_ref() };
        // SAFETY: and this one with the producer's, which the kernel writes.
        let produced = unsafe { self.producer.start.cast::<AtomicU64>().as_ref() };
        let consumed = position.load(Ordering::Relaxed);
        if consumed >= produced.load(Ordering::Acquire) {
            return Ok(None);
        }
        let offset = consumed as usize & (self.bytes - 1);
        let offset = self.window.reach(&self.fd, self.page, offset)?;
        // SAFETY: the offset is inside the window, and records begin at multiples of 8.
        let record = unsafe { self.window.mapping.start.add(offset) };
        // SAFETY: a record begins with its length, which the kernel writes last.
        let length = unsafe { record.cast::<AtomicU32>().as_ref() }.load(Ordering::Acquire);
        if length & BUSY != 0 {
            return Ok(None);
        }
        let payload = (length & !(BUSY | DISCARDED)) as usize;
        let whole = length & DISCARDED == 0 && payload == size_of::<T>();
        // SAFETY: the record is complete, as long as a T, and in one piece, as a window has a page to spare; T takes any
        // bits.
        let value = whole.then(|| unsafe { record.add(HEADER).cast::<T>().read() });
        position.store(consumed + (HEADER + payload).next_multiple_of(8) as u64, Ordering::Release);
        Ok(Some(value))
    }
}

impl Window {
    fn new(fd: &OwnedFd, page: usize, start: usize, length: usize) -> io::Result<Self> {
        let mapping = Mapping::new(fd, 2 * page + start, length + page, libc::PROT_READ)?;
        Ok(Self { start, length, mapping })
    }

    /// Where in the mapping the data's `offset` is, once the window is there.
    fn reach(&mut self, fd: &OwnedFd, page: usize, offset: usize) -> io::Result<usize> {
        let start = offset & !(self.length - 1);
        if start != self.start {
            *self = Self::new(fd, page, start, self.length)?;
        }
        Ok(offset - start)
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

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::FromRawFd as _, os::unix::fs::FileExt as _};

    use super::*;

    const PAGE: usize = SMALLEST_PAGE;
    /// Of a record with a header and a u64.
    const STEP: usize = 16;

    /// A file in memory with the layout of a ring buffer.
    fn file(bytes: usize) -> File {
        // SAFETY: a name that is a C string, and a success is a new descriptor.
        let file = File::from(unsafe {
            OwnedFd::from_raw_fd(libc::memfd_create(c"ring".as_ptr(), libc::MFD_CLOEXEC))
        });
        file.set_len((2 * PAGE + 2 * bytes) as u64).unwrap();
        file
    }

    /// Writes a record at a position, as the kernel does.
    fn produce(file: &File, bytes: usize, position: usize, value: u64) {
        let mut record = [0; STEP];
        record[..4].copy_from_slice(&8u32.to_ne_bytes());
        record[HEADER..].copy_from_slice(&value.to_ne_bytes());
        for copy in [0, bytes] {
            let at = 2 * PAGE + copy + (position & (bytes - 1));
            file.write_all_at(&record, at as u64).unwrap();
        }
        file.write_all_at(&((position + STEP) as u64).to_ne_bytes(), PAGE as u64).unwrap();
    }

    #[test]
    fn records_are_read_past_every_window_and_round_the_end() {
        let bytes = 4 * WINDOW;
        let file = file(bytes);
        let mut ring = Ring::open(file.try_clone().unwrap().into(), bytes).unwrap();
        for number in 0..(2 * bytes / STEP) as u64 {
            produce(&file, bytes, number as usize * STEP, number);
            assert_eq!(ring.next::<u64>().unwrap(), Some(Some(number)));
        }
        assert_eq!(ring.next::<u64>().unwrap(), None);
    }
}
