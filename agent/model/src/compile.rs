use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::allocation::Allocation;
use crate::change;
use crate::dns::{ServiceHosts, Zone};
use crate::endpoints::Endpoints;
use crate::hosts::Hosts;
use crate::identity::{Identity, TrustDomain};
use crate::local::{self, Local};
use crate::map::Map;
use crate::name::NamespacedName;
use crate::optin::opted_in;
use crate::owner::names;
use crate::policy::Prepared;
use crate::service::{Service, ServiceIndex, ServiceKind};
use crate::service_entry;
use crate::snapshot::{Input, Snapshot, Workload, WorkloadKind};
use crate::waypoint::{self, Waypoints};
use crate::workloads::Workloads;
use crate::world::security::IpBlock;
use crate::world::{self, Exports, Labels, Pod, Protocol, Resolution, World};

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

/// [`compile_resolved`], without making ready again what `previous` has made of what is still there: an object at the
/// same place as in its world is the same object. What a change has nothing to do with is shared.
pub fn compile_after(
    previous: Option<&Snapshot>,
    world: &World,
    hosts: &Hosts,
    settings: &Settings,
    generation: u64,
) -> Snapshot {
    let changed = previous.and_then(|previous| change::after(previous, world, hosts, settings, generation));
    changed.unwrap_or_else(|| whole(previous, world, hosts, settings, generation))
}

fn whole(
    previous: Option<&Snapshot>,
    world: &World,
    hosts: &Hosts,
    settings: &Settings,
    generation: u64,
) -> Snapshot {
    let workloads = Workloads::new(world, hosts, settings);
    let used_waypoints = waypoint::used(world);
    let endpoints = Endpoints::new(world, hosts, settings, &workloads);
    let services = Services { world, settings, endpoints: &endpoints, used_waypoints: &used_waypoints };
    let service_entries = services.of_entries();
    let mut zone = Zone::new(&settings.cluster_domain, &service_entries);
    let of_name = world.services.iter().map(|(name, of)| {
        let service = Arc::new(services.of(of));
        zone.put(name, ServiceHosts::of(world, &workloads, of, &service));
        (name.clone(), service)
    });
    let services: Map<_, _> = of_name.collect();
    let prepared = Prepared::new(previous.map(|previous| &*previous.policies), world, settings);
    let names = local::names(world, settings, &workloads);
    let (local, prepared) = Local::new(world, settings, &workloads, &prepared, &names);
    let snapshot = Snapshot {
        generation,
        world: world.clone(),
        input: Some(Arc::new(Input { settings: settings.clone(), hosts: hosts.clone() })),
        service_index: ServiceIndex::new(&services, &service_entries),
        workloads,
        services,
        service_entries: Arc::new(service_entries),
        zone,
        used_waypoints: Arc::new(used_waypoints),
        local: Arc::new(local),
        policies: Arc::new(prepared),
        ..Snapshot::default()
    };
    Snapshot { waypoints: Waypoints::new(&snapshot), ..snapshot }
}

/// The pods that live, by name.
pub(crate) fn live(world: &World) -> impl Iterator<Item = (&NamespacedName, &Arc<Pod>)> {
    world.pods.iter().filter(|(_, pod)| !pod.phase.is_terminal())
}

pub(crate) fn workload(world: &World, settings: &Settings, pod: &Pod) -> Workload {
    Workload {
        name: pod.name.clone(),
        kind: WorkloadKind::Pod,
        uid: pod.uid.clone(),
        identity: Identity::new(&settings.trust_domain, &pod.name.namespace, &pod.service_account),
        node: pod.node.clone().unwrap_or_default(),
        addresses: unicast(&pod.addresses).into(),
        enrolled: is_in_mesh(world, pod),
        names: names(pod, &settings.cluster),
    }
}

fn is_in_mesh(world: &World, pod: &Pod) -> bool {
    let none = Labels::new();
    let namespace = world.namespaces.get(&pod.name.namespace).map_or(&none, |namespace| &namespace.labels);
    !pod.host_network && !pod.windows && opted_in(namespace, &pod.labels)
}

/// The UIDs of a node's pods of the mesh, also of those that have ended, of what else is `found` on it, and those that
/// pods of the mesh claim. None is that of a pod outside, too, as may be of objects that say they are the same static pod;
/// nor is one claimed by both.
pub fn uids_in_mesh(world: &World, node: &str, found: &[Arc<Pod>]) -> HashSet<Arc<str>> {
    let here = world.pods.values().filter(|pod| pod.node.as_deref() == Some(node)).chain(found);
    let (inside, outside): (Vec<_>, Vec<_>) = here.partition(|pod| is_in_mesh(world, pod));
    let uids = |pods: &[&Arc<Pod>]| -> HashSet<Arc<str>> {
        pods.iter().filter(|pod| !pod.uid.is_empty()).map(|pod| Arc::clone(&pod.uid)).collect()
    };
    let claims = |pods: &[&Arc<Pod>]| -> HashSet<Arc<str>> {
        pods.iter().filter_map(|pod| pod.claim.as_deref()).map(Arc::from).collect()
    };
    let (known, claimed) = (uids(&inside), claims(&inside));
    let (known_outside, claimed_outside) = (uids(&outside), claims(&outside));
    let claimed = claimed.into_iter().filter(|claim| !claimed_outside.contains(claim));
    known.into_iter().chain(claimed).filter(|uid| !known_outside.contains(uid)).collect()
}

pub(crate) fn unicast(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let mut kept = Vec::with_capacity(addresses.len());
    for address in addresses.iter().map(IpAddr::to_canonical) {
        let other = address.is_loopback() || address.is_unspecified() || address.is_multicast();
        if !other && !kept.contains(&address) {
            kept.push(address);
        }
    }
    kept
}

/// Makes services of their objects.
pub(crate) struct Services<'a> {
    pub world: &'a World,
    pub settings: &'a Settings,
    pub endpoints: &'a Endpoints<'a>,
    pub used_waypoints: &'a BTreeSet<NamespacedName>,
}

impl Services<'_> {
    /// The one of a Kubernetes Service.
    pub fn of(&self, of: &world::Service) -> Service {
        Service {
            waypoint: self.waypoint(&of.name, &of.labels),
            ..service(of, self.endpoints, self.settings)
        }
    }

    /// Those of all ServiceEntries.
    fn of_entries(&self) -> Vec<Arc<Service>> {
        let allocation = Allocation::new(self.world);
        let of = |entry: &Arc<world::ServiceEntry>| {
            let waypoint = self.waypoint(&entry.name, &entry.labels);
            service_entry::services(entry, self.endpoints, &allocation, waypoint)
        };
        self.world.service_entries.values().flat_map(of).collect()
    }

    /// A waypoint has none before it.
    fn waypoint(&self, name: &NamespacedName, labels: &Labels) -> Option<NamespacedName> {
        waypoint::of_service(self.world, name, labels).filter(|_| !self.used_waypoints.contains(name))
    }
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
