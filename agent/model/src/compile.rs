use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::allocation::Allocation;
use crate::dns::Zone;
use crate::endpoints::{Endpoints, Workloads};
use crate::hosts::Hosts;
use crate::identity::{Identity, TrustDomain};
use crate::mutual_tls::{MutualTls, PeerAuthentications};
use crate::name::NamespacedName;
use crate::optin::opted_in;
use crate::owner::names;
use crate::policy::{Prepared, Scopes, findings, listed};
use crate::service::{Service, ServiceIndex, ServiceKind};
use crate::service_entry;
use crate::snapshot::{LocalPod, Snapshot, Workload, WorkloadKind};
use crate::waypoint::{self, Waypoints};
use crate::world::security::IpBlock;
use crate::world::{self, Exports, Labels, Pod, Protocol, Resolution, World};

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
    /// The network of this node, as Istio's `topology.istio.io/network`; backends of any can be reached where it is
    /// not known.
    pub network: Option<String>,
}

/// Compiles the world as seen from one node, with no name resolved. The same input gives the same snapshot.
pub fn compile(world: &World, settings: &Settings, generation: u64) -> Snapshot {
    compile_resolved(world, &Hosts::new(), settings, generation)
}

/// Compiles the world as seen from one node; `hosts` says what DNS has for the names of
/// [`hosts_of`](crate::hosts_of). The same input gives the same snapshot.
pub fn compile_resolved(world: &World, hosts: &Hosts, settings: &Settings, generation: u64) -> Snapshot {
    compile_after(None, world, hosts, settings, generation)
}

/// [`compile_resolved`], without making ready again what `previous` has made of policies that are still there: an
/// `AuthorizationPolicy` at the same place as in its world is the same policy.
pub fn compile_after(
    previous: Option<&Snapshot>,
    world: &World,
    hosts: &Hosts,
    settings: &Settings,
    generation: u64,
) -> Snapshot {
    let pods: Vec<_> = live(world).map(|pod| Arc::new(workload(world, settings, pod))).collect();
    let pod_by_address = by_address(live(world).zip(&pods));
    let entries = world.workload_entries.values();
    let entries: Vec<_> =
        entries.map(|entry| Arc::new(service_entry::workload(entry, hosts, settings))).collect();
    let entry_by_address = first_by_address(&entries);
    let workloads = Workloads { pods, pod_by_address, entries, entry_by_address };
    let local_pods = live(world)
        .zip(&workloads.pods)
        .filter(|(_, workload)| workload.enrolled && workload.node == settings.node)
        .map(|(pod, workload)| LocalPod {
            workload: workload.clone(),
            netns: netns(pod),
            probed: pod.probed.clone(),
        })
        .collect();
    let endpoints = Endpoints::new(world, hosts, settings, &workloads);
    let waypoint_names = waypoint::used(world);
    let waypoint = |name: &NamespacedName, labels: &Labels| {
        waypoint::of_service(world, name, labels).filter(|_| !waypoint_names.contains(name))
    };
    let services = world.services.values().map(|of| {
        let waypoint = waypoint(&of.name, &of.labels);
        Arc::new(Service { waypoint, ..service(of, &endpoints, settings) })
    });
    let services: Vec<_> = services.collect();
    let allocation = Allocation::new(world);
    let of_entry = |entry: &world::ServiceEntry| {
        let waypoint = waypoint(&entry.name, &entry.labels);
        service_entry::services(entry, &endpoints, &allocation, waypoint)
    };
    let service_entries: Vec<_> = world.service_entries.values().flat_map(of_entry).collect();
    let service_index = ServiceIndex::new(&services, &service_entries);
    let zone =
        Zone::new(world, &settings.cluster_domain, &workloads.pod_by_address, &services, &service_entries);
    let labelled = live(world).zip(&workloads.pods).map(|(pod, workload)| (workload, &pod.labels));
    let registered = world.workload_entries.values().zip(&workloads.entries);
    let registered = registered.map(|(entry, workload)| (workload, &entry.backend.labels));
    let waypoints =
        Waypoints::new(world, services.iter().chain(&service_entries), labelled.chain(registered));
    let previous = previous.map(|previous| &previous.prepared);
    let mut prepared = Prepared::new(previous, world, settings);
    let mut scopes = Scopes::new(&prepared, previous, settings);
    let policies = scopes.index(live(world));
    let peer_authentications = PeerAuthentications::new(world, settings);
    let mutual_tls = MutualTls::new(&peer_authentications, live(world));
    let all_services: Vec<_> = services.iter().chain(&service_entries).collect();
    let findings = findings(world, settings, &scopes, &peer_authentications, &all_services);
    prepared.layers = scopes.into_layers();
    let Workloads { pods, pod_by_address, entry_by_address, .. } = workloads;
    Snapshot {
        generation,
        as_of: world.as_of,
        workloads: pods,
        services,
        service_entries,
        local_pods,
        workload_by_address: pod_by_address,
        entry_by_address,
        service_index,
        zone,
        waypoints,
        policies,
        prepared,
        mutual_tls,
        listed_policies: listed(world, &settings.root_namespace),
        routes: Arc::default(),
        findings,
    }
}

fn live(world: &World) -> impl Iterator<Item = &Pod> {
    world.pods.values().filter(|pod| !pod.phase.is_terminal())
}

fn workload(world: &World, settings: &Settings, pod: &Pod) -> Workload {
    let none = Labels::new();
    let namespace = world.namespaces.get(&pod.name.namespace).map_or(&none, |namespace| &namespace.labels);
    let names = names(pod);
    Workload {
        name: pod.name.clone(),
        kind: WorkloadKind::Pod,
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

/// Of two WorkloadEntries with one address: the one that takes HBONE, so that nothing meant for it goes in clear;
/// then the first by name.
fn first_by_address(entries: &[Arc<Workload>]) -> HashMap<IpAddr, Arc<Workload>> {
    let mut sorted: Vec<_> = entries.iter().collect();
    sorted.sort_by_key(|entry| !entry.enrolled);
    let mut map = HashMap::with_capacity(entries.len());
    for entry in sorted {
        for &address in &entry.addresses {
            map.entry(address).or_insert_with(|| entry.clone());
        }
    }
    map
}

fn service(service: &world::Service, endpoints: &Endpoints<'_>, settings: &Settings) -> Service {
    let name = service.name.clone();
    Service {
        kind: ServiceKind::Service,
        hostname: format!("{}.{}.svc.{}", name.name, name.namespace, settings.cluster_domain),
        name,
        vips: unicast(&service.cluster_ips),
        aliases: unicast(&service.external_ips).into_iter().map(IpBlock::single).collect(),
        external_name: service.external_name.clone(),
        ports: endpoints.of(service, Protocol::Tcp),
        udp_ports: endpoints.of(service, Protocol::Udp),
        resolution: Resolution::Static,
        affinity: service.affinity,
        waypoint: None,
        exports: Exports::All,
    }
}
