//! Connections between two sockets of this node that the kernel itself vouches for.
//!
//! `connect` marks the socket, since it alone knows the caller; `sock_ops` records the four-tuple once the
//! source port is chosen and before the SYN is sent; `inbound` of the pod that is reached finds it there. Only
//! a socket can make the record, so an address or a packet that claims to be from it cannot; and it lets in
//! one connection.
//!
//! That goes for the node's own probes, and for two pods that policy lets talk without the proxy.

use aya_ebpf::bindings::bpf_sock;
use orlop_common::{
    Address, Endpoint, Event, EventKind, NO_ENDPOINT, Pair, PodPort, Trust, Verdict, Vouched,
};

use crate::{
    context::{
        SockAddr, SockOps, ancestor_cgroup, constant, forget, now, same, store_with, stored, trusted_flow,
    },
    events,
    maps::{EPOCH, POD_ADDRESSES, PROBES, TRUSTED, VERDICTS, VOUCHED},
    services,
};

/// Netns cookie of the node itself, set before loading.
#[unsafe(no_mangle)]
pub static NODE_NETNS: u64 = 0;

/// Id of the cgroup that every pod's is below, set before loading; 0 if there is none.
#[unsafe(no_mangle)]
static PODS_CGROUP: u64 = 0;

/// How far below the root [`PODS_CGROUP`] is looked for.
const DEPTH: i32 = 8;
const BPF_ANY: u64 = 0;

/// A socket of no enrolled pod dials. If it is the node's own, such as kubelet's, and not that of a pod on the
/// node's network, and what it dials is where the pod's probes come, it is vouched for.
#[inline(always)]
pub fn node_dials<const IPV4: bool>(ctx: &SockAddr<IPV4>, netns: u64) {
    if netns != constant(&NODE_NETNS) || !ctx.is_tcp() {
        return;
    }
    let destination = ctx.endpoint();
    match pod_at(&destination.address) {
        Some(pod) if is_probed(pod, destination.port) && !of_a_pod() => {
            vouch(ctx, pod, &[0; 16], &destination, &NO_ENDPOINT);
        }
        _ => forget(&VOUCHED, ctx.socket()),
    }
}

/// The pod `netns`, whose own address is `own`, dials; through `service`, if that is an endpoint. True if the two
/// may talk without the proxy, and the kernel vouches for it from now on.
#[inline(always)]
pub fn pod_dials<const IPV4: bool>(
    ctx: &SockAddr<IPV4>,
    netns: u64,
    own: &Address,
    destination: &Endpoint,
    service: &Endpoint,
) -> bool {
    match verdict(netns, destination) {
        Some(verdict) if same(&verdict.source, own) && !ctx.is_bound_elsewhere(own) => {
            vouch(ctx, verdict.pod, own, destination, service)
        }
        _ => {
            forget(&VOUCHED, ctx.socket());
            false
        }
    }
}

/// The service that was dialled, if the kernel has chosen the endpoint.
#[inline(always)]
pub fn service(socket: *mut bpf_sock) -> Option<Endpoint> {
    stored(&VOUCHED, socket).map(|vouched| vouched.service).filter(|service| service.port != 0)
}

/// Without memory for the mark the connection is one like any other.
#[inline(always)]
fn vouch<const IPV4: bool>(
    ctx: &SockAddr<IPV4>,
    netns: u64,
    source: &Address,
    destination: &Endpoint,
    service: &Endpoint,
) -> bool {
    let vouched = Vouched {
        netns,
        source: *source,
        destination: *destination,
        service: *service,
        dialled: now(),
        established: 0,
        counted: 0,
    };
    store_with(&VOUCHED, ctx.socket(), &vouched)
}

/// What policy has said of the pod `source` and this destination, if that is still in force.
#[inline(always)]
fn verdict(source: u64, destination: &Endpoint) -> Option<Verdict> {
    let pair =
        Pair { source, destination: destination.address, port: u32::from(destination.port), reserved: 0 };
    // SAFETY: copied at once; the agent replaces whole values.
    let verdict = unsafe { VERDICTS.get(pair) }.copied()?;
    let epoch = EPOCH.get(0).copied()?;
    (verdict.epoch >= epoch).then_some(verdict)
}

#[inline(always)]
fn pod_at(address: &Address) -> Option<u64> {
    // SAFETY: copied at once; a value replaced meanwhile names a pod that has the address, or had it.
    unsafe { POD_ADDRESSES.get(address) }.copied()
}

