use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;

use crate::compile::Settings;
use crate::hosts::Hosts;
use crate::locality::Neighbourhood;
use crate::name::NamespacedName;
use crate::service::{Endpoint, Preference, ServicePort};
use crate::service_entry::{addresses, tunnelled};
use crate::snapshot::Workload;
use crate::workloads::{Workloads, in_namespace};
use crate::world::{
    self, Backend, EndpointSlice, Labels, Pod, Protocol, Resolution, SliceEndpoint, TargetPort, World,
};

/// Finds the endpoints of services.
pub(crate) struct Endpoints<'a> {
    world: &'a World,
    settings: &'a Settings,
    hosts: &'a Hosts,
    neighbourhood: Neighbourhood<'a>,
    workloads: &'a Workloads,
}

impl<'a> Endpoints<'a> {
    pub fn new(world: &'a World, hosts: &'a Hosts, settings: &'a Settings, workloads: &'a Workloads) -> Self {
        Self { world, settings, hosts, neighbourhood: Neighbourhood::new(world, settings), workloads }
    }

    /// The ports of a Kubernetes Service of this protocol, with their endpoints. EndpointSlices say it where there are any, since
    /// their ports are already resolved; else the service's selector does. WorkloadEntries are in no slice.
    pub fn of(&self, service: &world::Service, protocol: Protocol) -> Vec<ServicePort> {
        let namespace = service.name.namespace.as_str();
        let slices = self.workloads.slices.get(&service.name);
        let wanted = Preference { distribution: service.distribution, node_local: service.node_local };
        let mut ports = Vec::with_capacity(service.ports.len());
        for port in service.ports.iter().filter(|port| port.protocol == protocol) {
            let mut endpoints = match slices {
                Some(slices) => self.sliced(slices, port, service.publish_not_ready),
                None => self.selected_pods(namespace, &service.selector, port, service.publish_not_ready),
            };
            endpoints.extend(self.selected_entries(namespace, &service.selector, port));
            let mut made = ServicePort::new(port.name.clone(), port.number, endpoints, wanted);
            made.app_protocol.clone_from(&port.app_protocol);
            ports.push(made);
        }
        ports.sort_by_key(|port| port.number);
        ports.dedup_by_key(|port| port.number);
        ports
    }

    /// The pods and WorkloadEntries that have these labels; none for no labels. All are ready if `always` is set.
    pub fn selected(
        &self,
        namespace: &str,
        selector: &Labels,
        port: &world::ServicePort,
        always: bool,
    ) -> Vec<Endpoint> {
        let mut found = self.selected_pods(namespace, selector, port, always);
        found.extend(self.selected_entries(namespace, selector, port));
        found
    }

    /// What a ServiceEntry of this name lists.
    pub fn backend(
        &self,
        entry: &NamespacedName,
        backend: &Backend,
        resolution: Resolution,
        port: &world::ServicePort,
    ) -> Vec<Endpoint> {
        let addresses = addresses(backend, resolution, self.hosts).into_iter();
        let endpoint = |ip| {
            let known = self.workloads.at(ip).cloned();
            let workload = known.or_else(|| tunnelled(entry, backend, ip, self.settings));
            self.of_backend(backend, SocketAddr::new(ip, backend_port(backend, port)), workload)
        };
        addresses.filter(|&ip| !is_special(ip)).map(endpoint).collect()
    }

    fn sliced(
        &self,
        slices: &[Arc<EndpointSlice>],
        port: &world::ServicePort,
        always: bool,
    ) -> Vec<Endpoint> {
        let mut found = Vec::new();
        for slice in slices {
            let ports = if port.protocol == Protocol::Udp { &slice.udp_ports } else { &slice.ports };
            for number in ports.iter().filter(|p| p.name == port.name).map(|p| p.number) {
                for endpoint in &slice.endpoints {
                    let resolve = |&ip| self.resolve(endpoint, ip, number, always);
                    found.extend(endpoint.addresses.iter().filter_map(resolve));
                }
            }
        }
        found
    }

