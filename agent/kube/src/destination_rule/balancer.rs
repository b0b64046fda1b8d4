//! `loadBalancer`

use std::sync::Arc;

use orlop_model::world::routing::{Balancer, HashOn, HashTable, LocalityBalancing, Warmup};
use serde::Deserialize;

use super::locality::LocalityObject;
use super::{Unread, thousandths};
use crate::duration::{duration, positive};
use crate::field::{FieldError, FieldPath};
use crate::read::Metadata;

/// A balancer of a DestinationRule that Istio has no name for.
const ANNOTATION: &str = "orlop.dev/load-balancer";

/// The largest table that may be asked for, as in Envoy's Maglev.
const LARGEST: u32 = 5_000_011;

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct BalancerObject {
    /// LEAST_REQUEST (if left out), ROUND_ROBIN, RANDOM or PASSTHROUGH.
    simple: Option<String>,
    /// The same server for what is the same in requests. Not together with simple.
    consistent_hash: Option<HashObject>,
    /// In which region, zone and subzone the next server is.
    #[cfg_attr(test, schemars(with = "Option<crate::field::Ignored>"))]
    locality_lb_setting: Option<LocalityObject>,
    /// The older form of warmup: its duration.
    warmup_duration_secs: Option<String>,
    /// Has a server that is new get more and more, until it has its share.
    warmup: Option<WarmupObject>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct WarmupObject {
    /// How long.
    duration: String,
    /// At first, so much of its share: 10 if left out.
    minimum_percent: Option<f64>,
    /// 1 (if left out) grows evenly, more grows faster at first.
    aggression: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct HashObject {
    /// By this header.
    http_header_name: Option<String>,
    /// By this parameter of the query.
    http_query_parameter_name: Option<String>,
    /// By the client's address.
    use_source_ip: Option<bool>,
    /// By this cookie, which is made if it is not there.
    http_cookie: Option<CookieObject>,
    /// Servers have places on a ring, which is what is meant if neither it nor maglev is there.
    ring_hash: Option<RingObject>,
    /// Servers have equal shares of a table.
    maglev: Option<MaglevObject>,
    /// The older form of ringHash's.
    minimum_ring_size: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct RingObject {
    /// Places on the ring, at the least: 1024 if left out, and never more than 131071.
    minimum_ring_size: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct MaglevObject {
    /// Places in the table, a prime number: 65537 if left out, and never more than 131071.
    table_size: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
struct CookieObject {
    /// Its name.
    name: String,
    /// Its path.
    path: Option<String>,
    /// How long it lives; 0s is as long as the browser runs.
    ttl: Option<String>,
    /// What else it says, such as SameSite.
    attributes: Vec<AttributeObject>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
struct AttributeObject {
    /// Its name.
    name: String,
    /// Its value; some have none.
    value: Option<String>,
}

/// What is made of it.
#[derive(Default)]
pub(super) struct Balancing {
    pub balancer: Option<Balancer>,
    pub warmup: Option<Warmup>,
    pub locality: Option<Arc<LocalityBalancing>>,
}

/// The balancer that an annotation names, in place of LEAST_REQUEST.
pub(super) fn default_of(metadata: &Metadata) -> Result<Option<Balancer>, FieldError> {
    let named = metadata.annotations.as_ref().and_then(|all| all.get(ANNOTATION));
    match named.map(String::as_str) {
        None => Ok(None),
        Some("PEAK_EWMA") => Ok(Some(Balancer::PeakEwma)),
        Some(other) => {
            let path = FieldPath::from("metadata.annotations").key(ANNOTATION);
            Err(FieldError::new(
                path,
                format!("{other:?} is not PEAK_EWMA; Istio's are in loadBalancer.simple"),
            ))
        }
    }
}

impl BalancerObject {
    pub(super) fn convert(self, path: &FieldPath, unread: &mut Unread) -> Result<Balancing, FieldError> {
        let locality = self.locality_lb_setting.map(|of| of.convert(&path.clone().key("localityLbSetting")));
        let balancer = match (self.simple.as_deref(), self.consistent_hash) {
            (Some(_), Some(_)) => {
                return Err(FieldError::new(path.clone(), "has simple and consistentHash; keep one"));
            }
            (None, Some(hash)) => hash.convert(&path.clone().key("consistentHash"))?,
            (None | Some("UNSPECIFIED" | "LEAST_REQUEST" | "LEAST_CONN"), None) => {
                unread.default.clone().unwrap_or_default()
            }
            (Some("ROUND_ROBIN"), None) => Balancer::RoundRobin,
            (Some("RANDOM"), None) => Balancer::Random,
            (Some("PASSTHROUGH"), None) => Balancer::Passthrough,
            (Some(other), None) => {
                let problem = format!("{other:?} is not ROUND_ROBIN, LEAST_REQUEST, RANDOM or PASSTHROUGH");
                return Err(FieldError::new(path.clone().key("simple"), problem));
            }
        };
        let warmup = match (self.warmup, self.warmup_duration_secs) {
            (Some(warmup), _) => Some((warmup, path.clone().key("warmup").key("duration"))),
            (None, Some(duration)) => {
                let warmup = WarmupObject { duration, ..WarmupObject::default() };
                Some((warmup, path.clone().key("warmupDurationSecs")))
            }
            (None, None) => None,
        };
        let warmup = warmup.map(|(of, duration)| of.convert(path, &duration)).transpose()?;
        // As in Envoy: what is random or alike has no weights.
        let warms = matches!(balancer, Balancer::LeastRequest | Balancer::RoundRobin | Balancer::PeakEwma);
        unread.note("loadBalancer.warmup with this balancer", warmup.is_some() && !warms);
        Ok(Balancing {
            balancer: Some(balancer),
            warmup: warmup.filter(|_| warms),
            locality: locality.transpose()?.map(Arc::new),
        })
    }
}

impl WarmupObject {
    fn convert(self, path: &FieldPath, duration: &FieldPath) -> Result<Warmup, FieldError> {
        let path = path.clone().key("warmup");
        let percent = self.minimum_percent.unwrap_or(10.0);
        let percent = thousandths(percent, 100.0, || path.clone().key("minimumPercent"))?;
        let aggression = self.aggression.unwrap_or(1.0);
        if aggression < 1.0 {
            let problem = format!("{aggression} is less than 1, which grows evenly");
            return Err(FieldError::new(path.key("aggression"), problem));
        }
        Ok(Warmup {
            duration: positive(&self.duration, || duration.clone())?,
            minimum_percent: percent.div_ceil(1000),
            aggression: thousandths(aggression, 1000.0, || path.key("aggression"))?,
        })
    }
}

impl HashObject {
    fn convert(self, path: &FieldPath) -> Result<Balancer, FieldError> {
        let table = self.table(path)?;
        let source = self.use_source_ip == Some(true);
        let on = match (self.http_header_name, self.http_query_parameter_name, self.http_cookie, source) {
            (Some(name), None, None, false) if !name.is_empty() => HashOn::Header(name.to_ascii_lowercase()),
            (None, Some(name), None, false) if !name.is_empty() => HashOn::Query(name),
            (None, None, None, true) => HashOn::Source,
            (None, None, Some(cookie), false) if !cookie.name.is_empty() => {
                let ttl =
                    cookie.ttl.map(|text| duration(&text, || path.clone().key("httpCookie").key("ttl")));
                let attributes = cookie.attributes.into_iter().map(|of| (of.name, of.value));
                HashOn::Cookie {
                    name: cookie.name,
                    path: cookie.path,
                    ttl: ttl.transpose()?,
                    attributes: attributes.collect(),
                }
            }
            _ => {
                let problem =
                    "needs one of httpHeaderName, httpQueryParameterName, httpCookie and useSourceIp";
                return Err(FieldError::new(path.clone(), problem));
            }
        };
        Ok(Balancer::Hash(on, table))
    }

    fn table(&self, path: &FieldPath) -> Result<HashTable, FieldError> {
        let size = |size: u64, path: FieldPath| {
            let fitting = u32::try_from(size).ok().filter(|size| (1..=LARGEST).contains(size));
            fitting.ok_or_else(|| FieldError::new(path, format!("{size} is not from 1 to {LARGEST}")))
        };
        if let Some(maglev) = &self.maglev {
            if self.ring_hash.is_some() {
                return Err(FieldError::new(path.clone(), "has ringHash and maglev; keep one"));
            }
            let path = path.clone().key("maglev").key("tableSize");
            let size = size(maglev.table_size.unwrap_or(65_537), path.clone())?;
            return match is_prime(size) {
                true => Ok(HashTable::Maglev(size.min(HashTable::MAX))),
                false => Err(FieldError::new(path, format!("{size} is no prime number; 65537 is one"))),
            };
        }
        let (least, path) = match &self.ring_hash {
            Some(ring) => (ring.minimum_ring_size, path.clone().key("ringHash").key("minimumRingSize")),
            None => (self.minimum_ring_size, path.clone().key("minimumRingSize")),
        };
        // 0 is as if nothing were said.
        let size = size(least.filter(|least| *least > 0).unwrap_or(1024), path)?;
        Ok(HashTable::Ring(size.min(HashTable::MAX)))
    }
}

fn is_prime(number: u32) -> bool {
    let number = u64::from(number);
    number > 1 && (2..).take_while(|of| of * of <= number).all(|of| !number.is_multiple_of(of))
}
