//! `sk_lookup`, one link per pod netns: every TCP connection that comes from outside the pod goes to
//! the proxy or is refused (the client sees ECONNREFUSED). It never falls through to the app's socket.

use core::ptr;

use aya_ebpf::{bindings::sk_action, macros::sk_lookup, programs::SkLookupContext};
use orlop_common::{
    DNS_PORT, HBONE_PORT, INBOUND_PLAINTEXT_PORT, ListenerKey, OUTBOUND_PORT, REDIRECT_PORTS, Refusal,
};

use crate::{
    context::{Lookup, is_loopback, same},
    maps::{self, LISTENERS},
};

/// Netns cookie of the pod that this copy of the program is attached to, set before loading.
///
/// sk_lookup has no helper that tells its netns, and addresses do not: a pod with CAP_NET_ADMIN can
/// give itself another pod's.
#[unsafe(no_mangle)]
static POD_NETNS: u64 = 0;

#[inline(always)]
fn netns() -> u64 {
    // SAFETY: a plain read; volatile, so that the value of load time is used.
    unsafe { ptr::read_volatile(&raw const POD_NETNS) }
}

enum Verdict {
    /// The pod talks to itself: the kernel's own lookup decides.
    Leave,
    /// To the proxy's listener for this port.
    Proxy(u16),
    Refuse(Refusal),
}

#[sk_lookup]
pub fn orlop_inbound(ctx: SkLookupContext) -> u32 {
    let refusal = match decide(&Lookup::new(&ctx)) {
        Verdict::Leave => return sk_action::SK_PASS,
        Verdict::Proxy(port) => {
            let listener = ListenerKey { netns: netns(), port: u32::from(port), reserved: 0 };
            if LISTENERS.redirect_sk_lookup(&ctx, listener, 0).is_ok() {
                return sk_action::SK_PASS;
            }
            Refusal::NoListener
        }
        Verdict::Refuse(refusal) => refusal,
    };
    maps::count(refusal);
    sk_action::SK_DROP
}

#[inline(always)]
fn decide(lookup: &Lookup) -> Verdict {
    if !lookup.is_tcp() {
        return Verdict::Leave;
    }
    let (local, remote) = (lookup.local(), lookup.remote());
    // The interface does not tell: a pod that dials its own address arrives through eth0.
    let from_itself = same(&local, &remote) || is_loopback(&remote);
    match lookup.local_port() {
        HBONE_PORT => Verdict::Proxy(HBONE_PORT),
        OUTBOUND_PORT if from_itself => Verdict::Proxy(OUTBOUND_PORT),
        port if from_itself
            && REDIRECT_PORTS.contains(&port)
            && maps::is_redirected(&lookup.flow(netns())) =>
        {
            Verdict::Proxy(OUTBOUND_PORT)
        }
        _ if from_itself => Verdict::Leave,
        OUTBOUND_PORT | INBOUND_PLAINTEXT_PORT | DNS_PORT => Verdict::Refuse(Refusal::ReservedPort),
        _ => Verdict::Proxy(INBOUND_PLAINTEXT_PORT),
    }
}