    /// An endpoint that names a pod counts only if that pod lives and has the address. While the two objects
    /// disagree, the address may be another pod's, or that of a pod not yet known to be enrolled.
    fn resolve(&self, endpoint: &SliceEndpoint, ip: IpAddr, port: u16, always: bool) -> Option<Endpoint> {
        let ip = ip.to_canonical();
        let workload = match &endpoint.target {
            _ if is_special(ip) => return None,
            None => self.workloads.at(ip),
            Some(target) => Some(self.owner_of(target, ip)?),
        };
        let reached = self.workloads.at(ip).or(workload);
        let node = endpoint.node.as_deref().or(workload.map(|workload| workload.node.as_str()));
        let (proximity, locality) = self.neighbourhood.of_pod(node, endpoint.zone.as_ref());
        Some(Endpoint {
            address: SocketAddr::new(ip, port),
            workload: reached.cloned(),
            ready: always || (endpoint.ready && !endpoint.terminating),
            draining: endpoint.serving && endpoint.terminating,
            proximity,
            locality,
            weight: NonZeroU32::MIN,
        })
    }

    /// The pod of this name if the address is its own, or that of the node whose network it shares.
    fn owner_of(&self, pod: &NamespacedName, ip: IpAddr) -> Option<&'a Arc<Workload>> {
        match self.workloads.pod_by_address.get(&ip) {
            Some(owner) => (owner.name == *pod).then_some(owner),
            None => self.workloads.pods.get(pod).filter(|workload| workload.addresses.contains(&ip)),
        }
    }

    fn selected_pods(
        &self,
        namespace: &str,
        selector: &Labels,
        port: &world::ServicePort,
        always: bool,
    ) -> Vec<Endpoint> {
        let pods = in_namespace(&self.world.pods, namespace);
        let mut found = Vec::new();
        for (_, pod) in pods.filter(|(_, pod)| selects(selector, &pod.labels)) {
            let Some(number) = target_port(port, pod) else { continue };
            let Some(workload) = self.workloads.pods.get(&pod.name) else { continue };
            let (proximity, locality) = self.neighbourhood.of_pod(pod.node.as_deref(), None);
            for &ip in workload.addresses.iter().filter(|&&ip| self.owner_of(&pod.name, ip).is_some()) {
                found.push(Endpoint {
                    address: SocketAddr::new(ip, number),
                    workload: Some(self.workloads.at(ip).unwrap_or(workload).clone()),
                    ready: always || (pod.ready && !pod.terminating),
                    draining: pod.ready && pod.terminating,
                    proximity,
                    locality: locality.clone(),
                    weight: NonZeroU32::MIN,
                });
            }
        }
        found
    }

    fn selected_entries(
        &self,
        namespace: &str,
        selector: &Labels,
        port: &world::ServicePort,
    ) -> Vec<Endpoint> {
        let entries = in_namespace(&self.world.workload_entries, namespace).map(|(_, entry)| entry);
        let selected = entries.filter(|entry| selects(selector, &entry.backend.labels));
        let known = selected.filter_map(|entry| Some((entry, self.workloads.entries.get(&entry.name)?)));
        let endpoints = known.flat_map(|(entry, workload)| {
            let number = backend_port(&entry.backend, port);
            workload.addresses.iter().filter(|&&ip| !is_special(ip)).map(move |&ip| {
                self.of_backend(&entry.backend, SocketAddr::new(ip, number), self.workloads.at(ip).cloned())
            })
        });
        endpoints.collect()
    }

    fn of_backend(
        &self,
        backend: &Backend,
        address: SocketAddr,
        workload: Option<Arc<Workload>>,
    ) -> Endpoint {
        let (proximity, locality) = self.neighbourhood.of_backend(&backend.locality);
        let weight = backend.weight.unwrap_or(NonZeroU32::MIN);
        // What is in another network is behind a gateway that nobody has named.
        let network = backend.network.as_ref().zip(self.settings.network.as_ref());
        let ready = network.is_none_or(|(there, here)| there == here);
        Endpoint { address, workload, ready, draining: false, proximity, locality, weight }
    }
}

/// What Kubernetes refuses as an endpoint's address too: it would lead a client to itself or to its node.
pub(crate) fn is_special(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    link_local || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast()
}

/// Whether the labels are those that a selector asks for; one that asks for none selects nothing.
pub(crate) fn selects(selector: &Labels, labels: &Labels) -> bool {
    !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn target_port(port: &world::ServicePort, pod: &Pod) -> Option<u16> {
    match &port.target {
        TargetPort::Unset => Some(port.number),
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => pod.container_ports.iter().find(|p| p.name == *name).map(|p| p.number),
    }
}

/// What the backend says of the service's port by name, else the target's number, else the service's own.
fn backend_port(backend: &Backend, port: &world::ServicePort) -> u16 {
    let by_target = match &port.target {
        TargetPort::Unset => None,
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => backend.ports.get(name).copied(),
    };
    backend.ports.get(&port.name).copied().or(by_target).unwrap_or(port.number)
}
