//! The kinds that Orlop reads, and what becomes of an object of one.

use std::fmt;
use std::sync::Arc;

use orlop_model::world::gateway::Gateway;
use orlop_model::world::gateway_api::{BackendTls, ReferenceGrant, Route, RouteKind};
use orlop_model::world::routing::{DestinationRule, VirtualService};
use orlop_model::world::security::{AuthorizationPolicy, PeerAuthentication};
use orlop_model::world::{
    ConfigMap, EndpointSlice, ExtensionProvider, Namespace, Node as ClusterNode, Pod, RateLimit,
    RequestAuthentication, Service, ServiceEntry, Telemetry, WorkloadEntry,
};
use orlop_model::{NamespacedName, Text, World};
use serde::de::Deserializer;

use crate::field::FieldError;
pub(crate) use crate::field::typed;
use crate::{
    authorization_policy, config_map, destination_rule, endpoint_slice, extension_provider, gateway_api,
    namespace, node, peer_authentication, pod, rate_limit, request_authentication, service, service_entry,
    telemetry, virtual_service, workload_entry,
};

/// A kind that Orlop reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Namespace,
    Node,
    Pod,
    Service,
    EndpointSlice,
    ServiceEntry,
    WorkloadEntry,
    AuthorizationPolicy,
    PeerAuthentication,
    VirtualService,
    DestinationRule,
    RequestAuthentication,
    RateLimit,
    ExtensionProvider,
    Gateway,
    Telemetry,
    HttpRoute,
    GrpcRoute,
    TlsRoute,
    TcpRoute,
    ReferenceGrant,
    BackendTls,
    ConfigMap,
}

impl Kind {
    /// What a node reads of a cluster: routes are for waypoints.
    pub const OF_NODES: [Self; 9] = [
        Self::Namespace,
        Self::Node,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::ServiceEntry,
        Self::WorkloadEntry,
        Self::AuthorizationPolicy,
        Self::PeerAuthentication,
    ];
    /// What a waypoint or a gateway reads besides.
    const OF_WAYPOINTS: [Self; 14] = [
        Self::VirtualService,
        Self::DestinationRule,
        Self::RequestAuthentication,
        Self::RateLimit,
        Self::ExtensionProvider,
        Self::Gateway,
        Self::Telemetry,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::TlsRoute,
        Self::TcpRoute,
        Self::ReferenceGrant,
        Self::BackendTls,
        Self::ConfigMap,
    ];

    /// The kind that is called this.
    pub fn named(name: &str) -> Option<Self> {
        Kinds::OfWaypoints.all().find(|kind| kind.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::ServiceEntry => "ServiceEntry",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::VirtualService => "VirtualService",
            Self::DestinationRule => "DestinationRule",
            Self::RequestAuthentication => "RequestAuthentication",
            Self::RateLimit => "RateLimit",
            Self::ExtensionProvider => "ExtensionProvider",
            Self::Gateway => "Gateway",
            Self::Telemetry => "Telemetry",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TlsRoute => "TLSRoute",
            Self::TcpRoute => "TCPRoute",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::BackendTls => "BackendTLSPolicy",
            Self::ConfigMap => "ConfigMap",
        }
    }

    /// Whether it is a route of the Gateway API, whose conditions are of each of its parents by itself.
    pub fn is_route(self) -> bool {
        self.route().is_some()
    }

    /// Which of the Gateway API's routes it is.
    pub fn route(self) -> Option<RouteKind> {
        match self {
            Self::HttpRoute => Some(RouteKind::Http),
            Self::GrpcRoute => Some(RouteKind::Grpc),
            Self::TlsRoute => Some(RouteKind::Tls),
            Self::TcpRoute => Some(RouteKind::Tcp),
            _ => None,
        }
    }

