//! The ring buffer that the hooks write to, as another version of them may have left it.
//!
//! The input is how far the kernel has written, two bytes, and what.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orlop_datapath::fuzzing::{Event, events};

/// A record's header and an event, rounded up as the kernel does.
const RECORD: usize = 8 + 56;

fuzz_target!(|input: &[u8]| {
    let Some((produced, data)) = input.split_first_chunk() else { return };
    let produced = u16::from_ne_bytes(*produced);
    let events = events(produced, data).expect("memory can be mapped");
    assert!(events.len() <= usize::from(produced).div_ceil(RECORD), "more events than fit");
    for event in events {
        let Event::Refused(refused) = event else { continue };
        assert!(!refused.reason.is_empty());
        // An address that is IPv4 is told as such, so that a log has one form for it.
        for address in [refused.source, refused.destination] {
            assert_eq!(address.ip(), address.ip().to_canonical());
        }
    }
});
