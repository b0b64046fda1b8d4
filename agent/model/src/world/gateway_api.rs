//! Routes of the Gateway API (`gateway.networking.k8s.io`) as services of the mesh and gateways have them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::routing::{
    Cors, HeaderChanges, HttpMatch, Percent, Redirect, RegexError, Retries, Rewrite, ServerCheck, StringMatch,
};
use super::stream::HostPattern;
use crate::name::NamespacedName;

/// An HTTPRoute, GRPCRoute, TLSRoute or TCPRoute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// Which of these.
    pub kind: RouteKind,
    /// Namespace and name.
    pub name: NamespacedName,
    /// `metadata.creationTimestamp`, as of a VirtualService.
    pub created: Option<i64>,
    /// `spec.parentRefs`, as far as they are Services.
    pub parents: Vec<Parent>,
    /// `spec.parentRefs`, as far as they are Gateways.
    pub gateways: Vec<GatewayParent>,
    /// `spec.hostnames`: of requests at a gateway, or of TLS; empty is any, of TLS none at all too. Those of an HTTPRoute or
    /// GRPCRoute mean nothing where it is for a Service.
    pub hostnames: Vec<HostPattern>,
    /// `spec.rules`
    pub rules: Vec<RouteRule>,
    /// Fields that are there and mean nothing.
    pub unread: Vec<String>,
}

/// What a route is an object of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteKind {
    /// HTTPRoute
    #[default]
    Http,
    /// GRPCRoute
    Grpc,
    /// TLSRoute
    Tls,
    /// TCPRoute
    Tcp,
}

impl RouteKind {
    /// The name of the kind.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http => "HTTPRoute",
            Self::Grpc => "GRPCRoute",
            Self::Tls => "TLSRoute",
            Self::Tcp => "TCPRoute",
        }
    }

    /// Whether it is for connections in which no HTTP is read.
    pub fn is_stream(self) -> bool {
        matches!(self, Self::Tls | Self::Tcp)
    }
}

/// An entry of `spec.parentRefs` that is a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parent {
    /// The Service. Of another namespace than the route's, the route is for clients of its own namespace.
    pub service: NamespacedName,
    /// `sectionName`: the name of the port.
    pub section: Option<String>,
    /// `port`
    pub port: Option<u16>,
}

/// An entry of `spec.parentRefs` that is a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayParent {
    /// The Gateway.
    pub gateway: NamespacedName,
    /// `sectionName`: the name of the listener.
    pub section: Option<String>,
    /// `port`: of the listener.
    pub port: Option<u16>,
}

/// An entry of `spec.rules`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteRule {
    /// `name`
    pub name: String,
    /// `matches`; empty matches every request, of a GRPCRoute every gRPC request.
    pub matches: Vec<RouteMatch>,
    /// `filters`
    pub filters: RouteFilters,
    /// `backendRefs`
    pub backends: Vec<RouteBackend>,
    /// `timeouts.request`
    pub timeout: Option<Duration>,
    /// `retry` with `timeouts.backendRequest`
    pub retries: Option<Retries>,
    /// Why the rule can't be understood, where it is a Gateway's: then what it matches is refused.
    pub unreadable: Option<Unreadable>,
}

/// What is wrong with a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unreadable {
    /// Where, and what.
    pub problem: String,
    /// Whether nobody knows either what it matches: it may be anything.
    pub may_match_anything: bool,
}

/// An entry of `matches`: all that it says must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteMatch {
    /// What the request must be; each header and parameter is there once.
    pub http: HttpMatch,
    /// Of a GRPCRoute, what the path is made of.
    pub rpc: Option<RpcMatch>,
}

impl RouteMatch {
    /// Of a GRPCRoute.
    pub fn of_rpc(rpc: RpcMatch, headers: Vec<(String, StringMatch)>) -> Result<Self, RegexError> {
        let http = HttpMatch { uri: rpc.path()?, headers, ..HttpMatch::default() };
        Ok(Self { http, rpc: Some(rpc) })
    }
}

/// `method` of a GRPCRoute's match. `None` is any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RpcMatch {
    /// `service`
    pub service: Option<RpcName>,
    /// `method`
    pub method: Option<RpcName>,
}

/// What a service or method must be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RpcName {
    /// `Exact`
    Exact(String),
    /// `RegularExpression`: the whole name.
    Regex(String),
}

