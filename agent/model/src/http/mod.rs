//! Which rule a request follows, where that leads, and whether it may: VirtualServices, routes of the Gateway API,
//! DestinationRules and AuthorizationPolicies, made ready to be asked.

mod app_protocol;
mod attached;
mod authentication;
mod authorize;
mod backend_tls;
mod bucket;
mod by_host;
mod by_service;
mod callee;
mod compile;
mod destination;
mod findings;
mod forwarded;
mod gateway_api;
mod groups;
mod hashed;
mod hidden;
mod index;
mod ingress;
mod limit;
mod made;
mod matching;
mod own;
mod path;
mod retry;
mod rule;
mod stream;
mod table;
mod token;
mod told;
mod traffic;
mod virtual_streams;

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

pub use crate::policy::ToAsk;
pub use backend_tls::{
    MAX_CERTIFICATES, Resolved, TargetProblem, Unresolved, backend_problems, certificate_maps,
};
pub use bucket::Bucket;
pub(crate) use callee::Callees;
pub use callee::{Asker, is_foreign};
pub use destination::{Client, Target};
pub use gateway_api::Grants;
pub use groups::{Groups, Whereabouts};
pub use hashed::Hashed;
pub use ingress::ListenerId;
pub use limit::{Counted, Limit};
pub use own::OwnGateway;
pub(crate) use path::readings;
pub use path::{PathError, normalised};
pub use retry::{Answered, Reach};
pub use rule::{Action, Choice, Cluster, MirrorTo, Own, Rule, Split};
pub use stream::{Stream, StreamRule};
pub(crate) use token::Values;
pub use token::{
    Claim, Claims, NoTokens, Presented, TokenRefused, TokenRules, Tokens, without_cookie, without_parameter,
};
pub use told::{Told, ToldMetric};
pub use traffic::{MAX_CREDENTIALS, MAX_PORT_SETTINGS, MAX_SELECTORS, MAX_SUBSETS, credentials};

use crate::admit::{Judgement, Refused};
use crate::behind::{Behind, Entrance};
use crate::identity::Identity;
use crate::map::Map;
use crate::name::NamespacedName;
use crate::reason::Reason;
use crate::service::{Endpoint, Service, ServiceKind};
use crate::world::routing::{ServerTls, VirtualService};
use crate::world::stream::Sni;
use crate::world::{ExtensionProvider, Labels, Locality, Pod, RemoteKeys};
use attached::Attached;
use authorize::RequestPolicies;
use by_service::ByService;
use destination::Destinations;
use ingress::Ingress;
use made::Made;
use stream::StreamPorts;
use table::Table;
use told::Telling;
pub(crate) use told::is_of_mesh;

/// A request, as far as routing asks about it.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// Such as `GET`.
    pub method: &'a str,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// As the client wrote it, with the port if there is one.
    pub authority: &'a str,
    /// Normalised: see [`normalised`].
    pub path: &'a str,
    /// What follows the `?`.
    pub query: Option<&'a str>,
    /// All headers.
    pub headers: &'a dyn Headers,
    /// The service's port that was dialled.
    pub port: u16,
    /// The client, where it is known.
    pub source: Option<&'a NamespacedName>,
    /// The client's namespace.
    pub source_namespace: &'a str,
    /// What tokens say that were verified.
    pub claims: &'a [Arc<Claims>],
}

/// The headers of a request.
pub trait Headers {
    /// The value of each header of this name, which is in lower case.
    fn values(&self, name: &str) -> Vec<Cow<'_, str>>;

    /// The value of the header of this name; of several, all, joined by commas.
    fn value(&self, name: &str) -> Option<Cow<'_, str>> {
        let mut values = self.values(name);
        if values.len() > 1 {
            return Some(values.join(",").into());
        }
        values.pop()
    }

    /// What else the values may be taken for; nothing, where all are UTF-8.
    fn otherwise(&self, _name: &str) -> Vec<Cow<'_, str>> {
        Vec::new()
    }

    /// What headers hold that some servers take for the one of this name: see [`is_alike`].
    fn alike(&self, name: &str) -> Vec<Cow<'_, str>>;
}

/// Whether both are the same header, or are to servers which know headers as variables (RFC 3875, section 4.1.18).
pub fn is_alike(one: &str, other: &str) -> bool {
    let plain = |byte: u8| if matches!(byte, b'_' | b'.') { b'-' } else { byte };
    one.len() == other.len() && one.bytes().map(plain).eq(other.bytes().map(plain))
}

