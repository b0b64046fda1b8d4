//! What the mesh reads of Kubernetes, in plain types: converted once, at the edge, and already checked there.

pub mod config_map;
mod expression;
mod extension_provider;
pub mod gateway;
pub mod gateway_api;
pub mod header_text;
mod key_set;
mod labels;
mod parse;
mod path_pattern;
mod rate_limit;
mod re2;
mod request_authentication;
pub mod routing;
pub mod security;
mod service_entry;
pub mod stream;
mod telemetry;
mod traffic_policy;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::addresses::Addresses;
use crate::map::Map;
use crate::name::NamespacedName;
use crate::text::Text;
pub use config_map::ConfigMap;
pub use expression::{Attribute, Attributes, Expression, ExpressionError, Value};
pub use extension_provider::{BodyInCheck, ExtensionProvider, HttpCheck, Speaks};
use gateway::Gateway;
use gateway_api::{BackendTls, ReferenceGrant, Route, RouteKind};
pub use key_set::{Algorithm, KeyMaterial, KeySetError, MAX_KEY_SET, MAX_KEYS, PublicKey, keys_of};
pub use labels::Labels;
pub use path_pattern::{PathPattern, PathPatternError, Segment};
pub use rate_limit::{Counting, KeyPart, Limit, Rate, RateError, RateLimit, Shared, Unit};
pub use request_authentication::{
    ClaimHeader, JwtRule, KeyPlace, KeySource, RemoteKeys, RequestAuthentication, TokenLocation,
};
use routing::{DestinationRule, VirtualService};
use security::{AuthorizationPolicy, PeerAuthentication};
pub use service_entry::{Backend, BackendAddress, Exports, Resolution, ServiceEntry, WorkloadEntry};
pub use telemetry::{AccessLogging, Metric, MetricOverride, SpanTag, TagOverride, Telemetry, Tracing};

/// Every object the mesh knows of.
///
/// A clone shares everything with its origin: a state of the world costs what it does not share with the one before, and
/// an object that stays where it is need not be looked at again.
///
/// Serializes for a node to be kept and read again: without the kinds that nodes don't read, and without [`Self::as_of`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct World {
    /// When it was as it is here, if that is of the past: its source can't be asked, and it was kept since then. What
    /// has become of it meanwhile nobody knows.
    #[serde(skip)]
    pub as_of: Option<SystemTime>,
    /// Namespaces by name.
    pub namespaces: Map<Text, Namespace>,
    /// Nodes by name.
    pub nodes: Map<Text, Node>,
    /// Pods by name, in any phase.
    pub pods: Map<NamespacedName, Pod>,
    /// Services by name.
    pub services: Map<NamespacedName, Service>,
    /// EndpointSlices by name.
    pub endpoint_slices: Map<NamespacedName, EndpointSlice>,
    /// ServiceEntries by name.
    pub service_entries: Map<NamespacedName, ServiceEntry>,
    /// WorkloadEntries by name.
    pub workload_entries: Map<NamespacedName, WorkloadEntry>,
    /// AuthorizationPolicies by name.
    pub authorization_policies: Map<NamespacedName, AuthorizationPolicy>,
    /// PeerAuthentications by name.
    pub peer_authentications: Map<NamespacedName, PeerAuthentication>,
    /// VirtualServices by name.
    #[serde(skip)]
    pub virtual_services: Map<NamespacedName, VirtualService>,
    /// DestinationRules by name.
    #[serde(skip)]
    pub destination_rules: Map<NamespacedName, DestinationRule>,
    /// RequestAuthentications by name.
    #[serde(skip)]
    pub request_authentications: Map<NamespacedName, RequestAuthentication>,
    /// ExtensionProviders by name.
    #[serde(skip)]
    pub extension_providers: Map<NamespacedName, ExtensionProvider>,
    /// RateLimits by name.
    #[serde(skip)]
    pub rate_limits: Map<NamespacedName, RateLimit>,
    /// Gateways by name.
    #[serde(skip)]
    pub gateways: Map<NamespacedName, Gateway>,
    /// Telemetries by name.
    #[serde(skip)]
    pub telemetries: Map<NamespacedName, Telemetry>,
    /// HTTPRoutes by name.
    #[serde(skip)]
    pub http_routes: Map<NamespacedName, Route>,
    /// GRPCRoutes by name.
    #[serde(skip)]
    pub grpc_routes: Map<NamespacedName, Route>,
    /// TLSRoutes by name.
    #[serde(skip)]
    pub tls_routes: Map<NamespacedName, Route>,
    /// TCPRoutes by name.
    #[serde(skip)]
    pub tcp_routes: Map<NamespacedName, Route>,
    /// ReferenceGrants by name.
    #[serde(skip)]
    pub reference_grants: Map<NamespacedName, ReferenceGrant>,
    /// BackendTLSPolicies by name.
    #[serde(skip)]
    pub backend_tls: Map<NamespacedName, BackendTls>,
    /// ConfigMaps by name.
    #[serde(skip)]
    pub config_maps: Map<NamespacedName, ConfigMap>,
}

