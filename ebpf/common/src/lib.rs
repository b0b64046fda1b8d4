//! The ABI between the eBPF programs and user space: map keys, map values and names, nothing else.
//!
//! Every type is `repr(C)` without padding, so that a value written on one side is read as the same
//! bytes on the other and `bpftool map dump pinned …` shows each field by name. Addresses are 16
//! bytes in network order, IPv4 as IPv4-mapped (RFC 4291, 2.5.5.2), so that one key serves both
//! families. Ports are in host order.

#![no_std]
#![forbid(unsafe_code)]

use core::ops::Range;

/// Version of the layout below and of the maps; part of the pin path, so that two layouts never meet in one map.
///
/// A change of either takes the next number, and a line in `ebpf/common/layouts`: `cargo xtask tidy` knows.
pub const ABI_VERSION: u32 = 5;

/// Where the proxy takes an enrolled pod's outbound connections, in the pod's own netns.
pub const OUTBOUND_PORT: u16 = 15001;
/// What a redirected connection dials at the pod's own address: each port is another destination to the
/// kernel, with all of the pod's ephemeral ports to itself. All lead to the socket at [`OUTBOUND_PORT`].
/// Nobody listens there: any other connection to these ports is the pod's own.
pub const REDIRECT_PORTS: Range<u16> = 15064..15080;
/// Where the proxy takes inbound connections that are not tunnelled.
pub const INBOUND_PLAINTEXT_PORT: u16 = 15006;
/// Where the proxy takes HBONE tunnels.
pub const HBONE_PORT: u16 = 15008;
/// Where the proxy takes the pod's DNS, over UDP and TCP.
pub const DNS_PORT: u16 = 15053;

/// An IPv6 or IPv4-mapped address in network order.
pub type Address = [u8; 16];

/// First twelve bytes of every IPv4-mapped address.
pub const IPV4_MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// Value of `PODS`, whose key is the netns cookie (`SO_NETNS_COOKIE`): an enrolled pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pod {
    /// The pod's IPv4 address, IPv4-mapped; all zero if it has none.
    pub ipv4: Address,
    /// The pod's IPv6 address; all zero if it has none.
    pub ipv6: Address,
    /// 1 if the agent answers the pod's DNS, 0 if DNS is left alone.
    pub dns: u32,
}

/// A TCP or UDP endpoint: an original destination, or the client that a server should see.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Address, in network order.
    pub address: Address,
    /// Port, in host order; 0 means "no endpoint".
    pub port: u16,
    /// Always zero.
    pub reserved: u16,
}

/// Value of `DIALLED`, `ORIGINAL_DST` and `REDIRECTED`: what a pod's socket dialled before it was redirected.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialled {
    /// What.
    pub destination: Endpoint,
    /// The endpoint of it that was chosen, if `choice` is [`Choice::Endpoint`].
    pub endpoint: Endpoint,
    /// A [`Choice`].
    pub choice: u32,
    /// 1 while it is among those that `OPEN` counts.
    pub counted: u16,
    /// 1 while its SYN is sent again sooner, and more often, than the program has asked for.
    pub hurried: u16,
}

/// What a hook has chosen of a service's endpoints.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Nothing: it is the proxy's to choose.
    Open = 0,
    /// One of this node.
    Endpoint = 1,
    /// None of those that it knows.
    Elsewhere = 2,
}

/// No endpoint.
pub const NO_ENDPOINT: Endpoint = Endpoint { address: [0; 16], port: 0, reserved: 0 };

/// So many endpoints of a service's port are known to the hooks.
pub const MAX_LOCAL: usize = 16;

/// Value of `SERVICES`, whose key is a cluster IP with a port: a service of which some endpoints are pods of this
/// node.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// Another for each value that was ever written.
    pub revision: u64,
    /// For so long after a client's last connection the next one goes to the same endpoint, in nanoseconds; 0 if
    /// the service doesn't ask for that.
    pub affinity: u64,
    /// How many endpoints a connection may go to.
    pub eligible: u32,
    /// How many of them are in `local`.
    pub count: u32,
    /// Those that are pods of this node.
    pub local: [Endpoint; MAX_LOCAL],
}

/// Key of `LAST`: a pod, and a cluster IP with a port.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    /// `SO_NETNS_COOKIE` of the pod that dials.
    pub netns: u64,
    /// What it dials.
    pub service: Endpoint,
    /// Always zero.
    pub reserved: u32,
}

/// Value of `LAST`: where the client's last connection went.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Last {
    /// Of the service at that time.
    pub revision: u64,
    /// For how long it counts, by the monotonic clock in nanoseconds.
    pub until: u64,
    /// One of the service's endpoints on this node.
    pub endpoint: Endpoint,
    /// Always zero.
    pub reserved: u32,
}

/// Key of `ORIGINAL_DST`, `CLIENTS` and `RESOLVERS`: a connection inside one pod, or where its queries come from,
/// named by the dialling side.
///
/// The netns cookie is part of it because two pods use the same loopback four-tuple.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// `SO_NETNS_COOKIE` of the pod.
    pub netns: u64,
    /// Address the connection was dialled from.
    pub source: Address,
    /// Port the connection was dialled from.
    pub source_port: u16,
    /// Port that was dialled.
    pub destination_port: u16,
    /// Always zero.
    pub reserved: u32,
}

