use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;

use crate::dns::Zone;
use crate::http::Routes;
use crate::identity::Identity;
use crate::mutual_tls::MutualTls;
use crate::name::NamespacedName;
use crate::policy::{Finding, ListedPolicy, PolicyIndex, Prepared};
use crate::service::{Service, ServiceIndex};
use crate::waypoint::Waypoints;

/// The compiled world. Immutable: a change of the world makes another one with a higher generation.
///
/// Serializes to what an admin may see of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Snapshot {
    pub(crate) generation: u64,
    #[serde(skip)]
    pub(crate) as_of: Option<SystemTime>,
    /// Sorted by name.
    pub(crate) workloads: Vec<Arc<Workload>>,
    /// Sorted by name.
    pub(crate) services: Vec<Arc<Service>>,
    /// Sorted by name, then by host in the order of the ServiceEntry.
    pub(crate) service_entries: Vec<Arc<Service>>,
    pub(crate) local_pods: Vec<LocalPod>,
    #[serde(skip)]
    pub(crate) workload_by_address: HashMap<IpAddr, Arc<Workload>>,
    #[serde(skip)]
    pub(crate) entry_by_address: HashMap<IpAddr, Arc<Workload>>,
    #[serde(skip)]
    pub(crate) service_index: ServiceIndex,
    #[serde(skip)]
    pub(crate) zone: Zone,
    #[serde(skip)]
    pub(crate) waypoints: Waypoints,
    #[serde(skip)]
    pub(crate) policies: PolicyIndex,
    /// For the next compilation.
    #[serde(skip)]
    pub(crate) prepared: Prepared,
    #[serde(skip)]
    pub(crate) mutual_tls: MutualTls,
    /// Sorted by kind and name.
    pub(crate) listed_policies: Vec<ListedPolicy>,
    #[serde(skip)]
    pub(crate) routes: Arc<Routes>,
    /// Sorted by resource.
    pub(crate) findings: Vec<Finding>,
}

impl Snapshot {
    /// Which state of the world this is; grows with each change.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// When the world was so, if that is of the past; see [`World::as_of`](crate::World::as_of).
    pub fn as_of(&self) -> Option<SystemTime> {
        self.as_of
    }

    /// The live pod that has this address, or else the WorkloadEntry. Pods on the host's network are not found:
    /// the address is the node's.
    pub fn workload_at(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        let address = address.to_canonical();
        self.workload_by_address.get(&address).or_else(|| self.entry_by_address.get(&address))
    }

    /// The live pod of this name.
    pub fn workload(&self, name: &NamespacedName) -> Option<&Arc<Workload>> {
        let index = self.workloads.binary_search_by(|workload| workload.name.cmp(name)).ok()?;
        self.workloads.get(index)
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
            let is_pod = self.workload_by_address.contains_key(&address);
            if is_pod { None } else { self.service_index.claimed(namespace, address) }
        })
    }

    /// The Kubernetes Service of this name.
    pub fn service(&self, name: &NamespacedName) -> Option<&Arc<Service>> {
        let index = self.services.binary_search_by(|service| service.name.cmp(name)).ok()?;
        self.services.get(index)
    }

    /// The enrolled pods of this node, sorted by name.
    pub fn local_pods(&self) -> &[LocalPod] {
        &self.local_pods
    }

    /// All live pods, sorted by name.
    pub fn workloads(&self) -> impl ExactSizeIterator<Item = &Arc<Workload>> {
        self.workloads.iter()
    }

    /// What the authors of policies should know, sorted by resource.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// All Kubernetes Services, sorted by name.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Arc<Service>> {
        self.services.iter()
    }

    /// The hosts of all ServiceEntries, each a service, sorted by the entry's name.
    pub fn service_entries(&self) -> impl ExactSizeIterator<Item = &Arc<Service>> {
        self.service_entries.iter()
    }
}

/// A live pod, or a WorkloadEntry, as the mesh sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Workload {
    /// Namespace and name.
    pub name: NamespacedName,
    /// What it is.
    pub kind: WorkloadKind,
    /// The pod's UID; empty where the source has none.
    pub uid: String,
    /// What its certificate says.
    pub identity: Identity,
    /// The node's name; empty until the pod is scheduled.
    pub node: String,
    /// Its addresses: unicast, not loopback, no IPv4-mapped IPv6.
    pub addresses: Vec<IpAddr>,
    /// Whether it is part of the mesh: it takes HBONE, and nothing may reach it otherwise.
    pub enrolled: bool,
    /// What made the pod: the Deployment, CronJob or other controller, else the pod itself.
    pub owner: String,
    /// The canonical service, as Istio names it.
    pub canonical_service: String,
    /// The canonical revision, as Istio names it; `latest` where no label says.
    pub canonical_revision: String,
    /// Label `app`, else the canonical service.
    pub app: String,
    /// Label `version`, else the canonical revision.
    pub version: String,
    /// The cluster's name.
    pub cluster: String,
}

/// What a workload is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub enum WorkloadKind {
    /// A pod.
    #[default]
    Pod,
    /// A WorkloadEntry, or an endpoint that a ServiceEntry lists.
    WorkloadEntry,
}

/// An enrolled pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LocalPod {
    /// The pod.
    pub workload: Arc<Workload>,
    /// Where its network namespace is, if the source says: annotation `orlop.dev/netns`.
    pub netns: Option<PathBuf>,
    /// The ports that kubelet dials to see how the pod is; `None` where nobody says which these are.
    pub probed: Option<BTreeSet<u16>>,
}
