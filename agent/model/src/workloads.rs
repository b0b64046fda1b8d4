use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::compile::{Settings, live, unicast, workload};
use crate::endpoints::is_special;
use crate::hosts::Hosts;
use crate::map::Map;
use crate::name::NamespacedName;
use crate::service_entry::{self, addresses};
use crate::snapshot::Workload;
use crate::text::Text;
use crate::world::{EndpointSlice, Pod, World};

/// Everything that may be an endpoint, and how it is found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Workloads {
    /// The live pods.
    pub pods: Map<NamespacedName, Workload>,
    pub pod_by_address: Map<IpAddr, Workload>,
    /// The WorkloadEntries.
    pub entries: Map<NamespacedName, Workload>,
    pub entry_by_address: Map<IpAddr, Workload>,
    /// EndpointSlices by the name of their service, sorted by their own.
    pub slices: Map<NamespacedName, Vec<Arc<EndpointSlice>>>,
    /// Slices with endpoints that are no pods of their own namespace.
    pub foreign: Map<NamespacedName, EndpointSlice>,
    /// Addresses of which more than one live pod has a say, or something that is no pod.
    pub contested: Arc<HashSet<IpAddr>>,
    /// How many live pods on the network of their node have the address.
    pub of_nodes: Map<IpAddr, usize>,
}

impl Workloads {
    pub fn new(world: &World, hosts: &Hosts, settings: &Settings) -> Self {
        let pods = live(world).map(|(name, pod)| (name.clone(), workload(world, settings, pod))).collect();
        let mut found = Self { pods, ..Self::default() };
        let mut contested = found.claim(world);
        for (name, entry) in &world.workload_entries {
            let entry = service_entry::workload(entry, hosts, settings);
            contested.extend(&entry.addresses);
            found.entries.insert(name.clone(), entry);
        }
        let listed = world.service_entries.values();
        let listed = listed.flat_map(|entry| entry.endpoints.iter().map(move |of| (entry.resolution, of)));
        contested.extend(listed.flat_map(|(resolution, backend)| addresses(backend, resolution, hosts)));
        contested.extend(hosts.values().flatten().map(IpAddr::to_canonical));
        found.entry_by_address = first_by_address(&found.entries);
        found.contested = Arc::new(contested);
        for slice in world.endpoint_slices.values() {
            found.put_slice(None, Some(slice));
        }
        found
    }

    /// What takes connections to the address: the same for every way to it, so that a workload that takes HBONE is
    /// never reached in clear.
    pub fn at(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.pod_by_address.get(&address).or_else(|| self.entry_by_address.get(&address))
    }

    /// Puts a slice in the place of the one that had its name.
    pub fn put_slice(&mut self, then: Option<&Arc<EndpointSlice>>, now: Option<&Arc<EndpointSlice>>) {
        let service = |slice: &EndpointSlice| {
            slice.service.as_ref().map(|service| NamespacedName::new(&*slice.name.namespace, &**service))
        };
        if let Some((then, service)) = then.and_then(|then| Some((then, service(then)?))) {
            let mut left = self.slices.remove(&service).map(Arc::unwrap_or_clone).unwrap_or_default();
            left.retain(|slice| !Arc::ptr_eq(slice, then));
            if !left.is_empty() {
                self.slices.insert(service, left);
            }
            self.foreign.remove(&then.name);
        }
        if let Some((now, service)) = now.and_then(|now| Some((now, service(now)?))) {
            let mut all = self.slices.remove(&service).map(Arc::unwrap_or_clone).unwrap_or_default();
            let at = all.partition_point(|slice| slice.name <= now.name);
            all.insert(at, Arc::clone(now));
            self.slices.insert(service, all);
            if is_foreign(now) {
                self.foreign.insert(now.name.clone(), Arc::clone(now));
            }
        }
    }

    /// Two pods can claim one address for a moment, when it is reused. The enrolled one gets it, so that nothing
    /// meant for it goes in clear; then the one that stays; then the first by name. Returns the addresses of several.
    fn claim(&mut self, world: &World) -> HashSet<IpAddr> {
        let mut contested = HashSet::new();
        let mut claims = Vec::with_capacity(self.pods.len());
        for (name, pod) in live(world) {
            let Some(workload) = self.pods.get(name) else { continue };
            if pod.host_network {
                workload.addresses.iter().for_each(|ip| self.of_nodes.add(*ip));
            } else {
                let rank = (!workload.enrolled, pod.terminating);
                claims.extend(workload.addresses.iter().map(|&ip| (ip, rank, workload)));
            }
        }
        claims.sort_by_key(|&(ip, rank, _)| (ip, rank));
        contested.extend(claims.windows(2).filter(|pair| pair[0].0 == pair[1].0).map(|pair| pair[0].0));
        claims.dedup_by_key(|&mut (ip, ..)| ip);
        self.pod_by_address =
            claims.into_iter().map(|(ip, _, workload)| (ip, Arc::clone(workload))).collect();
        contested
    }
}

impl Map<IpAddr, usize> {
    /// Counts one more.
    pub(crate) fn add(&mut self, address: IpAddr) {
        let count = self.get(&address).map_or(0, |count| **count);
        self.insert(address, count + 1);
    }

    /// Counts one less.
    pub(crate) fn subtract(&mut self, address: IpAddr) {
        match self.get(&address).map_or(0, |count| **count) {
            0 | 1 => drop(self.remove(&address)),
            count => drop(self.insert(address, count - 1)),
        }
    }
}

/// Of two WorkloadEntries with one address: the one that takes HBONE, so that nothing meant for it goes in clear;
/// then the first by name.
fn first_by_address(entries: &Map<NamespacedName, Workload>) -> Map<IpAddr, Workload> {
    let claims = entries.values().flat_map(|entry| entry.addresses.iter().map(move |&ip| (ip, entry)));
    let mut claims: Vec<_> = claims.collect();
    claims.sort_by_key(|&(ip, entry)| (ip, !entry.enrolled));
    claims.dedup_by_key(|&mut (ip, _)| ip);
    claims.into_iter().map(|(ip, entry)| (ip, Arc::clone(entry))).collect()
}

fn is_foreign(slice: &EndpointSlice) -> bool {
    let own = |pod: &NamespacedName| pod.namespace == slice.name.namespace;
    !slice.endpoints.iter().all(|endpoint| endpoint.target.as_ref().is_some_and(own))
}

/// Whether a slice has an endpoint with one of these addresses.
pub(crate) fn mentions(slice: &EndpointSlice, addresses: &[IpAddr]) -> bool {
    let mut own = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses).map(IpAddr::to_canonical);
    own.any(|ip| !is_special(ip) && addresses.contains(&ip))
}

/// What a map has of a namespace.
pub(crate) fn in_namespace<'a, T>(
    map: &'a Map<NamespacedName, T>,
    namespace: &'a str,
) -> impl Iterator<Item = (&'a NamespacedName, &'a Arc<T>)> {
    let first = Text::known(namespace).map(|namespace| NamespacedName { namespace, name: Text::default() });
    let entries = first.map(|first| map.starting_at(&first)).into_iter().flatten();
    entries.take_while(move |(name, _)| name.namespace == namespace)
}

/// The addresses of a pod that count, if it lives.
pub(crate) fn addresses_of(pod: &Pod) -> Vec<IpAddr> {
    if pod.phase.is_terminal() { Vec::new() } else { unicast(&pod.addresses) }
}
