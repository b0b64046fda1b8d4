//! End-to-end suites on real sockets and a real kernel; one module each.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod attacks;
mod hbone;
mod mesh;
mod pattern;
mod peer;
mod testbed;
mod tunnel;