/// `IPPROTO_TCP`
pub const TCP: u32 = 6;
/// `IPPROTO_UDP`
pub const UDP: u32 = 17;

/// Key of `LISTENERS`: one of the proxy's sockets that wait in a pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerKey {
    /// `SO_NETNS_COOKIE` of the pod.
    pub netns: u64,
    /// [`OUTBOUND_PORT`], [`INBOUND_PLAINTEXT_PORT`], [`HBONE_PORT`] or [`DNS_PORT`].
    pub port: u32,
    /// [`TCP`] or [`UDP`].
    pub protocol: u32,
}

/// Key of `STRICT` and `PROBES`: a port of an enrolled pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PodPort {
    /// `SO_NETNS_COOKIE` of the pod.
    pub netns: u64,
    /// The port; 0 stands for every port without an entry of its own.
    pub port: u32,
    /// Always zero.
    pub reserved: u32,
}

/// Key of `TRUSTED`: a connection between two sockets of this node, as the pod that is reached sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TrustedFlow {
    /// `SO_NETNS_COOKIE` of the pod that is reached.
    pub netns: u64,
    /// Address the connection was dialled from.
    pub source: Address,
    /// Address that was dialled.
    pub destination: Address,
    /// Port the connection was dialled from.
    pub source_port: u16,
    /// Port that was dialled.
    pub destination_port: u16,
    /// Always zero.
    pub reserved: u32,
}

/// Value of `TRUSTED`: who dialled.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trust {
    /// `SO_NETNS_COOKIE` of the netns that the dialling socket was made in.
    pub netns: u64,
    /// Not 0 once the connection is established: it lets no second one in.
    pub used: u64,
}

/// What `VOUCHED` keeps with a socket whose connection the kernel vouches for.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vouched {
    /// `SO_NETNS_COOKIE` of the pod that is reached.
    pub netns: u64,
    /// The address that the connection must be dialled from; all zero for any.
    pub source: Address,
    /// What the connection goes to.
    pub destination: Endpoint,
    /// The service that was dialled; no endpoint if it was none.
    pub service: Endpoint,
    /// When, by the monotonic clock in nanoseconds.
    pub dialled: u64,
    /// When the other side had accepted; 0 before.
    pub established: u64,
    /// 1 once it is among those that `OPEN` counts.
    pub counted: u64,
}

/// Key of `VERDICTS`: an enrolled pod of this node, and the address and port of another.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pair {
    /// `SO_NETNS_COOKIE` of the pod that dials.
    pub source: u64,
    /// Address that is dialled.
    pub destination: Address,
    /// Port that is dialled.
    pub port: u32,
    /// Always zero.
    pub reserved: u32,
}

/// Value of `VERDICTS`: that the pair may talk without the proxy.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// `SO_NETNS_COOKIE` of the pod that is reached.
    pub pod: u64,
    /// The address that policy was asked about, which is the dialling pod's own.
    pub source: Address,
    /// No longer in force once `EPOCH` is higher.
    pub epoch: u64,
}

/// So far below the root of the hierarchy a cgroup in `GATED` may be.
pub const MAX_POD_DEPTH: usize = 16;

/// No cgroup has this id.
pub const NO_CGROUP: u64 = 0;

/// Value of `HELD`: where a socket was made while its pod was held.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// `SO_NETNS_COOKIE` of its netns, which no pod was enrolled by then.
    pub netns: u64,
    /// Id of the cgroup in `GATED` that it was made below; [`NO_CGROUP`] if it was not told then.
    pub cgroup: u64,
}

/// Key of `UDP_PEERS`: whom an enrolled pod exchanges datagrams with.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UdpPeer {
    /// `SO_NETNS_COOKIE` of the pod.
    pub netns: u64,
    /// Who is at the other end.
    pub peer: Address,
    /// The lower port of the two.
    pub port: u16,
    /// 1 if `port` is the pod's own, 0 if it is the peer's.
    pub serves: u16,
    /// Always zero.
    pub reserved: u32,
}

/// Datagrams each way, as the pod sees it. Bytes are those of the payload (RFC 768).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Datagrams that the pod sent.
    pub sent_packets: u64,
    /// What was in them.
    pub sent_bytes: u64,
    /// Datagrams that the pod was sent.
    pub received_packets: u64,
    /// What was in them.
    pub received_bytes: u64,
}

impl Traffic {
    /// Nothing yet.
    pub const NONE: Self = Self { sent_packets: 0, sent_bytes: 0, received_packets: 0, received_bytes: 0 };
}

/// So many refusals are told of a pod in a second; further ones are counted alone.
pub const REFUSALS_PER_SECOND: u64 = 100;

/// Room in the ring buffer `EVENTS`, in bytes: a power of two.
pub const EVENTS_BYTES: usize = 1 << 20;

