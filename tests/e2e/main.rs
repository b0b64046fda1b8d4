//! End-to-end suites on real sockets and a real kernel; one module each.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod testbed;
mod tmp_probe;
