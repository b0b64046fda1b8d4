//! A real ztunnel is the peer, in either place: `ZTUNNEL=/path/to/ztunnel cargo xtask test ztunnel::`.
//!
//! A harness of its own, since that of Rust can only be told before it builds what is not to be run: without a
//! ztunnel each test is named as skipped.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[allow(dead_code, reason = "the end-to-end suites use the rest")]
#[path = "../e2e/mesh.rs"]
mod mesh;
#[allow(dead_code, reason = "the end-to-end suites use the rest")]
#[path = "../e2e/pattern.rs"]
mod pattern;
mod suite;

use std::panic::catch_unwind;
use std::process::ExitCode;

use orlop_tests::Ztunnel;

const TESTS: [(&str, fn()); 3] = [
    ("ztunnel::orlop_dials_ztunnel", suite::orlop_dials_ztunnel),
    ("ztunnel::ztunnel_dials_orlop", suite::ztunnel_dials_orlop),
    ("ztunnel::orlop_refuses_ztunnel_by_policy", suite::orlop_refuses_ztunnel_by_policy),
];

/// Takes filters as Rust's harness does, and its flags without regard to them.
fn main() -> ExitCode {
    let filters: Vec<_> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wanted =
        |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    let tests: Vec<_> = TESTS.into_iter().filter(|(name, _)| wanted(name)).collect();
    if Ztunnel::binary().is_none() {
        for (name, _) in tests {
            println!("test {name} ... skipped, as ZTUNNEL names no program");
        }
        return ExitCode::SUCCESS;
    }
    let mut failed = 0;
    for (name, test) in &tests {
        let ok = catch_unwind(test).is_ok();
        failed += usize::from(!ok);
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
    }
    println!("\ntest result: {} passed; {failed} failed", tests.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
