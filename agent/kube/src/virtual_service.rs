use std::collections::BTreeMap;

use orlop_model::NamespacedName;
use orlop_model::world::Labels;
use orlop_model::world::routing::{
    Destination, HeaderChange, HeaderChanges, HttpMatch, HttpRule, Regex, Rewrite, RuleAction, StringMatch,
    VirtualService, WeightedDestination,
};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::duration::positive;
use crate::field::{FieldError, FieldPath, host, port};
use crate::metadata::namespaced;
use crate::read::Metadata;
use crate::service_entry::exports;

mod actions;

use actions::{
    CorsObject, DirectObject, FaultObject, MirrorObject, PercentObject, RedirectObject, RetriesObject,
};

/// A `networking.istio.io` VirtualService as it is written.
#[derive(Debug, Deserialize)]
pub(crate) struct Object {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

/// A misspelt field would send requests elsewhere, so none is let pass.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Spec {
    hosts: Vec<String>,
    gateways: Vec<String>,
    http: Vec<RuleObject>,
    tls: Option<IgnoredAny>,
    tcp: Option<IgnoredAny>,
    export_to: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct RuleObject {
    name: String,
    #[serde(rename = "match")]
    matches: Vec<MatchObject>,
    route: Vec<RouteObject>,
    redirect: Option<RedirectObject>,
    direct_response: Option<DirectObject>,
    delegate: Option<DelegateObject>,
    rewrite: Option<RewriteObject>,
    timeout: Option<String>,
    retries: Option<RetriesObject>,
    fault: Option<FaultObject>,
    mirror: Option<DestinationObject>,
    mirrors: Vec<MirrorObject>,
    mirror_percentage: Option<PercentObject>,
    mirror_percent: Option<u32>,
    cors_policy: Option<CorsObject>,
    headers: Option<HeadersObject>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct MatchObject {
    #[serde(rename = "name")]
    _name: Option<String>,
    uri: Option<StringObject>,
    ignore_uri_case: bool,
    scheme: Option<StringObject>,
    method: Option<StringObject>,
    authority: Option<StringObject>,
    headers: BTreeMap<String, StringObject>,
    without_headers: BTreeMap<String, StringObject>,
    query_params: BTreeMap<String, StringObject>,
    port: Option<i32>,
    source_labels: Labels,
    source_namespace: Option<String>,
    gateways: Vec<String>,
    #[serde(rename = "statPrefix")]
    _stat_prefix: Option<IgnoredAny>,
}

/// Istio's StringMatch: one of these, or none of them for anything that is there.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct StringObject {
    exact: Option<String>,
    prefix: Option<String>,
    regex: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct RouteObject {
    destination: DestinationObject,
    weight: Option<i64>,
    headers: Option<HeadersObject>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct DestinationObject {
    host: String,
    subset: Option<String>,
    port: Option<PortObject>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PortObject {
    number: i32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DelegateObject {
    name: String,
    namespace: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct RewriteObject {
    uri: Option<String>,
    authority: Option<String>,
    uri_regex_rewrite: Option<RegexRewriteObject>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RegexRewriteObject {
    #[serde(rename = "match")]
    expression: String,
    #[serde(default)]
    rewrite: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HeadersObject {
    request: Option<ChangeObject>,
    response: Option<ChangeObject>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ChangeObject {
    set: BTreeMap<String, String>,
    add: BTreeMap<String, String>,
    remove: Vec<String>,
}

/// Converts a VirtualService.
pub(crate) fn convert(object: Object) -> Result<VirtualService, FieldError> {
    let name = namespaced(&object.metadata)?;
    let spec = object.spec;
    let hosts = spec.hosts.iter().enumerate();
    let hosts = hosts.map(|(index, text)| any_host(text, || FieldPath::from("spec.hosts").index(index)));
    let rules = spec.http.into_iter().enumerate();
    let rules =
        rules.map(|(index, entry)| rule(entry, &name.namespace, &FieldPath::from("spec.http").index(index)));
    let unread = [("tcp", spec.tcp.is_some()), ("tls", spec.tls.is_some())];
    Ok(VirtualService {
        created: object.metadata.creation_timestamp.map(|time| time.0.as_second()),
        hosts: hosts.collect::<Result<_, _>>()?,
        gateways: spec.gateways,
        exports: exports(spec.export_to.unwrap_or_default(), &name.namespace)?,
        http: rules.collect::<Result<_, _>>()?,
        unread: unread.into_iter().filter(|(_, there)| *there).map(|(field, _)| field.to_owned()).collect(),
        name,
    })
}

/// A host, `*`, or one that begins with `*.`.
pub(crate) fn any_host(text: &str, path: impl FnOnce() -> FieldPath) -> Result<String, FieldError> {
    match text.strip_prefix("*.") {
        _ if text == "*" => Ok("*".to_owned()),
        Some(rest) => host(rest, path).map(|rest| format!("*.{rest}")),
        // An address is a host too.
        None if text.parse::<std::net::IpAddr>().is_ok() => Ok(text.to_owned()),
        None => host(text, path),
    }
}

fn rule(rule: RuleObject, namespace: &str, path: &FieldPath) -> Result<HttpRule, FieldError> {
    let at = |field: &str| path.clone().key(field);
    let matches = rule.matches.into_iter().enumerate();
    let matches = matches.map(|(index, entry)| http_match(entry, &at("match").index(index)));
    let matches = matches.collect::<Result<Vec<_>, _>>()?;
    let kinds = [
        ("route", !rule.route.is_empty()),
        ("redirect", rule.redirect.is_some()),
        ("directResponse", rule.direct_response.is_some()),
        ("delegate", rule.delegate.is_some()),
    ];
    let given: Vec<_> = kinds.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect();
    let [_] = given[..] else {
        let problem = match &given[..] {
            [] => "says nothing to do; give it a route, redirect, directResponse or delegate".to_owned(),
            several => format!("has {}; keep one of them", several.join(" and ")),
        };
        return Err(FieldError::new(path.clone(), problem));
    };
    let action = if let Some(redirect) = rule.redirect {
        RuleAction::Redirect(redirect.convert(&at("redirect"))?)
    } else if let Some(direct) = rule.direct_response {
        RuleAction::Direct(direct.convert(&at("directResponse"))?)
    } else if let Some(delegate) = rule.delegate {
        let of = delegate.namespace.filter(|of| !of.is_empty()).unwrap_or_else(|| namespace.to_owned());
        RuleAction::Delegate(NamespacedName::new(of, delegate.name))
    } else {
        RuleAction::Route(route(rule.route, &at("route"))?)
    };
    let mirrors =
        actions::mirrors((rule.mirror, rule.mirror_percentage, rule.mirror_percent), rule.mirrors, path)?;
    Ok(HttpRule {
        name: rule.name,
        matches,
        action,
        rewrite: rule.rewrite.map(|object| rewrite(object, &at("rewrite"))).transpose()?,
        timeout: match rule.timeout.as_deref() {
            // Istio's way to say that there is none.
            None | Some("0s" | "0") => None,
            Some(text) => Some(positive(text, || at("timeout"))?),
        },
        retries: rule.retries.map(|object| object.convert(&at("retries"))).transpose()?,
        fault: rule.fault.map(|object| object.convert(&at("fault"))).transpose()?.unwrap_or_default(),
        mirrors,
        cors: rule.cors_policy.map(|object| object.convert(&at("corsPolicy"))).transpose()?,
        headers: headers(rule.headers, &at("headers"))?,
    })
}

fn http_match(of: MatchObject, path: &FieldPath) -> Result<HttpMatch, FieldError> {
    let at = |field: &str| path.clone().key(field);
    let one = |object: Option<StringObject>, field: &str| {
        object.map(|object| object.convert(&at(field), false)).transpose()
    };
    let by_name = |objects: BTreeMap<String, StringObject>, field: &str, lower: bool| {
        let objects = objects.into_iter();
        let pairs = objects.map(|(name, object)| {
            let value = object.convert(&at(field).key(&name), true)?;
            Ok((if lower { name.to_ascii_lowercase() } else { name }, value))
        });
        pairs.collect::<Result<Vec<_>, FieldError>>()
    };
    Ok(HttpMatch {
        uri: one(of.uri, "uri")?,
        ignore_uri_case: of.ignore_uri_case,
        scheme: one(of.scheme, "scheme")?,
        method: one(of.method, "method")?,
        authority: one(of.authority, "authority")?,
        headers: by_name(of.headers, "headers", true)?,
        without_headers: by_name(of.without_headers, "withoutHeaders", true)?,
        query: by_name(of.query_params, "queryParams", false)?,
        port: of.port.map(|number| port(number, || at("port"))).transpose()?,
        source_labels: of.source_labels,
        source_namespace: of.source_namespace.filter(|namespace| !namespace.is_empty()),
        gateways: of.gateways,
    })
}

impl StringObject {
    /// `present` says whether saying nothing means anything.
    pub(super) fn convert(self, path: &FieldPath, present: bool) -> Result<StringMatch, FieldError> {
        match (self.exact, self.prefix, self.regex) {
            (Some(exact), None, None) => Ok(StringMatch::Exact(exact)),
            (None, Some(prefix), None) if !prefix.is_empty() => Ok(StringMatch::Prefix(prefix)),
            (None, None, Some(regex)) => match regex.parse() {
                Ok(regex) => Ok(StringMatch::Regex(regex)),
                Err(error) => Err(FieldError::new(path.clone().key("regex"), error.to_string())),
            },
            (None, None, None) if present => Ok(StringMatch::Present),
            _ => Err(FieldError::new(path.clone(), "needs one of exact, prefix and regex, and not empty")),
        }
    }
}

fn route(route: Vec<RouteObject>, path: &FieldPath) -> Result<Vec<WeightedDestination>, FieldError> {
    let single = route.len() == 1;
    let mut found = Vec::new();
    for (index, entry) in route.into_iter().enumerate() {
        let path = path.clone().index(index);
        let weight = u32::try_from(entry.weight.unwrap_or(0)).map_err(|_| {
            FieldError::new(path.clone().key("weight"), "is not a weight; write a number from 0 on")
        })?;
        found.push(WeightedDestination {
            destination: destination(entry.destination, &path.clone().key("destination"))?,
            weight: if single { 1 } else { weight },
            headers: headers(entry.headers, &path.key("headers"))?,
        });
    }
    if found.iter().all(|entry| entry.weight == 0) {
        return Err(FieldError::new(path.clone(), "has no weight but 0; give one of them some"));
    }
    Ok(found)
}

pub(super) fn destination(of: DestinationObject, path: &FieldPath) -> Result<Destination, FieldError> {
    if of.host.is_empty() {
        return Err(FieldError::new(path.clone().key("host"), "is missing; name a service"));
    }
    let number = of.port.map(|of| port(of.number, || path.clone().key("port").key("number")));
    Ok(Destination {
        host: host(&of.host, || path.clone().key("host"))?,
        subset: of.subset.filter(|subset| !subset.is_empty()),
        port: number.transpose()?,
    })
}

fn rewrite(of: RewriteObject, path: &FieldPath) -> Result<Rewrite, FieldError> {
    let regex = of.uri_regex_rewrite.map(|of| {
        let wrong = |error: orlop_model::world::routing::RegexError| {
            FieldError::new(path.clone().key("uriRegexRewrite").key("match"), error.to_string())
        };
        Ok((of.expression.parse::<Regex>().map_err(wrong)?, of.rewrite))
    });
    let regex = regex.transpose()?;
    if regex.is_some() && of.uri.is_some() {
        return Err(FieldError::new(path.clone(), "has uri and uriRegexRewrite; keep one of them"));
    }
    Ok(Rewrite { uri: of.uri, regex, authority: of.authority, path: None })
}

fn headers(of: Option<HeadersObject>, path: &FieldPath) -> Result<HeaderChanges, FieldError> {
    let of = of.unwrap_or_default();
    let change = |of: Option<ChangeObject>, field: &str| {
        let of = of.unwrap_or_default();
        let path = path.clone().key(field);
        let pairs = |pairs: BTreeMap<String, String>, field: &str| {
            let pairs = pairs.into_iter();
            let checked = pairs.map(|(name, value)| {
                let path = || path.clone().key(field).key(&name);
                Ok((header_name(&name, path)?, header_value(value, path)?))
            });
            checked.collect::<Result<Vec<_>, FieldError>>()
        };
        let (set, add) = (pairs(of.set, "set")?, pairs(of.add, "add")?);
        let remove = of.remove.iter().enumerate();
        let remove =
            remove.map(|(index, name)| header_name(name, || path.clone().key("remove").index(index)));
        Ok(HeaderChange { set, add, remove: remove.collect::<Result<_, _>>()? })
    };
    Ok(HeaderChanges { request: change(of.request, "request")?, response: change(of.response, "response")? })
}

/// In lower case; `:authority` is that too.
pub(crate) fn header_name(name: &str, path: impl FnOnce() -> FieldPath) -> Result<String, FieldError> {
    let lower = name.to_ascii_lowercase();
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if lower == ":authority" || (!lower.is_empty() && lower.bytes().all(token)) {
        return Ok(lower);
    }
    Err(FieldError::new(path(), format!("{name:?} is not the name of a header")))
}

pub(crate) fn header_value(value: String, path: impl FnOnce() -> FieldPath) -> Result<String, FieldError> {
    if value.bytes().all(|b| (b >= 0x20 && b != 0x7f) || b == b'\t') {
        return Ok(value);
    }
    Err(FieldError::new(path(), "has a control character, which no header may"))
}

#[cfg(test)]
mod tests;
