//! UDP passes untouched; an enrolled pod's is counted by peer, so that it is seen.
//!
//! `cgroup_skb` sees every datagram of every socket, connected or not, which no hook of sendmsg or recvmsg
//! does. It cannot ask for the netns before 6.12, so the socket carries its own since it was made; an address
//! would let a pod count as another. TCP leaves at its first branch.

use aya_ebpf::programs::{SkBuffContext, SockContext};
use orlop_common::{Endpoint, Traffic, UdpPeer};

use crate::{
    context::{self, Datagram, add_atomically, is_loopback, same, store_with},
    maps::{OWNER, UDP_PEERS, UDP_PODS},
};

const BPF_NOEXIST: u64 = 1;

/// A socket is made in `netns`.
#[inline(always)]
pub fn made(ctx: &SockContext, netns: u64) {
    if context::is_new_udp(ctx) {
        store_with(&OWNER, ctx.sock, &netns);
    }
}

/// A packet leaves.
#[inline(always)]
pub fn sent(ctx: &SkBuffContext) {
    if let Some(datagram) = Datagram::of(ctx) {
        count(&datagram, Datagram::source, Datagram::destination, |traffic| {
            (&mut traffic.sent_packets, &mut traffic.sent_bytes)
        });
    }
}

/// A packet arrives.
#[inline(always)]
pub fn received(ctx: &SkBuffContext) {
    if let Some(datagram) = Datagram::of(ctx) {
        count(&datagram, Datagram::destination, Datagram::source, |traffic| {
            (&mut traffic.received_packets, &mut traffic.received_bytes)
        });
    }
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
