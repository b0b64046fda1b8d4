//! Istio's `security.istio.io` resources.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Labels, PathPattern};
use crate::name::NamespacedName;

/// A `security.istio.io` AuthorizationPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorizationPolicy {
    /// Namespace and name.
    pub name: NamespacedName,
    /// `spec.selector.matchLabels`; empty selects every workload of the scope.
    pub selector: Labels,
    /// `spec.targetRefs`: with any, the policy is for requests, and judged by waypoints only.
    pub targets: Vec<Target>,
    /// `spec.action`
    pub action: Action,
    /// `spec.provider.name`: who is asked, where the action is CUSTOM.
    #[serde(default)]
    pub provider: Option<String>,
    /// `spec.rules`; without any, nothing matches.
    pub rules: Vec<Rule>,
    /// Annotation `istio.io/dry-run: "true"`: told of, not enforced.
    pub dry_run: bool,
}

/// One of `spec.targetRefs`, in the policy's namespace where it is of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// A `gateway.networking.k8s.io` Gateway: all that is behind it.
    Gateway(String),
    /// A `v1` Service.
    Service(String),
    /// A `networking.istio.io` ServiceEntry.
    ServiceEntry(String),
    /// A `gateway.networking.k8s.io` GatewayClass: all gateways of the class.
    GatewayClass(String),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Gateway(name) => write!(f, "Gateway/{name}"),
            Target::Service(name) => write!(f, "Service/{name}"),
            Target::ServiceEntry(name) => write!(f, "ServiceEntry/{name}"),
            Target::GatewayClass(name) => write!(f, "GatewayClass/{name}"),
        }
    }
}

/// `spec.action` of an AuthorizationPolicy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// What an ALLOW policy selects takes only what some ALLOW policy matches.
    #[default]
    Allow,
    /// Refuses what it matches.
    Deny,
    /// Marks what it matches.
    Audit,
    /// Asks a provider about what it matches.
    Custom,
}

impl Action {
    /// As the resource spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Action::Allow => "ALLOW",
            Action::Deny => "DENY",
            Action::Audit => "AUDIT",
            Action::Custom => "CUSTOM",
        }
    }
}

/// A rule: one of `from`, one of `to` and all of `when` must match. Lists that are empty match anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// `from[].source`
    pub from: Vec<Source>,
    /// `to[].operation`
    pub to: Vec<Operation>,
    /// `when`
    pub when: Vec<Condition>,
}

/// A source: all its fields must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// `principals` and `notPrincipals`, without `spiffe://`.
    pub principals: Match<Pattern>,
    /// `namespaces` and `notNamespaces`
    pub namespaces: Match<Pattern>,
    /// `serviceAccounts` and `notServiceAccounts`
    pub service_accounts: Match<ServiceAccount>,
    /// `ipBlocks` and `notIpBlocks`
    pub ip_blocks: Match<IpBlock>,
    /// `remoteIpBlocks` and `notRemoteIpBlocks`: of requests.
    pub remote_ip_blocks: Match<IpBlock>,
    /// `requestPrincipals` and `notRequestPrincipals`: of the tokens in requests, `ISSUER/SUBJECT`.
    pub request_principals: Match<Pattern>,
}

/// An operation: all its fields must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// `ports` and `notPorts`
    pub ports: Match<u16>,
    /// `hosts` and `notHosts` of requests, in lower case.
    pub hosts: Match<Pattern>,
    /// `methods` and `notMethods` of requests, in upper case.
    pub methods: Match<Pattern>,
    /// `paths` and `notPaths` of requests.
    pub paths: Match<PathPattern>,
}

/// An entry of `when`, by its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// `source.ip`
    SourceIp(Match<IpBlock>),
    /// `source.namespace`
    SourceNamespace(Match<Pattern>),
    /// `source.principal`
    SourcePrincipal(Match<Pattern>),
    /// `source.serviceAccount`
    SourceServiceAccount(Match<ServiceAccount>),
    /// `destination.ip`
    DestinationIp(Match<IpBlock>),
    /// `destination.port`
    DestinationPort(Match<u16>),
    /// `remote.ip`
    RemoteIp(Match<IpBlock>),
    /// `request.headers[host]` or `request.headers[:authority]`, in lower case.
    Host(Match<Pattern>),
    /// `request.headers[:method]`, in upper case.
    Method(Match<Pattern>),
    /// `request.headers[NAME]`, with the name in lower case.
    Header(String, Match<Pattern>),
    /// `request.auth.principal`
    RequestPrincipal(Match<Pattern>),
    /// `request.auth.audiences`
    RequestAudience(Match<Pattern>),
    /// `request.auth.presenter`
    RequestPresenter(Match<Pattern>),
    /// `request.auth.claims[NAME]`, or the names of claims within claims.
    Claim(Vec<String>, Match<Pattern>),
    /// `connection.sni`, in lower case.
    Sni(Match<Pattern>),
    /// A key that nobody reads.
    Unread(String),
}

/// One of `values` where there are any, and none of `not_values`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Match<T> {
    /// What must be.
    pub values: Vec<T>,
    /// What must not be.
    pub not_values: Vec<T>,
}

impl<T> Default for Match<T> {
    fn default() -> Self {
        Self { values: Vec::new(), not_values: Vec::new() }
    }
}

impl<T> Match<T> {
    /// True where nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty() && self.not_values.is_empty()
    }
}

