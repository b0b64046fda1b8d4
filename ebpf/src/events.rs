//! What the hooks tell the agent: a count of every refusal, and an event for as many as are worth reading.
//!
//! Nothing here changes a verdict: a full ring loses the event, and the loss is counted.

use orlop_common::{Endpoint, Event, EventKind, NO_ENDPOINT, REFUSALS_PER_SECOND, Refusal};

use crate::{
    context::now,
    maps::{self, EVENTS, LOST, PACE},
};

const SECOND: u64 = 1_000_000_000;
const BPF_ANY: u64 = 0;

/// Refusals that have been told of one pod lately.
#[repr(C)]
pub struct Pace {
    /// When this second began, by the monotonic clock.
    since: u64,
    told: u64,
}

/// Counts a refusal and tells of it, unless there were too many in this second.
#[inline(always)]
pub fn refused(kind: EventKind, refusal: Refusal, netns: u64, source: Endpoint, destination: Endpoint) {
    maps::count(refusal);
    if keeps_pace(netns) {
        let about = Event { refusal: refusal as u32, ..connection(kind, netns, source, destination) };
        tell(&about);
    } else {
        lose();
    }
}

/// An event about a connection of which nothing else is known.
#[inline(always)]
pub fn connection(kind: EventKind, netns: u64, source: Endpoint, destination: Endpoint) -> Event {
    Event {
        kind: kind as u32,
        refusal: 0,
        netns,
        source,
        destination,
        service: NO_ENDPOINT,
        reserved: 0,
        sent: 0,
        received: 0,
        connecting: 0,
        lasting: 0,
        srtt: 0,
        retransmits: 0,
    }
}

#[inline(always)]
pub fn tell(event: &Event) {
    if EVENTS.output(event, 0).is_err() {
        lose();
    }
}

/// A flood of one pod's refusals would crowd out everything else.
#[inline(always)]
fn keeps_pace(netns: u64) -> bool {
    let now = now();
    let Some(pace) = PACE.get_ptr_mut(netns) else {
        return PACE.insert(netns, Pace { since: now, told: 1 }, BPF_ANY).is_ok();
    };
    // SAFETY: words of a live entry; CPUs that write at once miscount at worst.
    unsafe {
        if now - (*pace).since > SECOND {
            (*pace).since = now;
            (*pace).told = 0;
        }
        (*pace).told += 1;
        (*pace).told <= REFUSALS_PER_SECOND
    }
}

#[inline(always)]
fn lose() {
    if let Some(count) = LOST.get_ptr_mut(0) {
        // SAFETY: the slot belongs to this CPU; a hook that interrupts another here miscounts at worst.
        unsafe { *count += 1 }
    }
}