/// Whether the node's probes may come to this port of a pod: of one whose probes nobody knows, to every port.
#[inline(always)]
fn is_probed(pod: u64, port: u16) -> bool {
    let is_known =
        |port| PROBES.get_ptr(PodPort { netns: pod, port: u32::from(port), reserved: 0 }).is_some();
    is_known(port) || is_known(0)
}

/// Whether the caller is in a pod's cgroup.
#[inline(always)]
fn of_a_pod() -> bool {
    let pods = constant(&PODS_CGROUP);
    pods != 0 && (1..=DEPTH).any(|level| ancestor_cgroup(level) == pods)
}

/// Records the connection that a marked socket is about to dial. True if it is one.
#[inline(always)]
pub fn publish(ops: &SockOps, socket: *mut bpf_sock) -> bool {
    let Some(mut vouched) = stored(&VOUCHED, socket) else { return false };
    let (source, destination) = (ops.local(), ops.remote());
    let as_dialled = destination.port == vouched.destination.port
        && same(&destination.address, &vouched.destination.address);
    let any = same(&vouched.source, &[0; 16]);
    if !as_dialled || !(any || same(&vouched.source, &source.address)) {
        return false;
    }
    let flow = trusted_flow(vouched.netns, &source, &destination);
    if vouched.service.port != 0 {
        services::vouched_begins(&mut vouched);
        store_with(&VOUCHED, socket, &vouched);
    }
    TRUSTED.insert(flow, Trust { netns: ops.netns(), used: 0 }, BPF_ANY).is_ok()
}

/// A socket's connection is established. Tells of it if it is a pod's and the kernel vouches for it.
#[inline(always)]
pub fn established(ops: &SockOps, socket: *mut bpf_sock) {
    let Some(vouched) = stored(&VOUCHED, socket) else { return };
    let netns = ops.netns();
    if netns == constant(&NODE_NETNS) {
        return;
    }
    store_with(&VOUCHED, socket, &Vouched { established: now(), ..vouched });
    events::tell(&event(EventKind::Opened, netns, ops.local(), &vouched));
}

/// Removes the record of a socket that is closed, and tells of it. True if it had one.
#[inline(always)]
pub fn closed(ops: &SockOps, socket: *mut bpf_sock) -> bool {
    let Some(vouched) = stored(&VOUCHED, socket) else { return false };
    let (netns, source) = (ops.netns(), ops.local());
    let _ = TRUSTED.remove(trusted_flow(vouched.netns, &source, &vouched.destination));
    if netns == constant(&NODE_NETNS) {
        return true;
    }
    services::vouched_ended(&vouched);
    if vouched.established == 0 {
        events::tell(&event(EventKind::Failed, netns, source, &vouched));
    } else {
        let (acknowledged, received, srtt, retransmits) = ops.figures();
        events::tell(&Event {
            // The SYN counts as one byte.
            sent: acknowledged.saturating_sub(1),
            received,
            connecting: vouched.established - vouched.dialled,
            lasting: now() - vouched.established,
            srtt,
            retransmits,
            ..event(EventKind::Closed, netns, source, &vouched)
        });
    }
    forget(&VOUCHED, socket);
    true
}

#[inline(always)]
fn event(kind: EventKind, netns: u64, source: Endpoint, vouched: &Vouched) -> Event {
    Event { service: vouched.service, ..events::connection(kind, netns, source, vouched.destination) }
}

/// The connection is established at its other end, so that nobody else may come with the same four-tuple.
#[inline(always)]
pub fn use_up(ops: &SockOps) {
    let flow = trusted_flow(ops.netns(), &ops.remote(), &ops.local());
    if let Some(trust) = TRUSTED.get_ptr_mut(flow) {
        // SAFETY: a word that only ever becomes 1.
        unsafe { (*trust).used = 1 }
    }
}

/// What is on record of a packet that no socket of the pod `netns` awaits.
pub enum Record {
    None,
    /// A connection that is let in.
    Trusted,
    /// One that was, and is over or belongs to somebody else.
    Used,
    /// One that policy would no longer have.
    Revoked,
}

#[inline(always)]
pub fn look_up(netns: u64, source: &Endpoint, destination: &Endpoint) -> Record {
    // SAFETY: copied at once; an entry replaced meanwhile was for a connection that has ended.
    match unsafe { TRUSTED.get(trusted_flow(netns, source, destination)) }.copied() {
        None => Record::None,
        Some(trust) if trust.used != 0 => Record::Used,
        Some(trust) if trust.netns == constant(&NODE_NETNS) => Record::Trusted,
        // Policy may have changed since it was dialled.
        Some(trust) => match verdict(trust.netns, destination) {
            Some(verdict) if verdict.pod == netns => Record::Trusted,
            _ => Record::Revoked,
        },
    }
}
