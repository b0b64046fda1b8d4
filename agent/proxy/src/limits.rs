//! What is taken on at once. Past a limit new work is refused at once, with the reason, and what is open goes
//! on; as soon as there is room again, new work is taken.

use std::{
    io,
    os::fd::AsRawFd,
    sync::atomic::{AtomicBool, Ordering},
};

use nix::libc;
use orlop_model::Reason;

use crate::{
    Config,
    pod::Pod,
    refusal::Refusal,
    shared::{LiveGuard, Shared},
};

/// Limits other than those of [`Live`](crate::shared::Live).
#[derive(Debug)]
pub(crate) struct Limits {
    /// A socket with this number, or a higher one, is one too many when it is accepted, and when it is dialled
    /// with. Numbers are given out from the lowest free one on.
    descriptors: [usize; 2],
    short_of_memory: AtomicBool,
}

impl Limits {
    pub(crate) fn new(config: &Config) -> Self {
        let max = config.max_descriptors;
        // For what is being dialled for those that are accepted, and as much for all that is no connection.
        let reserve = (max / 16).clamp(16, 1024);
        let descriptors = [max.saturating_sub(2 * reserve), max.saturating_sub(reserve)];
        Self { descriptors, short_of_memory: AtomicBool::new(false) }
    }

    pub(crate) fn set_short_of_memory(&self, short: bool) {
        self.short_of_memory.store(short, Ordering::Relaxed);
    }

    /// Whether there is memory for more.
    pub(crate) fn memory(&self) -> Result<(), Reason> {
        if self.short_of_memory.load(Ordering::Relaxed) { Err(Reason::MemoryLimit) } else { Ok(()) }
    }

    /// Whether a socket that was dialled with may stay.
    pub(crate) fn keep_dialled(&self, socket: &impl AsRawFd) -> Result<(), Reason> {
        below(self.descriptors[1], socket)
    }
}

impl Shared {
    /// Counts an accepted connection as the pod's, as long as the guards live.
    pub(crate) fn take_on(&self, pod: &Pod, socket: &impl AsRawFd) -> Result<[LiveGuard; 2], Reason> {
        below(self.limits.descriptors[0], socket)?;
        self.take_on_stream(pod)
    }

    /// The same for a stream of a tunnel.
    pub(crate) fn take_on_stream(&self, pod: &Pod) -> Result<[LiveGuard; 2], Reason> {
        let own = pod.live().enter(self.config.max_connections_per_pod).ok_or(Reason::ConnectionLimit)?;
        Ok([own, self.take_on_any()?])
    }

    /// Counts an accepted connection that is no pod's.
    pub(crate) fn take_on_socket(&self, socket: &impl AsRawFd) -> Result<LiveGuard, Reason> {
        below(self.limits.descriptors[0], socket)?;
        self.take_on_any()
    }

    /// Counts a connection that is no pod's own.
    pub(crate) fn take_on_any(&self) -> Result<LiveGuard, Reason> {
        self.limits.memory()?;
        self.live.enter(self.config.max_connections).ok_or(Reason::ConnectionLimit)
    }
}

/// Why a socket could not be made.
pub(crate) fn no_socket(error: io::Error) -> Refusal {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => Refusal::new(Reason::DescriptorLimit, error),
        Some(libc::ENOMEM | libc::ENOBUFS) => Refusal::new(Reason::MemoryLimit, error),
        _ => Refusal::internal(error),
    }
}

fn below(limit: usize, socket: &impl AsRawFd) -> Result<(), Reason> {
    let number = usize::try_from(socket.as_raw_fd()).unwrap_or(usize::MAX);
    if number < limit { Ok(()) } else { Err(Reason::DescriptorLimit) }
}
