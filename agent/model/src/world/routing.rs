//! How requests are routed: `networking.istio.io` VirtualService and DestinationRule.

use std::time::Duration;

use super::header_text::HeaderText;
use super::stream::StreamRule;
use super::{Exports, Labels};
use crate::name::NamespacedName;

pub use super::re2::{Regex, RegexError};
pub use super::traffic_policy::{
    Balancer, CertificateRef, ConnectionPool, Credential, DestinationRule, Distribute, HashOn, HashTable,
    Keepalive, LocalityBalancing, LocalityPattern, Outlier, Pem, ProxyVersion, RetryBudget, Roots,
    ServerCheck, ServerTls, Subset, TrafficPolicy, Warmup,
};

/// A VirtualService.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VirtualService {
    /// Namespace and name.
    pub name: NamespacedName,
    /// `metadata.creationTimestamp` in seconds since 1970; of several for one host the oldest comes first, and one
    /// without a time is older than all others.
    pub created: Option<i64>,
    /// `spec.hosts` in lower case, as written: a short name is one of the same namespace. Empty in a delegate.
    pub hosts: Vec<String>,
    /// `spec.gateways`; empty means `mesh`.
    pub gateways: Vec<String>,
    /// `spec.exportTo`
    pub exports: Exports,
    /// `spec.http`
    pub http: Vec<HttpRule>,
    /// `spec.tls`
    pub tls: Vec<StreamRule>,
    /// `spec.tcp`
    pub tcp: Vec<StreamRule>,
    /// Fields of `spec` that are there and are not read.
    pub unread: Vec<String>,
}

/// An entry of `spec.http`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpRule {
    /// `name`
    pub name: String,
    /// `match`; empty matches every request.
    pub matches: Vec<HttpMatch>,
    /// What becomes of the request.
    pub action: RuleAction,
    /// `rewrite`
    pub rewrite: Option<Rewrite>,
    /// `timeout`; zero for none, whatever the rule that delegates says.
    pub timeout: Option<Duration>,
    /// `retries`
    pub retries: Option<Retries>,
    /// `fault`
    pub fault: Option<Fault>,
    /// `mirror` and `mirrors`
    pub mirrors: Vec<Mirror>,
    /// `corsPolicy`
    pub cors: Option<Cors>,
    /// `headers`
    pub headers: Option<HeaderChanges>,
}

/// What becomes of a request that matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleAction {
    /// `route`: never empty, and not all weights 0.
    Route(Vec<WeightedDestination>),
    /// `redirect`
    Redirect(Redirect),
    /// `directResponse`
    Direct(DirectResponse),
    /// `delegate`
    Delegate(NamespacedName),
}

impl Default for RuleAction {
    fn default() -> Self {
        Self::Route(Vec::new())
    }
}

/// An entry of `match`: all that it says must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpMatch {
    /// `uri`: of the path.
    pub uri: Option<StringMatch>,
    /// `ignoreUriCase`; not for regular expressions.
    pub ignore_uri_case: bool,
    /// `scheme`
    pub scheme: Option<StringMatch>,
    /// `method`
    pub method: Option<StringMatch>,
    /// `authority`
    pub authority: Option<StringMatch>,
    /// `headers`, by names in lower case.
    pub headers: Vec<(String, StringMatch)>,
    /// `withoutHeaders`, by names in lower case: none of these may hold.
    pub without_headers: Vec<(String, StringMatch)>,
    /// `@request.auth.claims` in `headers`: claims, and claims within claims, of a token that was verified.
    pub claims: Vec<(Vec<String>, StringMatch)>,
    /// The same in `withoutHeaders`.
    pub without_claims: Vec<(Vec<String>, StringMatch)>,
    /// `queryParams`
    pub query: Vec<(String, StringMatch)>,
    /// `port`: of the service.
    pub port: Option<u16>,
    /// `sourceLabels`
    pub source_labels: Labels,
    /// `sourceNamespace`
    pub source_namespace: Option<String>,
    /// `gateways`: instead of the VirtualService's, where there are any.
    pub gateways: Vec<String>,
}

/// What a text must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StringMatch {
    /// `exact`
    Exact(String),
    /// `prefix`
    Prefix(String),
    /// `PathPrefix` of the Gateway API, by segments: the path itself, or followed by a slash. Without one at its end,
    /// so that `/` is empty.
    Segments(String),
    /// `regex`: the whole text.
    Regex(Regex),
    /// Anything, as long as it is there.
    Present,
}

/// `destination`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Destination {
    /// `host` in lower case, as written: a short name is one of the rule's namespace.
    pub host: String,
    /// `subset`
    pub subset: Option<String>,
    /// `port.number`; without it, the service's only port, or that which was dialled.
    pub port: Option<u16>,
}

/// An entry of `route`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WeightedDestination {
    /// `destination`
    pub destination: Destination,
    /// `weight`; that of a single entry is 1.
    pub weight: u32,
    /// `headers`
    pub headers: HeaderChanges,
}

/// `redirect`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redirect {
    /// `uri`: the whole path instead.
    pub uri: Option<String>,
    /// `authority`
    pub authority: Option<String>,
    /// `port` or `derivePort`
    pub port: RedirectPort,
    /// `scheme`
    pub scheme: Option<String>,
    /// `redirectCode`; 301 where absent.
    pub code: u16,
    /// `path` of the Gateway API; the query stays.
    pub path: Option<PathChange>,
}

