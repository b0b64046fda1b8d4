//! What fuzz targets reach.

use std::{
    fs::File,
    io,
    os::{
        fd::{FromRawFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
};

use nix::libc;

pub use crate::events::Event;
use crate::{events, ring::Ring};

/// Room for records, in bytes.
const ROOM: usize = 4096;

/// Reads a ring buffer into which the kernel wrote `data`, as far as `produced`.
pub fn events(produced: u16, data: &[u8]) -> io::Result<Vec<Event>> {
    // SAFETY: a name that is a C string, and a success is a new descriptor.
    let file =
        File::from(unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"ring".as_ptr(), libc::MFD_CLOEXEC)) });
    // As the kernel maps them: the consumer's page, the producer's, and the data twice.
    file.set_len((ROOM * 4) as u64)?;
    file.write_all_at(&u64::from(produced).to_ne_bytes(), ROOM as u64)?;
    for copy in [2, 3] {
        file.write_all_at(&data[..data.len().min(ROOM)], (ROOM * copy) as u64)?;
    }
    let mut ring = Ring::open(file.into(), ROOM)?;
    let mut told = Vec::new();
    while let Some(record) = ring.next::<orlop_common::Event>()? {
        told.extend(record.as_ref().and_then(events::event));
    }
    Ok(told)
}
