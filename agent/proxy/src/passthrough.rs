use std::{net::SocketAddr, os::fd::OwnedFd, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A connection on its way to another agent.
#[derive(Debug)]
pub struct Passthrough {
    /// What is known of it.
    pub state: PassthroughState,
    /// The client's and the server's.
    pub sockets: [OwnedFd; 2],
    /// What was read and is still to be written: to the server, and to the client.
    pub rest: [Bytes; 2],
}

/// What a connection was and has done so far.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PassthroughState {
    /// The pod of this node, as `namespace/name`.
    pub(crate) pod: String,
    /// Whether it came to the pod or went out from there.
    pub(crate) inbound: bool,
    pub(crate) client: SocketAddr,
    pub(crate) server: SocketAddr,
    /// What the pod dialled.
    #[serde(default)]
    pub(crate) dialled: Option<SocketAddr>,
    /// The service that was dialled, as `namespace/name`.
    pub(crate) service: Option<String>,
    /// Since its beginning.
    pub(crate) age: Duration,
    /// To the server, and to the client.
    pub(crate) bytes: [u64; 2],
    /// Which of these directions have ended.
    pub(crate) ended: [bool; 2],
}
