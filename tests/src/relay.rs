use std::io::{self, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crate::traffic::ReadUninterrupted;
use anyhow::{Context, Result};

use crate::{Node, Pod};

/// Leads a port of a node's loopback, or a pod's, to a server on the loopback of the machine, such as an API server, for as long
/// as it is not [cut](Self::cut). Or the other way round.
#[derive(Debug)]
pub struct Relay {
    place: Place,
    port: u16,
    to: SocketAddr,
    /// Bytes from the server.
    carried: Arc<AtomicU64>,
    running: Option<Running>,
}

#[derive(Clone, Debug)]
enum Place {
    Node(Node),
    Pod(Pod),
    /// The machine's loopback, for a server on the node's.
    Before(Node),
}

#[derive(Debug)]
struct Running {
    listener: TcpListener,
    open: Arc<Mutex<Vec<TcpStream>>>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Starts it on a node.
    pub fn start(node: &Node, port: u16, to: SocketAddr) -> Result<Self> {
        Self::start_in(Place::Node(node.clone()), port, to)
    }

    /// Starts it in a pod.
    pub fn in_pod(pod: &Pod, port: u16, to: SocketAddr) -> Result<Self> {
        Self::start_in(Place::Pod(pod.clone()), port, to)
    }

    /// Leads a port of the machine's loopback, which nobody else has, to the same port of a node's loopback.
    pub fn to_node(node: &Node) -> Result<Self> {
        Self::start_in(Place::Before(node.clone()), 0, SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// How many bytes have come from the server.
    pub fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }

    /// The port that it listens at.
    pub fn port(&self) -> u16 {
        self.port
    }

    fn start_in(place: Place, port: u16, to: SocketAddr) -> Result<Self> {
        let mut relay = Self { place, port, to, carried: Arc::default(), running: None };
        relay.mend()?;
        Ok(relay)
    }

    /// Resets all connections and refuses new ones, as if the server had died.
    pub fn cut(&mut self) {
        self.running = None;
    }

    /// Undoes [`cut`](Self::cut).
    pub fn mend(&mut self) -> Result<()> {
        if self.running.is_some() {
            return Ok(());
        }
        let port = self.port;
        let listen = || TcpListener::bind(("127.0.0.1", port));
        let (name, listener) = match &self.place {
            Place::Node(node) => (node.name(), node.run(listen)?),
            Place::Pod(pod) => (pod.name(), pod.run(listen)?),
            Place::Before(_) => ("the machine", listen()),
        };
        let listener = listener.with_context(|| format!("listening at port {port} of {name}"))?;
        let far = match &self.place {
            Place::Before(node) => {
                self.port = listener.local_addr().context("asking for the port")?.port();
                self.to.set_port(self.port);
                Some(node.clone())
            }
            _ => None,
        };
        let to = self.to;
        let open = Arc::new(Mutex::new(Vec::new()));
        let (accepting, tracked) = (listener.try_clone().context("sharing the listener")?, Arc::clone(&open));
        let carried = Arc::clone(&self.carried);
        let thread = thread::spawn(move || {
            // Ends once the listener is shut down.
            while let Ok((client, _)) = accepting.accept() {
                let server = match &far {
                    None => TcpStream::connect(to),
                    Some(node) => node
                        .run(|| TcpStream::connect(to))
                        .unwrap_or_else(|error| Err(io::Error::other(error))),
                };
                let _ = server.and_then(|server| relay(client, server, &tracked, &carried));
            }
        });
        self.running = Some(Running { listener, open, thread: Some(thread) });
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        use std::os::fd::AsRawFd as _;
        // Wakes the thread that accepts.
        let _ = nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for stream in lock(&self.open).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn relay(
    client: TcpStream,
    server: TcpStream,
    open: &Mutex<Vec<TcpStream>>,
    carried: &Arc<AtomicU64>,
) -> io::Result<()> {
    lock(open).extend([client.try_clone()?, server.try_clone()?]);
    let (asked, answered) = (Arc::default(), Arc::clone(carried));
    for (from, to, bytes) in [(client.try_clone()?, server.try_clone()?, asked), (server, client, answered)] {
        thread::spawn(move || {
            let _ = copy(&from, &to, &bytes);
            let _ = to.shutdown(Shutdown::Write);
        });
    }
    Ok(())
}

fn copy(mut from: &TcpStream, mut to: &TcpStream, bytes: &AtomicU64) -> io::Result<()> {
    let mut buffer = [0; 16 << 10];
    loop {
        let length = from.read_uninterrupted(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..length])?;
        bytes.fetch_add(length as u64, Ordering::Relaxed);
    }
}

fn lock(open: &Mutex<Vec<TcpStream>>) -> MutexGuard<'_, Vec<TcpStream>> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}