    /// Whether the controller writes conditions of its objects.
    pub fn has_conditions(self) -> bool {
        match self {
            Self::ServiceEntry
            | Self::WorkloadEntry
            | Self::AuthorizationPolicy
            | Self::PeerAuthentication
            | Self::VirtualService
            | Self::DestinationRule
            | Self::RequestAuthentication
            | Self::RateLimit
            | Self::ExtensionProvider
            | Self::Telemetry
            | Self::BackendTls => true,
            kind => kind.is_route(),
        }
    }

    #[cfg(test)]
    pub fn all_with_conditions() -> Vec<Self> {
        let is_one = |kind: &Self| kind.has_conditions() && !kind.is_route() && *kind != Self::BackendTls;
        Kinds::OfWaypoints.all().filter(is_one).collect()
    }

    /// Group and versions in which it is read, the best first.
    pub fn api_versions(self) -> &'static [&'static str] {
        match self {
            Self::AuthorizationPolicy | Self::PeerAuthentication | Self::RequestAuthentication => {
                &["security.istio.io/v1", "security.istio.io/v1beta1"]
            }
            Self::ServiceEntry | Self::WorkloadEntry | Self::VirtualService | Self::DestinationRule => {
                &["networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"]
            }
            Self::Gateway | Self::HttpRoute | Self::ReferenceGrant => {
                &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"]
            }
            Self::GrpcRoute => &["gateway.networking.k8s.io/v1"],
            Self::BackendTls => &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha3"],
            Self::TlsRoute => &[
                "gateway.networking.k8s.io/v1",
                "gateway.networking.k8s.io/v1alpha3",
                "gateway.networking.k8s.io/v1alpha2",
            ],
            Self::TcpRoute => &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha2"],
            Self::RateLimit | Self::ExtensionProvider => &["orlop.dev/v1alpha1"],
            Self::Telemetry => &["telemetry.istio.io/v1", "telemetry.istio.io/v1alpha1"],
            Self::EndpointSlice => &["discovery.k8s.io/v1"],
            Self::Namespace | Self::Node | Self::Pod | Self::Service | Self::ConfigMap => &["v1"],
        }
    }

    /// Whether `version` is of somebody else's kind of the same name, such as Knative's Service.
    pub fn is_foreign(self, version: &str) -> bool {
        let group = |version: &str| version.split_once('/').map_or("", |(group, _)| group).to_owned();
        let (theirs, ours) = (group(version), group(self.api_versions()[0]));
        theirs != ours && theirs.contains('.') && !theirs.ends_with("k8s.io")
    }

    /// Converts an object of this kind, whose text or tree the deserializer holds.
    pub fn convert<'de, D: Deserializer<'de>>(self, object: D, source: Source) -> Result<Object, FieldError> {
        match self {
            Self::Namespace => {
                let (name, namespace) = namespace::convert(typed(object)?)?;
                Ok(Object::Namespace(name, Arc::new(namespace)))
            }
            Self::Node => {
                let (name, node) = node::convert(typed(object)?)?;
                Ok(Object::Node(name, Arc::new(node)))
            }
            Self::Pod => {
                let pod = typed(object)?;
                let pod = match source {
                    Source::Directory => pod::convert_trusted(pod)?,
                    Source::Cluster => pod::convert(pod)?,
                };
                Ok(Object::Pod(Arc::new(pod)))
            }
            Self::Service => Ok(Object::Service(Arc::new(service::convert(typed(object)?)?))),
            Self::EndpointSlice => {
                Ok(Object::EndpointSlice(Arc::new(endpoint_slice::convert(typed(object)?)?)))
            }
            Self::ServiceEntry => Ok(Object::ServiceEntry(Arc::new(service_entry::convert(typed(object)?)?))),
            Self::WorkloadEntry => {
                Ok(Object::WorkloadEntry(Arc::new(workload_entry::convert(typed(object)?)?)))
            }
            Self::AuthorizationPolicy => {
                Ok(Object::AuthorizationPolicy(Arc::new(authorization_policy::convert(typed(object)?)?)))
            }
            Self::PeerAuthentication => {
                Ok(Object::PeerAuthentication(Arc::new(peer_authentication::convert(typed(object)?)?)))
            }
            Self::VirtualService => {
                Ok(Object::VirtualService(Arc::new(virtual_service::convert(typed(object)?)?)))
            }
            Self::DestinationRule => {
                Ok(Object::DestinationRule(Arc::new(destination_rule::convert(typed(object)?)?)))
            }
            Self::RequestAuthentication => {
                Ok(Object::RequestAuthentication(Arc::new(request_authentication::convert(typed(object)?)?)))
            }
            Self::RateLimit => Ok(Object::RateLimit(Arc::new(rate_limit::convert(typed(object)?)?))),
            Self::ExtensionProvider => {
                Ok(Object::ExtensionProvider(Arc::new(extension_provider::convert(typed(object)?)?)))
            }
            Self::Gateway => Ok(Object::Gateway(Arc::new(gateway_api::gateway::convert(typed(object)?)?))),
            Self::Telemetry => Ok(Object::Telemetry(Arc::new(telemetry::convert(typed(object)?)?))),
            Self::HttpRoute => Ok(Object::Route(Arc::new(gateway_api::http_route::convert(typed(object)?)?))),
            Self::GrpcRoute => Ok(Object::Route(Arc::new(gateway_api::grpc_route::convert(typed(object)?)?))),
            Self::TlsRoute => {
                Ok(Object::Route(Arc::new(gateway_api::stream_route::convert_tls(typed(object)?)?)))
            }
            Self::TcpRoute => {
                Ok(Object::Route(Arc::new(gateway_api::stream_route::convert_tcp(typed(object)?)?)))
            }
            Self::ReferenceGrant => {
                let grant = gateway_api::reference_grant::convert(typed(object)?)?;
                Ok(Object::ReferenceGrant(Arc::new(grant)))
            }
            Self::BackendTls => {
                Ok(Object::BackendTls(Arc::new(gateway_api::backend_tls::convert(typed(object)?)?)))
            }
            Self::ConfigMap => Ok(Object::ConfigMap(Arc::new(config_map::convert(typed(object)?)?))),
        }
    }
}

