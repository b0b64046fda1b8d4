//! The boot gate: a pod that is to be enrolled and is not yet reaches itself over loopback, and nothing else.
//!
//! The agent puts the pod's cgroup into `GATED` before anything runs in it. A socket that is made below it, in a
//! netns that no pod is enrolled by, is marked, and as long as both are so it is held; so all others pay no more
//! than the look for a mark. `connect` refuses at once: a SYN that was merely dropped would be sent again, in clear,
//! once the pod is enrolled. Packets are dropped both ways, whatever socket they are of.

use aya_ebpf::{
    bindings::bpf_sock,
    programs::{SkBuffContext, SockContext},
};
use orlop_common::{EventKind, Held, MAX_POD_DEPTH, NO_ENDPOINT, Refusal};

use crate::{
    context::{
        SockAddr, ancestor_cgroup, constant, is_from_or_to_loopback, is_loopback, is_new_carried,
        packet_ends, socket_of, store_with, stored,
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
    // Pods on the node's network are not enrolled.
    if constant(&BOOT_GATE) == 0 || netns == constant(&NODE_NETNS) || maps::pod(netns).is_some() {
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

/// Whether this connect(2) is refused.
#[inline(always)]
pub fn holds_connect<const IPV4: bool>(ctx: &SockAddr<IPV4>) -> bool {
    let Some(netns) = holds(ctx.socket()) else { return false };
    let destination = ctx.endpoint();
    if is_loopback(&destination.address) {
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
    let Some(netns) = socket_of(ctx).and_then(holds) else { return false };
    // By the interface: addresses can be forged.
    if is_from_or_to_loopback(ctx) {
        return false;
    }
    let (source, destination) = packet_ends(ctx);
    events::refused(kind, Refusal::Gated, netns, source, destination);
    true
}

/// The netns of a socket that is held.
#[inline(always)]
fn holds(socket: *mut bpf_sock) -> Option<u64> {
    if constant(&BOOT_GATE) == 0 {
        return None;
    }
    let Held { netns, cgroup } = stored(&HELD, socket)?;
    (maps::pod(netns).is_none() && is_gated(cgroup)).then_some(netns)
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

#[inline(always)]
fn is_gated(cgroup: u64) -> bool {
    GATED.get_ptr(cgroup).is_some()
}
