use std::collections::BTreeMap;
use std::time::Duration;

use orlop_model::NamespacedName;
use orlop_model::world::header_text::{HeaderText, HeaderTextError};
use orlop_model::world::routing::{
    Destination, HeaderChange, HeaderChanges, HttpMatch, HttpRule, Regex, Rewrite, RuleAction, StringMatch,
    VirtualService, WeightedDestination,
};
use serde::Deserialize;

use crate::duration::positive;
use crate::field::{FieldError, FieldPath, Ignored, host, port};
use crate::metadata::namespaced;
use crate::read::Metadata;
use crate::service_entry::exports;

mod actions;
mod streams;

use actions::{
    CorsObject, DirectObject, FaultObject, MirrorObject, PercentObject, RedirectObject, RetriesObject,
};
use streams::{TcpObject, TlsObject};

/// A `networking.istio.io` VirtualService as it is written.
#[derive(Debug, Deserialize)]
pub(crate) struct Object {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

/// A misspelt field would send requests elsewhere, so none is let pass.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Spec {
    /// Hosts that the rules are for. A short name is a service of the same namespace.
    hosts: Vec<String>,
    /// The Gateways that the rules are for. "mesh", which is also meant if it is left out, is traffic between
    /// workloads.
    gateways: Vec<String>,
    /// Rules for HTTP. The first that matches counts.
    http: Vec<RuleObject>,
    /// Rules for TLS that only the server reads, by whom it names. The first that matches counts.
    tls: Vec<TlsObject>,
    /// Rules for whatever else is no HTTP. The first that matches counts.
    tcp: Vec<TcpObject>,
    /// Namespaces whose workloads go by this: "." its own, "*" all, which is also meant if it is left out.
    export_to: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct RuleObject {
    /// A name for logs.
    name: String,
    /// What the rule is for: whatever one of these matches. Left out, every request.
    #[serde(rename = "match")]
    matches: Vec<MatchObject>,
    /// Where requests go, by weight.
    route: Vec<RouteObject>,
    /// The answer is a redirect.
    redirect: Option<RedirectObject>,
    /// The answer is this, and nobody is asked.
    direct_response: Option<DirectObject>,
    /// A VirtualService without hosts that says more.
    delegate: Option<DelegateObject>,
    /// What of the request is changed before it goes on.
    rewrite: Option<RewriteObject>,
    /// How long the answer may take, all attempts together. Left out, or 0s: for ever.
    timeout: Option<String>,
    /// Whether and when to try again.
    retries: Option<RetriesObject>,
    /// Delays and failures that are made on purpose.
    fault: Option<FaultObject>,
    /// A service that gets a copy of requests, and whose answers nobody reads.
    mirror: Option<DestinationObject>,
    /// Several of these, each with its share. Not together with mirror.
    mirrors: Vec<MirrorObject>,
    /// Of how many requests mirror gets a copy: of all if left out.
    mirror_percentage: Option<PercentObject>,
    /// The same as a whole number.
    mirror_percent: Option<u32>,
    /// Which other origins may ask from a browser.
    cors_policy: Option<CorsObject>,
    /// Headers that are changed.
    headers: Option<HeadersObject>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct MatchObject {
    /// A name for logs.
    #[serde(rename = "name")]
    _name: Option<String>,
    /// The path, without its query.
    uri: Option<StringObject>,
    /// Whether upper and lower case are the same in exact and prefix of uri.
    ignore_uri_case: bool,
    /// http or https.
    scheme: Option<StringObject>,
    /// The method.
    method: Option<StringObject>,
    /// The host that is asked, with its port if that is given.
    authority: Option<StringObject>,
    /// Headers by their names in lower case. {} and the regex * are any value.
    headers: BTreeMap<String, StringObject>,
    /// Headers that must not be so.
    without_headers: BTreeMap<String, StringObject>,
    /// Parameters of the query by their names.
    query_params: BTreeMap<String, StringObject>,
    /// The port that is called.
    port: Option<i32>,
    /// Labels of the calling workload.
    source_labels: BTreeMap<String, String>,
    /// The namespace of the calling workload.
    source_namespace: Option<String>,
    /// Instead of the VirtualService's own gateways.
    gateways: Vec<String>,
    /// Has no effect.
    stat_prefix: Option<Ignored>,
}

/// Istio's StringMatch: one of these, or none of them for anything that is there.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub(super) struct StringObject {
    /// The whole value.
    exact: Option<String>,
    /// What the value begins with.
    prefix: Option<String>,
    /// A regular expression (RE2's syntax) for the whole value.
    regex: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct RouteObject {
    /// The service.
    destination: DestinationObject,
    /// Its share, relative to the others.
    weight: Option<i64>,
    /// Headers that are changed on this way.
    headers: Option<HeadersObject>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct DestinationObject {
    /// The name of a service. A short one is of the same namespace.
    host: String,
    /// One of the subsets that the service's DestinationRule names.
    subset: Option<String>,
    /// The port, if the service has several.
    port: Option<PortObject>,
}

#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct PortObject {
    /// The number of the port.
    number: i32,
}

#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct DelegateObject {
    /// Its name.
    name: String,
    /// Its namespace, if that is another one.
    namespace: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct RewriteObject {
    /// What takes the place of the path, or of the prefix that was matched.
    uri: Option<String>,
    /// The host that the server is asked for.
    authority: Option<String>,
    /// Replaces what matches in the path. Not together with uri.
    uri_regex_rewrite: Option<RegexRewriteObject>,
}

#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RegexRewriteObject {
    /// A regular expression (RE2's syntax).
    #[serde(rename = "match")]
    expression: String,
    /// What takes its place; \1 is the first group.
    #[serde(default)]
    rewrite: String,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
struct HeadersObject {
    /// Those of the request.
    request: Option<ChangeObject>,
    /// Those of the answer.
    response: Option<ChangeObject>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
struct ChangeObject {
    /// Headers that have this value then, whatever they had.
    set: BTreeMap<String, String>,
    /// Values that are added.
    add: BTreeMap<String, String>,
    /// Names of headers that are taken out.
    remove: Vec<String>,
}

/// Converts a VirtualService.
pub(crate) fn convert(object: Object) -> Result<VirtualService, FieldError> {
    let name = namespaced(&object.metadata)?;
    let spec = object.spec;
    let hosts = spec.hosts.iter().enumerate();
    let hosts = hosts.map(|(index, text)| any_host(text, || FieldPath::from("spec.hosts").index(index)));
    let mut matches = spec.http.iter().flat_map(|rule| &rule.matches);
    let is_named = matches.any(|of| of.stat_prefix.is_some());
    let mut unread: Vec<_> = is_named.then(|| "http.match.statPrefix".to_owned()).into_iter().collect();
    let http = spec.http.into_iter().enumerate().map(|(index, entry)| {
        rule(entry, &name.namespace, &FieldPath::from("spec.http").index(index), &mut unread)
    });
    let http = http.collect::<Result<_, _>>()?;
    // One that is for gateways alone is nobody's concern here, whatever is wrong with it.
    let tls = spec.tls.into_iter().enumerate().map(|(index, of)| {
        let of_gateways = of.of_gateways(&spec.gateways);
        of.convert(&FieldPath::from("spec.tls").index(index)).or_else(|error| of_gateways.ok_or(error))
    });
    let tcp = spec.tcp.into_iter().enumerate().map(|(index, of)| {
        let of_gateways = of.of_gateways(&spec.gateways);
        of.convert(&FieldPath::from("spec.tcp").index(index)).or_else(|error| of_gateways.ok_or(error))
    });
    let (tls, tcp) = (tls.collect::<Result<_, _>>()?, tcp.collect::<Result<_, _>>()?);
    Ok(VirtualService {
        created: object.metadata.creation_timestamp.map(|time| time.0.as_second()),
        hosts: hosts.collect::<Result<_, _>>()?,
        gateways: spec.gateways,
        exports: exports(spec.export_to.unwrap_or_default(), &name.namespace)?,
        http,
        tls,
        tcp,
        unread,
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

fn rule(
    rule: RuleObject,
    namespace: &str,
    path: &FieldPath,
    unread: &mut Vec<String>,
) -> Result<HttpRule, FieldError> {
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
            None => None,
            // Istio's way to say that there is none.
            Some("0s" | "0") => Some(Duration::ZERO),
            Some(text) => Some(positive(text, || at("timeout"))?),
        },
        retries: rule.retries.map(|object| object.convert(&at("retries"), unread)).transpose()?,
        fault: rule.fault.map(|object| object.convert(&at("fault"))).transpose()?,
        mirrors,
        cors: rule.cors_policy.map(|object| object.convert(&at("corsPolicy"))).transpose()?,
        headers: rule.headers.map(|of| headers(Some(of), &at("headers"))).transpose()?,
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
    let (claims, headers) = claimed(of.headers);
    let (without_claims, without_headers) = claimed(of.without_headers);
    let by_claim = |objects: BTreeMap<String, StringObject>, field: &str| {
        let pairs = objects.into_iter().map(|(name, object)| {
            let names = claim_names(&name).ok_or_else(|| {
                let problem =
                    "names no claim; write such as @request.auth.claims.sub or @request.auth.claims[a.b]";
                FieldError::new(at(field).key(&name), problem)
            })?;
            Ok((names, object.convert(&at(field).key(&name), true)?))
        });
        pairs.collect::<Result<Vec<_>, FieldError>>()
    };
    Ok(HttpMatch {
        uri: one(of.uri, "uri")?,
        ignore_uri_case: of.ignore_uri_case,
        scheme: one(of.scheme, "scheme")?,
        method: one(of.method, "method")?,
        authority: one(of.authority, "authority")?,
        headers: by_name(headers, "headers", true)?,
        without_headers: by_name(without_headers, "withoutHeaders", true)?,
        claims: by_claim(claims, "headers")?,
        without_claims: by_claim(without_claims, "withoutHeaders")?,
        query: by_name(of.query_params, "queryParams", false)?,
        port: of.port.map(|number| port(number, || at("port"))).transpose()?,
        source_labels: of.source_labels.into_iter().collect(),
        source_namespace: of.source_namespace.filter(|namespace| !namespace.is_empty()),
        gateways: of.gateways,
    })
}

/// What no header can be called.
const CLAIMS: &str = "@request.auth.claims";

/// The entries that are for claims, and those that are for headers.
fn claimed(
    objects: BTreeMap<String, StringObject>,
) -> (BTreeMap<String, StringObject>, BTreeMap<String, StringObject>) {
    objects.into_iter().partition(|(name, _)| name.starts_with('@'))
}

/// The name of a claim, and of those within: each after a dot, or in brackets, where it may have dots itself.
fn claim_names(text: &str) -> Option<Vec<String>> {
    let mut rest = text.strip_prefix(CLAIMS)?;
    let mut names = Vec::new();
    while !rest.is_empty() {
        let (name, after) = if let Some(bracketed) = rest.strip_prefix('[') {
            bracketed.split_once(']')?
        } else {
            let dotted = rest.strip_prefix('.')?;
            dotted.split_at(dotted.find(['.', '[']).unwrap_or(dotted.len()))
        };
        names.push(Some(name.to_owned()).filter(|name| !name.is_empty())?);
        rest = after;
    }
    (!names.is_empty()).then_some(names)
}

impl StringObject {
    /// `present` says whether saying nothing means anything.
    pub(super) fn convert(self, path: &FieldPath, present: bool) -> Result<StringMatch, FieldError> {
        match (self.exact, self.prefix, self.regex) {
            (Some(exact), None, None) => Ok(StringMatch::Exact(exact)),
            (None, Some(prefix), None) if !prefix.is_empty() => Ok(StringMatch::Prefix(prefix)),
            // That is no expression of RE2, but Istio takes it for this.
            (None, None, Some(regex)) if present && regex == "*" => Ok(StringMatch::Present),
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
        let weight = weight(entry.weight, single, || path.clone().key("weight"))?;
        found.push(WeightedDestination {
            destination: destination(entry.destination, &path.clone().key("destination"))?,
            weight,
            headers: headers(entry.headers, &path.key("headers"))?,
        });
    }
    if found.iter().all(|entry| entry.weight == 0) {
        return Err(FieldError::new(path.clone(), "has no weight but 0; give one of them some"));
    }
    Ok(found)
}

fn weight(of: Option<i64>, single: bool, path: impl FnOnce() -> FieldPath) -> Result<u32, FieldError> {
    let weight = u32::try_from(of.unwrap_or(0));
    let weight = weight.map_err(|_| FieldError::new(path(), "is not a weight; write a number from 0 on"))?;
    Ok(if single { 1 } else { weight })
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
                let header = header_name(&name, path)?;
                let value: HeaderText = header_value(value, path)?
                    .parse()
                    .map_err(|error: HeaderTextError| FieldError::new(path(), error.to_string()))?;
                if value.literal().is_none() && matches!(header.as_str(), ":authority" | "host") {
                    return Err(FieldError::new(path(), "has operators, of which no host is made"));
                }
                Ok((header, value))
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
