//! `sk_lookup`, one link per pod netns: every TCP connection that comes from outside the pod goes to
//! the proxy or is refused (the client sees ECONNREFUSED). It never falls through to the app's socket.

use aya_ebpf::{bindings::sk_action, macros::sk_lookup, programs::SkLookupContext};
use orlop_common::{
    DNS_PORT, Endpoint, EventKind, HBONE_PORT, INBOUND_PLAINTEXT_PORT, ListenerKey, OUTBOUND_PORT, PodPort,
    REDIRECT_PORTS, Refusal,
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
    /// To the proxy's listener for this port.
    Proxy(u16),
    Refuse(Refusal),
    /// Refused, and nothing to tell of: a packet of a connection that was let in and is over.
    Stray,
}

#[sk_lookup]
pub fn orlop_inbound(ctx: SkLookupContext) -> u32 {
    let lookup = Lookup::new(&ctx);
    if !lookup.is_tcp() {
        return sk_action::SK_PASS;
    }
    let netns = constant(&POD_NETNS);
    let (source, destination) = (lookup.remote(), lookup.local());
    let refusal = match decide(netns, &source, &destination) {
        Verdict::Leave => return sk_action::SK_PASS,
        Verdict::Stray => return sk_action::SK_DROP,
        Verdict::Proxy(port) => {
            let listener = ListenerKey { netns, port: u32::from(port), reserved: 0 };
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
fn decide(netns: u64, source: &Endpoint, destination: &Endpoint) -> Verdict {
    // The interface does not tell: a pod that dials its own address arrives through eth0.
    let from_itself = same(&destination.address, &source.address) || is_loopback(&source.address);
    match destination.port {
        HBONE_PORT => return Verdict::Proxy(HBONE_PORT),
        OUTBOUND_PORT if from_itself => return Verdict::Proxy(OUTBOUND_PORT),
        port if from_itself
            && REDIRECT_PORTS.contains(&port)
            && maps::is_redirected(&flow(netns, source, port)) =>
        {
            return Verdict::Proxy(OUTBOUND_PORT);
        }
        _ if from_itself => return Verdict::Leave,
        OUTBOUND_PORT | INBOUND_PLAINTEXT_PORT | DNS_PORT => return Verdict::Refuse(Refusal::ReservedPort),
        _ => {}
    }
    match trusted::look_up(netns, source, destination) {
        Record::Trusted => Verdict::Leave,
        Record::Used => Verdict::Stray,
        Record::None if is_strict(netns, destination.port) => Verdict::Refuse(Refusal::Plaintext),
        Record::None => Verdict::Proxy(INBOUND_PLAINTEXT_PORT),
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
