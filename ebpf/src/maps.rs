//! The pinned maps. Who writes and who reads each is part of its documentation: nothing else may.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf, SkStorage, SockHash},
    macros::btf_map,
};
use orlop_common::{
    Address, Client, Dialled, EVENTS_BYTES, Endpoint, Event, Flow, Held, Last, ListenerKey, Pair, Pod,
    PodPort, Refusal, Service, Traffic, Trust, TrustedFlow, UdpPeer, Verdict, Vouched,
};

use crate::events::Pace;

/// Enrolled pods by netns cookie. Written by the agent, read by every hook.
#[btf_map]
pub static PODS: HashMap<u64, Pod, 4096> = HashMap::new();

/// The proxy's listening sockets. Written by the agent, read by `inbound` and `dns`; the kernel removes a
/// socket when it closes, so a dead agent has none.
#[btf_map]
pub static LISTENERS: SockHash<ListenerKey, 16384> = SockHash::new();

/// What a pod's socket dialled before it was redirected, over UDP the resolver that it asked last. Written by
/// `connect` and `dns`, read by `sockops`, `peername` and `dns`; goes with the socket.
#[btf_map]
pub static DIALLED: SkStorage<Dialled> = SkStorage::new();

/// Marks the agent's own sockets, and holds the client that the server should see, if any. Written by
/// the agent through its descriptor of the socket, so that no pod can claim to be the agent.
#[btf_map]
pub static AGENT_SOCKETS: SkStorage<Endpoint> = SkStorage::new();

/// Original destination of a connection that is being redirected, until the proxy's own socket is there. Written, read
/// and removed by `sockops`, read by `inbound`.
#[btf_map]
pub static ORIGINAL_DST: LruHashMap<Flow, Dialled, 65536> = LruHashMap::new();

/// Original destination of a connection that was redirected, with the proxy's socket of it, however long that waits to be
/// accepted: the same pair of ports may be another connection's by then. Written by `sockops`, read by the agent.
#[btf_map]
pub static REDIRECTED: SkStorage<Dialled> = SkStorage::new();

/// The resolver that queries from a port of a pod are meant for. Written by `dns`, read by the agent.
#[btf_map]
pub static RESOLVERS: LruHashMap<Flow, Endpoint, 65536> = LruHashMap::new();

/// Real client of a connection that the agent dials to a server, until the server's own socket is there.
/// Written, read and removed by `sockops`.
#[btf_map]
pub static CLIENTS: LruHashMap<Flow, Endpoint, 65536> = LruHashMap::new();

/// Real client of a connection that a server has accepted. Written by `sockops`, read by `peername`; goes
/// with the socket, so that a client that is gone before its connection is accepted is known all the same.
#[btf_map]
pub static ACCEPTED: SkStorage<Endpoint> = SkStorage::new();

/// Which enrolled pod of this node has an address. Written by the agent, read by `connect`.
#[btf_map]
pub static POD_ADDRESSES: HashMap<Address, u64, 16384> = HashMap::new();

/// Whether a pod's port takes mutual TLS alone (1) or anything (0). Written by the agent, read by `inbound`.
#[btf_map]
pub static STRICT: HashMap<PodPort, u32, 16384> = HashMap::new();

/// The ports of enrolled pods that the node's own probes may come to. Written by the agent, read by `connect`.
#[btf_map]
pub static PROBES: HashMap<PodPort, u32, 16384> = HashMap::new();

/// Pods of this node that may talk without the proxy: what policy has said when the proxy asked. Written by the
/// agent, read by `connect` and `inbound`.
#[btf_map]
pub static VERDICTS: HashMap<Pair, Verdict, 65536> = HashMap::new();

/// Verdicts of an earlier epoch are no longer in force. Written by an agent that is new here.
#[btf_map]
pub static EPOCH: Array<u64, 1> = Array::new();

/// Ports of services of which some endpoints are pods of this node. Written by the agent, read by `connect`.
#[btf_map]
pub static SERVICES: HashMap<Endpoint, Service, 16384, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Where clients went last, for services that want them to come back to one endpoint, if that is a pod of this
/// node. Written by the agent, prolonged by `connect`.
#[btf_map]
pub static LAST: LruHashMap<Client, Last, 16384> = LruHashMap::new();

/// Connections of pods to services that are open, by the endpoint on this node that a hook has chosen, or by the
/// service for those that it left to others. Written by `sockops`, read by `connect`.
#[btf_map]
pub static OPEN: LruHashMap<Endpoint, u64, 16384> = LruHashMap::new();

/// Marks a socket whose connection the kernel vouches for. Written by `connect`, read by `sockops`; goes with
/// the socket.
#[btf_map]
pub static VOUCHED: SkStorage<Vouched> = SkStorage::new();

/// Connections that the kernel vouches for, until they are over. Written by `sockops`, read by `inbound`. One
/// that is pushed out before it was let in is treated like any other.
#[btf_map]
pub static TRUSTED: LruHashMap<TrustedFlow, Trust, 65536> = LruHashMap::new();

/// Cgroups of pods whose sockets are held until the pod is enrolled, by id. Written by the agent, read by `gate`.
#[btf_map]
pub static GATED: HashMap<u64, u32, 4096, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Marks a socket that was made while its pod was held. Written when it is made, or begins to listen, read by `gate`;
/// goes with the socket.
#[btf_map]
pub static HELD: SkStorage<Held> = SkStorage::new();

/// Netns cookie of a UDP socket. Written when it is made; goes with the socket.
#[btf_map]
pub static OWNER: SkStorage<u64> = SkStorage::new();

/// An enrolled pod's datagrams. Entries are made and removed by the agent.
#[btf_map]
pub static UDP_PODS: HashMap<u64, Traffic, 4096> = HashMap::new();

/// An enrolled pod's datagrams by peer; those of old are pushed out. Read by the agent.
#[btf_map]
pub static UDP_PEERS: LruHashMap<UdpPeer, Traffic, 16384> = LruHashMap::new();

/// What the agent should hear of. Written by every hook.
#[btf_map]
pub static EVENTS: RingBuf<Event, EVENTS_BYTES> = RingBuf::new();

/// Events that did not fit, or came too often.
#[btf_map]
pub static LOST: PerCpuArray<u64, 1> = PerCpuArray::new();

/// How many refusals have been told of each pod lately.
#[btf_map]
pub static PACE: LruHashMap<u64, Pace, 4096> = LruHashMap::new();

/// How often a hook refused by itself, by [`Refusal`].
#[btf_map]
pub static REFUSED: PerCpuArray<u64, { Refusal::ALL.len() }> = PerCpuArray::new();

/// The enrolled pod that owns this netns.
#[inline(always)]
pub fn pod(netns: u64) -> Option<&'static Pod> {
    // SAFETY: the agent replaces whole values and the map is preallocated, so a reader sees an old or
    // a new pod; both were enrolled under this cookie.
    unsafe { PODS.get(netns) }
}

/// Whether the connection is being redirected.
#[inline(always)]
pub fn is_redirected(flow: &Flow) -> bool {
    ORIGINAL_DST.get_ptr(flow).is_some()
}

/// Counts a refusal.
#[inline(always)]
pub fn count(refusal: Refusal) {
    if let Some(count) = REFUSED.get_ptr_mut(refusal as u32) {
        // SAFETY: the slot belongs to this CPU, and hooks of one kind do not interrupt each other; a
        // lost increment would miscount, not more.
        unsafe { *count += 1 }
    }
}
