use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::endpoints::Endpoints;
use crate::identity::{Identity, TrustDomain};
use crate::mutual_tls::{MutualTls, PeerAuthentications};
use crate::optin::opted_in;
use crate::owner::names;
use crate::policy::{Scopes, findings};
use crate::snapshot::{LocalPod, Service, Snapshot, Workload};
use crate::world::{Labels, Pod, World};

/// Says where a local pod's network namespace is, for sources that have no container runtime behind them.
const NETNS: &str = "orlop.dev/netns";

/// Where Istio's users have the policies for the whole mesh.
pub const DEFAULT_ROOT_NAMESPACE: &str = "istio-system";

/// What a compilation needs besides the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// This node's name.
    pub node: String,
    /// The trust domain of all identities.
    pub trust_domain: TrustDomain,
    /// Former or further names of the trust domain: in the principals of policies each of them, and
    /// `cluster.local`, stands for all of them.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// The namespace whose policies are for the whole mesh, as Istio's; see [`DEFAULT_ROOT_NAMESPACE`].
    pub root_namespace: String,
    /// The cluster's name, such as `Kubernetes`.
    pub cluster: String,
    /// The DNS suffix of services, such as `cluster.local`.
    pub cluster_domain: String,
}

/// Compiles the world as seen from one node. The same input gives the same snapshot.
pub fn compile(world: &World, settings: &Settings, generation: u64) -> Snapshot {
    let live = || world.pods.values().filter(|pod| !pod.phase.is_terminal());
    let workloads: Vec<_> = live().map(|pod| Arc::new(workload(world, settings, pod))).collect();
    let workload_by_address = by_address(live().zip(&workloads));
    let local_pods = live()
        .zip(&workloads)
        .filter(|(_, workload)| workload.enrolled && workload.node == settings.node)
        .map(|(pod, workload)| LocalPod { workload: workload.clone(), netns: netns(pod) })
        .collect();
    let services = services(world, settings, &workloads, &workload_by_address);
    let service_by_vip = by_vip(&services);
    let mut scopes = Scopes::new(world, settings);
    let policies = scopes.index(live());
    let peer_authentications = PeerAuthentications::new(world, settings);
    let mutual_tls = MutualTls::new(&peer_authentications, live());
    let findings = findings(world, settings, &scopes, &peer_authentications);
    Snapshot {
        generation,
        workloads,
        services,
        local_pods,
        workload_by_address,
        service_by_vip,
        policies,
        mutual_tls,
        findings,
    }
}

fn workload(world: &World, settings: &Settings, pod: &Pod) -> Workload {
    let none = Labels::new();
    let namespace = world.namespaces.get(&pod.name.namespace).map_or(&none, |namespace| &namespace.labels);
    let names = names(pod);
    Workload {
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        identity: Identity::new(&settings.trust_domain, &pod.name.namespace, &pod.service_account),
        node: pod.node.clone().unwrap_or_default(),
        addresses: unicast(&pod.addresses),
        enrolled: !pod.host_network && opted_in(namespace, &pod.labels),
        owner: names.owner,
        canonical_service: names.canonical_service,
        canonical_revision: names.canonical_revision,
        app: names.app,
        version: names.version,
        cluster: settings.cluster.clone(),
    }
}

fn unicast(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let mut kept = Vec::with_capacity(addresses.len());
    for address in addresses.iter().map(IpAddr::to_canonical) {
        let other = address.is_loopback() || address.is_unspecified() || address.is_multicast();
        if !other && !kept.contains(&address) {
            kept.push(address);
        }
    }
    kept
}

/// Two pods can claim one address for a moment, when it is reused. The enrolled one gets it, so that nothing
/// meant for it goes in clear; then the one that stays; then the first by name.
fn by_address<'a>(
    pods: impl Iterator<Item = (&'a Pod, &'a Arc<Workload>)>,
) -> HashMap<IpAddr, Arc<Workload>> {
    let mut pods: Vec<_> = pods.filter(|(pod, _)| !pod.host_network).collect();
    pods.sort_by_key(|(pod, workload)| (!workload.enrolled, pod.terminating));
    let mut map = HashMap::with_capacity(pods.len());
    for (_, workload) in pods {
        for &address in &workload.addresses {
            map.entry(address).or_insert_with(|| workload.clone());
        }
    }
    map
}

/// A relative path would depend on where the agent was started.
fn netns(pod: &Pod) -> Option<PathBuf> {
    pod.annotations.get(NETNS).map(PathBuf::from).filter(|path| path.is_absolute())
}

fn services(
    world: &World,
    settings: &Settings,
    workloads: &[Arc<Workload>],
    by_address: &HashMap<IpAddr, Arc<Workload>>,
) -> Vec<Arc<Service>> {
    let endpoints = Endpoints::new(world, workloads, by_address);
    let compiled = world.services.values().map(|service| {
        let name = service.name.clone();
        let hostname = format!("{}.{}.svc.{}", name.name, name.namespace, settings.cluster_domain);
        let vips = unicast(&service.cluster_ips);
        Arc::new(Service { name, hostname, vips, ports: endpoints.of(service) })
    });
    compiled.collect()
}

/// Of two services with one address the first by name has it.
fn by_vip(services: &[Arc<Service>]) -> HashMap<IpAddr, Arc<Service>> {
    let mut map = HashMap::with_capacity(services.len());
    for service in services {
        for &vip in &service.vips {
            if let Entry::Vacant(entry) = map.entry(vip) {
                entry.insert(service.clone());
            }
        }
    }
    map
}