/// Which kinds are read of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kinds {
    /// What nodes go by.
    OfNodes,
    /// That, and what tells waypoints where requests go.
    OfWaypoints,
}

impl Kinds {
    pub(crate) fn all(self) -> impl Iterator<Item = Kind> {
        let besides: &[Kind] = match self {
            Self::OfNodes => &[],
            Self::OfWaypoints => &Kind::OF_WAYPOINTS,
        };
        Kind::OF_NODES.into_iter().chain(besides.iter().copied())
    }
}

/// Who wrote an object.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source {
    /// Somebody who also runs the node.
    Directory,
    /// Anybody whom the API server lets.
    Cluster,
}

/// Kind and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Key {
    Namespace(Text),
    Node(Text),
    Pod(NamespacedName),
    Service(NamespacedName),
    EndpointSlice(NamespacedName),
    ServiceEntry(NamespacedName),
    WorkloadEntry(NamespacedName),
    AuthorizationPolicy(NamespacedName),
    PeerAuthentication(NamespacedName),
    VirtualService(NamespacedName),
    DestinationRule(NamespacedName),
    RequestAuthentication(NamespacedName),
    RateLimit(NamespacedName),
    ExtensionProvider(NamespacedName),
    Gateway(NamespacedName),
    Telemetry(NamespacedName),
    HttpRoute(NamespacedName),
    GrpcRoute(NamespacedName),
    TlsRoute(NamespacedName),
    TcpRoute(NamespacedName),
    ReferenceGrant(NamespacedName),
    BackendTls(NamespacedName),
    ConfigMap(NamespacedName),
}

