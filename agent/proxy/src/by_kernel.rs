//! Records of what the kernel did by itself, without the proxy.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use orlop_model::{Reason, Snapshot, Workload};

use crate::flow::{Direction, Flow, FlowResult};

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
    /// The flow of it. Who dialled is known by the packet's address alone.
    pub(crate) fn flow(&self, snapshot: &Snapshot) -> Flow {
        let workload = |address: SocketAddr| snapshot.workload_at(address.ip()).cloned();
        let (source, destination) = (workload(self.source), workload(self.destination));
        let own = |workload: &Option<Arc<Workload>>, is_own: bool| {
            workload.as_ref().filter(|_| is_own).map(|workload| workload.identity.clone())
        };
        let mut detail = "in the kernel".to_owned();
        let mut policy = None;
        if self.reason == Reason::PlaintextRefused.as_str()
            && let Some(workload) = &destination
        {
            let port = self.destination.port();
            detail += &format!(": {}", snapshot.explain_strict(workload, port));
            policy = snapshot.peer_authentication(workload, port).cloned();
        }
        Flow {
            time: SystemTime::now(),
            direction: if self.inbound { Direction::Inbound } else { Direction::Outbound },
            src: Some(self.source),
            src_identity: own(&source, !self.inbound),
            src_workload: source,
            dialled: (!self.inbound).then_some(self.destination),
            dst: Some(self.destination),
            dst_identity: own(&destination, self.inbound),
            dst_workload: destination,
            dst_service: None,
            tunnel: None,
            bytes_received: 0,
            bytes_sent: 0,
            duration: Duration::ZERO,
            result: FlowResult::Refused,
            reason: Some(self.reason),
            detail: Some(detail),
            policy,
            audit: false,
            dry_run: Vec::new(),
        }
    }
}
