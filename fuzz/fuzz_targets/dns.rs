//! A pod's DNS query, and what a resolver says to it.
//!
//! The input is the query's length, a byte, the query, and the resolver's message.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orlop_proxy::fuzzing;

fuzz_target!(|input: &[u8]| {
    let Some((length, rest)) = input.split_first() else { return };
    let (sent, said) = rest.split_at(rest.len().min(usize::from(*length)));
    fuzzing::dns(sent, said.to_vec());
});
