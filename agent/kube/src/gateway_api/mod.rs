//! Kinds of the Gateway API (`gateway.networking.k8s.io`).

use std::time::Duration;

use orlop_model::NamespacedName;
use orlop_model::world::gateway_api::{
    BackendRef, GROUP, GatewayParent, Parent, Route, RouteBackend, RouteKind, RouteRule, Unreadable,
};
use orlop_model::world::routing::StringMatch;
use orlop_model::world::stream::HostPattern;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::field::{FieldError, FieldPath, port};
use crate::metadata::namespaced;
use crate::object::typed;
use crate::read::Metadata;
use crate::virtual_service::header_name;

pub(crate) mod backend_tls;
mod filters;
pub(crate) mod gateway;
pub(crate) mod grpc_route;
pub(crate) mod http_route;
pub(crate) mod reference_grant;
pub(crate) mod stream_route;

use filters::FilterObject;

/// What is above this means nothing any more; the API's own limit.
const MAX_WEIGHT: i64 = 1_000_000;

/// A route as it is written. What is wrong with a rule of one that is for a Gateway is kept with it: what it matches is
/// refused, and it may be for another controller's Gateway, which understands it.
#[derive(Debug, Deserialize)]
pub(crate) struct Object {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Spec {
    parent_refs: Vec<ParentObject>,
    hostnames: Option<Value>,
    #[serde(rename = "useDefaultGateways")]
    _use_default_gateways: Option<IgnoredAny>,
    rules: Option<Vec<Value>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ParentObject {
    group: Option<String>,
    kind: Option<String>,
    namespace: Option<String>,
    name: String,
    section_name: Option<String>,
    port: Option<i32>,
}

/// A `backendRef` without its weight and filters.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct BackendObject {
    group: Option<String>,
    kind: Option<String>,
    name: String,
    namespace: Option<String>,
    port: Option<i32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct WeightedObject {
    group: Option<String>,
    kind: Option<String>,
    name: String,
    namespace: Option<String>,
    port: Option<i32>,
    weight: Option<i64>,
    filters: Vec<FilterObject>,
}

/// `type`, `name` and `value` of a match of a header or of a query parameter.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedMatchObject {
    #[serde(rename = "type")]
    kind: Option<String>,
    name: String,
    value: String,
}

/// What is read beside the rules, and what is wrong with one of them.
struct Reading<'a> {
    kind: RouteKind,
    namespace: &'a str,
    unread: Vec<String>,
}

