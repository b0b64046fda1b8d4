use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::endpoints::{is_special, selects};
use crate::map::Map;
use crate::name::NamespacedName;
use crate::service::Service as Compiled;
use crate::snapshot::Snapshot;
use crate::workloads::{Workloads, in_namespace};
use crate::world::{Pod, Service, SliceEndpoint, World};

/// What the cluster's names need of the world besides the services' addresses and ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Zone {
    domain: String,
    /// Of headless services all, of others those that have a name of their own; sorted by label and address.
    hosts: Map<NamespacedName, Vec<Host>>,
    external: Arc<External>,
    /// The first label of a ready host with the address, by headless service.
    by_address: Map<(IpAddr, NamespacedName), String>,
}

/// ServiceEntries by host, with all labels or below a `*`.
#[derive(Debug, Default, PartialEq, Eq)]
struct External {
    names: HashMap<String, Vec<Arc<Compiled>>>,
    wildcards: HashMap<String, Vec<Arc<Compiled>>>,
}

/// An endpoint of a service, whatever its ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Host {
    /// The first label of its name: its own, or its address with dashes.
    pub label: String,
    pub address: IpAddr,
    /// Whether it is published.
    pub ready: bool,
}

impl Zone {
    /// Without the hosts of Kubernetes Services: see [`put`](Self::put).
    pub fn new(domain: &str, service_entries: &[Arc<Compiled>]) -> Self {
        let mut external = External::default();
        for entry in service_entries {
            let (names, host) = match entry.hostname.strip_prefix("*.") {
                Some(parent) => (&mut external.wildcards, parent),
                None => (&mut external.names, entry.hostname.as_str()),
            };
            names.entry(host.to_owned()).or_default().push(entry.clone());
        }
        Self { domain: domain.to_ascii_lowercase(), external: Arc::new(external), ..Self::default() }
    }

    /// Gives a service its hosts, in the place of those it had.
    pub fn put(&mut self, name: &NamespacedName, hosts: Option<ServiceHosts>) {
        for host in self.hosts.remove(name).iter().flat_map(|hosts| hosts.iter()) {
            self.by_address.remove(&(host.address, name.clone()));
        }
        let Some(ServiceHosts { headless, hosts }) = hosts else { return };
        if headless {
            // The first of several labels counts.
            for host in hosts.iter().rev().filter(|host| host.ready) {
                self.by_address.insert((host.address, name.clone()), host.label.clone());
            }
        }
        if headless || !hosts.is_empty() {
            self.hosts.insert(name.clone(), hosts);
        }
    }

    /// Of all names, in lower case.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The ServiceEntry that a client of the namespace sees under this name: of several one of its own namespace,
    /// and the name itself before any `*`, of which the longest counts.
    pub fn external(&self, client: &str, name: &str) -> Option<&Compiled> {
        let seen = |entries: Option<&'_ Vec<Arc<Compiled>>>| {
            let visible = entries?.iter().enumerate().filter(|(_, entry)| entry.visible_to(client));
            // The first of equals is the smallest.
            visible.min_by_key(|(_, entry)| entry.name.namespace != client).map(|(index, _)| index)
        };
        let External { names, wildcards } = &*self.external;
        let parents = name.match_indices('.').map(|(dot, _)| wildcards.get(&name[dot + 1..]));
        std::iter::once(names.get(name))
            .chain(parents)
            .find_map(|entries| entries?.get(seen(entries)?).map(|entry| &**entry))
    }

    /// `None` for a service without endpoints of its own.
    pub fn hosts(&self, service: &NamespacedName) -> Option<&[Host]> {
        self.hosts.get(service).map(|hosts| hosts.as_slice())
    }

    /// The first headless service by name that has a host with this address, and the host's label.
    pub fn host_at(&self, address: IpAddr) -> Option<(&NamespacedName, &str)> {
        let ((at, service), label) =
            self.by_address.starting_at(&(address, NamespacedName::default())).next()?;
        (*at == address).then_some((service, label.as_str()))
    }
}

/// `10-1-0-2`, `fd00--1`
fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

/// The hosts of a service.
pub(crate) struct ServiceHosts {
    headless: bool,
    /// Sorted by label and address.
    hosts: Vec<Host>,
}

