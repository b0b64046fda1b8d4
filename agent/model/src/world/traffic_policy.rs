//! How the servers of a service are treated: `networking.istio.io` DestinationRule.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use super::{Exports, Labels};
use crate::name::NamespacedName;
use crate::text::Text;

/// A DestinationRule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DestinationRule {
    /// Namespace and name.
    pub name: NamespacedName,
    /// `metadata.creationTimestamp`, as of a VirtualService.
    pub created: Option<i64>,
    /// `spec.host` in lower case, as written.
    pub host: String,
    /// `spec.exportTo`
    pub exports: Exports,
    /// `spec.workloadSelector`: the clients that it is for, of its own namespace, all of which an empty one selects.
    /// Without any it is for all clients, of any.
    pub selector: Option<Labels>,
    /// `spec.trafficPolicy`
    pub policy: TrafficPolicy,
    /// `spec.subsets`
    pub subsets: Vec<Subset>,
    /// Fields that are there and are not read.
    pub unread: Vec<String>,
}

/// An entry of `spec.subsets`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subset {
    /// `name`
    pub name: String,
    /// `labels` of its endpoints.
    pub labels: Labels,
    /// `trafficPolicy`
    pub policy: TrafficPolicy,
}

/// `trafficPolicy`, block by block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrafficPolicy {
    /// `loadBalancer`
    pub balancer: Option<Balancer>,
    /// `loadBalancer.warmup`: it counts where its balancer does.
    pub warmup: Option<Warmup>,
    /// `loadBalancer.localityLbSetting`
    pub locality: Option<Arc<LocalityBalancing>>,
    /// `outlierDetection`
    pub outlier: Option<Outlier>,
    /// `connectionPool`
    pub pool: Option<ConnectionPool>,
    /// `tls`
    pub tls: Option<ServerTls>,
    /// `retryBudget`
    pub retry_budget: Option<RetryBudget>,
    /// `proxyProtocol`
    pub proxy_protocol: Option<ProxyVersion>,
    /// `portLevelSettings`: instead of the balancer, the outliers, the pool and the TLS above, by port of the service.
    pub ports: Vec<(u16, TrafficPolicy)>,
}

impl TrafficPolicy {
    /// Whether it asks for TLS of any kind, at those ports that have no settings of their own.
    pub fn is_secured(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| *tls != ServerTls::Disable)
    }
}

/// `loadBalancer`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Balancer {
    /// `LEAST_REQUEST`, and nothing said.
    #[default]
    LeastRequest,
    /// `ROUND_ROBIN`
    RoundRobin,
    /// `RANDOM`
    Random,
    /// `PASSTHROUGH`: as it was dialled.
    Passthrough,
    /// Of two, the one whose answers take less time for those that wait for one: Orlop's `PEAK_EWMA`.
    PeakEwma,
    /// `consistentHash`
    Hash(HashOn, HashTable),
}

/// What is hashed, so that what is alike goes to one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashOn {
    /// `httpHeaderName`, in lower case.
    Header(String),
    /// `httpQueryParameterName`
    Query(String),
    /// `useSourceIp`
    Source,
    /// `httpCookie`: its name and path; where there is none and it has a time to live, one is made.
    Cookie {
        /// `name`
        name: String,
        /// `path`
        path: Option<String>,
        /// `ttl`
        ttl: Option<Duration>,
        /// `attributes`, of which some have no value.
        attributes: Vec<(String, Option<String>)>,
    },
}

/// How a hash leads to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashTable {
    /// `ringHash`, with at least so many places: `minimumRingSize`.
    Ring(u32),
    /// `maglev`, with so many places: `tableSize`, a prime number.
    Maglev(u32),
}

impl HashTable {
    /// Places of the largest table, a prime number: it is made while requests wait, each time that endpoints change.
    pub const MAX: u32 = 131_071;
}

impl Default for HashTable {
    fn default() -> Self {
        Self::Ring(1024)
    }
}

