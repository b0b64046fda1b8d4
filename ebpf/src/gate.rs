//! The boot gate: a pod that is to be enrolled and is not yet reaches itself over loopback, and nothing else.
//!
//! The agent puts the pod's cgroup into `GATED` before anything runs in it. A socket that is made below it, in a
//! netns that no pod is enrolled by, is marked, and as long as both are so it is held; so all others pay no more
//! than the look for a mark. `connect` refuses at once: a SYN that was merely dropped would be sent again, in clear,
//! once the pod is enrolled. Packets are dropped both ways, whatever socket they are of.
//!
//! The kernel makes sockets without a word, as those below an AF_SMC one. They connect and listen in the process that
//! wants it, so that what dials is told by its process, and what listens is marked when it begins to.

use aya_ebpf::{
    bindings::bpf_sock,
    programs::{SkBuffContext, SockContext},
};
use orlop_common::{EventKind, Held, MAX_POD_DEPTH, NO_CGROUP, NO_ENDPOINT, Refusal};

use crate::{
    context::{
        SockAddr, SockOps, ancestor_cgroup, ancestor_cgroup_of, constant, is_from_or_to_loopback,
        is_loopback, is_new_carried, packet_ends, socket_of, store_with, stored,
    },
    events,
    maps::{self, GATED, HELD},
    trusted::NODE_NETNS,
};

/// 1 if there is a gate, set before loading. Without one, nothing is held.
#[unsafe(no_mangle)]
static BOOT_GATE: u64 = 0;

/// A socket is made in `netns`: marks it, if the pod is held. False if it may not be made.
#[inline(always)]
pub fn lets_make(ctx: &SockContext, netns: u64) -> bool {
    if constant(&BOOT_GATE) == 0 || never_holds(netns) {
        return true;
    }
    let Some(cgroup) = gated_cgroup() else { return true };
    // Nobody marks sockets that the kernel makes.
    if !is_new_carried(ctx) && store_with(&HELD, ctx.sock, &Held { netns, cgroup }) {
        return true;
    }
    events::refused(EventKind::OutboundRefused, Refusal::Gated, netns, NO_ENDPOINT, NO_ENDPOINT);
    false
}

/// A TCP socket begins to listen: marks it, if it is not and may be a held pod's.
#[inline(always)]
pub fn listens(ops: &SockOps) {
    let (socket, netns) = (ops.socket(), ops.netns());
    if constant(&BOOT_GATE) == 0 || socket.is_null() || never_holds(netns) || stored(&HELD, socket).is_some()
    {
        return;
    }
    store_with(&HELD, socket, &Held { netns, cgroup: NO_CGROUP });
}

/// Whether this connect(2), in a netns that no pod is enrolled by, is refused.
#[inline(always)]
pub fn holds_connect<const IPV4: bool>(ctx: &SockAddr<IPV4>, netns: u64) -> bool {
    if constant(&BOOT_GATE) == 0 || netns == constant(&NODE_NETNS) {
        return false;
    }
    let marked = stored(&HELD, ctx.socket()).is_some_and(|held| is_gated(held.cgroup));
    let destination = ctx.endpoint();
    if is_loopback(&destination.address) || !(marked || gated_cgroup().is_some()) {
        return false;
    }
    events::refused(EventKind::OutboundRefused, Refusal::Gated, netns, NO_ENDPOINT, destination);
    true
}

/// Whether this packet is dropped.
#[inline(always)]
pub fn holds_packet(ctx: &SkBuffContext, kind: EventKind) -> bool {
    // First: each packet of the node comes here.
    if constant(&BOOT_GATE) == 0 {
        return false;
    }
    let Some(socket) = socket_of(ctx) else { return false };
    let Some(Held { netns, cgroup }) = stored(&HELD, socket) else { return false };
    if maps::pod(netns).is_some() || !is_gated(cgroup) && (cgroup != NO_CGROUP || !is_below_gated(socket)) {
        return false;
    }
    // By the interface: addresses can be forged.
    if is_from_or_to_loopback(ctx) {
        return false;
    }
    let (source, destination) = packet_ends(ctx);
    events::refused(kind, Refusal::Gated, netns, source, destination);
    true
}

/// Pods on the node's network are not enrolled.
#[inline(always)]
fn never_holds(netns: u64) -> bool {
    netns == constant(&NODE_NETNS) || maps::pod(netns).is_some()
}

/// The cgroup in `GATED` that the caller is below.
#[inline(always)]
fn gated_cgroup() -> Option<u64> {
    for level in 1..=MAX_POD_DEPTH as i32 {
        let cgroup = ancestor_cgroup(level);
        if cgroup == 0 {
            return None;
        }
        if is_gated(cgroup) {
            return Some(cgroup);
        }
    }
    None
}

/// Whether a socket was made below a cgroup in `GATED`. In a function of its own, as it is seldom called: inlined, LLVM
/// lets it share registers with what follows that the verifier finds unset.
#[inline(never)]
fn is_below_gated(socket: *mut bpf_sock) -> bool {
    for level in 1..=MAX_POD_DEPTH as i32 {
        let cgroup = ancestor_cgroup_of(socket, level);
        if cgroup == 0 {
            return false;
        }
        if is_gated(cgroup) {
            return true;
        }
    }
    false
}

#[inline(always)]
fn is_gated(cgroup: u64) -> bool {
    GATED.get_ptr(cgroup).is_some()
}
