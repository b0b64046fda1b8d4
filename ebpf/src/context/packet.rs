//! `cgroup_skb` contexts: packets, whose data begin with the IP header.

use core::ptr;

use aya_ebpf::{
    bindings::bpf_sock, btf_maps::SkStorage, helpers::generated::bpf_sk_fullsock, programs::SkBuffContext,
};
use orlop_common::{Endpoint, NO_ENDPOINT, TCP, UDP};

use super::{mapped, stored, words};

const LOOPBACK_IFINDEX: u32 = 1;
const UDP_HEADER: u32 = 8;

/// The socket that a packet is of, in a `cgroup_skb` context.
#[inline(always)]
pub fn socket_of(ctx: &SkBuffContext) -> Option<*mut bpf_sock> {
    let socket = load!(ctx.skb.skb, __bindgen_anon_2.sk);
    if socket.is_null() {
        return None;
    }
    // SAFETY: the helper takes any socket of a context (5.1).
    let socket = unsafe { bpf_sk_fullsock(socket) };
    (!socket.is_null()).then_some(socket)
}

/// Whether a packet stays in its netns: `lo` is the first interface of each.
#[inline(always)]
pub fn is_from_or_to_loopback(ctx: &SkBuffContext) -> bool {
    load!(ctx.skb.skb, ifindex) == LOOPBACK_IFINDEX
}

/// Source and destination of a packet in a `cgroup_skb` context, as far as they can be read; without ports where its
/// protocol is neither TCP nor UDP.
#[inline(always)]
pub fn packet_ends(ctx: &SkBuffContext) -> (Endpoint, Endpoint) {
    let (source, destination) = (packet_end(ctx, 12, 8, 0), packet_end(ctx, 16, 24, 2));
    (source.unwrap_or(NO_ENDPOINT), destination.unwrap_or(NO_ENDPOINT))
}

/// From the offsets of the address in the IP header and of the port in what follows (RFC 791, 8200, 768, 9293).
#[inline(always)]
fn packet_end(ctx: &SkBuffContext, ipv4: usize, ipv6: usize, port: usize) -> Option<Endpoint> {
    let first: u8 = ctx.load(0).ok()?;
    let is_ipv4 = first >> 4 == 4;
    let protocol: u8 = ctx.load(if is_ipv4 { 9 } else { 6 }).ok()?;
    let header = if is_ipv4 { usize::from(first & 0xf) * 4 } else { 40 };
    let address = if is_ipv4 { mapped(ctx.load(ipv4).ok()?) } else { words(ctx.load(ipv6).ok()?) };
    let protocol = u32::from(protocol);
    let port_be: u16 = if protocol == TCP || protocol == UDP { ctx.load(header + port).ok()? } else { 0 };
    Some(Endpoint { address, port: u16::from_be(port_be), reserved: 0 })
}

/// A UDP datagram, or several of one size that the stack carries as one, in a `cgroup_skb` context. Its data
/// begin with the IP header.
pub struct Datagram<'a> {
    ctx: &'a SkBuffContext,
    socket: *mut bpf_sock,
    ipv4: bool,
    /// Length of the IP header.
    header: u32,
}

impl<'a> Datagram<'a> {
    /// `None` for anything else, and for IPv6 with extension headers.
    #[inline(always)]
    pub fn of(ctx: &'a SkBuffContext) -> Option<Self> {
        let socket = socket_of(ctx)?;
        if load!(socket, protocol) != UDP {
            return None;
        }
        let first: u8 = ctx.load(0).ok()?;
        let ipv4 = first >> 4 == 4;
        let (protocol, header) = if ipv4 { (9, u32::from(first & 0xf) * 4) } else { (6, 40) };
        let protocol: u8 = ctx.load(protocol).ok()?;
        (u32::from(protocol) == UDP).then_some(Self { ctx, socket, ipv4, header })
    }

    #[inline(always)]
    pub fn source(&self) -> Option<Endpoint> {
        self.endpoint(12, 8, 0)
    }

    #[inline(always)]
    pub fn destination(&self) -> Option<Endpoint> {
        self.endpoint(16, 24, 2)
    }

    /// From the offsets of the address in the IP header and of the port in UDP's (RFC 791, 8200, 768).
    #[inline(always)]
    fn endpoint(&self, ipv4: usize, ipv6: usize, port: usize) -> Option<Endpoint> {
        let address =
            if self.ipv4 { mapped(self.ctx.load(ipv4).ok()?) } else { words(self.ctx.load(ipv6).ok()?) };
        let port: u16 = self.ctx.load(self.header as usize + port).ok()?;
        Some(Endpoint { address, port: u16::from_be(port), reserved: 0 })
    }

    /// What `map` keeps with the socket that sends or receives it.
    #[inline(always)]
    pub fn owner(&self, map: &SkStorage<u64>) -> Option<u64> {
        stored(map, self.socket)
    }

    #[inline(always)]
    pub fn packets(&self) -> u64 {
        u64::from(load!(self.ctx.skb.skb, gso_segs)).max(1)
    }

    /// Of the payload.
    #[inline(always)]
    pub fn bytes(&self) -> u64 {
        u64::from(load!(self.ctx.skb.skb, len).saturating_sub(self.header + UDP_HEADER))
    }
}
