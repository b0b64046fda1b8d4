//! Real handshakes in memory, real files, virtual time.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod authority;
mod handshake;
mod hostile;
mod intermediates;
mod remote;
mod renewal;
mod support;
mod tokens;
mod trust;
