use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::name::NamespacedName;
use crate::snapshot::{Endpoint, ServicePort, Workload};
use crate::world::{self, EndpointSlice, Pod, Protocol, SliceEndpoint, TargetPort, World};

/// Finds the endpoints of services.
pub(crate) struct Endpoints<'a> {
    workloads: HashMap<&'a NamespacedName, &'a Arc<Workload>>,
    by_address: &'a HashMap<IpAddr, Arc<Workload>>,
    /// By namespace and service name.
    slices: HashMap<(&'a str, &'a str), Vec<&'a EndpointSlice>>,
    by_namespace: HashMap<&'a str, Vec<&'a Pod>>,
}

impl<'a> Endpoints<'a> {
    pub fn new(
        world: &'a World,
        workloads: &'a [Arc<Workload>],
        by_address: &'a HashMap<IpAddr, Arc<Workload>>,
    ) -> Self {
        let mut slices: HashMap<_, Vec<_>> = HashMap::new();
        for slice in world.endpoint_slices.values() {
            if let Some(service) = &slice.service {
                slices.entry((slice.name.namespace.as_str(), service.as_str())).or_default().push(slice);
            }
        }
        let mut by_namespace: HashMap<_, Vec<_>> = HashMap::new();
        for pod in world.pods.values() {
            by_namespace.entry(pod.name.namespace.as_str()).or_default().push(pod);
        }
        let workloads = workloads.iter().map(|workload| (&workload.name, workload)).collect();
        Self { workloads, by_address, slices, by_namespace }
    }

    /// The TCP ports of a service with their endpoints. EndpointSlices say it where there are any, since their
    /// ports are already resolved; else the service's selector does.
    pub fn of(&self, service: &world::Service) -> Vec<ServicePort> {
        let key = (service.name.namespace.as_str(), service.name.name.as_str());
        let mut ports = Vec::with_capacity(service.ports.len());
        for port in service.ports.iter().filter(|port| port.protocol == Protocol::Tcp) {
            let endpoints = match self.slices.get(&key) {
                Some(slices) => self.sliced(slices, &port.name),
                None => self.selected(service, port),
            };
            ports.push(sorted(port, endpoints));
        }
        ports.sort_by_key(|port| port.number);
        ports.dedup_by_key(|port| port.number);
        ports
    }

    fn sliced(&self, slices: &[&EndpointSlice], port: &str) -> Vec<Endpoint> {
        let mut found = Vec::new();
        for slice in slices {
            for number in slice.ports.iter().filter(|p| p.name == port).map(|p| p.number) {
                for endpoint in &slice.endpoints {
                    found.extend(
                        endpoint.addresses.iter().filter_map(|&ip| self.resolve(endpoint, ip, number)),
                    );
                }
            }
        }
        found
    }

    /// An endpoint that names a pod counts only if that pod lives and has the address. While the two objects
    /// disagree, the address may be another pod's, or that of a pod not yet known to be enrolled.
    fn resolve(&self, endpoint: &SliceEndpoint, ip: IpAddr, port: u16) -> Option<Endpoint> {
        let ip = ip.to_canonical();
        let workload = match &endpoint.target {
            _ if is_special(ip) => return None,
            None => self.by_address.get(&ip),
            Some(target) => Some(self.owner_of(target, ip)?),
        };
        Some(Endpoint {
            address: SocketAddr::new(ip, port),
            workload: workload.cloned(),
            ready: endpoint.ready && !endpoint.terminating,
        })
    }

    /// The pod of this name if the address is its own, or that of the node whose network it shares.
    fn owner_of(&self, pod: &NamespacedName, ip: IpAddr) -> Option<&'a Arc<Workload>> {
        match self.by_address.get(&ip) {
            Some(owner) => (owner.name == *pod).then_some(owner),
            None => self.workloads.get(pod).copied().filter(|workload| workload.addresses.contains(&ip)),
        }
    }

    fn selected(&self, service: &world::Service, port: &world::ServicePort) -> Vec<Endpoint> {
        let pods = self.by_namespace.get(service.name.namespace.as_str());
        if service.selector.is_empty() {
            return Vec::new();
        }
        let pods = pods.into_iter().flatten().filter(|pod| selects(service, pod));
        let mut found = Vec::new();
        for pod in pods {
            let Some(number) = target_port(port, pod) else { continue };
            let Some(workload) = self.workloads.get(&pod.name) else { continue };
            let ready = (pod.ready && !pod.terminating) || service.publish_not_ready;
            for &ip in workload.addresses.iter().filter(|&&ip| self.owner_of(&pod.name, ip).is_some()) {
                let address = SocketAddr::new(ip, number);
                found.push(Endpoint { address, workload: Some((*workload).clone()), ready });
            }
        }
        found
    }
}

/// What Kubernetes refuses as an endpoint's address too: it would lead a client to itself or to its node.
fn is_special(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    link_local || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast()
}

fn selects(service: &world::Service, pod: &Pod) -> bool {
    service.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
}

fn target_port(port: &world::ServicePort, pod: &Pod) -> Option<u16> {
    match &port.target {
        TargetPort::Unset => Some(port.number),
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => pod.container_ports.iter().find(|p| p.name == *name).map(|p| p.number),
    }
}

/// An endpoint can be in two slices while it moves between them; the ready entry is kept.
fn sorted(port: &world::ServicePort, mut endpoints: Vec<Endpoint>) -> ServicePort {
    endpoints.sort_by_key(|endpoint| (endpoint.address, !endpoint.ready));
    endpoints.dedup_by_key(|endpoint| endpoint.address);
    endpoints.sort_by_key(|endpoint| !endpoint.ready);
    let ready = endpoints.iter().take_while(|endpoint| endpoint.ready).count();
    let ready_v4 = endpoints[..ready].iter().take_while(|endpoint| endpoint.address.is_ipv4()).count();
    ServicePort { name: port.name.clone(), number: port.number, endpoints, ready_v4, ready }
}
