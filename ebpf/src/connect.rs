//! `cgroup/connect4,6`: sends an enrolled pod's TCP connections to the proxy in the pod's own netns.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use orlop_common::{
    Address, Choice, DNS_PORT, Endpoint, EventKind, NO_ENDPOINT, Pod, REDIRECT_PORTS, Refusal,
};

use crate::{
    context::{SockAddr, forget, hash, is_ipv4, is_ipv6_link_local, is_loopback, same, store_with, stored},
    dns, events, gate,
    maps::{self, AGENT_SOCKETS, DIALLED},
    services, trusted,
};

pub const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

#[cgroup_sock_addr(connect4)]
pub fn orlop_connect4(ctx: SockAddrContext) -> i32 {
    verdict(&SockAddr::<true>::new(&ctx))
}

#[cgroup_sock_addr(connect6)]
pub fn orlop_connect6(ctx: SockAddrContext) -> i32 {
    verdict(&SockAddr::<false>::new(&ctx))
}

#[inline(always)]
fn verdict<const IPV4: bool>(ctx: &SockAddr<IPV4>) -> i32 {
    let netns = ctx.netns();
    let Some(pod) = maps::pod(netns) else {
        if gate::holds_connect(ctx, netns) {
            return REFUSE;
        }
        trusted::node_dials(ctx, netns);
        return ALLOW;
    };
    match redirect(ctx, netns, pod) {
        Ok(()) => ALLOW,
        Err(refusal) => refuse(ctx, netns, pod, refusal),
    }
}

/// The application sees EPERM.
#[inline(always)]
pub fn refuse<const IPV4: bool>(ctx: &SockAddr<IPV4>, netns: u64, pod: &Pod, refusal: Refusal) -> i32 {
    let destination = ctx.endpoint();
    let address = if is_ipv4(&destination.address) { pod.ipv4 } else { pod.ipv6 };
    let source = Endpoint { address, port: 0, reserved: 0 };
    events::refused(EventKind::OutboundRefused, refusal, netns, source, destination);
    REFUSE
}

#[inline(always)]
fn redirect<const IPV4: bool>(ctx: &SockAddr<IPV4>, netns: u64, pod: &Pod) -> Result<(), Refusal> {
    if !ctx.is_tcp() {
        return dns::connect(ctx, pod);
    }
    let socket = ctx.socket();
    if stored(&AGENT_SOCKETS, socket).is_some() {
        return Ok(());
    }
    let destination = ctx.endpoint();
    if is_own(&destination, pod) {
        // The socket may have dialled somewhere else before, in vain.
        forget(&DIALLED, socket);
        return Ok(());
    }
    if is_ipv6_link_local(&destination.address) {
        return Err(Refusal::LinkLocal);
    }
    let address = address_for(&destination, pod)?;
    let mut dialled = services::left_to_proxy(&destination);
    if !dns::is_query(&destination, pod) {
        if trusted::pod_dials(ctx, netns, &address, &destination, &NO_ENDPOINT) {
            forget(&DIALLED, socket);
            return Ok(());
        }
        services::choose(netns, &mut dialled);
        if dialled.choice == Choice::Endpoint as u32
            // To one endpoint the port that it chose may not be free any more.
            && ctx.source_port() == 0
            && trusted::pod_dials(ctx, netns, &address, &dialled.endpoint, &destination)
        {
            forget(&DIALLED, socket);
            ctx.set_endpoint(&dialled.endpoint);
            return Ok(());
        }
    }
    if !store_with(&DIALLED, socket, &dialled) {
        return Err(Refusal::NoSocketStorage);
    }
    let port =
        if dns::is_query(&destination, pod) { DNS_PORT } else { redirect_port(ctx, &address, &destination) };
    ctx.set_endpoint(&Endpoint { address, port, reserved: 0 });
    Ok(())
}

/// The port of the pod's own `address` to dial instead: by destination, so that the kernel gives no two
/// connections to one destination the same source port. A socket that has chosen its source port itself gets a
/// port to which that one has no connection yet.
#[inline(always)]
fn redirect_port<const IPV4: bool>(ctx: &SockAddr<IPV4>, address: &Address, destination: &Endpoint) -> u16 {
    let first = hash(destination) as u16;
    let nth = |n: u16| REDIRECT_PORTS.start + first.wrapping_add(n) % REDIRECT_PORTS.len() as u16;
    let source_port = ctx.source_port();
    if source_port != 0 {
        for n in 0..REDIRECT_PORTS.len() as u16 {
            if !ctx.is_connected(address, source_port, nth(n)) {
                return nth(n);
            }
        }
    }
    nth(0)
}

/// The pod's own address of the destination's family.
#[inline(always)]
pub fn address_for(destination: &Endpoint, pod: &Pod) -> Result<Address, Refusal> {
    let address = if is_ipv4(&destination.address) { pod.ipv4 } else { pod.ipv6 };
    if same(&address, &[0; 16]) { Err(Refusal::NoPodAddress) } else { Ok(address) }
}

#[inline(always)]
pub fn is_own(destination: &Endpoint, pod: &Pod) -> bool {
    is_loopback(&destination.address)
        || same(&destination.address, &pod.ipv4)
        || same(&destination.address, &pod.ipv6)
}
