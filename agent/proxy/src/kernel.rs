use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::BorrowedFd,
};

use orlop_model::Choice;

/// What the proxy asks of the kernel side. The agent wires it to the eBPF maps.
pub trait Kernel: Send + Sync + 'static {
    /// Whom the client of an accepted socket dialled before it was redirected to that, and what of that the kernel has
    /// chosen.
    fn original_destination(&self, accepted: BorrowedFd<'_>) -> io::Result<Option<(SocketAddr, Choice)>>;

    /// Where the last connection that the pod with this netns cookie made to `service` went, as far as the kernel
    /// knows, and as long as the service wants the next to follow it.
    fn last(&self, netns: u64, service: SocketAddr) -> Option<SocketAddr>;

    /// A connection of the pod with this netns cookie to `service`, which wants its clients to come back, goes to
    /// `endpoint`.
    fn went(&self, netns: u64, service: SocketAddr, endpoint: SocketAddr);

    /// The resolver that the UDP socket at `source`, in the pod with this netns cookie, asked last.
    fn resolver(&self, netns: u64, source: SocketAddr) -> io::Result<Option<SocketAddr>>;

    /// Lets the pod with this netns cookie reach `destination` from `source` without the proxy from now on, as the
    /// snapshot of this generation says. If that can't be, connections go on coming to the proxy.
    fn allow(&self, generation: u64, netns: u64, source: IpAddr, destination: SocketAddr);

    /// Claims a socket that has not dialled yet as the agent's own. The server that it dials sees
    /// `client`, if given, as its peer.
    fn claim(&self, socket: BorrowedFd<'_>, client: Option<SocketAddr>) -> io::Result<()>;
}
