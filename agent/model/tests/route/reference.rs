//! The answer, found by looking at everything.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use orlop_model::world::security::IpBlock;
use orlop_model::world::{
    Backend, BackendAddress, Distribution, EndpointSlice, Exports, Labels, Phase, Pod, Protocol, Resolution,
    Service, ServiceEntry, ServicePort, SliceEndpoint, TargetPort, WorkloadEntry,
};
use orlop_model::{NamespacedName, Reason, Text, Transport, World};

use crate::worlds::HERE;

pub type Answer = Result<BTreeMap<SocketAddr, (Transport, Option<NamespacedName>)>, Reason>;

/// Every upstream that some draw may lead to.
pub fn reference(world: &World, namespace: &str, destination: SocketAddr) -> Answer {
    let destination = SocketAddr::new(destination.ip().to_canonical(), destination.port());
    match found(world, namespace, destination.ip()) {
        None => Ok([reached(world, destination, None)].into()),
        Some(Found::Entry(entry)) => of_entry(world, namespace, entry, destination),
        Some(Found::Service(service)) => of_service(world, namespace, service, destination, true),
    }
}

enum Found<'a> {
    Service(&'a Service),
    Entry(&'a ServiceEntry),
}

fn found<'a>(world: &'a World, namespace: &str, address: IpAddr) -> Option<Found<'a>> {
    let holds = |addresses: &[IpAddr]| addresses.iter().any(|a| a.to_canonical() == address);
    if let Some(service) = world.services.values().find(|service| holds(&service.cluster_ips)) {
        return Some(Found::Service(service));
    }
    if pod_at(world, address).is_some() {
        return None;
    }
    let external = world.services.values().find(|service| holds(&service.external_ips));
    let visible = world.service_entries.values().filter(|entry| match &entry.exports {
        Exports::All => true,
        Exports::To(namespaces) => namespaces.contains(namespace),
    });
    let mut entries: Vec<_> = visible
        .flat_map(|entry| entry.addresses.iter().map(move |block| (entry, block)))
        .filter(|(_, block)| block.contains(address))
        .collect();
    entries.sort_by_key(|(entry, block)| {
        (u8::MAX - length(block), entry.name.namespace != namespace, &entry.name)
    });
    external
        .map(|service| Found::Service(service))
        .or_else(|| entries.first().map(|(entry, _)| Found::Entry(entry)))
}

fn length(block: &IpBlock) -> u8 {
    block.to_string().split_once('/').map_or(128, |(_, length)| length.parse().unwrap())
}

fn of_entry(world: &World, namespace: &str, entry: &ServiceEntry, destination: SocketAddr) -> Answer {
    if entry.resolution == Resolution::None {
        return Ok([reached(world, destination, None)].into());
    }
    let port = port_of(&entry.ports, destination.port())?;
    let mut listed = selected(world, &entry.name.namespace, &entry.selector, port, false);
    listed.extend(registered(world, &entry.name.namespace, &entry.selector, port));
    for backend in &entry.endpoints {
        let BackendAddress::Ip(address) = backend.address else { continue };
        let tunnels = backend.labels.contains_key("networking.istio.io/tunnel");
        let mut candidate = of_backend(backend, address, port);
        candidate.tunnelled_as = tunnels.then(|| entry.name.clone());
        listed.extend(candidate.usable());
    }
    choose(world, namespace, listed, entry.distribution, destination, true)
}

fn of_service(
    world: &World,
    namespace: &str,
    service: &Service,
    destination: SocketAddr,
    follow: bool,
) -> Answer {
    let port = port_of(&service.ports, destination.port())?;
    let (of, selector) = (&service.name.namespace, &service.selector);
    let mut slices = world.endpoint_slices.values().peekable();
    let is_own = |slice: &Arc<EndpointSlice>| slice.service.as_ref() == Some(&service.name.name);
    let mut listed = if slices.any(is_own) {
        sliced(world, service, port)
    } else {
        selected(world, of, selector, port, service.publish_not_ready)
    };
    listed.extend(registered(world, of, selector, port));
    for candidate in &mut listed {
        if service.node_local && candidate.far > 0 {
            candidate.condition = 2;
        }
    }
    choose(world, namespace, listed, service.distribution, destination, follow)
}

fn port_of(ports: &[ServicePort], number: u16) -> Result<&ServicePort, Reason> {
    let mut tcp = ports.iter().filter(|port| port.protocol == Protocol::Tcp);
    tcp.find(|port| port.number == number).ok_or(Reason::NoServicePort)
}

