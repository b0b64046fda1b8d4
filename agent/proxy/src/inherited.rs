use std::{collections::HashMap, os::fd::OwnedFd};

use serde::{Deserialize, Serialize};

/// One of the proxy's sockets in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SocketName {
    /// `SO_NETNS_COOKIE` of the pod.
    pub netns: u64,
    /// The port that it stands for.
    pub port: u16,
    /// What it takes.
    pub protocol: Protocol,
}

/// What a socket takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// It listens.
    Tcp,
    /// It is bound.
    Udp,
}

/// Sockets of an earlier agent, until their pods are opened. What is left goes with this: whoever gave it has it
/// still.
#[derive(Debug, Default)]
pub struct Inherited(HashMap<SocketName, OwnedFd>);

impl Inherited {
    /// Keeps a socket for its pod.
    pub fn put(&mut self, name: SocketName, socket: OwnedFd) {
        self.0.insert(name, socket);
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn take(&mut self, name: SocketName) -> Option<OwnedFd> {
        self.0.remove(&name)
    }
}
