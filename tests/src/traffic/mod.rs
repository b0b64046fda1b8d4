//! Small clients and servers on plain blocking sockets.

mod client;
mod echo;
mod http;
mod server;

use std::io::{self, ErrorKind, Read};

pub use client::{Response, connect, get, request, uninterrupted};
pub use echo::{EchoServer, echo};
pub use http::{HttpServer, serve_http};
pub(crate) use server::listen;

/// Reads where std does not itself begin again.
pub trait ReadUninterrupted: Read {
    /// Like [`Read::read`], and again if it was interrupted: with a timeout, the kernel does not take it up again by itself
    /// (signal(7)).
    fn read_uninterrupted(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.read(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }
}

impl<T: Read + ?Sized> ReadUninterrupted for T {}