impl World {
    /// The routes of a kind.
    pub fn routes_mut(&mut self, kind: RouteKind) -> &mut Map<NamespacedName, Route> {
        match kind {
            RouteKind::Http => &mut self.http_routes,
            RouteKind::Grpc => &mut self.grpc_routes,
            RouteKind::Tls => &mut self.tls_routes,
            RouteKind::Tcp => &mut self.tcp_routes,
        }
    }

    /// Those of all kinds.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        let (http, grpc) = (self.http_routes.values(), self.grpc_routes.values());
        http.chain(grpc).chain(self.tls_routes.values()).chain(self.tcp_routes.values())
    }

    /// The route of this kind and name.
    pub fn route(&self, kind: RouteKind, name: &NamespacedName) -> Option<&Arc<Route>> {
        let routes = match kind {
            RouteKind::Http => &self.http_routes,
            RouteKind::Grpc => &self.grpc_routes,
            RouteKind::Tls => &self.tls_routes,
            RouteKind::Tcp => &self.tcp_routes,
        };
        routes.get(name)
    }
}

/// A `v1` Namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// `metadata.labels`
    pub labels: Labels,
}

/// A `v1` Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// `status.addresses`, those that are IP addresses.
    pub addresses: Vec<IpAddr>,
    /// `metadata.labels`
    pub labels: Labels,
}

/// Where a node or another backend is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locality {
    /// Label `topology.kubernetes.io/region`; `None` where nobody says.
    pub region: Option<Text>,
    /// Label `topology.kubernetes.io/zone`; `None` where nobody says.
    pub zone: Option<Text>,
    /// Label `topology.istio.io/subzone`; `None` where nobody says.
    #[serde(default)]
    pub subzone: Option<Text>,
}

/// A `v1` Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Namespace and name.
    pub name: NamespacedName,
    /// As its node knows it: `metadata.uid`, and of a static pod the hash that kubelet made. Empty where the source has
    /// none.
    pub uid: Arc<str>,
    /// The UID of a static pod that its object claims, as long as nothing but that says so: enough to hold it, and not to
    /// take it for the pod.
    #[serde(default)]
    pub claim: Option<Text>,
    /// `metadata.labels`
    pub labels: Labels,
    /// Of `metadata.annotations` where its network namespace is, where whoever runs the node says so.
    pub annotations: Labels,
    /// `spec.nodeName`; `None` until the pod is scheduled.
    pub node: Option<Text>,
    /// `spec.hostname`: its name within `subdomain`.
    pub hostname: Option<Text>,
    /// `spec.subdomain`: the headless service that it is named in.
    pub subdomain: Option<Text>,
    /// `spec.serviceAccountName`; `default` where absent.
    pub service_account: Text,
    /// `status.podIPs`
    pub addresses: Addresses,
    /// `spec.hostNetwork`: the pod shares its node's address, so it can't be enrolled.
    pub host_network: bool,
    /// `spec.os` or `spec.nodeSelector` want Windows, where there is no agent.
    #[serde(default)]
    pub windows: bool,
    /// `status.phase`
    pub phase: Phase,
    /// The condition `Ready`.
    pub ready: bool,
    /// `metadata.deletionTimestamp` is set; the pod may still serve.
    pub terminating: bool,
    /// The controlling owner.
    pub owner: Option<Owner>,
    /// The named and unnamed TCP ports of all containers.
    pub container_ports: Box<[Port]>,
    /// The ports that kubelet dials to see how the pod is; `None` where nobody says which these are.
    pub probed: Option<BTreeSet<u16>>,
}

