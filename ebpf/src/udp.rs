//! UDP passes untouched; an enrolled pod's is counted by peer, so that it is seen.
//!
//! `cgroup_skb` sees every datagram of every socket, connected or not, which no hook of sendmsg or recvmsg
//! does. It cannot ask for the netns before 6.12, so the socket carries its own since it was made; an address
//! would let a pod count as another. TCP leaves at its first branch.

use aya_ebpf::{
    macros::{cgroup_skb, cgroup_sock},
    programs::{SkBuffContext, SockContext},
};
use orlop_common::{Endpoint, Traffic, UdpPeer};

use crate::{
    context::{Datagram, add_atomically, is_loopback, netns_of_new_udp, same, store_with},
    maps::{OWNER, UDP_PEERS, UDP_PODS},
};

/// These hooks only look on.
const PASS: i32 = 1;
const BPF_NOEXIST: u64 = 1;

#[cgroup_sock(sock_create)]
pub fn orlop_udp_made(ctx: SockContext) -> i32 {
    if let Some(netns) = netns_of_new_udp(&ctx) {
        store_with(&OWNER, ctx.sock, &netns);
    }
    PASS
}

#[cgroup_skb(egress)]
pub fn orlop_udp_out(ctx: SkBuffContext) -> i32 {
    if let Some(datagram) = Datagram::of(&ctx) {
        count(&datagram, Datagram::source, Datagram::destination, |traffic| {
            (&mut traffic.sent_packets, &mut traffic.sent_bytes)
        });
    }
    PASS
}

#[cgroup_skb(ingress)]
pub fn orlop_udp_in(ctx: SkBuffContext) -> i32 {
    if let Some(datagram) = Datagram::of(&ctx) {
        count(&datagram, Datagram::destination, Datagram::source, |traffic| {
            (&mut traffic.received_packets, &mut traffic.received_bytes)
        });
    }
    PASS
}

#[inline(always)]
fn count<'a>(
    datagram: &Datagram<'a>,
    own: impl Fn(&Datagram<'a>) -> Option<Endpoint>,
    peer: impl Fn(&Datagram<'a>) -> Option<Endpoint>,
    of: impl Fn(&mut Traffic) -> (&mut u64, &mut u64),
) {
    let Some(netns) = datagram.owner(&OWNER) else { return };
    let Some(all) = UDP_PODS.get_ptr_mut(netns) else { return };
    // Each on its own: where a failure of one is put off, LLVM reads what was never written, which the verifier
    // refuses before 6.3.
    let Some(own) = own(datagram) else { return };
    let Some(peer) = peer(datagram) else { return };
    if is_loopback(&peer.address) || same(&own.address, &peer.address) {
        return;
    }
    add(all, datagram, &of);
    // Of the two ports the lower is the service's, by custom: clients take high ones, each time another.
    let serves = own.port < peer.port;
    let key = UdpPeer {
        netns,
        peer: peer.address,
        port: if serves { own.port } else { peer.port },
        serves: u16::from(serves),
        reserved: 0,
    };
    if UDP_PEERS.get_ptr_mut(key).is_none() {
        let _ = UDP_PEERS.insert(key, Traffic::NONE, BPF_NOEXIST);
    }
    if let Some(traffic) = UDP_PEERS.get_ptr_mut(key) {
        add(traffic, datagram, &of);
    }
}

#[inline(always)]
fn add(traffic: *mut Traffic, datagram: &Datagram, of: impl Fn(&mut Traffic) -> (&mut u64, &mut u64)) {
    // SAFETY: an entry of a map, which the kernel keeps for the program's time.
    let (packets, bytes) = of(unsafe { &mut *traffic });
    add_atomically(packets, datagram.packets());
    add_atomically(bytes, datagram.bytes());
}