/// What a text must look like: `x`, `x*`, `*x` or `*`. No pattern matches an empty text.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Pattern {
    /// `x`
    Exact(String),
    /// `x*`, as `x`
    Prefix(String),
    /// `*x`, as `x`
    Suffix(String),
    /// `*`: any text but the empty one.
    Present,
}

impl Pattern {
    /// Whether the text looks like this.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Pattern::Exact(exact) => text == exact,
            Pattern::Prefix(prefix) => text.starts_with(prefix.as_str()),
            Pattern::Suffix(suffix) => text.ends_with(suffix.as_str()),
            Pattern::Present => !text.is_empty(),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::Exact(text) => f.write_str(text),
            Pattern::Prefix(text) => write!(f, "{text}*"),
            Pattern::Suffix(text) => write!(f, "*{text}"),
            Pattern::Present => f.write_str("*"),
        }
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let (start, end) = (text.strip_prefix('*'), text.strip_suffix('*'));
        match (text, start, end) {
            ("", _, _) => Err(PatternError::Empty),
            ("*", _, _) => Ok(Pattern::Present),
            (_, Some(suffix), _) if !suffix.contains('*') => Ok(Pattern::Suffix(suffix.to_owned())),
            (_, _, Some(prefix)) if !prefix.contains('*') => Ok(Pattern::Prefix(prefix.to_owned())),
            (_, None, None) if !text.contains('*') => Ok(Pattern::Exact(text.to_owned())),
            _ => Err(PatternError::Star(text.to_owned())),
        }
    }
}

/// Why a text is not a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Nothing to match.
    #[error("is empty and would match nothing; leave it out")]
    Empty,
    /// It would be taken as an ordinary character, and so match nothing.
    #[error("{0:?} has a '*' where it means nothing; write it once, as the first or the last character")]
    Star(String),
}

/// A service account; written `NAMESPACE/NAME`, or `NAME` in the policy's own namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An address or a CIDR block. IPv4-mapped IPv6 is IPv4; bits past the prefix don't count.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IpBlock {
    first: IpAddr,
    length: u8,
}

impl IpBlock {
    /// The block of this address and prefix length; `None` where the length is too large.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let (address, length) = match (address, address.to_canonical()) {
            (IpAddr::V6(_), mapped @ IpAddr::V4(_)) if length >= 96 => (mapped, length - 96),
            (as_written, _) => (as_written, length),
        };
        let first = match address {
            IpAddr::V4(ip) if length <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                IpAddr::V4((ip.to_bits() & mask).into())
            }
            IpAddr::V6(ip) if length <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                IpAddr::V6((ip.to_bits() & mask).into())
            }
            _ => return None,
        };
        Some(Self { first, length })
    }

    /// The block of one address.
    pub fn single(address: IpAddr) -> Self {
        let first = address.to_canonical();
        Self { first, length: if first.is_ipv4() { 32 } else { 128 } }
    }

    /// The address, where the block is of one only.
    pub fn address(&self) -> Option<IpAddr> {
        (*self == Self::single(self.first)).then_some(self.first)
    }

    /// Of which family it is.
    pub(crate) fn is_ipv4(&self) -> bool {
        self.first.is_ipv4()
    }

    /// The length of the prefix, in bits.
    pub(crate) fn length(&self) -> u8 {
        self.length
    }

    /// Whether the address is in it. An IPv4 address is in no IPv6 block.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.covers(&Self::single(address))
    }

    /// Whether all of the other block is in it.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        self.length <= other.length && Self::new(other.first, self.length) == Some(*self)
    }
}

impl fmt::Display for IpBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::single(self.first) {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}/{}", self.first, self.length)
        }
    }
}

impl Serialize for IpBlock {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for IpBlock {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl fmt::Debug for IpBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for IpBlock {
    type Err = IpBlockError;

    fn from_str(text: &str) -> Result<Self, IpBlockError> {
        let wrong = || IpBlockError(text.to_owned());
        let Some((address, length)) = text.split_once('/') else {
            return Ok(Self::single(text.parse().map_err(|_| wrong())?));
        };
        let digits = length.bytes().all(|b| b.is_ascii_digit());
        let length = length.parse().ok().filter(|_| digits).ok_or_else(wrong)?;
        Self::new(address.parse().map_err(|_| wrong())?, length).ok_or_else(wrong)
    }
}

/// The text is no block of addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address or a block of them: write it as 10.1.2.3, 10.1.0.0/16 or fd00::/8")]
pub struct IpBlockError(String);

/// A `security.istio.io` PeerAuthentication.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerAuthentication {
    /// Namespace and name.
    pub name: NamespacedName,
    /// `metadata.creationTimestamp` in seconds since 1970; of several in one scope the oldest counts, and one
    /// without a time is older than all others.
    pub created: Option<i64>,
    /// `spec.selector.matchLabels`; empty selects every workload of the scope.
    pub selector: Labels,
    /// `spec.mtls.mode`; `None` is UNSET: as the wider scope says.
    pub mode: Option<Mode>,
    /// `spec.portLevelMtls` by port of the workload; `None` is UNSET: as the workload's other ports.
    pub ports: BTreeMap<u16, Option<Mode>>,
}

/// Whether a workload takes connections without mutual TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mode {
    /// With and without.
    #[default]
    Permissive,
    /// Only with.
    Strict,
    /// Only without.
    Disable,
}
