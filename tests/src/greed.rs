//! One pod that opens as many connections as it can, and what another pod notices of it.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Write};
use std::iter;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::Pod;

const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks whether it is over.
const PAUSE: Duration = Duration::from_millis(10);
/// Connections that were refused are let go after so many dials.
const LOOK: usize = 64;
/// Descriptors that a greedy pod leaves to the rest of the process.
const SPARE: usize = 2000;

/// Takes as many open files as this process may: with CAP_SYS_RESOURCE, up to `fs.nr_open`.
pub fn raise_descriptors() -> Result<()> {
    let possible = fs::read_to_string("/proc/sys/fs/nr_open").context("reading fs.nr_open")?;
    let possible: u64 = possible.trim().parse().context("fs.nr_open is no number")?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = possible.min(1 << 20).max(hard);
    if setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).is_err() {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the limit of open files")?;
    }
    Ok(())
}

/// What the calls of one pod took, each on a connection of its own, the shortest first.
pub fn call_times(pod: &Pod, to: SocketAddr, calls: usize, every: Duration) -> Result<Vec<Duration>> {
    let mut left = calls;
    call_times_while(pod, to, every, || left.checked_sub(1).map(|fewer| left = fewer).is_some())
}

/// Like [`call_times`], for as long as `goes_on` says so, which is asked before each call.
///
/// A call starts `every` so long, or at once after one that took longer. Without a pause they soon run out
/// of ports, each of which is kept for a minute: finding a free one is then most of a call.
pub fn call_times_while(
    pod: &Pod,
    to: SocketAddr,
    every: Duration,
    mut goes_on: impl FnMut() -> bool + Send,
) -> Result<Vec<Duration>> {
    let mut next = Instant::now();
    let calls = iter::from_fn(|| {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        next = Instant::now() + every;
        goes_on().then(|| call(to))
    });
    let mut times = pod.run(|| calls.collect::<io::Result<Vec<_>>>())??;
    times.sort_unstable();
    Ok(times)
}

fn call(to: SocketAddr) -> io::Result<Duration> {
    let start = Instant::now();
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"?")?;
    stream.read_exact(&mut [0; 1])?;
    Ok(start.elapsed())
}

/// How a greedy pod fares.
#[derive(Debug, Default)]
pub struct Greed {
    stop: AtomicBool,
    dialled: AtomicUsize,
    /// Between two dials of a thread.
    pause: Option<Duration>,
}

impl Greed {
    /// Each thread of the pod dials so often a second; without pause if no rate is given.
    pub fn at(rate: Option<u32>) -> Self {
        Self { pause: rate.map(|rate| Duration::from_secs(1) / rate.max(1)), ..Self::default() }
    }

    /// Has the pod dial so often, and keep what it gets until [`Greed::stop`] is called, as far as there
    /// are descriptors. May run on several threads at once.
    ///
    /// What takes the CPU is to dial: the kernel tells which connections have ended, and nobody looks at each.
    pub fn run(&self, pod: &Pod, to: &[SocketAddr], dials: usize) -> Result<()> {
        let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let most = usize::try_from(limit)?.saturating_sub(SPARE);
        pod.run(|| -> io::Result<()> {
            let mut open = Open::new()?;
            let mut due = Instant::now();
            for (number, to) in to.iter().cycle().take(dials).enumerate() {
                if self.stop.load(Ordering::SeqCst) {
                    return Ok(());
                }
                if let Some(pause) = self.pause {
                    // Those that are late are not left out.
                    due += pause;
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                }
                if let Ok(stream) = TcpStream::connect_timeout(to, PATIENCE)
                    && open.streams.len() < most
                {
                    open.keep(stream)?;
                }
                self.dialled.fetch_add(1, Ordering::SeqCst);
                // A connection that is refused by a proxy was open for a moment.
                if number % LOOK == 0 {
                    open.let_go()?;
                }
            }
            while !self.stop.load(Ordering::SeqCst) {
                thread::sleep(PAUSE);
            }
            Ok(())
        })??;
        Ok(())
    }

    /// Has [`Greed::run`] close everything and return.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// How often it has dialled.
    pub fn dialled(&self) -> usize {
        self.dialled.load(Ordering::SeqCst)
    }
}

/// Connections on which nobody sends anything: there is something to read once one has ended.
struct Open {
    streams: HashMap<RawFd, TcpStream>,
    ended: Epoll,
}

impl Open {
    fn new() -> io::Result<Self> {
        Ok(Self { streams: HashMap::new(), ended: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)? })
    }

    fn keep(&mut self, stream: TcpStream) -> io::Result<()> {
        let fd = stream.as_raw_fd();
        self.ended.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, fd as u64))?;
        self.streams.insert(fd, stream);
        Ok(())
    }

    /// Closes those that have ended.
    fn let_go(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); LOOK];
        loop {
            let ended = self.ended.wait(&mut events, EpollTimeout::ZERO)?;
            for event in &events[..ended] {
                self.streams.remove(&(event.data() as RawFd));
            }
            if ended < LOOK {
                return Ok(());
            }
        }
    }
}
