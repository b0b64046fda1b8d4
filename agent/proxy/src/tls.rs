//! TLS 1.3 as tunnels need it.
//!
//! rustls shakes hands, verifies and derives the keys; after that its own ciphers open and seal records in this
//! module's buffers. rustls' buffered connections copy what arrives three times on its way to the reader, 4 KiB at a
//! time; here a record is opened where it was received.

mod handshake;
mod record;
mod stream;
#[cfg(test)]
mod tests;

pub(crate) use self::{
    handshake::{accept, connect},
    stream::TlsStream,
};