impl Key {
    /// Of a kind that has no namespaces, `namespace` is not read.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        let namespaced = || NamespacedName::new(namespace, name);
        match kind {
            Kind::Namespace => Self::Namespace(name.into()),
            Kind::Node => Self::Node(name.into()),
            Kind::Pod => Self::Pod(namespaced()),
            Kind::Service => Self::Service(namespaced()),
            Kind::EndpointSlice => Self::EndpointSlice(namespaced()),
            Kind::ServiceEntry => Self::ServiceEntry(namespaced()),
            Kind::WorkloadEntry => Self::WorkloadEntry(namespaced()),
            Kind::AuthorizationPolicy => Self::AuthorizationPolicy(namespaced()),
            Kind::PeerAuthentication => Self::PeerAuthentication(namespaced()),
            Kind::VirtualService => Self::VirtualService(namespaced()),
            Kind::DestinationRule => Self::DestinationRule(namespaced()),
            Kind::RequestAuthentication => Self::RequestAuthentication(namespaced()),
            Kind::RateLimit => Self::RateLimit(namespaced()),
            Kind::ExtensionProvider => Self::ExtensionProvider(namespaced()),
            Kind::Gateway => Self::Gateway(namespaced()),
            Kind::Telemetry => Self::Telemetry(namespaced()),
            Kind::HttpRoute => Self::HttpRoute(namespaced()),
            Kind::GrpcRoute => Self::GrpcRoute(namespaced()),
            Kind::TlsRoute => Self::TlsRoute(namespaced()),
            Kind::TcpRoute => Self::TcpRoute(namespaced()),
            Kind::ReferenceGrant => Self::ReferenceGrant(namespaced()),
            Kind::BackendTls => Self::BackendTls(namespaced()),
            Kind::ConfigMap => Self::ConfigMap(namespaced()),
        }
    }

    /// The name, of a kind that has namespaces.
    pub fn namespaced(&self) -> Option<&NamespacedName> {
        match self {
            Self::Namespace(_) | Self::Node(_) => None,
            Self::Pod(name)
            | Self::Service(name)
            | Self::EndpointSlice(name)
            | Self::ServiceEntry(name)
            | Self::WorkloadEntry(name)
            | Self::AuthorizationPolicy(name)
            | Self::PeerAuthentication(name)
            | Self::VirtualService(name)
            | Self::DestinationRule(name)
            | Self::RequestAuthentication(name)
            | Self::RateLimit(name)
            | Self::ExtensionProvider(name)
            | Self::Gateway(name)
            | Self::Telemetry(name)
            | Self::HttpRoute(name)
            | Self::GrpcRoute(name)
            | Self::TlsRoute(name)
            | Self::TcpRoute(name)
            | Self::ReferenceGrant(name)
            | Self::BackendTls(name)
            | Self::ConfigMap(name) => Some(name),
        }
    }

    /// Whether the world has such an object.
    pub fn is_in(&self, world: &World) -> bool {
        match self {
            Self::Namespace(name) => world.namespaces.contains_key(name),
            Self::Node(name) => world.nodes.contains_key(name),
            Self::Pod(name) => world.pods.contains_key(name),
            Self::Service(name) => world.services.contains_key(name),
            Self::EndpointSlice(name) => world.endpoint_slices.contains_key(name),
            Self::ServiceEntry(name) => world.service_entries.contains_key(name),
            Self::WorkloadEntry(name) => world.workload_entries.contains_key(name),
            Self::AuthorizationPolicy(name) => world.authorization_policies.contains_key(name),
            Self::PeerAuthentication(name) => world.peer_authentications.contains_key(name),
            Self::VirtualService(name) => world.virtual_services.contains_key(name),
            Self::DestinationRule(name) => world.destination_rules.contains_key(name),
            Self::RequestAuthentication(name) => world.request_authentications.contains_key(name),
            Self::RateLimit(name) => world.rate_limits.contains_key(name),
            Self::ExtensionProvider(name) => world.extension_providers.contains_key(name),
            Self::Gateway(name) => world.gateways.contains_key(name),
            Self::Telemetry(name) => world.telemetries.contains_key(name),
            Self::HttpRoute(name) => world.http_routes.contains_key(name),
            Self::GrpcRoute(name) => world.grpc_routes.contains_key(name),
            Self::TlsRoute(name) => world.tls_routes.contains_key(name),
            Self::TcpRoute(name) => world.tcp_routes.contains_key(name),
            Self::ReferenceGrant(name) => world.reference_grants.contains_key(name),
            Self::BackendTls(name) => world.backend_tls.contains_key(name),
            Self::ConfigMap(name) => world.config_maps.contains_key(name),
        }
    }

    /// Removes the object from the world. Says whether it was there.
    pub fn remove_from(&self, world: &mut World) -> bool {
        match self {
            Self::Namespace(name) => world.namespaces.remove(name).is_some(),
            Self::Node(name) => world.nodes.remove(name).is_some(),
            Self::Pod(name) => world.pods.remove(name).is_some(),
            Self::Service(name) => world.services.remove(name).is_some(),
            Self::EndpointSlice(name) => world.endpoint_slices.remove(name).is_some(),
            Self::ServiceEntry(name) => world.service_entries.remove(name).is_some(),
            Self::WorkloadEntry(name) => world.workload_entries.remove(name).is_some(),
            Self::AuthorizationPolicy(name) => world.authorization_policies.remove(name).is_some(),
            Self::PeerAuthentication(name) => world.peer_authentications.remove(name).is_some(),
            Self::VirtualService(name) => world.virtual_services.remove(name).is_some(),
            Self::DestinationRule(name) => world.destination_rules.remove(name).is_some(),
            Self::RequestAuthentication(name) => world.request_authentications.remove(name).is_some(),
            Self::RateLimit(name) => world.rate_limits.remove(name).is_some(),
            Self::ExtensionProvider(name) => world.extension_providers.remove(name).is_some(),
            Self::Gateway(name) => world.gateways.remove(name).is_some(),
            Self::Telemetry(name) => world.telemetries.remove(name).is_some(),
            Self::HttpRoute(name) => world.http_routes.remove(name).is_some(),
            Self::GrpcRoute(name) => world.grpc_routes.remove(name).is_some(),
            Self::TlsRoute(name) => world.tls_routes.remove(name).is_some(),
            Self::TcpRoute(name) => world.tcp_routes.remove(name).is_some(),
            Self::ReferenceGrant(name) => world.reference_grants.remove(name).is_some(),
            Self::BackendTls(name) => world.backend_tls.remove(name).is_some(),
            Self::ConfigMap(name) => world.config_maps.remove(name).is_some(),
        }
    }

    pub fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Namespace,
            Self::Node(_) => Kind::Node,
            Self::Pod(_) => Kind::Pod,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::ServiceEntry(_) => Kind::ServiceEntry,
            Self::WorkloadEntry(_) => Kind::WorkloadEntry,
            Self::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
            Self::PeerAuthentication(_) => Kind::PeerAuthentication,
            Self::VirtualService(_) => Kind::VirtualService,
            Self::DestinationRule(_) => Kind::DestinationRule,
            Self::RequestAuthentication(_) => Kind::RequestAuthentication,
            Self::RateLimit(_) => Kind::RateLimit,
            Self::ExtensionProvider(_) => Kind::ExtensionProvider,
            Self::Gateway(_) => Kind::Gateway,
            Self::Telemetry(_) => Kind::Telemetry,
            Self::HttpRoute(_) => Kind::HttpRoute,
            Self::GrpcRoute(_) => Kind::GrpcRoute,
            Self::TlsRoute(_) => Kind::TlsRoute,
            Self::TcpRoute(_) => Kind::TcpRoute,
            Self::ReferenceGrant(_) => Kind::ReferenceGrant,
            Self::BackendTls(_) => Kind::BackendTls,
            Self::ConfigMap(_) => Kind::ConfigMap,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind().name();
        match (self, self.namespaced()) {
            (_, Some(name)) => write!(f, "{kind} {name}"),
            (Self::Namespace(name) | Self::Node(name), _) => write!(f, "{kind} {name}"),
            (_, None) => f.write_str(kind),
        }
    }
}

