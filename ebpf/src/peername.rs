//! `cgroup/getpeername4,6`: a client sees whom it dialled, a server sees its real client.
//! accept(2) goes through the same hook.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use orlop_common::Flow;

use crate::{
    context::{SockAddr, stored},
    maps::{self, CLIENTS, DIALLED},
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
    let netns = ctx.netns();
    if maps::pod(netns).is_none() || !ctx.is_tcp() {
        return;
    }
    if let Some(dialled) = stored(&DIALLED, ctx.socket()) {
        ctx.set_endpoint(&dialled);
        return;
    }
    let peer = ctx.endpoint();
    let flow = Flow {
        netns,
        source: peer.address,
        source_port: peer.port,
        destination_port: ctx.local_port(),
        reserved: 0,
    };
    // SAFETY: copied at once; an entry replaced meanwhile was for a connection that has ended.
    if let Some(client) = unsafe { CLIENTS.get(flow) }.copied() {
        ctx.set_endpoint(&client);
    }
}
