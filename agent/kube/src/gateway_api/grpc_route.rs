use orlop_model::world::gateway_api::{Route, RouteKind, RouteMatch, RouteRule, RpcMatch, RpcName};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::filters::{self, FilterObject};
use super::{NamedMatchObject, Object, Reading, WeightedObject, backends, headers, kind};
use crate::field::{FieldError, FieldPath};

/// A misspelt field would send requests elsewhere, so none is let pass.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct RuleObject {
    name: String,
    matches: Vec<MatchObject>,
    filters: Vec<FilterObject>,
    backend_refs: Vec<WeightedObject>,
    session_persistence: Option<IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct MatchObject {
    method: Option<MethodObject>,
    headers: Vec<NamedMatchObject>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct MethodObject {
    #[serde(rename = "type")]
    kind: Option<String>,
    service: Option<String>,
    method: Option<String>,
}

/// Converts a GRPCRoute.
pub(crate) fn convert(object: Object) -> Result<Route, FieldError> {
    super::convert(object, RouteKind::Grpc, rule)
}

fn rule(of: RuleObject, reading: &mut Reading<'_>, path: &FieldPath) -> Result<RouteRule, FieldError> {
    let at = |field: &str| path.clone().key(field);
    if of.session_persistence.is_some() {
        reading.unread.push("sessionPersistence".to_owned());
    }
    let matches = of.matches.into_iter().enumerate();
    let matches = matches.map(|(index, of)| grpc_match(of, &at("matches").index(index)));
    Ok(RouteRule {
        name: of.name,
        matches: matches.collect::<Result<_, _>>()?,
        filters: filters::convert(of.filters, reading, &at("filters"))?,
        backends: backends(of.backend_refs, reading, &at("backendRefs"))?,
        ..RouteRule::default()
    })
}

fn grpc_match(of: MatchObject, path: &FieldPath) -> Result<RouteMatch, FieldError> {
    let headers = headers(of.headers, &path.clone().key("headers"))?;
    let path = path.clone().key("method");
    let rpc = of.method.map(|of| rpc_match(of, &path)).transpose()?.unwrap_or_default();
    RouteMatch::of_rpc(rpc, headers).map_err(|error| FieldError::new(path, error.to_string()))
}

fn rpc_match(of: MethodObject, path: &FieldPath) -> Result<RpcMatch, FieldError> {
    let is_exact = kind(of.kind.as_deref(), &["Exact", "RegularExpression"], path)? == "Exact";
    let name = |text: Option<String>, field: &str| match text.filter(|text| !text.is_empty()) {
        Some(text) if is_exact && text.contains('/') => {
            Err(FieldError::new(path.clone().key(field), "has a slash, which no name has"))
        }
        Some(text) if is_exact => Ok(Some(RpcName::Exact(text))),
        text => Ok(text.map(RpcName::Regex)),
    };
    let found = RpcMatch { service: name(of.service, "service")?, method: name(of.method, "method")? };
    if found == RpcMatch::default() {
        return Err(FieldError::new(path.clone(), "needs a service, a method or both"));
    }
    Ok(found)
}
