use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::endpoints::is_special;
use crate::name::NamespacedName;
use crate::service::Service as Compiled;
use crate::snapshot::Workload;
use crate::world::{EndpointSlice, Pod, Service, SliceEndpoint, World};

/// What the cluster's names need of the world besides the services' addresses and ports.
#[derive(Clone, Debug, Default)]
pub(crate) struct Zone {
    domain: String,
    namespaces: BTreeSet<String>,
    /// Of headless services all, of others those that have a name of their own; sorted by label and address.
    hosts: HashMap<NamespacedName, Vec<Host>>,
    /// ServiceEntries by host, with all labels or below a `*`.
    external: HashMap<String, Vec<Arc<Compiled>>>,
    wildcards: HashMap<String, Vec<Arc<Compiled>>>,
    /// The first headless service by name that has the address.
    by_address: HashMap<IpAddr, (NamespacedName, String)>,
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
    pub fn new(
        world: &World,
        domain: &str,
        by_address: &HashMap<IpAddr, Arc<Workload>>,
        services: &[Arc<Compiled>],
        service_entries: &[Arc<Compiled>],
    ) -> Self {
        let endpoints = Endpoints::new(world, by_address);
        let live = world.pods.values().filter(|pod| !pod.phase.is_terminal());
        let of_pods = live.map(|pod| &pod.name.namespace);
        let mut zone = Self {
            domain: domain.to_ascii_lowercase(),
            namespaces: world.namespaces.keys().chain(of_pods).cloned().collect(),
            ..Self::default()
        };
        for entry in service_entries {
            let (names, host) = match entry.hostname.strip_prefix("*.") {
                Some(parent) => (&mut zone.wildcards, parent),
                None => (&mut zone.external, entry.hostname.as_str()),
            };
            names.entry(host.to_owned()).or_default().push(entry.clone());
        }
        for (service, compiled) in world.services.values().zip(services) {
            let headless = service.cluster_ips.is_empty();
            zone.namespaces.insert(service.name.namespace.clone());
            let Some(mut hosts) = endpoints.of(service, compiled) else { continue };
            hosts.retain(|host| headless || host.label != dashed(host.address));
            hosts.sort();
            hosts.dedup_by(|a, b| {
                (&a.label, a.address) == (&b.label, b.address) && {
                    b.ready |= a.ready;
                    true
                }
            });
            if headless {
                for host in hosts.iter().filter(|host| host.ready) {
                    let named = || (service.name.clone(), host.label.clone());
                    zone.by_address.entry(host.address).or_insert_with(named);
                }
            }
            if headless || !hosts.is_empty() {
                zone.hosts.insert(service.name.clone(), hosts);
            }
        }
        zone
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
        let parents = name.match_indices('.').map(|(dot, _)| self.wildcards.get(&name[dot + 1..]));
        std::iter::once(self.external.get(name))
            .chain(parents)
            .find_map(|entries| entries?.get(seen(entries)?).map(|entry| &**entry))
    }

    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.contains(name)
    }

    /// `None` for a service without endpoints of its own.
    pub fn hosts(&self, service: &NamespacedName) -> Option<&[Host]> {
        self.hosts.get(service).map(Vec::as_slice)
    }

    /// The headless service, and the label in it, of the host with this address.
    pub fn host_at(&self, address: IpAddr) -> Option<(&NamespacedName, &str)> {
        self.by_address.get(&address).map(|(service, label)| (service, label.as_str()))
    }
}

/// `10-1-0-2`, `fd00--1`
fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

struct Endpoints<'a> {
    world: &'a World,
    by_address: &'a HashMap<IpAddr, Arc<Workload>>,
    /// By namespace and service name.
    slices: HashMap<(&'a str, &'a str), Vec<&'a EndpointSlice>>,
    pods: HashMap<&'a str, Vec<&'a Pod>>,
}

impl<'a> Endpoints<'a> {
    fn new(world: &'a World, by_address: &'a HashMap<IpAddr, Arc<Workload>>) -> Self {
        let mut slices: HashMap<_, Vec<_>> = HashMap::new();
        for slice in world.endpoint_slices.values() {
            if let Some(service) = &slice.service {
                slices.entry((slice.name.namespace.as_str(), service.as_str())).or_default().push(slice);
            }
        }
        let mut pods: HashMap<_, Vec<_>> = HashMap::new();
        for pod in world.pods.values().filter(|pod| !pod.phase.is_terminal()) {
            pods.entry(pod.name.namespace.as_str()).or_default().push(pod);
        }
        Self { world, by_address, slices, pods }
    }

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
        let key = (service.name.namespace.as_str(), service.name.name.as_str());
        if let Some(slices) = self.slices.get(&key) {
            let listed = slices.iter().flat_map(|slice| &slice.endpoints);
            return Some(listed.flat_map(|endpoint| self.listed(service, endpoint)).collect());
        }
        if service.selector.is_empty() {
            return None;
        }
        let pods = self.pods.get(key.0).into_iter().flatten();
        let selected =
            pods.filter(|pod| service.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value)));
        Some(selected.flat_map(|pod| self.selected(service, pod)).collect())
    }

    fn listed(&self, service: &Service, endpoint: &SliceEndpoint) -> impl Iterator<Item = Host> {
        let own = endpoint.addresses.iter().map(IpAddr::to_canonical);
        let own = own.filter(|&ip| !is_special(ip));
        own.filter(|&ip| endpoint.target.as_ref().is_none_or(|pod| self.has(pod, ip))).map(|address| Host {
            label: endpoint.hostname.clone().unwrap_or_else(|| dashed(address)),
            address,
            ready: service.publish_not_ready || (endpoint.ready && !endpoint.terminating),
        })
    }

    fn selected(&self, service: &Service, pod: &Pod) -> impl Iterator<Item = Host> {
        let subdomain = pod.subdomain.as_ref() == Some(&service.name.name);
        let hostname = pod.hostname.as_ref().filter(|_| subdomain);
        let own = pod.addresses.iter().map(IpAddr::to_canonical);
        own.filter(|&ip| !is_special(ip) && self.has(&pod.name, ip)).map(move |address| Host {
            label: hostname.cloned().unwrap_or_else(|| dashed(address)),
            address,
            ready: (pod.ready && !pod.terminating) || service.publish_not_ready,
        })
    }

    /// Whether the address is the pod's, and not already another's.
    fn has(&self, pod: &NamespacedName, ip: IpAddr) -> bool {
        match self.by_address.get(&ip) {
            Some(owner) => owner.name == *pod,
            None => {
                let pod = self.world.pods.get(pod).filter(|pod| !pod.phase.is_terminal());
                pod.is_some_and(|pod| pod.addresses.iter().any(|own| own.to_canonical() == ip))
            }
        }
    }
}
