//! Small clients and servers on plain blocking sockets.

mod client;
mod echo;
mod http;
mod server;

pub use client::{Response, connect, get, request};
pub use echo::{EchoServer, echo};
pub use http::{HttpServer, serve_http};
pub(crate) use server::listen;