/// What the Gateway API makes of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathChange {
    /// `replaceFullPath`
    Full(String),
    /// `replacePrefixMatch`: instead of the [`Segments`](StringMatch::Segments) that matched.
    Prefix(String),
}

/// Which port a redirect leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RedirectPort {
    /// That of the authority, or none.
    #[default]
    FromAuthority,
    /// This.
    Number(u16),
    /// `FROM_PROTOCOL_DEFAULT`: the scheme's.
    OfScheme,
    /// `FROM_REQUEST_PORT`: that which was dialled.
    OfRequest,
}

/// `directResponse`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirectResponse {
    /// `status`
    pub status: u16,
    /// `body.string` or `body.bytes`
    pub body: Vec<u8>,
}

/// `rewrite`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// `uri`: instead of the prefix that matched, or else of the whole path.
    pub uri: Option<String>,
    /// `uriRegexRewrite`: an expression, and what every part that it matches becomes.
    pub regex: Option<(Regex, String)>,
    /// `authority`
    pub authority: Option<String>,
    /// `path` of the Gateway API.
    pub path: Option<PathChange>,
}

/// `retries`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retries {
    /// `attempts`: after the first.
    pub attempts: u32,
    /// `perTryTimeout`; without it, the rule's.
    pub per_try: Option<Duration>,
    /// `retryOn`; `None` means the default conditions, and an empty list none.
    pub on: Option<Vec<RetryOn>>,
    /// `backoff`: the pause before the first retry, which is shortened at random.
    pub backoff: Duration,
    /// No pause is shorter: `backoff` of the Gateway API.
    pub at_least: Duration,
    /// `retryRemoteLocalities`: localities that were tried are passed over, as long as there are others.
    pub remote_localities: bool,
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            attempts: 2,
            per_try: None,
            on: None,
            backoff: Duration::from_millis(25),
            at_least: Duration::ZERO,
            remote_localities: false,
        }
    }
}

/// What is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryOn {
    /// `connect-failure`
    ConnectFailure,
    /// `refused-stream`
    RefusedStream,
    /// `reset-before-request`: no answer, and nothing of the request was sent.
    ResetBeforeRequest,
    /// `reset`: no answer at all.
    Reset,
    /// `5xx`: that, or no answer.
    ServerError,
    /// `gateway-error`: 502, 503, 504, or no answer.
    GatewayError,
    /// `retriable-4xx`: 409.
    Conflict,
    /// `envoy-ratelimited`: an answer with that header.
    RateLimited,
    /// A status that a server answered.
    Status(u16),
    /// A status that a gRPC server answered in the head of its answer.
    Grpc(u8),
}

/// `fault`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// `delay`
    pub delay: Option<(Duration, Percent)>,
    /// `abort`
    pub abort: Option<(Abort, Percent)>,
}

/// How a request is aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// `httpStatus`
    Http(u16),
    /// `grpcStatus`
    Grpc(u8),
}

/// Of a million.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(pub u32);

impl Percent {
    /// Always.
    pub const ALL: Self = Self(1_000_000);

    /// Whether it happens, for a number that is spread evenly over all of them.
    pub fn hits(self, random: u64) -> bool {
        (u128::from(random) * 1_000_000) >> 64 < u128::from(self.0)
    }
}

/// `mirror` with `mirrorPercentage`, or an entry of `mirrors`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Where a copy of the request goes.
    pub destination: Destination,
    /// Of how many; all where absent.
    pub percent: Percent,
}

/// `corsPolicy`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cors {
    /// `allowOrigins`; `allowOrigin`
    pub origins: Vec<StringMatch>,
    /// `allowMethods`
    pub methods: Vec<String>,
    /// `allowHeaders`
    pub headers: Vec<String>,
    /// `exposeHeaders`
    pub expose: Vec<String>,
    /// `maxAge`
    pub max_age: Option<Duration>,
    /// `allowCredentials`
    pub credentials: bool,
    /// Whether preflights of all other origins are answered too, though with nothing that lets them ask: so the Gateway
    /// API has it. Else they are passed on.
    pub answers_all: bool,
}

/// `headers` of a rule or of one of its destinations. Names are in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderChanges {
    /// `request`
    pub request: HeaderChange,
    /// `response`
    pub response: HeaderChange,
}

impl HeaderChanges {
    /// Whether any of them tells of the request.
    pub fn has_operators(&self) -> bool {
        let changes = [&self.request, &self.response].into_iter();
        changes.flat_map(|of| of.set.iter().chain(&of.add)).any(|(_, value)| value.literal().is_none())
    }
}

/// What is done to a message's headers: set, add, remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderChange {
    /// `set`
    pub set: Vec<(String, HeaderText)>,
    /// `add`
    pub add: Vec<(String, HeaderText)>,
    /// `remove`
    pub remove: Vec<String>,
}

impl HeaderChange {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_exact() {
        assert!(Percent(1).hits(0) && !Percent(0).hits(0));
        assert!(Percent::ALL.hits(u64::MAX) && !Percent(999_999).hits(u64::MAX));
        let spread = |n: &u64| (2 * n + 1) * (u64::MAX / 2000);
        let hits = (0..1000).filter(|n| Percent(250_000).hits(spread(n))).count();
        assert_eq!(hits, 250);
    }
}
