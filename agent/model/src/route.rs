use std::net::{IpAddr, SocketAddr};
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use crate::identity::Identity;
use crate::ports::HBONE_PORT;
use crate::reason::Reason;
use crate::service::{Endpoint, Service, ServiceKind, ServicePort};
use crate::snapshot::{Snapshot, Workload};
use crate::waypoint::Hop;
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
    /// The address and port of the backend: dialled when plain, asked for by CONNECT when tunnelled. Before the
    /// waypoint of a service it is the service's.
    pub upstream: SocketAddr,
    /// How.
    pub transport: Transport,
    /// The workload that is meant, if it is one; when tunnelled, there is one or a waypoint.
    pub workload: Option<Arc<Workload>>,
    /// The service that was dialled, if it was one.
    pub service: Option<Arc<Service>>,
    /// The waypoint that the tunnel leads to instead of the workload's own proxy.
    pub waypoint: Option<Hop>,
}

impl Route {
    /// Where load balancing has led to.
    pub fn endpoint(&self) -> SocketAddr {
        self.waypoint.as_ref().map_or(self.upstream, |hop| hop.address)
    }

    /// Whose certificate the tunnel's other end must show, and where it is; `None` if there is no tunnel.
    pub fn tunnel(&self) -> Option<(&Identity, SocketAddr)> {
        match (&self.waypoint, &self.workload) {
            (Some(hop), _) => Some((&hop.workload.identity, hop.address)),
            (None, Some(workload)) if self.transport == Transport::Hbone => {
                Some((&workload.identity, SocketAddr::new(self.upstream.ip(), HBONE_PORT)))
            }
            _ => None,
        }
    }
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

    /// What has been decided before. Asked only for services that do not want their clients to come back.
    fn choice(&self) -> Choice {
        Choice::Open
    }
}

/// What is already decided of where a connection to a service goes. It counts as long as it leads to an eligible
/// endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// Nothing.
    #[default]
    Open,
    /// To this endpoint.
    Endpoint(SocketAddr),
    /// To none of the endpoints of [`LocalService::local`](crate::LocalService::local).
    Elsewhere,
}

impl Snapshot {
    /// Decides where a connection of `source`, a pod of this node, to `destination` goes.
    ///
    /// A service's address leads to one of the port's eligible endpoints: the one of last time, if the service asks
    /// for that, else the one that was chosen before, else of two random ones that with fewer connections open. A
    /// pod's address leads to that pod.
    /// Enrolled pods are reached through the tunnel, everything else as it was dialled; a service or workload that has
    /// a waypoint, through that waypoint, unless it is `source` itself.
    pub fn route(
        &self,
        source: &Workload,
        destination: SocketAddr,
        balance: &mut dyn Balance,
    ) -> Result<Route, Reason> {
        let destination = canonical(destination);
        match self.service_to(&source.name.namespace, destination.ip()) {
            Some(service) => self.route_to_service(source, destination, service, balance, true),
            None => self.route_to(source, destination, self.workload_at(destination.ip()), None, balance),
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
        let port = service.port(destination.port());
        if port.is_none() && service.resolution != Resolution::None {
            return Err(Reason::NoServicePort);
        }
        if let Some(hop) = self.waypoint_of_service(source, service, destination, balance)? {
            let (workload, service) = (None, Some(service.clone()));
            let transport = Transport::Hbone;
            return Ok(Route { upstream: destination, transport, workload, service, waypoint: Some(hop) });
        }
        let (Some(port), false) = (port, service.resolution == Resolution::None) else {
            let workload = self.workload_at(destination.ip());
            return self.route_to(source, destination, workload, Some(service), balance);
        };
        let choice = match service.affinity {
            Some(timeout) => {
                balance.last(service, port.number, timeout).map_or(Choice::Open, Choice::Endpoint)
            }
            None if follow => balance.choice(),
            None => Choice::Open,
        };
        let endpoint = self.choose(port, choice, destination, balance).ok_or(Reason::NoHealthyEndpoint)?;
        let (address, workload) = (endpoint.address, endpoint.workload.as_ref());
        let route = self.route_to(source, address, workload, Some(service), balance)?;
        let next = match route.transport {
            Transport::Hbone => None,
            Transport::Plain => self.service_to(&source.name.namespace, address.ip()),
        };
        match next.filter(|next| next.kind == ServiceKind::Service) {
            None => Ok(route),
            Some(next) if follow => {
                let route = self.route_to_service(source, address, next, balance, false)?;
                Ok(Route { service: Some(service.clone()), ..route })
            }
            Some(_) => Err(Reason::NoHealthyEndpoint),
        }
    }

    fn choose<'a>(
        &'a self,
        port: &'a ServicePort,
        choice: Choice,
        dialled: SocketAddr,
        balance: &mut dyn Balance,
    ) -> Option<&'a Endpoint> {
        let eligible = port.eligible(dialled.ip());
        let chosen = match choice {
            Choice::Open => None,
            Choice::Endpoint(address) => eligible.iter().find(|endpoint| endpoint.address == address),
            Choice::Elsewhere => {
                let mut local = self.local(port, dialled).peekable();
                // Both are in the same order.
                let is_other =
                    |endpoint: &&Endpoint| local.next_if(|local| ptr::eq(*local, *endpoint)).is_none();
                let others: Vec<_> = eligible.iter().filter(is_other).collect();
                pick_of(others.len(), |nth| others.get(nth).copied(), balance)
            }
        };
        chosen.or_else(|| pick(port, dialled.ip(), balance))
    }

    /// To a workload, or to an address that is none.
    fn route_to(
        &self,
        source: &Workload,
        upstream: SocketAddr,
        workload: Option<&Arc<Workload>>,
        service: Option<&Arc<Service>>,
        balance: &mut dyn Balance,
    ) -> Result<Route, Reason> {
        let waypoint = match workload {
            Some(workload) => self.waypoint_of_workload(source, workload, upstream, balance)?,
            None => None,
        };
        let tunnels = waypoint.is_some() || workload.is_some_and(|workload| workload.enrolled);
        let transport = if tunnels { Transport::Hbone } else { Transport::Plain };
        Ok(Route { upstream, transport, workload: workload.cloned(), service: service.cloned(), waypoint })
    }
}

