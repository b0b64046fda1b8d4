use orlop_model::http::normalised;
use orlop_model::world::gateway_api::{Route, RouteKind, RouteMatch, RouteRule};
use orlop_model::world::routing::{HttpMatch, PathChange, Retries, RetryOn, StringMatch};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::filters::{self, FilterObject};
use super::{
    NamedMatchObject, Object, Reading, WeightedObject, backends, duration, headers, kind, named, regex,
};
use crate::field::{FieldError, FieldPath};

/// A misspelt field would send requests elsewhere, so none is let pass.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct RuleObject {
    name: String,
    matches: Vec<MatchObject>,
    filters: Vec<FilterObject>,
    backend_refs: Vec<WeightedObject>,
    timeouts: Option<TimeoutsObject>,
    retry: Option<RetryObject>,
    session_persistence: Option<IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct MatchObject {
    path: Option<PathObject>,
    headers: Vec<NamedMatchObject>,
    query_params: Vec<NamedMatchObject>,
    method: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PathObject {
    #[serde(rename = "type")]
    kind: Option<String>,
    value: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct TimeoutsObject {
    request: Option<String>,
    backend_request: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RetryObject {
    codes: Vec<u16>,
    attempts: Option<i64>,
    backoff: Option<String>,
}

/// Converts an HTTPRoute.
pub(crate) fn convert(object: Object) -> Result<Route, FieldError> {
    super::convert(object, RouteKind::Http, rule)
}

fn rule(of: RuleObject, reading: &mut Reading<'_>, path: &FieldPath) -> Result<RouteRule, FieldError> {
    let at = |field: &str| path.clone().key(field);
    if of.session_persistence.is_some() {
        reading.unread.push("sessionPersistence".to_owned());
    }
    let matches = of.matches.into_iter().enumerate();
    let matches = matches.map(|(index, of)| http_match(of, &at("matches").index(index)));
    let matches = matches.collect::<Result<Vec<_>, _>>()?;
    let filters = filters::convert(of.filters, reading, &at("filters"))?;
    let backends = backends(of.backend_refs, reading, &at("backendRefs"))?;
    if filters.redirect.is_some() && !backends.is_empty() {
        let problem = "redirects, and has backendRefs as well; keep one of them";
        return Err(FieldError::new(path.clone(), problem));
    }
    let by_prefix = |change: Option<&PathChange>| matches!(change, Some(PathChange::Prefix(_)));
    let replaces_prefix = [&filters].into_iter().chain(backends.iter().map(|of| &of.filters)).any(|of| {
        by_prefix(of.rewrite.as_ref().and_then(|of| of.path.as_ref()))
            || by_prefix(of.redirect.as_ref().and_then(|of| of.path.as_ref()))
    });
    let is_prefix = |of: &RouteMatch| matches!(of.http.uri, Some(StringMatch::Segments(_)));
    if replaces_prefix && !matches.iter().all(is_prefix) {
        let problem = "replaces a prefix (replacePrefixMatch), but not each match is a PathPrefix";
        return Err(FieldError::new(path.clone(), problem));
    }
    let timeouts = of.timeouts.unwrap_or_default();
    let timeout = |text: Option<&str>, field: &str| {
        // No time at all is no limit.
        let limit = text.map(|text| duration(text, &at("timeouts").key(field))).transpose();
        limit.map(|limit| limit.filter(|limit| !limit.is_zero()))
    };
    let whole = timeout(timeouts.request.as_deref(), "request")?;
    let each = timeout(timeouts.backend_request.as_deref(), "backendRequest")?;
    if let (Some(whole), Some(each)) = (whole, each)
        && each > whole
    {
        let problem = "is longer than request, which it is a part of";
        return Err(FieldError::new(at("timeouts").key("backendRequest"), problem));
    }
    let retries = of.retry.map(|of| retries(of, &at("retry"))).transpose()?;
    let retries = match (retries, each) {
        (None, None) => None,
        (retries, per_try) => Some(Retries { per_try, ..retries.unwrap_or_default() }),
    };
    Ok(RouteRule { name: of.name, matches, filters, backends, timeout: whole, retries, unreadable: None })
}

fn http_match(of: MatchObject, path: &FieldPath) -> Result<RouteMatch, FieldError> {
    let at = |field: &str| path.clone().key(field);
    let uri = uri(of.path.unwrap_or_default(), &at("path"))?;
    let http = HttpMatch {
        uri: Some(uri),
        method: of.method.map(StringMatch::Exact),
        headers: headers(of.headers, &at("headers"))?,
        query: named(of.query_params, &at("queryParams"), |name, _| Ok(name.to_owned()))?,
        ..HttpMatch::default()
    };
    Ok(RouteMatch { http, rpc: None })
}

/// In the form that paths of requests have.
fn uri(of: PathObject, path: &FieldPath) -> Result<StringMatch, FieldError> {
    let value = of.value.unwrap_or_else(|| "/".to_owned());
    let at = || path.clone().key("value");
    let kind = kind(of.kind.as_deref(), &["PathPrefix", "Exact", "RegularExpression"], path)?;
    if kind == "RegularExpression" {
        return regex(&value, &at());
    }
    let odd = value.contains("//")
        || value.contains(['?', '#'])
        || value.split('/').any(|of| of == "." || of == "..");
    let normal = normalised(&value).ok().filter(|_| !odd && value.starts_with('/'));
    let normal = normal.ok_or_else(|| {
        FieldError::new(at(), format!("{value:?} is no path; write one such as /users, without // and .."))
    })?;
    Ok(match kind {
        "Exact" => StringMatch::Exact(normal.into_owned()),
        _ => StringMatch::Segments(normal.trim_end_matches('/').to_owned()),
    })
}

/// Where a rule says something of retries, connections that fail or break off are tried again as well.
fn retries(of: RetryObject, path: &FieldPath) -> Result<Retries, FieldError> {
    let at = |field: &str| path.clone().key(field);
    let default = Retries::default();
    let attempts = of.attempts.map_or(Ok(default.attempts), u32::try_from);
    let attempts = attempts.map_err(|_| FieldError::new(at("attempts"), "is no number of retries"))?;
    let mut on = vec![RetryOn::ConnectFailure, RetryOn::RefusedStream, RetryOn::Reset];
    for (index, code) in of.codes.into_iter().enumerate() {
        if !(400..=599).contains(&code) {
            let problem = format!("{code} is not the status of an error; write 400 to 599");
            return Err(FieldError::new(at("codes").index(index), problem));
        }
        on.push(RetryOn::Status(code));
    }
    let at_least = of.backoff.map(|text| duration(&text, &at("backoff"))).transpose()?;
    Ok(Retries { attempts, on: Some(on), at_least: at_least.unwrap_or_default(), ..default })
}
