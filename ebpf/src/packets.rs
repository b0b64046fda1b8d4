//! Hooks that see sockets when they are made and every packet of theirs.

use aya_ebpf::{
    macros::{cgroup_skb, cgroup_sock},
    programs::{SkBuffContext, SockContext},
};
use orlop_common::EventKind;

use crate::{context::netns_of_new, gate, udp};

const PASS: i32 = 1;
/// The caller sees EPERM, where there is one.
const REFUSE: i32 = 0;

#[cgroup_sock(sock_create)]
pub fn orlop_made(ctx: SockContext) -> i32 {
    let netns = netns_of_new(&ctx);
    if !gate::lets_make(&ctx, netns) {
        return REFUSE;
    }
    udp::made(&ctx, netns);
    PASS
}

#[cgroup_skb(egress)]
pub fn orlop_out(ctx: SkBuffContext) -> i32 {
    if gate::holds_packet(&ctx, EventKind::OutboundRefused) {
        return REFUSE;
    }
    udp::sent(&ctx);
    PASS
}

#[cgroup_skb(ingress)]
pub fn orlop_in(ctx: SkBuffContext) -> i32 {
    if gate::holds_packet(&ctx, EventKind::InboundRefused) {
        return REFUSE;
    }
    udp::received(&ctx);
    PASS
}