/// `status.phase` of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Accepted, not all containers run.
    Pending,
    /// At least one container runs.
    #[default]
    Running,
    /// All containers ended well: the address may belong to another pod by now.
    Succeeded,
    /// All containers ended, one badly: the address may belong to another pod by now.
    Failed,
    /// The node can't be asked.
    Unknown,
}

impl Phase {
    /// True once no container will run again.
    pub fn is_terminal(self) -> bool {
        matches!(self, Phase::Succeeded | Phase::Failed)
    }
}

/// The controlling entry of `metadata.ownerReferences`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Such as `ReplicaSet`.
    pub kind: Text,
    /// Its name.
    pub name: Text,
}

/// A TCP port with its name, empty where it has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The name.
    pub name: Text,
    /// The number, never 0.
    pub number: u16,
}

/// A `v1` Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Namespace and name.
    pub name: NamespacedName,
    /// `metadata.labels`
    pub labels: Labels,
    /// `spec.clusterIPs`; empty when headless.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`, and those of `status.loadBalancer.ingress` that stand for the service itself.
    pub external_ips: Vec<IpAddr>,
    /// `spec.externalName` of a service of that type.
    pub external_name: Option<String>,
    /// `spec.ports`
    pub ports: Vec<ServicePort>,
    /// `spec.selector`; empty when someone else writes the EndpointSlices.
    pub selector: Labels,
    /// `spec.publishNotReadyAddresses`
    pub publish_not_ready: bool,
    /// `spec.sessionAffinityConfig.clientIP.timeoutSeconds` where `spec.sessionAffinity` is ClientIP.
    pub affinity: Option<Duration>,
    /// `spec.trafficDistribution`
    pub distribution: Distribution,
    /// `spec.internalTrafficPolicy` is Local: only endpoints of the client's node count.
    pub node_local: bool,
}

/// Which endpoints are preferred, as long as one of them is ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Distribution {
    /// None.
    #[default]
    Any,
    /// `PreferClose`, `PreferSameZone`: those of the client's zone, then of its region.
    Zone,
    /// `PreferSameNode`: those of the client's node, then of its zone, then of its region.
    Node,
}

/// An entry of `spec.ports` of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// The name; empty where it has none.
    pub name: String,
    /// The port of the service's address, never 0.
    pub number: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// The port of the pods.
    pub target: TargetPort,
    /// `appProtocol`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP, the only one the mesh carries.
    #[default]
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

/// `targetPort` of a Service's port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TargetPort {
    /// The same number as the service's port.
    #[default]
    Unset,
    /// A number.
    Number(u16),
    /// The name of a container port, which may have another number in each pod.
    Name(String),
}

/// A `discovery.k8s.io/v1` EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub name: NamespacedName,
    /// The service in the same namespace: label `kubernetes.io/service-name`.
    pub service: Option<Text>,
    /// The TCP ports, named as the service's are, with the numbers of the pods.
    pub ports: Vec<Port>,
    /// The UDP ports.
    pub udp_ports: Vec<Port>,
    /// The endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

/// An entry of `endpoints` of an EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceEndpoint {
    /// Addresses of the same endpoint.
    pub addresses: Addresses,
    /// `hostname`: its name within the service.
    pub hostname: Option<Text>,
    /// `conditions.ready`; absent counts as true.
    pub ready: bool,
    /// `conditions.serving`; absent counts as `ready`.
    pub serving: bool,
    /// `conditions.terminating`
    pub terminating: bool,
    /// `nodeName`
    pub node: Option<Text>,
    /// `zone`
    pub zone: Option<Text>,
    /// `targetRef` where it is a Pod.
    pub target: Option<NamespacedName>,
}
