use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::reason::Reason;
use crate::service::{Endpoint, Service, ServiceKind};
use crate::snapshot::{Snapshot, Workload};
use crate::world::Resolution;

/// How the next hop is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Through a mutual-TLS tunnel to the peer's proxy.
    Hbone,
    /// Plain TCP from the pod's own address.
    Plain,
}

/// Where a connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The address and port of the backend: dialled when plain, asked for by CONNECT when tunnelled.
    pub upstream: SocketAddr,
    /// How.
    pub transport: Transport,
    /// The pod that is meant, if it is one; always there when tunnelled.
    pub workload: Option<Arc<Workload>>,
    /// The service that was dialled, if it was one.
    pub service: Option<Arc<Service>>,
}

/// What load balancing needs to know of the moment.
pub trait Balance {
    /// A random number below `bound`, which is never 0.
    fn random(&mut self, bound: usize) -> usize;

    /// How many connections this proxy has open to the endpoint.
    fn in_flight(&self, endpoint: SocketAddr) -> usize;

    /// Where the client's last connection to this port of the service went, if that was no longer than `timeout`
    /// ago. Asked only for services that want their clients to come back to one endpoint.
    fn last(&mut self, service: &Arc<Service>, port: u16, timeout: Duration) -> Option<SocketAddr>;
}

impl Snapshot {
    /// Decides where a connection of `source`, a pod of this node, to `destination` goes.
    ///
    /// A service's address leads to one of the port's eligible endpoints: the one of last time, if the service asks
    /// for that, else of two random ones that with fewer connections open. A pod's address leads to that pod.
    /// Enrolled pods are reached through the tunnel, everything else as it was dialled.
    pub fn route(
        &self,
        source: &Workload,
        destination: SocketAddr,
        balance: &mut dyn Balance,
    ) -> Result<Route, Reason> {
        let destination = canonical(destination);
        match self.service_to(&source.name.namespace, destination.ip()) {
            Some(service) => self.route_to_service(source, destination, service, balance, true),
            None => Ok(route_to(destination, self.workload_at(destination.ip()), None)),
        }
    }

    /// An endpoint may be the address of a Kubernetes Service, which must not be dialled: the node would hand the
    /// connection to a pod in clear. Where `follow` is set, one of that service's endpoints is taken instead.
    fn route_to_service(
        &self,
        source: &Workload,
        destination: SocketAddr,
        service: &Arc<Service>,
        balance: &mut dyn Balance,
        follow: bool,
    ) -> Result<Route, Reason> {
        if service.resolution == Resolution::None {
            return Ok(route_to(destination, self.workload_at(destination.ip()), Some(service)));
        }
        let port = service.port(destination.port()).ok_or(Reason::NoServicePort)?;
        let eligible = port.eligible(destination.ip());
        let last = service.affinity.and_then(|timeout| balance.last(service, port.number, timeout));
        let last = last.and_then(|last| eligible.iter().find(|endpoint| endpoint.address == last));
        let endpoint = last.or_else(|| pick(eligible, balance)).ok_or(Reason::NoHealthyEndpoint)?;
        let route = route_to(endpoint.address, endpoint.workload.as_ref(), Some(service));
        let next = self.service_to(&source.name.namespace, endpoint.address.ip());
        match next.filter(|next| next.kind == ServiceKind::Service && route.transport == Transport::Plain) {
            None => Ok(route),
            Some(next) if follow => {
                let route = self.route_to_service(source, endpoint.address, next, balance, false)?;
                Ok(Route { service: Some(service.clone()), ..route })
            }
            Some(_) => Err(Reason::NoHealthyEndpoint),
        }
    }
}

/// An IPv4-mapped IPv6 address is the IPv4 address: a dual-stack socket sees the former.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        // Left alone for its scope.
        IpAddr::V6(_) => address,
    }
}

fn pick<'a>(endpoints: &'a [Endpoint], balance: &mut dyn Balance) -> Option<&'a Endpoint> {
    if endpoints.len() < 2 {
        return endpoints.first();
    }
    let one = balance.random(endpoints.len());
    let mut other = balance.random(endpoints.len() - 1);
    if other >= one {
        other += 1;
    }
    let (one, other) = (endpoints.get(one)?, endpoints.get(other)?);
    let fewer = balance.in_flight(other.address) < balance.in_flight(one.address);
    Some(if fewer { other } else { one })
}

fn route_to(upstream: SocketAddr, workload: Option<&Arc<Workload>>, service: Option<&Arc<Service>>) -> Route {
    let transport = match workload {
        Some(workload) if workload.enrolled => Transport::Hbone,
        _ => Transport::Plain,
    };
    Route { upstream, transport, workload: workload.cloned(), service: service.cloned() }
}
