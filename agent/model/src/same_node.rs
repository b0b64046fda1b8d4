use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::authorize::Connection;
use crate::ports::is_reserved;
use crate::route::{Balance, Transport};
use crate::service::Service;
use crate::snapshot::{Snapshot, Workload, WorkloadKind};

/// A pod that another of its node may talk to without the proxy.
#[derive(Clone, Debug)]
pub struct SameNode<'a> {
    /// The address of the dialling pod that policy was asked about.
    pub source: IpAddr,
    /// The pod that is reached.
    pub destination: &'a Arc<Workload>,
}

impl Snapshot {
    /// Whether `source` may dial `address` without the proxy: both are enrolled pods of this node, the address is
    /// the other pod's own, nothing but the proxies of this node would be on the way, and policy allows it.
    pub fn same_node(&self, source: &Workload, address: SocketAddr) -> Option<SameNode<'_>> {
        if is_reserved(address.port()) || address.port() == 0 {
            return None;
        }
        let route = self.route(source, address, &mut NoChoice).ok()?;
        let destination = self.workload_at(address.ip())?;
        let straight = route.service.is_none()
            && route.waypoint.is_none()
            && route.transport == Transport::Hbone
            && route.upstream == address
            && route.workload.as_ref() == Some(destination);
        if !straight
            || destination.name == source.name
            || !self.is_local(source)
            || !self.is_local(destination)
        {
            return None;
        }
        let source_ip = *source.addresses.iter().find(|ip| ip.is_ipv4() == address.is_ipv4())?;
        let connection =
            Connection { source_identity: Some(&source.identity), source: source_ip, destination, address };
        self.admit(&connection).ok()?;
        Some(SameNode { source: source_ip, destination })
    }

    /// Whether this is an enrolled pod of this node.
    pub(crate) fn is_local(&self, workload: &Workload) -> bool {
        workload.kind == WorkloadKind::Pod
            && self.local_pods().binary_search_by(|local| local.workload.name.cmp(&workload.name)).is_ok()
    }
}

/// A pod's own address leaves none.
struct NoChoice;

impl Balance for NoChoice {
    fn random(&mut self, _: usize) -> usize {
        0
    }

    fn in_flight(&self, _: SocketAddr) -> usize {
        0
    }

    fn last(&mut self, _: &Arc<Service>, _: u16, _: Duration) -> Option<SocketAddr> {
        None
    }
}