/// A converted object: at the same place in every world for as long as it doesn't change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Object {
    Namespace(Text, Arc<Namespace>),
    Node(Text, Arc<ClusterNode>),
    Pod(Arc<Pod>),
    Service(Arc<Service>),
    EndpointSlice(Arc<EndpointSlice>),
    ServiceEntry(Arc<ServiceEntry>),
    WorkloadEntry(Arc<WorkloadEntry>),
    AuthorizationPolicy(Arc<AuthorizationPolicy>),
    PeerAuthentication(Arc<PeerAuthentication>),
    VirtualService(Arc<VirtualService>),
    DestinationRule(Arc<DestinationRule>),
    RequestAuthentication(Arc<RequestAuthentication>),
    RateLimit(Arc<RateLimit>),
    ExtensionProvider(Arc<ExtensionProvider>),
    Gateway(Arc<Gateway>),
    Telemetry(Arc<Telemetry>),
    /// Of any kind of route.
    Route(Arc<Route>),
    ReferenceGrant(Arc<ReferenceGrant>),
    BackendTls(Arc<BackendTls>),
    ConfigMap(Arc<ConfigMap>),
}

impl Object {
    pub fn key(&self) -> Key {
        match self {
            Self::Namespace(name, _) => Key::Namespace(name.clone()),
            Self::Node(name, _) => Key::Node(name.clone()),
            Self::Pod(pod) => Key::Pod(pod.name.clone()),
            Self::Service(service) => Key::Service(service.name.clone()),
            Self::EndpointSlice(slice) => Key::EndpointSlice(slice.name.clone()),
            Self::ServiceEntry(entry) => Key::ServiceEntry(entry.name.clone()),
            Self::WorkloadEntry(entry) => Key::WorkloadEntry(entry.name.clone()),
            Self::AuthorizationPolicy(policy) => Key::AuthorizationPolicy(policy.name.clone()),
            Self::PeerAuthentication(policy) => Key::PeerAuthentication(policy.name.clone()),
            Self::VirtualService(of) => Key::VirtualService(of.name.clone()),
            Self::DestinationRule(of) => Key::DestinationRule(of.name.clone()),
            Self::RequestAuthentication(of) => Key::RequestAuthentication(of.name.clone()),
            Self::RateLimit(of) => Key::RateLimit(of.name.clone()),
            Self::ExtensionProvider(of) => Key::ExtensionProvider(of.name.clone()),
            Self::Gateway(of) => Key::Gateway(of.name.clone()),
            Self::Telemetry(of) => Key::Telemetry(of.name.clone()),
            Self::Route(of) => match of.kind {
                RouteKind::Http => Key::HttpRoute(of.name.clone()),
                RouteKind::Grpc => Key::GrpcRoute(of.name.clone()),
                RouteKind::Tls => Key::TlsRoute(of.name.clone()),
                RouteKind::Tcp => Key::TcpRoute(of.name.clone()),
            },
            Self::ReferenceGrant(of) => Key::ReferenceGrant(of.name.clone()),
            Self::BackendTls(of) => Key::BackendTls(of.name.clone()),
            Self::ConfigMap(of) => Key::ConfigMap(of.name.clone()),
        }
    }

