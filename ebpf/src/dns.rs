//! An enrolled pod's DNS: queries, to whatever resolver, go to the agent's socket in the pod's own netns, and
//! its answers look as if they came from the resolver.
//!
//! A resolver at a loopback or own address of the pod is left alone, and so is one at an IPv6 link-local address,
//! whose scope does not survive the redirection.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use orlop_common::{Address, DNS_PORT, Endpoint, ListenerKey, Pod, Refusal, UDP};

use crate::{
    connect::{ALLOW, address_for, is_own, refuse},
    context::{SockAddr, flow, has_socket, is_ipv6_link_local, mapped, random, same, store_with, stored},
    maps::{self, AGENT_SOCKETS, DIALLED, LISTENERS, RESOLVERS},
    services,
};

/// Where resolvers listen.
const RESOLVER_PORT: u16 = 53;
/// Linux's default range of ephemeral ports.
const FIRST_EPHEMERAL: u16 = 32768;
const EPHEMERAL: u16 = 28232;
/// With half of all ports taken, one in 256 queries would be refused.
const BIND_ATTEMPTS: u32 = 8;
const BPF_ANY: u64 = 0;
/// The kernel accepts no other answer from recvmsg hooks.
const DONE: i32 = 1;

#[cgroup_sock_addr(sendmsg4)]
pub fn orlop_sendmsg4(ctx: SockAddrContext) -> i32 {
    send(&SockAddr::<true>::new(&ctx))
}

#[cgroup_sock_addr(sendmsg6)]
pub fn orlop_sendmsg6(ctx: SockAddrContext) -> i32 {
    send(&SockAddr::<false>::new(&ctx))
}

#[cgroup_sock_addr(recvmsg4)]
pub fn orlop_recvmsg4(ctx: SockAddrContext) -> i32 {
    receive(&SockAddr::<true>::new(&ctx));
    DONE
}

#[cgroup_sock_addr(recvmsg6)]
pub fn orlop_recvmsg6(ctx: SockAddrContext) -> i32 {
    receive(&SockAddr::<false>::new(&ctx));
    DONE
}

/// Whether what is sent there is for the agent to answer.
#[inline(always)]
pub fn is_query(destination: &Endpoint, pod: &Pod) -> bool {
    destination.port == RESOLVER_PORT && pod.dns != 0
}

/// A socket that is not a TCP one connects.
#[inline(always)]
pub fn connect<const IPV4: bool>(ctx: &SockAddr<IPV4>, pod: &Pod) -> Result<(), Refusal> {
    let resolver = ctx.endpoint();
    if !is_redirected(ctx, &resolver, pod) {
        return Ok(());
    }
    // The kernel chooses a port only after this hook, and then nothing could tell whose the queries are.
    let mut port = ctx.source_port();
    if port == 0 {
        for _ in 0..BIND_ATTEMPTS {
            let candidate = FIRST_EPHEMERAL + (random() as u16) % EPHEMERAL;
            if ctx.bind(candidate) {
                port = candidate;
                break;
            }
        }
    }
    redirect(ctx, &resolver, port, pod)
}

/// getpeername on a socket that is not a TCP one.
#[inline(always)]
pub fn name_resolver<const IPV4: bool>(ctx: &SockAddr<IPV4>, pod: &Pod) {
    let peer = ctx.endpoint();
    if peer.port != DNS_PORT || !(same(&peer.address, &pod.ipv4) || same(&peer.address, &pod.ipv6)) {
        return;
    }
    if let Some(resolver) = stored(&DIALLED, ctx.socket()) {
        ctx.set_endpoint(&resolver.destination);
    }
}

/// A datagram leaves an unconnected socket.
#[inline(always)]
fn send<const IPV4: bool>(ctx: &SockAddr<IPV4>) -> i32 {
    let resolver = ctx.endpoint();
    // First, as it spares all other datagrams the rest.
    if resolver.port != RESOLVER_PORT {
        return ALLOW;
    }
    let netns = ctx.netns();
    let Some(pod) = maps::pod(netns) else { return ALLOW };
    if !is_redirected(ctx, &resolver, pod) {
        return ALLOW;
    }
    // An unconnected socket is not told that nobody was there.
    let listener = ListenerKey { netns, port: u32::from(DNS_PORT), protocol: UDP };
    let sent = if has_socket(&LISTENERS, &listener) {
        redirect(ctx, &resolver, ctx.source_port(), pod)
    } else {
        Err(Refusal::NoListener)
    };
    match sent {
        Ok(()) => ALLOW,
        Err(refusal) => refuse(ctx, netns, pod, refusal),
    }
}

/// A datagram's source is told to the application.
#[inline(always)]
fn receive<const IPV4: bool>(ctx: &SockAddr<IPV4>) {
    if ctx.endpoint().port != DNS_PORT {
        return;
    }
    if let Some(pod) = maps::pod(ctx.netns()) {
        name_resolver(ctx, pod);
    }
}

#[inline(always)]
fn is_redirected<const IPV4: bool>(ctx: &SockAddr<IPV4>, resolver: &Endpoint, pod: &Pod) -> bool {
    ctx.is_udp()
        && is_query(resolver, pod)
        && !is_own(resolver, pod)
        && !is_ipv6_link_local(&resolver.address)
        && stored(&AGENT_SOCKETS, ctx.socket()).is_none()
}

#[inline(always)]
fn redirect<const IPV4: bool>(
    ctx: &SockAddr<IPV4>,
    resolver: &Endpoint,
    source_port: u16,
    pod: &Pod,
) -> Result<(), Refusal> {
    let address = address_for(resolver, pod)?;
    if source_port == 0 {
        return Err(Refusal::NoSourcePort);
    }
    let bound = ctx.source();
    let source = if is_unspecified(&bound) { address } else { bound };
    let source = Endpoint { address: source, port: source_port, reserved: 0 };
    let from = flow(ctx.netns(), &source, DNS_PORT);
    let dialled = services::left_to_proxy(resolver);
    if !store_with(&DIALLED, ctx.socket(), &dialled) || RESOLVERS.insert(from, *resolver, BPF_ANY).is_err() {
        return Err(Refusal::NoSocketStorage);
    }
    ctx.set_endpoint(&Endpoint { address, port: DNS_PORT, reserved: 0 });
    Ok(())
}

#[inline(always)]
fn is_unspecified(address: &Address) -> bool {
    same(address, &[0; 16]) || same(address, &mapped(0))
}
