use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::reason::Reason;
use crate::snapshot::{Endpoint, Service, Snapshot, Workload};

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
}

impl Snapshot {
    /// Decides where a connection to `destination` goes.
    ///
    /// A cluster IP leads to one of the port's ready endpoints: of two random ones that with fewer connections
    /// open, of the cluster IP's address family if there are any. A pod's address leads to that pod. Enrolled
    /// pods are reached through the tunnel, everything else as it was dialled.
    pub fn route(&self, destination: SocketAddr, balance: &mut dyn Balance) -> Result<Route, Reason> {
        let destination = canonical(destination);
        if let Some(service) = self.service_at(destination.ip()) {
            let port = service.port(destination.port()).ok_or(Reason::NoServicePort)?;
            let endpoint =
                pick(port.ready_for(destination.ip()), balance).ok_or(Reason::NoHealthyEndpoint)?;
            return Ok(route_to(endpoint.address, endpoint.workload.as_ref(), Some(service)));
        }
        Ok(route_to(destination, self.workload_at(destination.ip()), None))
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
