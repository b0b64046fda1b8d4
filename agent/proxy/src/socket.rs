//! Sockets in a pod's netns: the crate's only unsafe code, and the only place that changes netns.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
    process,
    sync::OnceLock,
    time::Duration,
};

use nix::{
    libc,
    sched::{CloneFlags, setns},
    sys::socket::{setsockopt, sockopt},
};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpSocket, TcpStream},
    time::timeout,
};

const SO_NETNS_COOKIE: libc::c_int = 71;
/// The kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// A tunnel whose peer is gone is noticed this long after the last byte was sent.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection as it was accepted.
pub(crate) struct Accepted {
    pub(crate) tcp: TcpStream,
    pub(crate) peer: SocketAddr,
}

/// A network namespace that is held open.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    cookie: u64,
}

impl Netns {
    /// Opens the netns at `path`, for example `/run/netns/NAME` or `/proc/PID/ns/net`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let fd = OwnedFd::from(File::open(path)?);
        let cookie = within(fd.as_fd(), || cookie_of(&Socket::new(Domain::IPV4, Type::DGRAM, None)?))?;
        Ok(Self { fd, cookie })
    }

    /// `SO_NETNS_COOKIE`: unique for as long as the machine runs.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// A dual-stack listening socket. Where `port` is taken by the pod itself, some free port serves as
    /// well, since the kernel leads connections to the socket and not to its port.
    pub(crate) fn listen(&self, port: u16) -> io::Result<std::net::TcpListener> {
        within(self.fd.as_fd(), || match listen(port) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => listen(0),
            result => result,
        })
    }

    /// A dual-stack UDP socket of the pod at `port`.
    pub(crate) fn udp_server(&self, port: u16) -> io::Result<std::net::UdpSocket> {
        within(self.fd.as_fd(), || {
            let (socket, any) = dual_stack(Type::DGRAM, Protocol::UDP)?;
            socket.set_nonblocking(true)?;
            socket.bind(&SocketAddr::new(any, port).into())?;
            Ok(socket.into())
        })
    }

    /// A UDP socket of the pod at `address`.
    pub(crate) fn udp_socket(&self, address: SocketAddr) -> io::Result<std::net::UdpSocket> {
        within(self.fd.as_fd(), || {
            let socket = std::net::UdpSocket::bind(address)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
    }

    /// A socket of the pod, not yet connected, for dialling `address`.
    pub(crate) fn tcp_socket(&self, address: SocketAddr) -> io::Result<TcpSocket> {
        let socket = within(self.fd.as_fd(), || match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        })?;
        socket.set_nodelay(true)?;
        Ok(socket)
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Gives a socket that will dial `address`, one of the pod's own, that same address. From another of the
/// pod's addresses the kernel side would take it for an outsider and lead it back to the proxy, for ever.
pub(crate) fn bind_to(socket: &TcpSocket, address: IpAddr) -> io::Result<()> {
    // The port is chosen with the connection: a bound one would be this socket's alone.
    setsockopt(socket, sockopt::IpBindAddressNoPort, &true)?;
    socket.bind(SocketAddr::new(address, 0))
}

/// From now on the socket ends with a reset whenever it is closed, be it by the kernel after a SIGKILL: an
/// application must not take a connection that was cut for one that has ended. [`whole`] takes it back.
pub(crate) fn reset_unless_whole(socket: &impl AsFd) {
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Sends without delay. What a listener accepts is from the first like the listener: that, and that it is
/// [reset unless whole](reset_unless_whole).
pub(crate) fn send_at_once(socket: &impl AsFd) {
    let _ = SockRef::from(socket).set_tcp_nodelay(true);
}

/// Both sides have ended in good order, so that the socket may too.
pub(crate) fn whole(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(None);
}

/// Refuses whoever waits to be accepted, and whoever comes, also while others hold the socket.
pub(crate) fn stop_listening(listener: &TcpListener) {
    let _ = SockRef::from(listener).shutdown(std::net::Shutdown::Both);
}

/// Whether nobody has [stopped](stop_listening) it.
pub(crate) fn is_listening(listener: &std::net::TcpListener) -> bool {
    SockRef::from(listener).is_listener().unwrap_or(false)
}

/// Closes `stream` with a reset instead of an orderly end.
pub(crate) fn reset(stream: TcpStream) {
    // If it fails the socket is gone already.
    let _ = stream.set_zero_linger();
}

/// Half-closes: the peer reads the end of the stream.
pub(crate) fn finish(stream: &TcpStream) -> io::Result<()> {
    match SockRef::from(stream).shutdown(std::net::Shutdown::Write) {
        // The peer has closed both halves meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        result => result,
    }
}

/// Makes a dead peer of a long-lived connection be noticed.
pub(crate) fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(Duration::from_secs(60))
            .with_interval(Duration::from_secs(15))
            .with_retries(4),
    )?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

/// Has the kernel look whether the other side is still there: after so long without a byte, so often, and how many such
/// looks may go unanswered. What is `None` is as the system has it, and what is out of the kernel's bounds (tcp.h:
/// `MAX_TCP_KEEPIDLE` and others) is the nearest that it takes.
pub(crate) fn keep_alive_as(
    stream: &TcpStream,
    time: Option<Duration>,
    interval: Option<Duration>,
    probes: Option<u32>,
) -> io::Result<()> {
    const SHORTEST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(32_767);
    const MOST: u32 = 127;
    let mut wanted = TcpKeepalive::new();
    if let Some(time) = time {
        wanted = wanted.with_time(time.clamp(SHORTEST, LONGEST));
    }
    if let Some(interval) = interval {
        wanted = wanted.with_interval(interval.clamp(SHORTEST, LONGEST));
    }
    if let Some(probes) = probes {
        wanted = wanted.with_retries(probes.clamp(1, MOST));
    }
    SockRef::from(stream).set_tcp_keepalive(&wanted)
}

/// IPv4-mapped addresses are what a dual-stack socket makes of IPv4.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn listen(port: u16) -> io::Result<std::net::TcpListener> {
    let (socket, any) = dual_stack(Type::STREAM, Protocol::TCP)?;
    // Connections of an agent that is gone may linger on the port. SO_REUSEPORT would let the pod in.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(any, port).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A socket for both families, and the address that binds it to all of the pod's.
fn dual_stack(kind: Type, protocol: Protocol) -> io::Result<(Socket, IpAddr)> {
    match Socket::new(Domain::IPV6, kind, Some(protocol)) {
        Ok(socket) => {
            socket.set_only_v6(false)?;
            Ok((socket, Ipv6Addr::UNSPECIFIED.into()))
        }
        // Without IPv6 in the kernel.
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            Ok((Socket::new(Domain::IPV4, kind, Some(protocol))?, Ipv4Addr::UNSPECIFIED.into()))
        }
        Err(error) => Err(error),
    }
}

fn cookie_of(socket: &Socket) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, the size of `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Runs `call`, which must not block, with this thread in `netns`. A socket stays in the netns that it
/// was made in, so that nothing else has to be done there.
fn within<T>(netns: BorrowedFd<'_>, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    static HOME: OnceLock<io::Result<File>> = OnceLock::new();
    let home = HOME.get_or_init(|| File::open("/proc/self/ns/net"));
    let home = home.as_ref().map_err(|error| io::Error::new(error.kind(), error.to_string()))?;
    setns(netns, CloneFlags::CLONE_NEWNET)?;
    let result = call();
    if let Err(error) = setns(home, CloneFlags::CLONE_NEWNET) {
        // A thread that stays in a pod's netns would dial other pods' connections from there.
        tracing::error!(%error, "cannot leave a pod's network namespace");
        process::abort();
    }
    result
}
/// The same socket once more.
pub(crate) fn twin(tcp: &TcpStream) -> io::Result<OwnedFd> {
    tcp.as_fd().try_clone_to_owned()
}

/// Reads what the peer of a connection still says that was ended here, until it has ended it too, or for a second. Who closes a
/// socket in which something is unread resets the connection, and takes from the peer what that has not read.
pub(crate) async fn read_out(twin: io::Result<OwnedFd>) {
    const PATIENCE: Duration = Duration::from_secs(1);
    let read = async {
        let mut tcp = TcpStream::from_std(std::net::TcpStream::from(twin?))?;
        let mut buffer = [0; 4096];
        while tcp.read(&mut buffer).await? > 0 {}
        io::Result::Ok(())
    };
    // It is over anyhow.
    let _ = timeout(PATIENCE, read).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keepalive_is_set_as_wanted_within_what_the_kernel_takes() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let socket = SockRef::from(&stream);
        let seen = || {
            let (time, interval) =
                (socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap());
            (
                socket.keepalive().unwrap(),
                time.as_secs(),
                interval.as_secs(),
                socket.tcp_keepalive_retries().unwrap(),
            )
        };
        let secs = |secs| Some(Duration::from_secs(secs));
        assert!(!seen().0);
        keep_alive_as(&stream, secs(100), secs(7), Some(3)).unwrap();
        assert_eq!(seen(), (true, 100, 7, 3));
        // What is not said stays.
        keep_alive_as(&stream, None, secs(8), None).unwrap();
        assert_eq!(seen(), (true, 100, 8, 3));
        keep_alive_as(&stream, secs(100_000), Some(Duration::from_millis(1)), Some(1000)).unwrap();
        assert_eq!(seen(), (true, 32_767, 1, 127));
    }
}
