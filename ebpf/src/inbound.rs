//! `sk_lookup`, one link per pod netns: every TCP connection that comes from outside the pod goes to
//! the proxy or is refused (the client sees ECONNREFUSED). It never falls through to the app's socket.
//! Of datagrams only the pod's own queries are looked at.

use aya_ebpf::{bindings::sk_action, macros::sk_lookup, programs::SkLookupContext};
use orlop_common::{
    DNS_PORT, Endpoint, EventKind, HBONE_PORT, INBOUND_PLAINTEXT_PORT, ListenerKey, OUTBOUND_PORT, PodPort,
    REDIRECT_PORTS, Refusal, TCP, UDP,
};

use crate::{
    context::{Lookup, constant, flow, is_loopback, same},
    events,
    maps::{self, LISTENERS, STRICT},
    trusted::{self, Record},
};

/// Netns cookie of the pod that this copy of the program is attached to, set before loading.
///
/// sk_lookup has no helper that tells its netns, and addresses do not: a pod with CAP_NET_ADMIN can
/// give itself another pod's.
#[unsafe(no_mangle)]
static POD_NETNS: u64 = 0;

enum Verdict {
    /// The kernel's own lookup decides: the pod talks to itself, or the kernel vouches for who dialled.
    Leave,
    /// To the proxy's socket for this port and protocol.
    Proxy(u16, u32),
    Refuse(Refusal),
    /// Refused, and nothing to tell of: a packet of a connection that was let in and is over.
    Stray,
}

#[sk_lookup]
pub fn orlop_inbound(ctx: SkLookupContext) -> u32 {
    let lookup = Lookup::new(&ctx);
    let netns = constant(&POD_NETNS);
    let (source, destination) = (lookup.remote(), lookup.local());
    // The interface does not tell: a pod that dials its own address arrives through eth0.
    let from_itself = same(&destination.address, &source.address) || is_loopback(&source.address);
    let verdict = if lookup.is_tcp() {
        decide(netns, &source, &destination, from_itself)
    } else {
        datagram(netns, destination.port, from_itself)
    };
    let refusal = match verdict {
        Verdict::Leave => return sk_action::SK_PASS,
        Verdict::Stray => return sk_action::SK_DROP,
        Verdict::Proxy(port, protocol) => {
            let listener = ListenerKey { netns, port: u32::from(port), protocol };
            if LISTENERS.redirect_sk_lookup(&ctx, listener, 0).is_ok() {
                return sk_action::SK_PASS;
            }
            Refusal::NoListener
        }
        Verdict::Refuse(refusal) => refusal,
    };
    events::refused(EventKind::InboundRefused, refusal, netns, source, destination);
    sk_action::SK_DROP
}

#[inline(always)]
fn decide(netns: u64, source: &Endpoint, destination: &Endpoint, from_itself: bool) -> Verdict {
    match destination.port {
        HBONE_PORT => return Verdict::Proxy(HBONE_PORT, TCP),
        port @ (OUTBOUND_PORT | DNS_PORT) if from_itself => return Verdict::Proxy(port, TCP),
        port if from_itself
            && REDIRECT_PORTS.contains(&port)
            && maps::is_redirected(&flow(netns, source, port)) =>
        {
            return Verdict::Proxy(OUTBOUND_PORT, TCP);
        }
        _ if from_itself => return Verdict::Leave,
        OUTBOUND_PORT | INBOUND_PLAINTEXT_PORT | DNS_PORT => return Verdict::Refuse(Refusal::ReservedPort),
        _ => {}
    }
    match trusted::look_up(netns, source, destination) {
        Record::Trusted => Verdict::Leave,
        Record::Used => Verdict::Stray,
        Record::Revoked => Verdict::Refuse(Refusal::Revoked),
        Record::None if is_strict(netns, destination.port) => Verdict::Refuse(Refusal::Plaintext),
        Record::None => Verdict::Proxy(INBOUND_PLAINTEXT_PORT, TCP),
    }
}

/// Whether the port takes mutual TLS alone. The proxy asks again, so that a pod without an entry is in good
/// hands too.
#[inline(always)]
fn is_strict(netns: u64, port: u16) -> bool {
    let rule = |port| {
        // SAFETY: copied at once; a value replaced meanwhile was in force a moment ago.
        unsafe { STRICT.get(PodPort { netns, port: u32::from(port), reserved: 0 }) }.copied()
    };
    rule(port).or_else(|| rule(0)).is_some_and(|strict| strict != 0)
}

/// Only the pod itself may ask the agent: another pod would get this one's answers, and its cache.
#[inline(always)]
fn datagram(netns: u64, port: u16, from_itself: bool) -> Verdict {
    if port != DNS_PORT || maps::pod(netns).is_none_or(|pod| pod.dns == 0) {
        return Verdict::Leave;
    }
    if from_itself { Verdict::Proxy(DNS_PORT, UDP) } else { Verdict::Refuse(Refusal::ReservedPort) }
}