/// A rule that a request follows.
#[derive(Clone, Copy, Debug)]
pub struct Selected<'t> {
    /// The rule.
    pub rule: &'t Rule,
    /// The prefix of the path that matched, where one was asked for; for `rewrite.uri` `/` where no path was.
    pub prefix: Option<&'t str>,
}

/// The rules of VirtualServices for one service.
#[derive(Clone, Debug)]
struct Tables {
    requests: Option<Arc<Table>>,
    /// By port, those of connections in which no HTTP is read.
    streams: StreamPorts,
}

/// The routes of all services behind a waypoint.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    /// Of VirtualServices.
    tables: ByService<Arc<Made<VirtualService, Tables>>>,
    /// Of the Gateway API, by Kubernetes Service.
    attached: HashMap<NamespacedName, Attached>,
    /// Of a gateway, if there is one.
    ingress: Option<Ingress>,
    destinations: Destinations,
    /// Secrets that rules of its own namespace name.
    credentials: BTreeSet<NamespacedName>,
    policies: RequestPolicies,
    callees: Callees,
    telling: Telling,
    /// Those of the world, whose labels some rules ask for.
    pods: Map<NamespacedName, Pod>,
    /// Of the node that the waypoint is on.
    node_addresses: Vec<IpAddr>,
    node: String,
    locality: Locality,
}

impl Routes {
    /// The rule that a request to this service follows: the first that matches. `None` where no route and no
    /// VirtualService speaks of the service, which is then reached itself; [`Reason::NoRoute`] where none of the rules
    /// matches. Routes of the Gateway API come instead of VirtualServices.
    pub fn select(&self, service: &Service, request: &Request<'_>) -> Result<Option<Selected<'_>>, Reason> {
        let is_service = service.kind == ServiceKind::Service;
        let attached = self.attached.get(&service.name).filter(|_| is_service);
        let attached = attached.and_then(|of| of.table(request.source_namespace, request.port));
        let table = attached.or_else(|| self.tables.get(service)?.made.requests.as_ref());
        let Some(table) = table else { return Ok(None) };
        let labels = request.source.and_then(|source| self.labels_of(source));
        table.select(request, labels).map(Some).ok_or(Reason::NoRoute)
    }

    /// The rule that a connection to this service follows in which no HTTP is read: the first that matches. `None` where
    /// none is for the port, or those of VirtualServices are for others, so that the service is reached itself;
    /// [`Reason::NoRoute`] where none of them matches.
    pub fn select_stream(
        &self,
        service: &Service,
        stream: &Stream<'_>,
    ) -> Result<Option<&StreamRule>, Reason> {
        let Some(table) = self.stream_table(service, stream) else { return Ok(None) };
        let labels = stream.source.and_then(|source| self.labels_of(source));
        match table.select(stream, labels) {
            None if table.lets_pass(stream, labels) => Ok(None),
            found => found.map(Some).ok_or(Reason::NoRoute),
        }
    }

    /// Whether all that clients of this namespace say to this port of the service is passed on unread, since its own
    /// namespace has a TLSRoute or a TCPRoute for it. No other namespace can have that.
    pub fn is_opaque(&self, service: &Service, port: u16, namespace: &str) -> bool {
        let attached = self.attached.get(&service.name).filter(|_| service.kind == ServiceKind::Service);
        attached.is_some_and(|of| of.is_opaque(namespace, port))
    }

    /// Whether the name in a client's TLS may decide whether it may have such a connection, or where that goes. As
    /// nobody waits for one else, a server may speak first.
    pub fn wants_sni(
        &self,
        target: &Behind,
        client: Option<&Identity>,
        address: IpAddr,
        stream: &Stream<'_>,
    ) -> bool {
        if self.policies.want_sni(target, client, address) {
            return true;
        }
        let Behind::Service { service, .. } = target else { return false };
        let Some(table) = self.stream_table(service, stream) else { return false };
        let leads_to = |rule: &StreamRule| {
            let clusters = rule.split.iter().flat_map(Split::choices).map(|choice| &choice.cluster);
            let targets = clusters.filter_map(|cluster| {
                let service = cluster.service.clone().ok()?;
                let port = cluster.port.or_else(|| only_port(&service)).unwrap_or(stream.port);
                Some(Behind::Service { service, port, dialled: None })
            });
            targets.collect::<Vec<_>>()
        };
        table.wants_sni(stream, stream.source.and_then(|source| self.labels_of(source)))
            || table
                .rules()
                .iter()
                .flat_map(leads_to)
                .any(|target| self.policies.want_sni(&target, client, address))
    }

    fn stream_table(&self, service: &Service, stream: &Stream<'_>) -> Option<&Arc<stream::StreamTable>> {
        let attached = self.attached.get(&service.name).filter(|_| service.kind == ServiceKind::Service);
        let attached = attached.and_then(|of| of.streams(stream.source_namespace, stream.port));
        attached.or_else(|| self.tables.get(service)?.made.streams.get(&stream.port))
    }

    fn labels_of(&self, pod: &NamespacedName) -> Option<&Labels> {
        self.pods.get(pod).map(|pod| &pod.labels)
    }

    /// Like [`authorize`](Self::authorize), for a connection in which no HTTP is read.
    pub fn authorize_stream(
        &self,
        target: &Behind,
        client: Option<&Identity>,
        address: IpAddr,
        sni: Sni<'_>,
    ) -> Result<Judgement, Refused> {
        self.policies.judge_stream(target, client, address, sni)
    }

    /// Whether requests for this are asked for tokens, or counted. Where HTTP could be read nobody must be led past
    /// that as part of a connection in which it is not.
    pub fn reads_requests(&self, service: &Arc<Service>, port: u16) -> bool {
        let is_opaque = service.port(port).is_some_and(|port| port.declared().is_opaque());
        let is_opaque = is_opaque || self.is_opaque(service, port, &service.name.namespace);
        !is_opaque && self.policies.read_requests(service, port)
    }

    /// The rule that a request to the gateway follows; [`Reason::NoRoute`] where no listener has its host, or no rule
    /// matches, and [`Reason::Misdirected`] where it came by another listener. Its port is the listener's.
    pub fn select_at_gateway(
        &self,
        request: &Request<'_>,
        entrance: &Entrance,
    ) -> Result<Selected<'_>, Reason> {
        self.ingress.as_ref().ok_or(Reason::NoRoute)?.select(request, entrance)
    }