impl ServiceHosts {
    /// Those of a service that has endpoints of its own.
    pub fn of(world: &World, workloads: &Workloads, service: &Service, compiled: &Compiled) -> Option<Self> {
        let headless = service.cluster_ips.is_empty();
        let mut hosts = Endpoints { world, workloads }.of(service, compiled)?;
        hosts.retain(|host| headless || host.label != dashed(host.address));
        hosts.sort();
        hosts.dedup_by(|a, b| {
            (&a.label, a.address) == (&b.label, b.address) && {
                b.ready |= a.ready;
                true
            }
        });
        Some(Self { headless, hosts })
    }
}

impl Snapshot {
    /// Whether there is a namespace of this name, or something in one.
    pub(crate) fn has_namespace(&self, name: &str) -> bool {
        self.world.namespaces.contains_key(name)
            || in_namespace(&self.workloads.pods, name).next().is_some()
            || in_namespace(&self.services, name).next().is_some()
    }
}

struct Endpoints<'a> {
    world: &'a World,
    workloads: &'a Workloads,
}

impl Endpoints<'_> {
    /// From EndpointSlices where there are any, else from the service's selector, and whatever else is an endpoint of
    /// its ports. `None` without any of these.
    fn of(&self, service: &Service, compiled: &Compiled) -> Option<Vec<Host>> {
        let mut hosts = self.of_pods(service);
        for endpoint in compiled.ports.iter().flat_map(|port| &port.endpoints) {
            let address = endpoint.address.ip();
            let hosts = hosts.get_or_insert_default();
            if !hosts.iter().any(|host| host.address == address) {
                hosts.push(Host { label: dashed(address), address, ready: endpoint.ready });
            }
        }
        hosts
    }

    fn of_pods(&self, service: &Service) -> Option<Vec<Host>> {
        if let Some(slices) = self.workloads.slices.get(&service.name) {
            let listed = slices.iter().flat_map(|slice| &slice.endpoints);
            return Some(listed.flat_map(|endpoint| self.listed(service, endpoint)).collect());
        }
        if service.selector.is_empty() {
            return None;
        }
        let pods = in_namespace(&self.world.pods, &service.name.namespace).map(|(_, pod)| pod);
        let selected = pods.filter(|pod| !pod.phase.is_terminal() && selects(&service.selector, &pod.labels));
        Some(selected.flat_map(|pod| self.selected(service, pod)).collect())
    }

    fn listed(&self, service: &Service, endpoint: &SliceEndpoint) -> impl Iterator<Item = Host> {
        let own = endpoint.addresses.iter().map(IpAddr::to_canonical);
        let own = own.filter(|&ip| !is_special(ip));
        own.filter(|&ip| endpoint.target.as_ref().is_none_or(|pod| self.has(pod, ip))).map(|address| Host {
            label: endpoint.hostname.as_ref().map(ToString::to_string).unwrap_or_else(|| dashed(address)),
            address,
            ready: service.publish_not_ready || (endpoint.ready && !endpoint.terminating),
        })
    }

    fn selected(&self, service: &Service, pod: &Pod) -> impl Iterator<Item = Host> {
        let subdomain = pod.subdomain.as_ref() == Some(&service.name.name);
        let hostname = pod.hostname.as_ref().filter(|_| subdomain);
        let own = pod.addresses.iter().map(IpAddr::to_canonical);
        own.filter(|&ip| !is_special(ip) && self.has(&pod.name, ip)).map(move |address| Host {
            label: hostname.map(ToString::to_string).unwrap_or_else(|| dashed(address)),
            address,
            ready: (pod.ready && !pod.terminating) || service.publish_not_ready,
        })
    }

    /// Whether the address is the pod's, and not already another's.
    fn has(&self, pod: &NamespacedName, ip: IpAddr) -> bool {
        match self.workloads.pod_by_address.get(&ip) {
            Some(owner) => owner.name == *pod,
            None => {
                let pod = self.world.pods.get(pod).filter(|pod| !pod.phase.is_terminal());
                pod.is_some_and(|pod| pod.addresses.iter().any(|own| own.to_canonical() == ip))
            }
        }
    }
}
