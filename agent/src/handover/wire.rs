use std::net::SocketAddr;

use orlop_proxy::{PassthroughState, SocketName};
use serde::{Deserialize, Serialize};

/// `Hello` and `Refused` stay as they are in all versions, so that agents of different ones know of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Message {
    Hello {
        version: u32,
        /// Of the pinned maps.
        layout: u32,
        node: String,
    },
    Refused {
        reason: String,
        /// Whether it is for the agent that asks to wait until the other has ended: they never hand over to each other.
        #[serde(default)]
        for_good: bool,
    },
    /// With its descriptor.
    Socket(Socket),
    /// The pods that are enrolled, as `namespace/name`. All sockets have been sent.
    Enrolled(Vec<String>),
    /// It is at work, and not hung.
    Preparing,
    Ready,
    Yours,
    /// With the descriptors of client and server, and what is to be written to the server and to the client.
    Passthrough {
        state: PassthroughState,
        to_server: usize,
    },
}

/// What a listening socket is for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Socket {
    Pod(SocketName),
    /// One of the node's own HTTP endpoints.
    Server(SocketAddr),
    /// The one that this conversation came through.
    Door,
}