/// An IPv4-mapped IPv6 address is the IPv4 address: a dual-stack socket sees the former.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        // Left alone for its scope.
        IpAddr::V6(_) => address,
    }
}

/// Of two at random, as often as their weights say, the one that has fewer connections for its weight.
pub(crate) fn pick<'a>(
    port: &'a ServicePort,
    family: IpAddr,
    balance: &mut dyn Balance,
) -> Option<&'a Endpoint> {
    let endpoints = port.eligible(family);
    if !port.weighted() || endpoints.len() < 2 {
        return pick_of(endpoints.len(), |nth| endpoints.get(nth), balance);
    }
    let one = draw(endpoints, None, balance)?;
    let other = draw(endpoints, Some(one), balance)?;
    let (one, other) = (endpoints.get(one)?, endpoints.get(other)?);
    let load = |of: &Endpoint, against: &Endpoint| {
        balance.in_flight(of.address) as u128 * u128::from(against.weight.get())
    };
    Some(if load(other, one) < load(one, other) { other } else { one })
}

/// Of two random ones that with fewer connections open.
fn pick_of<'a>(
    count: usize,
    nth: impl Fn(usize) -> Option<&'a Endpoint>,
    balance: &mut dyn Balance,
) -> Option<&'a Endpoint> {
    if count < 2 {
        return nth(0);
    }
    let one = balance.random(count);
    let mut other = balance.random(count - 1);
    if other >= one {
        other += 1;
    }
    let (one, other) = (nth(one)?, nth(other)?);
    let fewer = balance.in_flight(other.address) < balance.in_flight(one.address);
    Some(if fewer { other } else { one })
}

/// The index of one that is not `without`, at random by weight.
fn draw(endpoints: &[Endpoint], without: Option<usize>, balance: &mut dyn Balance) -> Option<usize> {
    let candidates = || endpoints.iter().enumerate().filter(|(index, _)| Some(*index) != without);
    let weight = |endpoint: &Endpoint| endpoint.weight.get() as usize;
    let total = candidates().fold(0usize, |sum, (_, endpoint)| sum.saturating_add(weight(endpoint)));
    let mut rest = balance.random(total.max(1));
    for (index, endpoint) in candidates() {
        if rest < weight(endpoint) {
            return Some(index);
        }
        rest -= weight(endpoint);
    }
    None
}
