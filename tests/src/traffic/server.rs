use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, setsockopt, shutdown, socket, sockopt,
};

use crate::Pod;

/// Listens on the wildcard address of one family in the calling thread's network namespace.
pub(crate) fn listen(v6: bool, port: u16) -> io::Result<TcpListener> {
    let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    let address = if v6 {
        // Both families listen on the same port, and neither sees mapped addresses.
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))
    } else {
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))
    };
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    nix::sys::socket::listen(&socket.as_fd(), Backlog::new(4096)?)?;
    Ok(TcpListener::from(socket))
}

/// Two listeners in a pod and a thread for each connection; all end when this is dropped.
#[derive(Debug)]
pub(super) struct Server {
    port: u16,
    listeners: Vec<Arc<TcpListener>>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stopping: AtomicBool,
    peers: Mutex<Vec<SocketAddr>>,
    live: Mutex<HashMap<u64, TcpStream>>,
}

impl Server {
    /// Port 0 picks a free one.
    pub(super) fn start<F>(pod: &Pod, port: u16, handle: F) -> Result<Self>
    where
        F: Fn(TcpStream, SocketAddr) -> io::Result<()> + Send + Sync + 'static,
    {
        let context = || format!("listening in {}/{} on port {port}", pod.namespace(), pod.name());
        pod.run(|| Self::start_here(port, handle))?.with_context(context)
    }

    /// In the calling thread's network namespace.
    pub(super) fn start_here<F>(port: u16, handle: F) -> io::Result<Self>
    where
        F: Fn(TcpStream, SocketAddr) -> io::Result<()> + Send + Sync + 'static,
    {
        let v4 = listen(false, port)?;
        let port = v4.local_addr()?.port();
        let listeners = vec![Arc::new(v4), Arc::new(listen(true, port)?)];
        let shared = Arc::new(Shared::default());
        let handle = Arc::new(handle);
        let mut threads = Vec::new();
        for listener in &listeners {
            let (listener, shared, handle) = (Arc::clone(listener), Arc::clone(&shared), Arc::clone(&handle));
            threads.push(thread::spawn(move || accept_loop(&listener, &shared, &handle)));
        }
        Ok(Self { port, listeners, shared, threads })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Who connected so far, as `accept` saw them, in order.
    pub(super) fn peers(&self) -> Vec<SocketAddr> {
        lock(&self.shared.peers).clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        for listener in &self.listeners {
            // Wakes the thread that waits in accept.
            let _ = shutdown(listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        for stream in lock(&self.shared.live).values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn accept_loop<F>(listener: &TcpListener, shared: &Arc<Shared>, handle: &Arc<F>)
where
    F: Fn(TcpStream, SocketAddr) -> io::Result<()> + Send + Sync + 'static,
{
    let v6 = listener.local_addr().is_ok_and(|address| address.is_ipv6());
    let mut count = u64::from(v6);
    while !shared.stopping.load(Ordering::SeqCst) {
        // A connection reset while it waits in the queue is an error here, and no reason to stop.
        let Ok((stream, peer)) = listener.accept() else { continue };
        lock(&shared.peers).push(peer);
        // Even numbers for one listener, odd ones for the other.
        count += 2;
        let key = count;
        if let Ok(clone) = stream.try_clone() {
            lock(&shared.live).insert(key, clone);
        }
        let (task_shared, handle) = (Arc::clone(shared), Arc::clone(handle));
        let task = move || {
            // How a connection ends is the client's to judge.
            let _ = handle(stream, peer);
            lock(&task_shared.live).remove(&key);
        };
        if thread::Builder::new().stack_size(256 * 1024).spawn(task).is_err() {
            lock(&shared.live).remove(&key);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
