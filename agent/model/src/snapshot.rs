use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use crate::identity::Identity;
use crate::mutual_tls::MutualTls;
use crate::name::NamespacedName;
use crate::policy::{Finding, PolicyIndex};

/// The compiled world. Immutable: a change of the world makes another one with a higher generation.
///
/// Serializes to what an admin may see of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Snapshot {
    pub(crate) generation: u64,
    /// Sorted by name.
    pub(crate) workloads: Vec<Arc<Workload>>,
    /// Sorted by name.
    pub(crate) services: Vec<Arc<Service>>,
    pub(crate) local_pods: Vec<LocalPod>,
    #[serde(skip)]
    pub(crate) workload_by_address: HashMap<IpAddr, Arc<Workload>>,
    #[serde(skip)]
    pub(crate) service_by_vip: HashMap<IpAddr, Arc<Service>>,
    #[serde(skip)]
    pub(crate) policies: PolicyIndex,
    #[serde(skip)]
    pub(crate) mutual_tls: MutualTls,
    /// Sorted by resource.
    pub(crate) findings: Vec<Finding>,
}

impl Snapshot {
    /// Which state of the world this is; grows with each change.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The live pod that has this address. Pods on the host's network are not found: the address is the node's.
    pub fn workload_at(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.workload_by_address.get(&address.to_canonical())
    }

    /// The live pod of this name.
    pub fn workload(&self, name: &NamespacedName) -> Option<&Arc<Workload>> {
        let index = self.workloads.binary_search_by(|workload| workload.name.cmp(name)).ok()?;
        self.workloads.get(index)
    }

    /// The service that has this cluster IP.
    pub fn service_at(&self, vip: IpAddr) -> Option<&Arc<Service>> {
        self.service_by_vip.get(&vip.to_canonical())
    }

    /// The service of this name.
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

    /// All services, sorted by name.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Arc<Service>> {
        self.services.iter()
    }
}

/// A live pod as the mesh sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Workload {
    /// Namespace and name of the pod.
    pub name: NamespacedName,
    /// The pod's UID; empty where the source has none.
    pub uid: String,
    /// What its certificate says.
    pub identity: Identity,
    /// The node's name; empty until the pod is scheduled.
    pub node: String,
    /// Its addresses: unicast, not loopback, no IPv4-mapped IPv6.
    pub addresses: Vec<IpAddr>,
    /// Whether it is part of the mesh.
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

/// An enrolled pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LocalPod {
    /// The pod.
    pub workload: Arc<Workload>,
    /// Where its network namespace is, if the source says: annotation `orlop.dev/netns`.
    pub netns: Option<PathBuf>,
}

/// A service with its endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Service {
    /// Namespace and name.
    pub name: NamespacedName,
    /// `NAME.NAMESPACE.svc.CLUSTER_DOMAIN`
    pub hostname: String,
    /// The cluster IPs, none when headless.
    pub vips: Vec<IpAddr>,
    /// The TCP ports, sorted by number.
    pub ports: Vec<ServicePort>,
}

impl Service {
    /// The TCP port of this number.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        let index = self.ports.binary_search_by_key(&number, |port| port.number).ok()?;
        self.ports.get(index)
    }
}

/// A TCP port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServicePort {
    /// The name; empty where it has none.
    pub name: String,
    /// The port of the service's addresses.
    pub number: u16,
    /// The endpoints: first the ready ones, each half sorted by address, IPv4 before IPv6.
    pub endpoints: Vec<Endpoint>,
    /// How many of `endpoints` are ready and IPv4; they come first.
    #[serde(skip)]
    pub(crate) ready_v4: usize,
    /// How many of `endpoints` are ready.
    #[serde(skip)]
    pub(crate) ready: usize,
}

impl ServicePort {
    /// The ready endpoints.
    pub fn ready(&self) -> &[Endpoint] {
        &self.endpoints[..self.ready]
    }

    /// The ready endpoints of the address's family, or all ready ones where that family has none.
    pub fn ready_for(&self, vip: IpAddr) -> &[Endpoint] {
        let (v4, v6) = self.ready().split_at(self.ready_v4);
        match if vip.is_ipv4() { v4 } else { v6 } {
            [] => self.ready(),
            same_family => same_family,
        }
    }
}

/// Where one port of a service is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// Address and port of the pod or other backend.
    pub address: SocketAddr,
    /// The pod, if it is one.
    pub workload: Option<Arc<Workload>>,
    /// Whether it may be sent new connections.
    pub ready: bool,
}