/// Converts a route, each of whose rules `rule` reads.
fn convert<R: DeserializeOwned>(
    object: Object,
    kind: RouteKind,
    rule: impl Fn(R, &mut Reading<'_>, &FieldPath) -> Result<RouteRule, FieldError>,
) -> Result<Route, FieldError> {
    let name = namespaced(&object.metadata)?;
    let spec = object.spec;
    let created = object.metadata.creation_timestamp.map(|time| time.0.as_second());
    let (mut parents, mut gateways) = (Vec::new(), Vec::new());
    for (index, of) in spec.parent_refs.into_iter().enumerate() {
        match of.convert(&name.namespace, &FieldPath::from("spec.parentRefs").index(index))? {
            ParentRef::Service(parent) => parents.push(parent),
            ParentRef::Gateway(parent) => gateways.push(parent),
            ParentRef::Other => {}
        }
    }
    if parents.is_empty() && gateways.is_empty() {
        return Ok(Route { kind, name, created, ..Route::default() });
    }
    let mut reading = Reading { kind, namespace: &name.namespace, unread: Vec::new() };
    let hostnames = spec.hostnames.map(|hostnames| {
        if !parents.is_empty() {
            reading.unread.push("hostnames".to_owned());
        }
        if gateways.is_empty() { Ok(Vec::new()) } else { of_gateway(hostnames) }
    });
    // What the API fills in.
    let rules = spec.rules.unwrap_or_else(|| vec![Value::Object(serde_json::Map::new())]);
    let mut read = |value: Value, path: &FieldPath| {
        let object = typed::<R, _>(value).map_err(|error| error.below(path))?;
        rule(object, &mut reading, path)
    };
    let rules = rules.into_iter().enumerate().map(|(index, value)| {
        let path = FieldPath::from("spec.rules").index(index);
        // Whoever is for a Service alone is left out as a whole, as its requests go there without it too.
        let matches = (!gateways.is_empty()).then(|| match value.get("matches") {
            // Without any it is for what no other rule matches.
            None | Some(Value::Null) => json!({}),
            Some(matches) => json!({ "matches": matches }),
        });
        read(value, &path).or_else(|error| {
            let problem = error.to_string();
            let known = read(matches.ok_or(error)?, &path);
            let unreadable = Unreadable { problem, may_match_anything: known.is_err() };
            Ok(RouteRule { unreadable: Some(unreadable), ..known.unwrap_or_default() })
        })
    });
    let rules = rules.collect::<Result<Vec<_>, FieldError>>()?;
    let hostnames = hostnames.transpose()?.unwrap_or_default();
    let mut unread = reading.unread;
    unread.dedup();
    Ok(Route { kind, created, parents, gateways, hostnames, rules, unread, name })
}

/// The hosts that requests at a gateway may be for.
fn of_gateway(hostnames: Value) -> Result<Vec<HostPattern>, FieldError> {
    let path = FieldPath::from("spec.hostnames");
    let texts: Vec<String> = typed(hostnames).map_err(|error| error.below(&path))?;
    Ok(texts.into_iter().map(|text| HostPattern(text.to_ascii_lowercase())).collect())
}

impl ParentObject {
    fn convert(self, namespace: &str, path: &FieldPath) -> Result<ParentRef, FieldError> {
        let of = (self.group.as_deref().unwrap_or(GROUP), self.kind.as_deref().unwrap_or("Gateway"));
        if !matches!(of, ("", "Service") | (GROUP, "Gateway")) {
            return Ok(ParentRef::Other);
        }
        let number = self.port.map(|number| port(number, || path.clone().key("port"))).transpose()?;
        let name = in_namespace(self.namespace, self.name, namespace);
        let section = self.section_name.filter(|name| !name.is_empty());
        Ok(match of {
            ("", _) => ParentRef::Service(Parent { service: name, section, port: number }),
            _ => ParentRef::Gateway(GatewayParent { gateway: name, section, port: number }),
        })
    }
}

impl BackendObject {
    fn convert(self, namespace: &str, path: &FieldPath) -> Result<BackendRef, FieldError> {
        if self.name.is_empty() {
            return Err(FieldError::new(path.clone().key("name"), "is missing; name a Service"));
        }
        let number = self.port.map(|number| port(number, || path.clone().key("port"))).transpose()?;
        Ok(BackendRef {
            group: self.group.unwrap_or_default(),
            kind: self.kind.unwrap_or_else(|| "Service".to_owned()),
            name: in_namespace(self.namespace, self.name, namespace),
            port: number,
        })
    }
}

fn backends(
    objects: Vec<WeightedObject>,
    reading: &Reading<'_>,
    path: &FieldPath,
) -> Result<Vec<RouteBackend>, FieldError> {
    let backends = objects.into_iter().enumerate().map(|(index, object)| {
        let path = path.clone().index(index);
        let WeightedObject { group, kind, name, namespace, port, weight, filters } = object;
        let weight = weight.unwrap_or(1);
        if !(0..=MAX_WEIGHT).contains(&weight) {
            let problem = format!("{weight} is not a weight; write 0 to {MAX_WEIGHT}");
            return Err(FieldError::new(path.key("weight"), problem));
        }
        let backend = BackendObject { group, kind, name, namespace, port };
        let backend = backend.convert(reading.namespace, &path)?;
        let filters = filters::convert(filters, reading, &path.clone().key("filters"))?;
        Ok(RouteBackend { backend, weight: u32::try_from(weight).unwrap_or(u32::MAX), filters })
    });
    backends.collect()
}

/// What an entry of `spec.parentRefs` names, whatever else is in the route.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ParentRef {
    Service(Parent),
    Gateway(GatewayParent),
    Other,
}