    /// Adds it to the world, or puts it in the place of the one that has its name.
    pub fn put(self, world: &mut World) {
        match self {
            Self::Namespace(name, namespace) => drop(world.namespaces.insert(name, namespace)),
            Self::Node(name, node) => drop(world.nodes.insert(name, node)),
            Self::Pod(pod) => drop(world.pods.insert(pod.name.clone(), pod)),
            Self::Service(service) => drop(world.services.insert(service.name.clone(), service)),
            Self::EndpointSlice(slice) => drop(world.endpoint_slices.insert(slice.name.clone(), slice)),
            Self::ServiceEntry(entry) => drop(world.service_entries.insert(entry.name.clone(), entry)),
            Self::WorkloadEntry(entry) => drop(world.workload_entries.insert(entry.name.clone(), entry)),
            Self::AuthorizationPolicy(policy) => {
                drop(world.authorization_policies.insert(policy.name.clone(), policy));
            }
            Self::PeerAuthentication(policy) => {
                drop(world.peer_authentications.insert(policy.name.clone(), policy));
            }
            Self::VirtualService(of) => drop(world.virtual_services.insert(of.name.clone(), of)),
            Self::DestinationRule(of) => drop(world.destination_rules.insert(of.name.clone(), of)),
            Self::RequestAuthentication(of) => {
                drop(world.request_authentications.insert(of.name.clone(), of));
            }
            Self::RateLimit(of) => drop(world.rate_limits.insert(of.name.clone(), of)),
            Self::ExtensionProvider(of) => drop(world.extension_providers.insert(of.name.clone(), of)),
            Self::Gateway(of) => drop(world.gateways.insert(of.name.clone(), of)),
            Self::Telemetry(of) => drop(world.telemetries.insert(of.name.clone(), of)),
            Self::Route(of) => drop(world.routes_mut(of.kind).insert(of.name.clone(), of)),
            Self::ReferenceGrant(of) => drop(world.reference_grants.insert(of.name.clone(), of)),
            Self::BackendTls(of) => drop(world.backend_tls.insert(of.name.clone(), of)),
            Self::ConfigMap(of) => drop(world.config_maps.insert(of.name.clone(), of)),
        }
    }