impl RpcMatch {
    /// What the path `/SERVICE/METHOD` must be; `None` is any.
    fn path(&self) -> Result<Option<StringMatch>, RegexError> {
        use RpcName::{Exact, Regex};
        Ok(Some(match (&self.service, &self.method) {
            (None, None) => return Ok(None),
            (Some(Exact(service)), Some(Exact(method))) => StringMatch::Exact(format!("/{service}/{method}")),
            (Some(Exact(service)), None) => StringMatch::Prefix(format!("/{service}/")),
            (service, method) => {
                let part = |name: &Option<RpcName>| match name {
                    None => Ok("[^/]+".to_owned()),
                    Some(Exact(name)) => Ok(regex::escape(name)),
                    // By itself, so that no parenthesis of one pairs with the other's.
                    Some(Regex(text)) => text.parse::<super::routing::Regex>().map(|_| format!("(?:{text})")),
                };
                StringMatch::Regex(format!("/{}/{}", part(service)?, part(method)?).parse()?)
            }
        }))
    }
}

/// `filters`, whatever their order was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteFilters {
    /// `RequestHeaderModifier` and `ResponseHeaderModifier`
    pub headers: HeaderChanges,
    /// `RequestRedirect`
    pub redirect: Option<Redirect>,
    /// `URLRewrite`
    pub rewrite: Option<Rewrite>,
    /// `RequestMirror`
    pub mirrors: Vec<RouteMirror>,
    /// `CORS`
    pub cors: Option<Cors>,
    /// One that can't be applied, and why. Then nothing passes: a filter is never skipped.
    pub unsupported: Option<String>,
}

/// `RequestMirror`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteMirror {
    /// Where a copy of the request goes.
    pub backend: BackendRef,
    /// Of how many.
    pub percent: Percent,
}

/// An entry of `backendRefs`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteBackend {
    /// Where requests go.
    pub backend: BackendRef,
    /// `weight`; 1 where absent.
    pub weight: u32,
    /// `filters`
    pub filters: RouteFilters,
}

/// Something that a route leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendRef {
    /// `group`; empty is the core's.
    pub group: String,
    /// `kind`
    pub kind: String,
    /// `namespace`, which is the route's where absent, and `name`.
    pub name: NamespacedName,
    /// `port`
    pub port: Option<u16>,
}

impl fmt::Display for BackendRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, kind, name, port } = self;
        match group.as_str() {
            "" => write!(f, "{kind} {name}")?,
            group => write!(f, "{kind}.{group} {name}")?,
        }
        port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// A BackendTLSPolicy: by what the connections to Services are secured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendTls {
    /// Namespace and name.
    pub name: NamespacedName,
    /// `metadata.creationTimestamp`: of several for the same the oldest counts.
    pub created: Option<i64>,
    /// `spec.targetRefs` that are Services.
    pub targets: Vec<BackendTarget>,
    /// Whether it may be for any Service of its namespace, since nobody can read which.
    pub anything: bool,
    /// `spec.validation`, or why nothing can be sent.
    pub check: Result<Arc<ServerCheck>, BackendProblem>,
    /// Fields that are there and mean nothing.
    pub unread: Vec<String>,
}

/// A Service of the policy's namespace, or a port of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BackendTarget {
    /// `name`
    pub service: String,
    /// `sectionName`, the port's name; `None` is all ports that no other one names.
    pub port: Option<String>,
}

impl fmt::Display for BackendTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(port) = &self.port {
            write!(f, "port {port} of ")?;
        }
        write!(f, "Service {}", self.service)
    }
}

/// Why a BackendTLSPolicy lets nothing be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendProblem {
    /// The certificates that `caCertificateRefs` name can't be had.
    NoCertificates(String),
    /// It can't be done, or nobody understands it.
    Invalid(String),
}

impl fmt::Display for BackendProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::NoCertificates(why) | Self::Invalid(why)) = self;
        f.write_str(why)
    }
}

/// A ReferenceGrant: who may refer to what is in its namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReferenceGrant {
    /// Namespace and name.
    pub name: NamespacedName,
    /// `spec.from`
    pub from: Vec<GrantFrom>,
    /// `spec.to`
    pub to: Vec<GrantTo>,
}

/// An entry of `spec.from`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GrantFrom {
    /// `group`
    pub group: String,
    /// `kind`
    pub kind: String,
    /// `namespace`
    pub namespace: String,
}

/// An entry of `spec.to`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GrantTo {
    /// `group`
    pub group: String,
    /// `kind`
    pub kind: String,
    /// `name`; `None` is all of them.
    pub name: Option<String>,
}

/// The group of the Gateway API.
pub const GROUP: &str = "gateway.networking.k8s.io";

impl ReferenceGrant {
    /// Whether objects of this group, kind and namespace may refer to what is of this group, kind and name in the
    /// grant's namespace.
    pub fn grants(&self, by: (&str, &str, &str), to: (&str, &str), name: &str) -> bool {
        let from = |of: &GrantFrom| (of.group.as_str(), of.kind.as_str(), of.namespace.as_str()) == by;
        let to = |of: &GrantTo| {
            (of.group.as_str(), of.kind.as_str()) == to
                && of.name.as_deref().is_none_or(|wanted| wanted == name)
        };
        self.from.iter().any(from) && self.to.iter().any(to)
    }
}