/// `warmup`: an endpoint that is new gets more and more, until it has its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Warmup {
    /// `duration`
    pub duration: Duration,
    /// `minimumPercent` of its share.
    pub minimum_percent: u32,
    /// `aggression`, in thousandths: 1 grows evenly, more grows faster at first.
    pub aggression: u32,
}

impl Warmup {
    /// What part of its share an endpoint of this age gets. The same as Envoy's slow start.
    pub fn part(&self, age: Duration) -> f64 {
        if age >= self.duration {
            return 1.0;
        }
        let passed = age.as_secs_f64() / self.duration.as_secs_f64();
        let grown = passed.powf(1000.0 / f64::from(self.aggression.max(1)));
        grown.max(f64::from(self.minimum_percent) / 100.0)
    }
}

/// `localityLbSetting`: which localities requests go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalityBalancing {
    /// `enabled`; without it all endpoints are alike.
    pub enabled: bool,
    /// `distribute`; with it nothing else counts.
    pub distribute: Vec<Distribute>,
    /// `failover`: of regions, by which each is followed first.
    pub failover: Vec<(String, String)>,
    /// `failoverPriority`: labels, with the value that is wanted, which is the client's own if there is none.
    pub priority: Vec<(String, Option<String>)>,
}

impl LocalityBalancing {
    /// What holds where nothing is said.
    pub const DEFAULT: Self =
        Self { enabled: true, distribute: Vec::new(), failover: Vec::new(), priority: Vec::new() };
}

/// An entry of `distribute`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distribute {
    /// `from`: where clients are that it is for.
    pub from: LocalityPattern,
    /// `to`: what percentage of their requests goes where.
    pub to: Vec<(LocalityPattern, u32)>,
}

/// Region, zone and subzone; `None` is any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalityPattern(pub [Option<Text>; 3]);

/// `outlierDetection`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlier {
    /// `consecutive5xxErrors`; 0 is off.
    pub server_errors: u32,
    /// `consecutiveGatewayErrors`; 0 is off.
    pub gateway_errors: u32,
    /// `consecutiveLocalOriginFailures`, where `splitExternalLocalOriginErrors` counts by themselves the times that
    /// there was no answer; `None` where these count as answers of a gateway.
    pub local_failures: Option<u32>,
    /// `interval`
    pub interval: Duration,
    /// `baseEjectionTime`
    pub base: Duration,
    /// `maxEjectionPercent`
    pub max_percent: u32,
    /// `minHealthPercent`
    pub min_health: u32,
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            server_errors: 5,
            gateway_errors: 0,
            local_failures: None,
            interval: Duration::from_secs(10),
            base: Duration::from_secs(30),
            max_percent: 10,
            min_health: 0,
        }
    }
}

/// `connectionPool`; `None` is unlimited, and for all endpoints of a service or a subset together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionPool {
    /// `tcp.maxConnections`
    pub max_connections: Option<u32>,
    /// `tcp.connectTimeout`
    pub connect_timeout: Option<Duration>,
    /// `tcp.tcpKeepalive`
    pub keepalive: Option<Keepalive>,
    /// `tcp.maxConnectionDuration`
    pub max_duration: Option<Duration>,
    /// `http.idleTimeout`, else `tcp.idleTimeout`: without a request.
    pub idle_timeout: Option<Duration>,
    /// `tcp.idleTimeout`: without a byte, where no HTTP is read.
    pub stream_idle_timeout: Option<Duration>,
    /// `http.http1MaxPendingRequests`: those that wait for a connection.
    pub max_pending: Option<u32>,
    /// `http.http2MaxRequests`
    pub max_requests: Option<u32>,
    /// `http.maxRequestsPerConnection`
    pub max_per_connection: Option<u32>,
    /// `http.maxRetries`: at one time.
    pub max_retries: Option<u32>,
    /// `http.maxConcurrentStreams`: in one connection.
    pub max_streams: Option<u32>,
    /// `http.h2UpgradePolicy` is `UPGRADE`.
    pub to_http2: bool,
    /// `http.useClientProtocol`
    pub client_protocol: bool,
}