    /// Like [`put`](Self::put), where the world does not have the very same already. Says whether it did not.
    pub fn put_if_new(self, world: &mut World) -> bool {
        let same = match &self {
            Self::Namespace(name, new) => world.namespaces.get(name) == Some(new),
            Self::Node(name, new) => world.nodes.get(name) == Some(new),
            Self::Pod(new) => world.pods.get(&new.name) == Some(new),
            Self::Service(new) => world.services.get(&new.name) == Some(new),
            Self::EndpointSlice(new) => world.endpoint_slices.get(&new.name) == Some(new),
            Self::ServiceEntry(new) => world.service_entries.get(&new.name) == Some(new),
            Self::WorkloadEntry(new) => world.workload_entries.get(&new.name) == Some(new),
            Self::AuthorizationPolicy(new) => world.authorization_policies.get(&new.name) == Some(new),
            Self::PeerAuthentication(new) => world.peer_authentications.get(&new.name) == Some(new),
            Self::VirtualService(new) => world.virtual_services.get(&new.name) == Some(new),
            Self::DestinationRule(new) => world.destination_rules.get(&new.name) == Some(new),
            Self::RequestAuthentication(new) => world.request_authentications.get(&new.name) == Some(new),
            Self::RateLimit(new) => world.rate_limits.get(&new.name) == Some(new),
            Self::ExtensionProvider(new) => world.extension_providers.get(&new.name) == Some(new),
            Self::Gateway(new) => world.gateways.get(&new.name) == Some(new),
            Self::Telemetry(new) => world.telemetries.get(&new.name) == Some(new),
            Self::Route(new) => world.routes_mut(new.kind).get(&new.name) == Some(new),
            Self::ReferenceGrant(new) => world.reference_grants.get(&new.name) == Some(new),
            Self::BackendTls(new) => world.backend_tls.get(&new.name) == Some(new),
            Self::ConfigMap(new) => world.config_maps.get(&new.name) == Some(new),
        };
        if !same {
            self.put(world);
        }
        !same
    }
}