impl ParentRef {
    /// Of a route in this namespace.
    pub fn read(entry: &Value, namespace: &str) -> Self {
        let text = |key: &str| entry[key].as_str().map(str::to_owned);
        let Some(name) = text("name") else { return Self::Other };
        let name = in_namespace(text("namespace"), name, namespace);
        let section = text("sectionName").filter(|section| !section.is_empty());
        let port = entry["port"].as_u64().and_then(|port| port.try_into().ok());
        match (text("group").as_deref().unwrap_or(GROUP), text("kind").as_deref().unwrap_or("Gateway")) {
            ("", "Service") => Self::Service(Parent { service: name, section, port }),
            (GROUP, "Gateway") => Self::Gateway(GatewayParent { gateway: name, section, port }),
            _ => Self::Other,
        }
    }
}

fn in_namespace(namespace: Option<String>, name: String, own: &str) -> NamespacedName {
    let namespace = namespace.filter(|namespace| !namespace.is_empty());
    NamespacedName::new(namespace.unwrap_or_else(|| own.to_owned()), name)
}

/// Matches of headers, by names in lower case. Of several with one name the first counts.
fn headers(
    objects: Vec<NamedMatchObject>,
    path: &FieldPath,
) -> Result<Vec<(String, StringMatch)>, FieldError> {
    named(objects, path, |name, path| match header_name(name, || path.clone())? {
        name if name.starts_with(':') => Err(FieldError::new(path.clone(), "is not the name of a header")),
        name => Ok(name),
    })
}

fn named(
    objects: Vec<NamedMatchObject>,
    path: &FieldPath,
    name_of: impl Fn(&str, &FieldPath) -> Result<String, FieldError>,
) -> Result<Vec<(String, StringMatch)>, FieldError> {
    let mut found: Vec<(String, StringMatch)> = Vec::with_capacity(objects.len());
    for (index, object) in objects.into_iter().enumerate() {
        let path = path.clone().index(index);
        let name = name_of(&object.name, &path.clone().key("name"))?;
        let value = match kind(object.kind.as_deref(), &["Exact", "RegularExpression"], &path)? {
            "Exact" => StringMatch::Exact(object.value),
            _ => regex(&object.value, &path.key("value"))?,
        };
        if !found.iter().any(|(other, _)| *other == name) {
            found.push((name, value));
        }
    }
    Ok(found)
}

/// The `type`, of which the first is the default.
fn kind<'k>(of: Option<&str>, known: &[&'k str], path: &FieldPath) -> Result<&'k str, FieldError> {
    let Some(of) = of else { return Ok(known[0]) };
    known.iter().copied().find(|known| *known == of).ok_or_else(|| {
        let problem = format!("{of:?} is none of {}", known.join(", "));
        FieldError::new(path.clone().key("type"), problem)
    })
}

fn regex(text: &str, path: &FieldPath) -> Result<StringMatch, FieldError> {
    let regex = text.parse().map_err(|error: orlop_model::world::routing::RegexError| {
        FieldError::new(path.clone(), error.to_string())
    });
    regex.map(StringMatch::Regex)
}

/// A duration as GEP-2257 has it: up to four whole numbers of at most five digits, each with its unit.
fn duration(text: &str, path: &FieldPath) -> Result<Duration, FieldError> {
    read_duration(text).ok_or_else(|| {
        FieldError::new(path.clone(), format!("{text:?} is no duration; write 5s, 1m30s or 250ms"))
    })
}

fn read_duration(text: &str) -> Option<Duration> {
    let (mut rest, mut total, mut parts) = (text, Duration::ZERO, 0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok().filter(|_| digits <= 5)?;
        rest = &rest[digits..];
        let units = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
        let (unit, milliseconds) = units.into_iter().find(|(unit, _)| rest.starts_with(unit))?;
        rest = &rest[unit.len()..];
        total += Duration::from_millis(number * milliseconds);
        parts += 1;
    }
    (1..=4).contains(&parts).then_some(total)
}

#[cfg(test)]
mod tests;
