//! Services of which some endpoints are pods of this node: `connect` takes of two endpoints at random that with fewer
//! connections, so that a pod that may talk to it does without the proxy. What it took goes with the connection to
//! the proxy where that is still in the way, so that connections spread as if one had chosen for all.
//!
//! Where the service wants its clients to come back to one endpoint, the proxy alone chooses, and the hook repeats
//! its choice as long as it counts.

use orlop_common::{Choice, Client, Dialled, Endpoint, Last, MAX_LOCAL, NO_ENDPOINT, Service, Vouched};

use crate::{
    context::{add_atomically, below_16, now, random},
    maps::{LAST, OPEN, SERVICES},
};

const _: () = assert!(MAX_LOCAL == 16);
const BPF_NOEXIST: u64 = 1;

/// What was dialled, with nothing chosen.
#[inline(always)]
pub fn left_to_proxy(destination: &Endpoint) -> Dialled {
    let choice = Choice::Open as u32;
    Dialled { destination: *destination, endpoint: NO_ENDPOINT, choice, counted: 0, hurried: 0 }
}

/// Chooses one of the endpoints of what was dialled, if that is such a service.
#[inline(always)]
pub fn choose(netns: u64, dialled: &mut Dialled) {
    // SAFETY: what is read is not relied on before `is_current`.
    let Some(service) = (unsafe { SERVICES.get(dialled.destination) }) else { return };
    let revision = service.revision;
    if service.affinity != 0 {
        return repeat(netns, dialled, revision, service.affinity);
    }
    if service.eligible == 0 {
        return;
    }
    let nth = of_two(service, &dialled.destination);
    let endpoint = local(service, nth).copied();
    if !is_current(&dialled.destination, revision) {
        return;
    }
    match endpoint {
        Some(endpoint) => {
            dialled.endpoint = endpoint;
            dialled.choice = Choice::Endpoint as u32;
        }
        None => dialled.choice = Choice::Elsewhere as u32,
    }
}

/// Takes the endpoint of last time again.
#[inline(always)]
fn repeat(netns: u64, dialled: &mut Dialled, revision: u64, affinity: u64) {
    let client = Client { netns, service: dialled.destination, reserved: 0 };
    let Some(last) = LAST.get_ptr_mut(client) else { return };
    // SAFETY: copied at once; an entry replaced meanwhile is of another revision, or of this service too.
    let Last { revision: then, until, endpoint, .. } = unsafe { *last };
    let now = now();
    if then != revision || until <= now {
        return;
    }
    // SAFETY: as above, and one word.
    unsafe { (*last).until = now + affinity }
    dialled.endpoint = endpoint;
    dialled.choice = Choice::Endpoint as u32;
}

/// Which of the eligible endpoints: those on this node come first.
#[inline(always)]
fn of_two(service: &Service, address: &Endpoint) -> u32 {
    let one = random() % service.eligible;
    if service.eligible == 1 {
        return one;
    }
    let mut other = random() % (service.eligible - 1);
    if other >= one {
        other += 1;
    }
    if load(service, address, other) < load(service, address, one) { other } else { one }
}

/// Connections open to an endpoint: of those elsewhere only the sum is known, so all are multiplied by their number.
#[inline(always)]
fn load(service: &Service, address: &Endpoint, nth: u32) -> u64 {
    match local(service, nth) {
        Some(endpoint) => open(endpoint) * u64::from(service.eligible.saturating_sub(service.count).max(1)),
        None => open(address),
    }
}

#[inline(always)]
fn local(service: &Service, nth: u32) -> Option<&Endpoint> {
    if nth >= service.count {
        return None;
    }
    service.local.get(below_16(nth))
}

#[inline(always)]
fn open(to: &Endpoint) -> u64 {
    // SAFETY: one word is read, at once; of an entry replaced meanwhile it is some other number.
    let open = unsafe { OPEN.get(to) }.copied().unwrap_or(0);
    if is_negative(open) { 0 } else { open }
}

/// Whether what was read was the service's own: the kernel may use the memory of a value that is replaced for
/// another service's.
#[inline(always)]
fn is_current(address: &Endpoint, revision: u64) -> bool {
    // SAFETY: one word is read, at once.
    unsafe { SERVICES.get(address) }.is_some_and(|service| service.revision == revision)
}

/// A connection that the proxy will carry begins. True if it is counted.
#[inline(always)]
pub fn begins(dialled: &mut Dialled) -> bool {
    let Some(to) = counted_as(dialled) else { return false };
    dialled.counted = 1;
    begin(&to);
    true
}

/// It has ended.
#[inline(always)]
pub fn ended(dialled: &mut Dialled) {
    if dialled.counted != 0
        && let Some(to) = counted_as(dialled)
    {
        dialled.counted = 0;
        end(&to);
    }
}

/// A connection without the proxy begins.
#[inline(always)]
pub fn vouched_begins(vouched: &mut Vouched) {
    vouched.counted = 1;
    begin(&vouched.destination);
}

/// It has ended.
#[inline(always)]
pub fn vouched_ended(vouched: &Vouched) {
    if vouched.counted != 0 {
        end(&vouched.destination);
    }
}

#[inline(always)]
fn counted_as(dialled: &Dialled) -> Option<Endpoint> {
    match dialled.choice {
        choice if choice == Choice::Endpoint as u32 => Some(dialled.endpoint),
        choice if choice == Choice::Elsewhere as u32 => Some(dialled.destination),
        _ => None,
    }
}

#[inline(always)]
fn begin(to: &Endpoint) {
    if OPEN.get_ptr(to).is_none() {
        let _ = OPEN.insert(to, 0, BPF_NOEXIST);
    }
    if let Some(open) = OPEN.get_ptr_mut(to) {
        // SAFETY: an entry of a map, which the kernel keeps for the program's time.
        add_atomically(unsafe { &mut *open }, 1);
    }
}

/// An entry that was pushed out meanwhile began again at 0.
#[inline(always)]
fn end(to: &Endpoint) {
    if let Some(open) = OPEN.get_ptr_mut(to) {
        // SAFETY: as above.
        let open = unsafe { &mut *open };
        if *open != 0 && !is_negative(*open) {
            add_atomically(open, u64::MAX);
        }
    }
}

/// Two that end at once may both have seen the last one.
#[inline(always)]
fn is_negative(number: u64) -> bool {
    number >> 63 != 0
}
