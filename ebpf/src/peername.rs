//! `cgroup/getpeername4,6`: a client sees whom it dialled, a server sees its real client.
//! accept(2) goes through the same hook.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{
    context::{SockAddr, stored},
    dns,
    maps::{self, ACCEPTED, DIALLED},
    trusted,
};

/// The kernel accepts no other answer from this hook.
const DONE: i32 = 1;

#[cgroup_sock_addr(getpeername4)]
pub fn orlop_peer4(ctx: SockAddrContext) -> i32 {
    answer(&SockAddr::<true>::new(&ctx));
    DONE
}

#[cgroup_sock_addr(getpeername6)]
pub fn orlop_peer6(ctx: SockAddrContext) -> i32 {
    answer(&SockAddr::<false>::new(&ctx));
    DONE
}

#[inline(always)]
fn answer<const IPV4: bool>(ctx: &SockAddr<IPV4>) {
    let Some(pod) = maps::pod(ctx.netns()) else { return };
    if !ctx.is_tcp() {
        return dns::name_resolver(ctx, pod);
    }
    let socket = ctx.socket();
    let dialled = stored(&DIALLED, socket).map(|dialled| dialled.destination);
    if let Some(peer) = dialled.or_else(|| trusted::service(socket)).or_else(|| stored(&ACCEPTED, socket)) {
        ctx.set_endpoint(&peer);
    }
}
