use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::security::{Rule, Target};
use crate::name::NamespacedName;

/// The fastest limit: below this, a token would be less than a microsecond.
const MAX_PER_SECOND: u64 = 1_000_000;
/// How long a bucket may take to be full again.
const MAX_FILL: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// An `orlop.dev` RateLimit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// Namespace and name.
    pub name: NamespacedName,
    /// `spec.targetRefs`
    pub targets: Vec<Target>,
    /// `spec.limits`
    pub limits: Vec<Arc<Limit>>,
    /// It is not known what it says: nothing may pass where it is for, which is its scope if there are no targets.
    pub unreadable: bool,
}

/// An entry of `spec.limits`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// `name`, unique in its RateLimit: an RFC 1123 label or several with dots.
    pub name: String,
    /// Who counts, and up to what.
    pub counting: Counting,
    /// `by`: requests that differ in one of these are counted apart.
    pub by: Vec<KeyPart>,
    /// `match`: which requests count, those that one of these matches; without any, all.
    pub matches: Vec<Rule>,
}

/// Who counts the requests of a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Counting {
    /// Each pod of a waypoint by itself: `requests`, `unit` and `burst`.
    Local(Rate),
    /// `shared`: a service, for all that ask it.
    Shared(Shared),
}

/// Who counts for all: a service that speaks `envoy.service.ratelimit.v3`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    /// `service`: the host of a service.
    pub host: String,
    /// The namespace in which that is looked for.
    pub namespace: String,
    /// `port`
    pub port: u16,
    /// `domain`, under which the service has its limits.
    pub domain: String,
    /// `keys`: what the service calls what `by` names, in the same order; none where it calls it the same.
    pub keys: Vec<String>,
    /// `timeout`
    pub timeout: Duration,
    /// `failOpen`: whether requests pass while it can't be asked.
    pub fail_open: bool,
    /// `requests` and `unit`, in place of what the service has.
    pub rate: Option<Rate>,
}

impl Limit {
    /// How many requests there may be, unless that is known to the service alone that counts them.
    pub fn rate(&self) -> Option<Rate> {
        match &self.counting {
            Counting::Local(rate) => Some(*rate),
            Counting::Shared(shared) => shared.rate,
        }
    }

    /// The same in words.
    pub fn shown(&self) -> String {
        match (&self.counting, self.rate()) {
            (Counting::Local(rate), _) => rate.to_string(),
            (Counting::Shared(shared), Some(rate)) => format!("{rate}, counted by {}", shared.host),
            (Counting::Shared(shared), None) => format!("as {} has it", shared.host),
        }
    }
}

/// Requests per unit of time: tokens come evenly, and up to `burst` wait to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    requests: NonZeroU32,
    unit: Unit,
    burst: NonZeroU32,
}

/// A unit of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// 1 s
    Second,
    /// 60 s
    Minute,
    /// 3,600 s
    Hour,
    /// 86,400 s
    Day,
}

/// Something of a request by which it is counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KeyPart {
    /// `source.principal`: the client's identity.
    Principal,
    /// `source.namespace`
    Namespace,
    /// `source.serviceAccount`
    ServiceAccount,
    /// `source.ip`
    Address,
    /// `remote.ip`: of what comes by a gateway, its client's.
    Remote,
    /// `destination.service`: the service that is asked.
    Service,
    /// `request.host`, in lower case and without its port.
    Host,
    /// `request.method`
    Method,
    /// `request.path`, in its normal form and without the query.
    Path,
    /// `request.headers[NAME]`, with the name in lower case.
    Header(String),
    /// `request.auth.principal`
    RequestPrincipal,
    /// `request.auth.claims[NAME]`, or the names of claims within claims.
    Claim(Vec<String>),
}

/// As the resource spells it.
impl fmt::Display for KeyPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Principal => "source.principal",
            Self::Namespace => "source.namespace",
            Self::ServiceAccount => "source.serviceAccount",
            Self::Address => "source.ip",
            Self::Remote => "remote.ip",
            Self::Service => "destination.service",
            Self::Host => "request.host",
            Self::Method => "request.method",
            Self::Path => "request.path",
            Self::Header(name) => return write!(f, "request.headers[{name}]"),
            Self::RequestPrincipal => "request.auth.principal",
            Self::Claim(names) => return write!(f, "request.auth.claims[{}]", names.join("][")),
        })
    }
}

impl Unit {
    /// How long it is.
    pub const fn duration(self) -> Duration {
        Duration::from_secs(match self {
            Unit::Second => 1,
            Unit::Minute => 60,
            Unit::Hour => 60 * 60,
            Unit::Day => 24 * 60 * 60,
        })
    }

    /// As the resource spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Unit::Second => "second",
            Unit::Minute => "minute",
            Unit::Hour => "hour",
            Unit::Day => "day",
        }
    }
}

impl Rate {
    /// `burst` is how many requests may come at once.
    pub fn new(requests: NonZeroU32, unit: Unit, burst: NonZeroU32) -> Result<Self, RateError> {
        let rate = Self { requests, unit, burst };
        if u64::from(requests.get()) > MAX_PER_SECOND * unit.duration().as_secs() {
            return Err(RateError::TooFast);
        }
        match rate.interval().checked_mul(burst.get()) {
            Some(fill) if fill <= MAX_FILL => Ok(rate),
            _ => Err(RateError::TooDeep),
        }
    }

    /// How many requests there may be in a unit of time.
    pub fn requests(&self) -> u32 {
        self.requests.get()
    }

    /// The unit of time.
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// How many may come at once.
    pub fn burst(&self) -> u32 {
        self.burst.get()
    }

    /// The time from one token to the next, rounded up to nanoseconds: never are there more than are asked for.
    pub fn interval(&self) -> Duration {
        let unit = u64::try_from(self.unit.duration().as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(unit.div_ceil(self.requests.get().into()))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} per {}", self.requests, self.unit.as_str())
    }
}

/// Why there is no such rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RateError {
    /// More than a million a second.
    #[error("is more than {MAX_PER_SECOND} a second")]
    TooFast,
    /// It would never be reached again.
    #[error("would take more than a year to be had again; make burst smaller")]
    TooDeep,
}
