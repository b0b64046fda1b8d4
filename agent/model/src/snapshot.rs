use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use serde::ser::{Serialize, SerializeStruct, Serializer};

use crate::addresses::Addresses;
use crate::compile::Settings;
use crate::dns::Zone;
use crate::hosts::Hosts;
use crate::http::Routes;
use crate::identity::Identity;
use crate::local::Local;
use crate::map::{Difference, Map};
use crate::name::NamespacedName;
use crate::owner::Names;
use crate::policy::{self, Finding, Prepared};
use crate::service::{Service, ServiceIndex};
use crate::text::Text;
use crate::waypoint::Waypoints;
use crate::workloads::Workloads;
use crate::world::World;

/// The compiled world. Immutable: a change of the world makes another one with a higher generation, which shares with
/// this one what has not changed.
///
/// Serializes to what an admin may see of it.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub(crate) generation: u64,
    /// What it was made of.
    pub(crate) world: World,
    pub(crate) input: Option<Arc<Input>>,
    pub(crate) workloads: Workloads,
    pub(crate) services: Map<NamespacedName, Service>,
    /// Sorted by name, then by host in the order of the ServiceEntry.
    pub(crate) service_entries: Arc<Vec<Arc<Service>>>,
    pub(crate) service_index: ServiceIndex,
    pub(crate) zone: Zone,
    /// The names that labels give waypoints.
    pub(crate) used_waypoints: Arc<BTreeSet<NamespacedName>>,
    pub(crate) waypoints: Waypoints,
    pub(crate) local: Arc<Local>,
    pub(crate) policies: Arc<Prepared>,
    pub(crate) routes: Arc<Routes>,
    /// Of the routes.
    pub(crate) route_findings: Vec<Finding>,
    /// Once somebody has asked.
    pub(crate) findings: OnceLock<Vec<Finding>>,
}

/// What a snapshot was made with besides the world.
#[derive(Debug)]
pub(crate) struct Input {
    pub settings: Settings,
    pub hosts: Hosts,
}

impl Snapshot {
    /// Which state of the world this is; grows with each change.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// When the world was so, if that is of the past; see [`World::as_of`].
    pub fn as_of(&self) -> Option<SystemTime> {
        self.world.as_of
    }

    /// The live pod that has this address, or else the WorkloadEntry. Pods on the host's network are not found:
    /// the address is the node's.
    pub fn workload_at(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        let address = address.to_canonical();
        self.workloads.at(address)
    }

    /// The live pod of this name.
    pub fn workload(&self, name: &NamespacedName) -> Option<&Arc<Workload>> {
        self.workloads.pods.get(name)
    }

    /// The Kubernetes Service that has this cluster IP.
    pub fn service_at(&self, vip: IpAddr) -> Option<&Arc<Service>> {
        self.service_index.cluster_ip(vip.to_canonical())
    }

    /// The service that a client of this namespace reaches at an address.
    ///
    /// A cluster IP counts first, and then the address of a pod, which is no service's: who may write a Service or
    /// a ServiceEntry must not take them over. Then come external and load-balancer addresses of Services, and
    /// the addresses of ServiceEntries, of which the narrowest block counts.
    pub fn service_to(&self, namespace: &str, address: IpAddr) -> Option<&Arc<Service>> {
        let address = address.to_canonical();
        self.service_at(address).or_else(|| {
            // Few addresses are claimed, and many are pods'.
            let claimed = self.service_index.claimed(namespace, address)?;
            let is_pod = self.workloads.pod_by_address.contains_key(&address);
            if is_pod { None } else { Some(claimed) }
        })
    }

    /// The Kubernetes Service of this name.
    pub fn service(&self, name: &NamespacedName) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    /// The service that a client of this namespace calls by this host.
    pub fn service_named(&self, namespace: &str, host: &str) -> Option<&Arc<Service>> {
        self.service_index.named(namespace, host)
    }

    /// The enrolled pods of this node, sorted by name.
    pub fn local_pods(&self) -> &[LocalPod] {
        &self.local.pods
    }

    /// All live pods, sorted by name.
    pub fn workloads(&self) -> impl ExactSizeIterator<Item = &Arc<Workload>> {
        self.workloads.pods.values()
    }

    /// What the authors of policies should know, sorted by resource. Costs a look at the whole world, once.
    pub fn findings(&self) -> &[Finding] {
        self.findings.get_or_init(|| {
            let Some(input) = &self.input else { return Vec::new() };
            let mut found = policy::findings(self, &input.settings);
            found.extend(self.route_findings.iter().cloned());
            found.sort();
            found.dedup();
            found
        })
    }

    /// All Kubernetes Services, sorted by name.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// The Kubernetes Services that are not the same as in an earlier snapshot, sorted by name.
    pub fn changed_services<'a>(
        &'a self,
        earlier: &'a Self,
    ) -> impl Iterator<Item = Difference<'a, NamespacedName, Service>> {
        earlier.services.differences(&self.services)
    }

    /// The hosts of all ServiceEntries, each a service, sorted by the entry's name.
    pub fn service_entries(&self) -> impl ExactSizeIterator<Item = &Arc<Service>> {
        self.service_entries.iter()
    }
}

impl Serialize for Snapshot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let root_namespace = self.input.as_ref().map_or("", |input| &input.settings.root_namespace);
        let mut fields = serializer.serialize_struct("Snapshot", 7)?;
        fields.serialize_field("generation", &self.generation)?;
        fields.serialize_field("workloads", &self.workloads().collect::<Vec<_>>())?;
        fields.serialize_field("services", &self.services().collect::<Vec<_>>())?;
        fields.serialize_field("service_entries", &self.service_entries)?;
        fields.serialize_field("local_pods", &self.local.pods)?;
        fields.serialize_field("listed_policies", &policy::listed(&self.world, root_namespace))?;
        fields.serialize_field("findings", self.findings())?;
        fields.end()
    }
}

/// A live pod, or a WorkloadEntry, as the mesh sees it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Workload {
    /// Namespace and name.
    pub name: NamespacedName,
    /// What it is.
    pub kind: WorkloadKind,
    /// The pod's UID; empty where the source has none.
    pub uid: Arc<str>,
    /// What its certificate says.
    pub identity: Identity,
    /// The node's name; empty until the pod is scheduled.
    pub node: Text,
    /// Its addresses: unicast, not loopback, no IPv4-mapped IPv6.
    pub addresses: Addresses,
    /// Whether it is part of the mesh: it takes HBONE, and nothing may reach it otherwise.
    pub enrolled: bool,
    /// What groups it with its likes.
    #[serde(flatten)]
    pub names: Arc<Names>,
}

/// What a workload is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
pub enum WorkloadKind {
    /// A pod.
    #[default]
    Pod,
    /// A WorkloadEntry, or an endpoint that a ServiceEntry lists.
    WorkloadEntry,
}

/// A pod of this node, enrolled unless it is said to be outside.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LocalPod {
    /// The pod.
    pub workload: Arc<Workload>,
    /// The UID of a static pod that it may be; nothing but its object says so.
    pub claim: Option<Text>,
    /// Where its network namespace is, if the source says: annotation `orlop.dev/netns`.
    pub netns: Option<PathBuf>,
    /// The ports that kubelet dials to see how the pod is; `None` where nobody says which these are.
    pub probed: Option<BTreeSet<u16>>,
}
