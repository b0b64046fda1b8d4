use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::ports::is_reserved;
use crate::service::{Endpoint, Service, ServiceKind, ServicePort};
use crate::snapshot::Snapshot;

/// So many endpoints of a service's port on this node may be chosen without the proxy; further ones are its own.
pub const MAX_LOCAL_ENDPOINTS: usize = 16;

/// A port of a Kubernetes Service at one of its cluster IPs, of which some endpoints are enrolled pods of this node.
///
/// Whoever chooses in the proxy's stead takes any of the eligible endpoints alike, and leaves it to the proxy where
/// that is none of `local`: see [`Choice`](crate::Choice).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalService {
    /// What clients dial.
    pub address: SocketAddr,
    /// How many endpoints a connection may go to, whoever dials.
    pub eligible: usize,
    /// Those of them that are enrolled pods of this node: at least one, at most [`MAX_LOCAL_ENDPOINTS`].
    pub local: Vec<SocketAddr>,
    /// For this long after a client's last connection the next one goes to the same endpoint.
    pub affinity: Option<Duration>,
}

impl Snapshot {
    /// The ports of a service of this snapshot that have endpoints on this node. One with a waypoint has none.
    pub fn local_services<'a>(
        &'a self,
        service: &'a Arc<Service>,
    ) -> impl Iterator<Item = LocalService> + use<'a> {
        let straight = service.kind == ServiceKind::Service && service.waypoint.is_none();
        // Of two Services with one address only one has it.
        let owns = |vip: &&_| self.service_at(**vip).is_some_and(|owner| Arc::ptr_eq(owner, service));
        let vips = service.vips.iter().filter(move |_| straight).filter(owns);
        vips.flat_map(|vip| service.ports.iter().map(move |port| (vip, port))).filter_map(|(vip, port)| {
            let address = SocketAddr::new(*vip, port.number);
            let eligible = port.eligible(*vip);
            let local: Vec<_> = self.local(port, address).map(|endpoint| endpoint.address).collect();
            let service =
                LocalService { address, eligible: eligible.len(), local, affinity: service.affinity };
            (!service.local.is_empty()).then_some(service)
        })
    }

    /// Those of the eligible endpoints of what was dialled that may be reached without the proxy: enrolled pods of
    /// this node, by what the pods say and not their EndpointSlices. Where they differ in weight there is none: whoever chooses in the proxy's stead takes all alike.
    pub(crate) fn local<'a>(
        &'a self,
        port: &'a ServicePort,
        dialled: SocketAddr,
    ) -> impl Iterator<Item = &'a Endpoint> {
        let alike = !port.weighted();
        let is_local = move |endpoint: &&Endpoint| {
            // Not where its EndpointSlice says it is: only what the pod says makes it one of this node's.
            let workload = endpoint.workload.as_ref();
            alike
                && endpoint.address.is_ipv4() == dialled.is_ipv4()
                && !is_reserved(endpoint.address.port())
                && workload.is_some_and(|workload| self.is_local(workload))
        };
        port.eligible(dialled.ip()).iter().filter(is_local).take(MAX_LOCAL_ENDPOINTS)
    }
}