#[derive(Clone)]
struct Candidate {
    address: SocketAddr,
    /// 0 ready, 1 terminating but serving, 2 neither.
    condition: u8,
    /// 0 here, 1 in the zone, 2 in the region, 3 elsewhere.
    far: u8,
    /// The workload that it is if nobody else has its address.
    tunnelled_as: Option<NamespacedName>,
}

impl Candidate {
    fn usable(self) -> Option<Self> {
        (!self.address.ip().is_loopback()).then_some(self)
    }
}

fn choose(
    world: &World,
    namespace: &str,
    mut listed: Vec<Candidate>,
    distribution: Distribution,
    destination: SocketAddr,
    follow: bool,
) -> Answer {
    listed.sort_by_key(|candidate| (candidate.address, candidate.condition, candidate.far));
    listed.dedup_by_key(|candidate| candidate.address);
    let best = listed.iter().map(|candidate| candidate.condition).min().unwrap_or(2);
    listed.retain(|candidate| candidate.condition == best && best < 2);
    let same_family = |candidate: &Candidate| candidate.address.is_ipv4() == destination.is_ipv4();
    if listed.iter().any(same_family) {
        listed.retain(same_family);
    }
    let step = |candidate: &Candidate| match distribution {
        Distribution::Any => 0,
        Distribution::Zone => candidate.far.max(1),
        Distribution::Node => candidate.far,
    };
    let nearest = listed.iter().map(step).min();
    listed.retain(|candidate| Some(step(candidate)) == nearest);
    if listed.is_empty() {
        return Err(Reason::NoHealthyEndpoint);
    }
    let mut answer = BTreeMap::new();
    for candidate in listed {
        let (address, way) = reached(world, candidate.address, candidate.tunnelled_as);
        match found(world, namespace, address.ip()) {
            Some(Found::Service(_)) if way.0 == Transport::Plain && !follow => {
                return Err(Reason::NoHealthyEndpoint);
            }
            Some(Found::Service(next)) if way.0 == Transport::Plain => {
                answer.extend(of_service(world, namespace, next, address, false)?);
            }
            _ => drop(answer.insert(address, way)),
        }
    }
    Ok(answer)
}

fn sliced(world: &World, service: &Service, port: &ServicePort) -> Vec<Candidate> {
    let slices = world.endpoint_slices.values().filter(|s| s.service.as_ref() == Some(&service.name.name));
    let mut listed = Vec::new();
    for slice in slices {
        for number in slice.ports.iter().filter(|p| p.name == port.name).map(|p| p.number) {
            for endpoint in &slice.endpoints {
                for address in endpoint.addresses.iter().map(IpAddr::to_canonical) {
                    let agrees = |name| world.pods.get(name).is_some_and(|pod| has(world, pod, address));
                    if !address.is_loopback() && endpoint.target.as_ref().is_none_or(agrees) {
                        listed.push(Candidate {
                            address: SocketAddr::new(address, number),
                            condition: match endpoint {
                                _ if service.publish_not_ready => 0,
                                SliceEndpoint { ready: true, terminating: false, .. } => 0,
                                SliceEndpoint { serving: true, terminating: true, .. } => 1,
                                _ => 2,
                            },
                            far: far_of_slice(world, endpoint, address),
                            tunnelled_as: None,
                        });
                    }
                }
            }
        }
    }
    listed
}

fn far_of_slice(world: &World, endpoint: &SliceEndpoint, address: IpAddr) -> u8 {
    let pod = endpoint.target.as_ref().and_then(|name| world.pods.get(name));
    let pod = pod.map(|pod| &**pod).or_else(|| pod_at(world, address));
    let node = endpoint.node.clone().or_else(|| pod?.node.clone());
    match &node {
        Some(node) if node == HERE => 0,
        node => {
            let (region, zone) = place(world, node.as_deref());
            far(world, region, endpoint.zone.clone().or(zone))
        }
    }
}

fn far(world: &World, region: Option<Text>, zone: Option<Text>) -> u8 {
    let (own_region, own_zone) = place(world, Some(HERE));
    let differ = own_region.is_some() && region.is_some() && own_region != region;
    if own_zone.is_some() && own_zone == zone && !differ {
        1
    } else if own_region.is_some() && own_region == region {
        2
    } else {
        3
    }
}