/// A record of the ring buffer `EVENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// An [`EventKind`].
    pub kind: u32,
    /// A [`Refusal`].
    pub refusal: u32,
    /// `SO_NETNS_COOKIE` of the pod whose hook tells.
    pub netns: u64,
    /// Who dialled; port 0 where none was chosen yet.
    pub source: Endpoint,
    /// What was dialled; of a service, the endpoint that was chosen.
    pub destination: Endpoint,
    /// The service that was dialled; no endpoint if it was none.
    pub service: Endpoint,
    /// Always zero.
    pub reserved: u32,
    /// Bytes that the dialling side sent and the other has acknowledged. As TCP counts, a FIN is one.
    pub sent: u64,
    /// Bytes that the dialling side has received, counted likewise.
    pub received: u64,
    /// From the SYN to its answer, in nanoseconds.
    pub connecting: u64,
    /// From the answer to the end, in nanoseconds.
    pub lasting: u64,
    /// Smoothed round-trip time, in microseconds.
    pub srtt: u32,
    /// Segments that were sent again.
    pub retransmits: u32,
}

/// What an [`Event`] tells.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A connection to the pod was refused.
    InboundRefused = 0,
    /// A connection of the pod was refused.
    OutboundRefused = 1,
    /// A connection of the pod that the kernel vouches for is established.
    Opened = 2,
    /// It is over.
    Closed = 3,
    /// It never came to be: the other side refused, or did not answer.
    Failed = 4,
}

/// Index into `REFUSED`: what a hook refuses by itself, without the proxy.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Inbound, and no proxy listens: the agent is away.
    NoListener = 0,
    /// Somebody outside the pod dialled one of the proxy's own ports.
    ReservedPort = 1,
    /// The original destination could not be kept with the socket.
    NoSocketStorage = 2,
    /// The pod has no address of the family that was dialled.
    NoPodAddress = 3,
    /// An IPv6 link-local destination: its scope does not survive the redirection.
    LinkLocal = 4,
    /// Inbound without mutual TLS, on a port that asks for it.
    Plaintext = 5,
    /// A query's socket found no free source port.
    NoSourcePort = 6,
    /// The kernel vouched for the connection until policy changed, before it was established.
    Revoked = 7,
    /// The pod is held until it is enrolled.
    Gated = 8,
}

impl Refusal {
    /// Every refusal, in the order of its index.
    pub const ALL: [Self; 9] = [
        Self::NoListener,
        Self::ReservedPort,
        Self::NoSocketStorage,
        Self::NoPodAddress,
        Self::LinkLocal,
        Self::Plaintext,
        Self::NoSourcePort,
        Self::Revoked,
        Self::Gated,
    ];

    /// The reason as metrics and logs write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoListener => "no_listener",
            Self::ReservedPort => "reserved_port",
            Self::NoSocketStorage => "no_socket_storage",
            Self::NoPodAddress => "no_pod_address",
            Self::LinkLocal => "link_local",
            Self::Plaintext => "plaintext_refused",
            Self::NoSourcePort => "no_source_port",
            Self::Revoked => "revoked",
            Self::Gated => "gated",
        }
    }
}

#[cfg(test)]
mod tests {
    use core::mem::{align_of, size_of};

    use super::*;

    #[test]
    fn layouts_have_no_padding() {
        assert_eq!(size_of::<Pod>(), 16 + 16 + 4);
        assert_eq!(size_of::<Endpoint>(), 16 + 2 + 2);
        assert_eq!(size_of::<Flow>(), 8 + 16 + 2 + 2 + 4);
        assert_eq!(size_of::<ListenerKey>(), 8 + 4 + 4);
        assert_eq!(size_of::<PodPort>(), 8 + 4 + 4);
        assert_eq!(size_of::<TrustedFlow>(), 8 + 16 + 16 + 2 + 2 + 4);
        assert_eq!(size_of::<Trust>(), 8 + 8);
        assert_eq!(size_of::<Vouched>(), 8 + 16 + 20 + 20 + 8 + 8 + 8);
        assert_eq!(size_of::<Pair>(), 8 + 16 + 4 + 4);
        assert_eq!(size_of::<Verdict>(), 8 + 16 + 8);
        assert_eq!(size_of::<Held>(), 8 + 8);
        assert_eq!(size_of::<UdpPeer>(), 8 + 16 + 2 + 2 + 4);
        assert_eq!(size_of::<Traffic>(), 4 * 8);
        assert_eq!(size_of::<Event>(), 4 + 4 + 8 + 20 + 20 + 20 + 4 + 4 * 8 + 4 + 4);
        assert_eq!(size_of::<Dialled>(), 20 + 20 + 4 + 4);
        assert_eq!(size_of::<Service>(), 8 + 8 + 4 + 4 + MAX_LOCAL * 20);
        assert_eq!(size_of::<Client>(), 8 + 20 + 4);
        assert_eq!(size_of::<Last>(), 8 + 8 + 20 + 4);
        assert_eq!(align_of::<Flow>(), 8);
        assert_eq!(align_of::<Endpoint>(), 4);
    }

    #[test]
    fn refusals_are_in_the_order_of_their_index() {
        for (index, refusal) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(refusal as usize, index);
        }
    }
}
