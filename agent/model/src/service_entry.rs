use std::net::IpAddr;
use std::sync::Arc;

use crate::NamespacedName;
use crate::allocation::Allocation;
use crate::compile::Settings;
use crate::endpoints::Endpoints;
use crate::hosts::{Hosts, is_own_endpoint};
use crate::identity::Identity;
use crate::owner::names_of;
use crate::service::{Preference, Service, ServiceKind, ServicePort};
use crate::snapshot::{Workload, WorkloadKind};
use crate::text::Text;
use crate::world::{Backend, BackendAddress, Protocol, Resolution, ServiceEntry, WorkloadEntry};

/// Istio's label of a backend that takes HBONE: a list that holds `http`.
const TUNNEL: &str = "networking.istio.io/tunnel";

/// The services of a ServiceEntry: one for each host.
pub(crate) fn services(
    entry: &ServiceEntry,
    endpoints: &Endpoints<'_>,
    allocation: &Allocation<'_>,
    waypoint: Option<NamespacedName>,
) -> Vec<Arc<Service>> {
    let addresses = entry.addresses.iter().copied();
    let (vips, aliases): (Vec<_>, Vec<_>) = addresses.partition(|block| block.address().is_some());
    let own = || vips.iter().filter_map(|block| block.address());
    let service = |host: &String| {
        Arc::new(Service {
            name: entry.name.clone(),
            kind: ServiceKind::ServiceEntry,
            hostname: host.clone(),
            vips: own().chain(allocation.of(&entry.name, host).iter().copied()).collect(),
            aliases: aliases.clone(),
            external_name: None,
            ports: ports(entry, host, endpoints),
            udp_ports: Vec::new(),
            resolution: entry.resolution,
            affinity: None,
            waypoint: waypoint.clone(),
            exports: entry.exports.clone(),
        })
    };
    entry.hosts.iter().map(service).collect()
}

fn ports(entry: &ServiceEntry, host: &str, endpoints: &Endpoints<'_>) -> Vec<ServicePort> {
    let wanted = Preference { distribution: entry.distribution, node_local: false };
    let of = |port: &crate::world::ServicePort| {
        let mut found = endpoints.selected(&entry.name.namespace, &entry.selector, port, false);
        for backend in &entry.endpoints {
            found.extend(endpoints.backend(&entry.name, backend, entry.resolution, port));
        }
        if is_own_endpoint(entry) {
            let own = Backend { address: BackendAddress::Host(host.to_owned()), ..Backend::default() };
            found.extend(endpoints.backend(&entry.name, &own, entry.resolution, port));
        }
        ServicePort::new(port.name.clone(), port.number, found, wanted)
    };
    let tcp = entry.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
    let mut ports: Vec<_> = tcp.map(of).collect();
    ports.sort_by_key(|port| port.number);
    ports.dedup_by_key(|port| port.number);
    ports
}

/// The addresses of a backend, as far as DNS has them.
pub(crate) fn addresses(backend: &Backend, resolution: Resolution, hosts: &Hosts) -> Vec<IpAddr> {
    let name = match &backend.address {
        BackendAddress::Ip(address) => return vec![address.to_canonical()],
        BackendAddress::Host(name) => name,
    };
    let found: Vec<_> = hosts.get(name).into_iter().flatten().map(IpAddr::to_canonical).collect();
    if resolution != Resolution::DnsRoundRobin {
        return found;
    }
    let first = |v4| found.iter().copied().find(move |address| address.is_ipv4() == v4);
    first(true).into_iter().chain(first(false)).collect()
}

/// A WorkloadEntry as the mesh sees it.
pub(crate) fn workload(entry: &WorkloadEntry, hosts: &Hosts, settings: &Settings) -> Workload {
    let addresses = addresses(&entry.backend, Resolution::Dns, hosts);
    workload_of(&entry.name, &entry.backend, addresses, settings)
}

/// A backend of a ServiceEntry as the mesh sees it, if it takes HBONE; any other is just an address.
pub(crate) fn tunnelled(
    name: &NamespacedName,
    backend: &Backend,
    address: IpAddr,
    settings: &Settings,
) -> Option<Arc<Workload>> {
    let workload = workload_of(name, backend, vec![address], settings);
    workload.enrolled.then(|| Arc::new(workload))
}

fn workload_of(
    name: &NamespacedName,
    backend: &Backend,
    addresses: Vec<IpAddr>,
    settings: &Settings,
) -> Workload {
    let tunnels = backend.labels.get(TUNNEL).map_or("", Text::as_str);
    Workload {
        name: name.clone(),
        kind: WorkloadKind::WorkloadEntry,
        uid: Arc::default(),
        identity: Identity::new(&settings.trust_domain, &name.namespace, &backend.service_account),
        node: Text::default(),
        addresses: addresses.into(),
        enrolled: tunnels.split(',').any(|tunnel| tunnel.trim() == "http"),
        names: names_of(&backend.labels, name.name.clone(), &settings.cluster),
    }
}