    /// Whether TLS is spoken on this port of the gateway.
    pub fn is_tls(&self, port: u16) -> bool {
        self.ingress.as_ref().is_some_and(|ingress| ingress.is_tls(port))
    }

    /// The listeners of the gateway that speak TLS, with the Secrets that their certificates are in.
    pub fn certificates(&self) -> impl Iterator<Item = (&ListenerId, &[NamespacedName])> {
        self.ingress.iter().flat_map(Ingress::certificates)
    }

    /// The Secrets that DestinationRules of its own namespace name by `credentialName`. Those of others are not to be had.
    pub fn credentials(&self) -> &BTreeSet<NamespacedName> {
        &self.credentials
    }

    /// The listener whose certificate a client is to be shown that names this host on this port of the gateway, in lower
    /// case, or none. Without it nobody is there for it.
    pub fn tls_listener(&self, port: u16, sni: Option<&str>) -> Option<&ListenerId> {
        self.ingress.as_ref()?.tls_listener(port, sni)
    }

    /// Whether the gateway's Gateway is there.
    pub fn has_gateway(&self) -> bool {
        self.ingress.is_some()
    }

    /// The ports that the gateway is to listen on.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        self.ingress.iter().flat_map(Ingress::ports)
    }

    /// Decides by the AuthorizationPolicies for the service, the waypoint or the gateway whether a client at this address
    /// may ask for
    /// this; without a request, whether it may have a connection in which no HTTP is seen. Tokens that the
    /// RequestAuthentications ask for are verified by `tokens`, and what one says of its bearer counts. What a CUSTOM
    /// policy matches is refused unless its provider is one of `passed`, which have let it pass. Whoever comes from outside
    /// the mesh has no identity.
    pub fn authorize(
        &self,
        target: &Behind,
        client: Option<&Identity>,
        address: IpAddr,
        request: Option<&Request<'_>>,
        tokens: &dyn Tokens,
        passed: &[Arc<ExtensionProvider>],
    ) -> Result<Judgement, Refused> {
        self.policies.judge(target, client, address, request, tokens, passed)
    }

    /// Who is to be asked about a request first, as CUSTOM policies want it.
    pub fn to_ask(
        &self,
        target: &Behind,
        client: Option<&Identity>,
        address: IpAddr,
        request: &Request<'_>,
        tokens: &dyn Tokens,
    ) -> Result<Vec<ToAsk>, Refused> {
        self.policies.to_ask(target, client, address, request, tokens)
    }

    /// Whether there is anybody to ask at all.
    pub fn has_providers(&self) -> bool {
        self.policies.asks
    }

    /// The limits that a request for this counts for. Those that a client at this address is let ask it by, which is
    /// to be seen first: what is denied counts for none.
    pub fn limits(
        &self,
        target: &Behind,
        client: Option<&Identity>,
        address: IpAddr,
        request: &Request<'_>,
        tokens: &dyn Tokens,
    ) -> Result<Vec<Counted>, Refused> {
        self.policies.limits(target, client, address, request, tokens)
    }

    /// Whether there are RateLimits at all.
    pub fn has_limits(&self) -> bool {
        !self.policies.limits.is_empty()
    }

    /// All limits.
    pub fn all_limits(&self) -> impl Iterator<Item = &Arc<Limit>> {
        self.policies.limits.all()
    }

    /// What the RequestAuthentications say of the tokens in requests for this; of a workload that several services lead
    /// to, each of them.
    pub fn token_rules(&self, target: &Behind) -> Vec<Arc<TokenRules>> {
        self.policies.token_rules(target)
    }

    /// Whether there are RequestAuthentications at all.
    pub fn has_token_rules(&self) -> bool {
        !self.policies.authentications.is_empty()
    }

    /// The keys that have to be asked for, to verify tokens.
    pub fn remote_keys(&self) -> BTreeSet<RemoteKeys> {
        self.policies.authentications.remote_keys()
    }

    /// Whether the waypoint may be made to ask this service by such an object.
    pub fn permits(&self, asker: &Asker<'_>, service: &Service) -> bool {
        self.callees.permits(asker, service)
    }

    /// What is told of requests and connections for this, where that is otherwise than by default.
    pub fn told(&self, target: &Behind) -> Option<&Arc<Told>> {
        self.telling.of(target)
    }

    /// The addresses of the node that the waypoint is on.
    pub fn node_addresses(&self) -> &[IpAddr] {
        &self.node_addresses
    }

    /// Where the waypoint or gateway is whose workload has this name.
    pub fn here<'a>(&'a self, own: &NamespacedName) -> Whereabouts<'a> {
        Whereabouts { locality: &self.locality, node: &self.node, labels: self.labels_of(own) }
    }

    /// Where an endpoint is.
    pub fn whereabouts<'a>(&'a self, endpoint: &'a Endpoint) -> Whereabouts<'a> {
        let labels = endpoint.workload.as_ref().and_then(|workload| self.labels_of(&workload.name));
        Whereabouts::of(endpoint, labels)
    }

    /// Where a rule's destination is for this client: its endpoints, and how they are to be treated.
    pub fn target<'t>(
        &'t self,
        cluster: &'t Cluster,
        dialled: u16,
        client: &Client<'_>,
    ) -> Result<Target<'t>, Reason> {
        let service = cluster.service.as_ref().map_err(|reason| *reason)?;
        let port = cluster.port.or_else(|| only_port(service)).unwrap_or(dialled);
        let subset = cluster.subset.as_deref();
        let target = self.destinations.target(service, subset, port, client, &self.pods)?;
        // What secures it may do so for other clients alone.
        let is_fit = !cluster.needs_tls || target.tls.is_some_and(ServerTls::is_with_server);
        if is_fit { Ok(target) } else { Err(Reason::InvalidRoute) }
    }

    /// Where a service itself is, without any rule.
    pub fn target_of<'t>(
        &'t self,
        service: &'t Arc<Service>,
        port: u16,
        client: &Client<'_>,
    ) -> Result<Target<'t>, Reason> {
        self.destinations.target(service, None, port, client, &self.pods)
    }

    /// Whether a client may be passed on to a port that the service does not list, as ServiceEntries without endpoints
    /// of their own let it. Not if what goes to the service is to be secured.
    pub fn pass_unlisted(&self, service: &Service, client: &Client<'_>) -> Result<(), Reason> {
        let secured = self.destinations.secures_all(service, client, &self.pods);
        if secured { Err(Reason::NoServicePort) } else { Ok(()) }
    }
}

fn only_port(service: &Service) -> Option<u16> {
    match &service.ports[..] {
        [port] => Some(port.number),
        _ => None,
    }
}
