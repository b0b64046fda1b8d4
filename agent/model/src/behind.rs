use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use crate::admit::Refused;
use crate::authorize::Connection;
use crate::identity::Identity;
use crate::name::NamespacedName;
use crate::reason::Reason;
use crate::route::{Balance, Transport, canonical, pick};
use crate::service::{Endpoint, Service, ServiceKind};
use crate::snapshot::{Snapshot, Workload, WorkloadKind};
use crate::world::Resolution;
use crate::world::stream::Sni;

/// What a waypoint is asked for, of that which it stands before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Behind {
    /// A port of a service.
    Service {
        /// The service.
        service: Arc<Service>,
        /// The port's number, which the service has.
        port: u16,
        /// The address that was dialled; `None` where it was asked for by name.
        dialled: Option<SocketAddr>,
    },
    /// A workload by its own address.
    Workload {
        /// The workload.
        workload: Arc<Workload>,
        /// Its address and port.
        address: SocketAddr,
    },
    /// What is asked of a gateway, before a rule leads anywhere.
    Gateway {
        /// The Gateway.
        gateway: NamespacedName,
        /// The address and port of its listener that the client dialled, as the gateway sees it.
        address: SocketAddr,
        /// What is spoken there.
        entrance: Entrance,
    },
}

/// How a client talks to a gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Entrance {
    /// In clear.
    #[default]
    Plain,
    /// In TLS, in which it has named this host, in lower case, if any.
    Tls(Option<String>),
}

impl Entrance {
    /// The host that was named.
    pub fn sni(&self) -> Sni<'_> {
        match self {
            Self::Tls(Some(host)) => Sni::Name(host),
            Self::Plain | Self::Tls(None) => Sni::Absent,
        }
    }
}

impl Snapshot {
    /// Decides what a client of this namespace means that asks `waypoint` for `authority`, which is `ip:port` or
    /// `host:port`. What the waypoint does not stand before is refused, so that it can't be used to get anywhere
    /// else: [`Reason::NotThisWaypoint`]; what is no authority, with [`Reason::BadConnectRequest`].
    pub fn behind(
        &self,
        waypoint: &NamespacedName,
        namespace: &str,
        authority: &str,
    ) -> Result<Behind, Reason> {
        if let Ok(address) = authority.parse::<SocketAddr>() {
            let address = canonical(address);
            return match self.service_to(namespace, address.ip()) {
                Some(service) => in_front(waypoint, service, address.port(), Some(address)),
                None => self.workload_behind(waypoint, address),
            };
        }
        let (host, port) = authority.rsplit_once(':').ok_or(Reason::BadConnectRequest)?;
        let port = port.parse().map_err(|_| Reason::BadConnectRequest)?;
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let service = self.service_index.named(namespace, &host).ok_or(Reason::NotThisWaypoint)?;
        in_front(waypoint, service, port, None)
    }

    fn workload_behind(&self, waypoint: &NamespacedName, address: SocketAddr) -> Result<Behind, Reason> {
        let workload = self.workload_at(address.ip()).ok_or(Reason::NotThisWaypoint)?;
        if self.stands_before(waypoint, workload) {
            Ok(Behind::Workload { workload: workload.clone(), address })
        } else {
            Err(Reason::NotThisWaypoint)
        }
    }

    /// Chooses an endpoint for what a client asks of a service's port now: that which it had of the service may be of
    /// an earlier snapshot.
    pub fn endpoint_of(
        &self,
        service: &Arc<Service>,
        port: u16,
        dialled: Option<SocketAddr>,
        balance: &mut dyn Balance,
    ) -> Result<Endpoint, Reason> {
        let service = self.current_service(service).ok_or(Reason::NoHealthyEndpoint)?;
        if let (Resolution::None, Some(address)) = (service.resolution, dialled) {
            return Ok(Endpoint::at(address, self.workload_at(address.ip()).cloned()));
        }
        let port = service.port(port).ok_or(Reason::NoServicePort)?;
        let family = dialled.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |dialled| dialled.ip());
        pick(port, family, balance).cloned().ok_or(Reason::NoHealthyEndpoint)
    }

    /// The same service in this snapshot.
    pub fn current_service(&self, service: &Service) -> Option<&Arc<Service>> {
        match service.kind {
            ServiceKind::Service => self.service(&service.name),
            ServiceKind::ServiceEntry => {
                let first = self.service_entries.partition_point(|entry| entry.name < service.name);
                let of_name = self.service_entries[first..].iter();
                let mut of_name = of_name.take_while(|entry| entry.name == service.name);
                of_name.find(|entry| entry.hostname == service.hostname)
            }
        }
    }

    /// How a waypoint speaks to an endpoint of a service behind it. An endpoint that is the address of a Service must
    /// not be dialled: the node would hand the connection to a pod in clear.
    pub fn transport_to(&self, endpoint: &Endpoint) -> Result<Transport, Reason> {
        let ip = endpoint.address.ip();
        match &endpoint.workload {
            Some(workload) if workload.enrolled => Ok(Transport::Hbone),
            _ if self.service_at(ip).is_some_and(|next| next.kind == ServiceKind::Service) => {
                Err(Reason::NoHealthyEndpoint)
            }
            _ => Ok(Transport::Plain),
        }
    }

    /// Like [`Self::transport_to`], for a client's connection that a rule may have led anywhere: not past waypoints that
    /// the endpoint has and this one is not of, as no route of a node leads there either.
    pub fn transport_through(
        &self,
        waypoint: &NamespacedName,
        endpoint: &Endpoint,
    ) -> Result<Transport, Reason> {
        let workload = endpoint.workload.as_deref();
        if workload
            .is_some_and(|workload| self.stands_behind(workload) && !self.stands_before(waypoint, workload))
        {
            return Err(Reason::NotThroughWaypoint);
        }
        self.transport_to(endpoint)
    }

    /// Decides whether a client may reach an endpoint where this waypoint leads it, by the AuthorizationPolicies of the
    /// pod. Its node judges by them itself if it believes the waypoint whom it speaks for; of a pod that is not behind
    /// the waypoint, it would take the waypoint for the client.
    pub fn admit_led(
        &self,
        waypoint: &NamespacedName,
        client: &Identity,
        address: IpAddr,
        endpoint: &Endpoint,
    ) -> Result<(), Refused> {
        let is_led = |workload: &&Arc<Workload>| {
            workload.enrolled && workload.kind == WorkloadKind::Pod && !self.stands_before(waypoint, workload)
        };
        let Some(workload) = endpoint.workload.as_ref().filter(is_led) else { return Ok(()) };
        let connection = Connection {
            source_identity: Some(client),
            source: address.to_canonical(),
            destination: workload,
            address: endpoint.address,
        };
        self.judge(&connection).map(drop)
    }
}

fn in_front(
    waypoint: &NamespacedName,
    service: &Arc<Service>,
    port: u16,
    dialled: Option<SocketAddr>,
) -> Result<Behind, Reason> {
    if service.waypoint.as_ref() != Some(waypoint) {
        return Err(Reason::NotThisWaypoint);
    }
    // Of a service without endpoints of its own the address that was dialled is the endpoint.
    let passes_on = service.resolution == Resolution::None && dialled.is_some();
    if service.port(port).is_none() && !passes_on {
        return Err(Reason::NoServicePort);
    }
    Ok(Behind::Service { service: service.clone(), port, dialled })
}
