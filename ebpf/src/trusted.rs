//! Connections between two sockets of this node that the kernel itself vouches for.
//!
//! `connect` marks the socket, since it alone knows the caller; `sock_ops` records the four-tuple once the
//! source port is chosen and before the SYN is sent; `inbound` of the pod that is reached finds it there. Only
//! a socket can make the record, so an address or a packet that claims to be from it cannot; and it lets in
//! one connection.

use aya_ebpf::bindings::bpf_sock;
use orlop_common::{Address, Endpoint, Trust, Vouched};

use crate::{
    context::{SockAddr, SockOps, ancestor_cgroup, constant, forget, same, store_with, stored, trusted_flow},
    maps::{POD_ADDRESSES, TRUSTED, VOUCHED},
};

/// Netns cookie of the node itself, set before loading.
#[unsafe(no_mangle)]
static NODE_NETNS: u64 = 0;

/// Id of the cgroup that every pod's is below, set before loading; 0 if there is none.
#[unsafe(no_mangle)]
static PODS_CGROUP: u64 = 0;

/// How far below the root [`PODS_CGROUP`] is looked for.
const DEPTH: i32 = 8;
const BPF_ANY: u64 = 0;

/// A socket of no enrolled pod dials. If it is the node's own, such as kubelet's for a probe, and not that of
/// a pod on the node's network, it is vouched for.
#[inline(always)]
pub fn node_dials<const IPV4: bool>(ctx: &SockAddr<IPV4>, netns: u64) {
    if netns != constant(&NODE_NETNS) || !ctx.is_tcp() {
        return;
    }
    let destination = ctx.endpoint();
    match pod_at(&destination.address) {
        Some(pod) if !of_a_pod() => vouch(ctx, pod, &destination),
        _ => forget(&VOUCHED, ctx.socket()),
    }
}

/// Without memory for the mark the connection is one like any other.
#[inline(always)]
fn vouch<const IPV4: bool>(ctx: &SockAddr<IPV4>, netns: u64, destination: &Endpoint) {
    store_with(&VOUCHED, ctx.socket(), &Vouched { netns, destination: *destination, reserved: 0 });
}

#[inline(always)]
fn pod_at(address: &Address) -> Option<u64> {
    // SAFETY: copied at once; a value replaced meanwhile names a pod that has the address, or had it.
    unsafe { POD_ADDRESSES.get(address) }.copied()
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
    let Some(vouched) = stored(&VOUCHED, socket) else { return false };
    let destination = ops.remote();
    if destination.port != vouched.destination.port
        || !same(&destination.address, &vouched.destination.address)
    {
        return false;
    }
    let flow = trusted_flow(vouched.netns, &ops.local(), &destination);
    TRUSTED.insert(flow, Trust { netns: ops.netns(), used: 0 }, BPF_ANY).is_ok()
}

/// Removes the record of a socket that is closed. True if it had one.
#[inline(always)]
pub fn withdraw(ops: &SockOps, socket: *mut bpf_sock) -> bool {
    let Some(vouched) = stored(&VOUCHED, socket) else { return false };
    let _ = TRUSTED.remove(trusted_flow(vouched.netns, &ops.local(), &vouched.destination));
    true
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
}

#[inline(always)]
pub fn look_up(netns: u64, source: &Endpoint, destination: &Endpoint) -> Record {
    // SAFETY: copied at once; an entry replaced meanwhile was for a connection that has ended.
    match unsafe { TRUSTED.get(trusted_flow(netns, source, destination)) }.copied() {
        None => Record::None,
        Some(Trust { used: 0, netns }) if netns == constant(&NODE_NETNS) => Record::Trusted,
        Some(_) => Record::Used,
    }
}
