//! Records of what the kernel did by itself, without the proxy.

use std::{net::SocketAddr, time::Duration};

use orlop_model::{Reason, Snapshot};

use crate::{
    metrics::Direction,
    record::{Line, Party},
};

/// A connection that a hook refused by itself. The kernel side counts those.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Whether it was to a pod of this node, and not from one.
    pub inbound: bool,
    /// Of the hooks' own list, which shares names with [`Reason`] where both can refuse for the same.
    pub reason: &'static str,
    /// Who dialled; port 0 where none was chosen yet.
    pub source: SocketAddr,
    /// What was dialled.
    pub destination: SocketAddr,
}

impl Refused {
    /// Writes the line of the access log. Who dialled is known by the packet's address alone.
    pub fn record(&self, snapshot: &Snapshot) {
        let party = |address: SocketAddr| Party {
            address: Some(address),
            workload: snapshot.workload_at(address.ip()).cloned(),
            identity: None,
        };
        let (mut source, mut destination) = (party(self.source), party(self.destination));
        let own = if self.inbound { &mut destination } else { &mut source };
        own.identity = own.workload.as_ref().map(|workload| workload.identity.clone());
        let mut detail = "in the kernel".to_owned();
        if self.reason == Reason::PlaintextRefused.as_str()
            && let Some(workload) = &destination.workload
        {
            let port = self.destination.port();
            detail +=
                &format!(": PeerAuthentication asks for mutual TLS on port {port} of {}", workload.name);
        }
        Line {
            direction: if self.inbound { Direction::Inbound } else { Direction::Outbound },
            source: &source,
            destination: &destination,
            service: None,
            tunnel: None,
            bytes_received: 0,
            bytes_sent: 0,
            duration: Duration::ZERO,
            result: "refused",
            reason: Some(self.reason),
            detail: Some(&detail),
        }
        .write();
    }
}