/// `tcpKeepalive`; what is `None` is as the system has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keepalive {
    /// `probes`
    pub probes: Option<u32>,
    /// `time`
    pub time: Option<Duration>,
    /// `interval`
    pub interval: Option<Duration>,
}

/// `tls`: by what the connections to servers are secured, beyond the mesh's own tunnels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerTls {
    /// `DISABLE`: by nothing.
    Disable,
    /// `SIMPLE` and `MUTUAL`
    Simple(Arc<ServerCheck>),
    /// `ISTIO_MUTUAL`: by the mesh, so that none may be outside of it.
    Mesh,
    /// By what a waypoint does not have, which this says: it sends nothing then.
    Unavailable(String),
}

impl ServerTls {
    /// Whether a server is reached by TLS of its own, or not at all.
    pub fn is_with_server(&self) -> bool {
        matches!(self, Self::Simple(_) | Self::Unavailable(_))
    }
}

/// Which servers are believed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerCheck {
    /// `sni`: the name that is asked for; without it, that of the service.
    pub sni: Option<String>,
    /// `subjectAltNames`: the certificate must have one of these or, where there are none, the name that is asked for.
    pub names: Vec<String>,
    /// Whose signatures are believed.
    pub roots: Roots,
    /// `credentialName`
    pub credential: Option<Credential>,
}

/// `credentialName`: what is in a Secret of the rule's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Credential {
    /// The Secret.
    pub secret: NamespacedName,
    /// Whether its certificate is shown to the server: `MUTUAL`.
    pub shown: bool,
}

/// Whose signatures are believed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Roots {
    /// The public authorities'.
    Public,
    /// Those of these certificates alone.
    Only(Vec<Pem>),
    /// Those of the certificates that these name in the namespace of whoever says so. Nobody is reached by them: what they
    /// name is put in their place.
    Named(Vec<CertificateRef>),
    /// Those of the credential's certificates alone.
    Credential,
    /// Anybody's: `insecureSkipVerify`.
    Anybody,
}

/// An entry of `caCertificateRefs`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CertificateRef {
    /// A ConfigMap, with certificates under `ca.crt`.
    ConfigMap(Text),
    /// Something else, which has none: its kind and name.
    Other(String),
}

/// Certificates as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pem(Arc<str>);

impl Pem {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for Pem {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl Hash for Pem {
    /// All of it is not read for each request that looks for a connection.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.len().hash(state);
    }
}

/// `retryBudget`: how many of the requests at one time may be retries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    /// `percent`, in thousandths of one.
    pub thousandths: u32,
    /// `minRetryConcurrency`: so many always may.
    pub at_least: u32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { thousandths: 20_000, at_least: 3 }
    }
}

impl RetryBudget {
    /// Retries that there may be beside so many requests.
    pub fn of(&self, requests: usize) -> usize {
        let part = requests as u128 * u128::from(self.thousandths) / 100_000;
        usize::try_from(part).unwrap_or(usize::MAX).max(self.at_least as usize)
    }
}

/// `proxyProtocol`: what a connection begins with to tell who its client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyVersion {
    /// `V1`
    V1,
    /// `V2`
    V2,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_gets_more_and_more() {
        let warmup = Warmup { duration: Duration::from_secs(100), minimum_percent: 10, aggression: 1000 };
        let part = |seconds| (warmup.part(Duration::from_secs(seconds)) * 1000.0).round();
        assert_eq!([0, 5, 50, 99, 100, 500].map(part), [100.0, 100.0, 500.0, 990.0, 1000.0, 1000.0]);
        let faster = Warmup { aggression: 2000, ..warmup };
        assert!(faster.part(Duration::from_secs(25)) > 0.49);
    }

    #[test]
    fn retries_are_a_part_of_requests_and_a_few_always() {
        let budget = RetryBudget::default();
        assert_eq!([0, 10, 15, 50].map(|requests| budget.of(requests)), [3, 3, 3, 10]);
        let none = RetryBudget { thousandths: 0, at_least: 0 };
        assert_eq!(none.of(usize::MAX), 0);
    }
}
