use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use super::security::IpBlock;
use super::{Distribution, Labels, Locality, ServicePort};
use crate::name::NamespacedName;

/// A `networking.istio.io` ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEntry {
    /// Namespace and name.
    pub name: NamespacedName,
    /// `metadata.labels`
    pub labels: Labels,
    /// `spec.hosts` in lower case, without a dot at the end; `*.` stands for any labels before the rest.
    pub hosts: Vec<String>,
    /// `spec.addresses`
    pub addresses: Vec<IpBlock>,
    /// `status.addresses`: what somebody has given to its hosts, in lower case.
    pub allocated: BTreeMap<String, Vec<IpAddr>>,
    /// `spec.ports`; a target is a number where there is one.
    pub ports: Vec<ServicePort>,
    /// `spec.location` is MESH_EXTERNAL.
    pub external: bool,
    /// `spec.resolution`
    pub resolution: Resolution,
    /// `spec.endpoints`
    pub endpoints: Vec<Backend>,
    /// `spec.workloadSelector.labels`: pods and WorkloadEntries of the same namespace.
    pub selector: Labels,
    /// `spec.exportTo`
    pub exports: Exports,
    /// Annotation `networking.istio.io/traffic-distribution`.
    pub distribution: Distribution,
}

/// How the endpoints of a ServiceEntry are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resolution {
    /// The address that was dialled is the endpoint.
    None,
    /// They are listed or selected.
    #[default]
    Static,
    /// DNS gives them: every address counts.
    Dns,
    /// DNS gives them: the first address of each family counts.
    DnsRoundRobin,
}

/// Namespaces that may see a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exports {
    /// All of them: `*`, or nothing said.
    #[default]
    All,
    /// These; none of them for `~`.
    To(BTreeSet<String>),
}

impl Exports {
    /// Whether this namespace may see it.
    pub fn include(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::To(namespaces) => namespaces.contains(namespace),
        }
    }
}

/// A `networking.istio.io` WorkloadEntry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadEntry {
    /// Namespace and name.
    pub name: NamespacedName,
    /// `spec`, with the labels of the object's `metadata` where `spec` has none of that name.
    pub backend: Backend,
}

/// Something outside Kubernetes that serves: a WorkloadEntry's `spec`, or an entry of a ServiceEntry's `endpoints`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// `address`
    pub address: BackendAddress,
    /// `ports`: numbers by the name of the service's port.
    pub ports: BTreeMap<String, u16>,
    /// `labels`
    pub labels: Labels,
    /// `locality`, as `REGION/ZONE/…`
    pub locality: Locality,
    /// `serviceAccount`; `default` where absent.
    pub service_account: String,
    /// `weight`, which counts as 1 where it is absent or 0.
    pub weight: Option<NonZeroU32>,
    /// `network`
    pub network: Option<String>,
}

/// Where a backend is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackendAddress {
    /// At this address.
    Ip(IpAddr),
    /// Where DNS says; in lower case, without a dot at the end.
    Host(String),
}

impl Default for BackendAddress {
    fn default() -> Self {
        Self::Host(String::new())
    }
}