fn place(world: &World, node: Option<&str>) -> (Option<Text>, Option<Text>) {
    let node = node.and_then(|node| world.nodes.get(node));
    let label = |key: &str| node.and_then(|node| node.labels.get(key).cloned());
    (label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"))
}

fn selected(
    world: &World,
    namespace: &str,
    selector: &Labels,
    port: &ServicePort,
    always: bool,
) -> Vec<Candidate> {
    let mut listed = Vec::new();
    for pod in world.pods.values().filter(|pod| pod.name.namespace == namespace && !selector.is_empty()) {
        let selected = selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value));
        let number = match &port.target {
            TargetPort::Unset => Some(port.number),
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => pod.container_ports.iter().find(|p| p.name == *name).map(|p| p.number),
        };
        let (true, Some(number)) = (selected, number) else { continue };
        let (region, zone) = place(world, pod.node.as_deref());
        let here = pod.node.as_deref() == Some(HERE);
        for address in pod.addresses.iter().map(IpAddr::to_canonical).filter(|&a| has(world, pod, a)) {
            listed.push(Candidate {
                address: SocketAddr::new(address, number),
                condition: match (pod.ready, pod.terminating) {
                    _ if always => 0,
                    (true, false) => 0,
                    (true, true) => 1,
                    _ => 2,
                },
                far: if here { 0 } else { far(world, region.clone(), zone.clone()) },
                tunnelled_as: None,
            });
        }
    }
    listed
}

fn registered(world: &World, namespace: &str, selector: &Labels, port: &ServicePort) -> Vec<Candidate> {
    let entries = world.workload_entries.values().filter(|entry| {
        let labels = &entry.backend.labels;
        let selected = selector.iter().all(|(key, value)| labels.get(key) == Some(value));
        entry.name.namespace == namespace && selected && !selector.is_empty()
    });
    let candidates = entries.filter_map(|entry| match entry.backend.address {
        BackendAddress::Ip(address) => of_backend(&entry.backend, address, port).usable(),
        BackendAddress::Host(_) => None,
    });
    candidates.collect()
}

/// Backends of the worlds say nothing of where they are.
fn of_backend(backend: &Backend, address: IpAddr, port: &ServicePort) -> Candidate {
    let target = match &port.target {
        TargetPort::Unset => port.number,
        TargetPort::Number(number) => *number,
        TargetPort::Name(name) => backend.ports.get(name).copied().unwrap_or(port.number),
    };
    let number = backend.ports.get(&port.name).copied().unwrap_or(target);
    Candidate {
        address: SocketAddr::new(address.to_canonical(), number),
        condition: 0,
        far: 3,
        tunnelled_as: None,
    }
}

fn reached(
    world: &World,
    upstream: SocketAddr,
    tunnelled_as: Option<NamespacedName>,
) -> (SocketAddr, (Transport, Option<NamespacedName>)) {
    let way = |tunnels, name: &NamespacedName| {
        (if tunnels { Transport::Hbone } else { Transport::Plain }, Some(name.clone()))
    };
    let way = match (pod_at(world, upstream.ip()), entry_at(world, upstream.ip()), &tunnelled_as) {
        (Some(pod), _, _) => way(enrolled(world, pod), &pod.name),
        (None, Some(entry), _) => way(tunnels(entry), &entry.name),
        (None, None, Some(name)) => way(true, name),
        (None, None, None) => (Transport::Plain, None),
    };
    (upstream, way)
}

fn has(world: &World, pod: &Pod, address: IpAddr) -> bool {
    let live = !matches!(pod.phase, Phase::Succeeded | Phase::Failed) && !address.is_loopback();
    let listed = pod.addresses.iter().any(|a| a.to_canonical() == address);
    live && listed && pod_at(world, address).map_or(pod.host_network, |owner| owner.name == pod.name)
}

fn pod_at(world: &World, address: IpAddr) -> Option<&Pod> {
    let mut claims: Vec<_> = world
        .pods
        .values()
        .filter(|pod| !matches!(pod.phase, Phase::Succeeded | Phase::Failed) && !pod.host_network)
        .filter(|pod| !address.is_loopback() && pod.addresses.iter().any(|a| a.to_canonical() == address))
        .collect();
    claims.sort_by_key(|pod| (!enrolled(world, pod), pod.terminating, &pod.name));
    claims.first().map(|pod| &***pod)
}

fn entry_at(world: &World, address: IpAddr) -> Option<&WorkloadEntry> {
    let here =
        |entry: &&Arc<WorkloadEntry>| matches!(entry.backend.address, BackendAddress::Ip(a) if a == address);
    world.workload_entries.values().filter(here).map(|entry| &**entry).min_by_key(|entry| !tunnels(entry))
}

fn tunnels(entry: &WorkloadEntry) -> bool {
    entry.backend.labels.contains_key("networking.istio.io/tunnel")
}

fn enrolled(world: &World, pod: &Pod) -> bool {
    match pod.labels.get("orlop.dev/mesh").map(Text::as_str) {
        Some("enabled") => true,
        Some("disabled") => false,
        _ => world.namespaces.contains_key(&pod.name.namespace),
    }
}
