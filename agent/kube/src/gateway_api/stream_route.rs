//! TLSRoute and TCPRoute.

use orlop_model::world::gateway_api::{Route, RouteKind, RouteRule};
use orlop_model::world::stream::HostPattern;
use serde::Deserialize;
use serde_json::Value;

use super::{Object, Reading, WeightedObject, backends};
use crate::field::{FieldError, FieldPath};
use crate::object::typed;
use crate::virtual_service::any_host;

/// A misspelt field would send connections elsewhere, so none is let pass.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct RuleObject {
    name: String,
    backend_refs: Vec<WeightedObject>,
}

/// Converts a TLSRoute.
pub(crate) fn convert_tls(mut object: Object) -> Result<Route, FieldError> {
    let hostnames = object.spec.hostnames.take();
    let route = super::convert(object, RouteKind::Tls, rule)?;
    // What is for no Service is not read.
    let hostnames = match hostnames.filter(|_| !route.parents.is_empty()) {
        Some(hostnames) => names(hostnames)?,
        None => Vec::new(),
    };
    Ok(Route { hostnames, ..route })
}

/// Converts a TCPRoute.
pub(crate) fn convert_tcp(object: Object) -> Result<Route, FieldError> {
    super::convert(object, RouteKind::Tcp, rule)
}

fn names(value: Value) -> Result<Vec<HostPattern>, FieldError> {
    let path = FieldPath::from("spec.hostnames");
    let texts: Vec<String> = typed(value).map_err(|error| error.below(&path))?;
    let names = texts.iter().enumerate();
    names.map(|(index, text)| name(text, &path.clone().index(index))).collect()
}

/// A host as a client's TLS names it: never an address, nor all of them.
fn name(text: &str, path: &FieldPath) -> Result<HostPattern, FieldError> {
    if text == "*" || text.parse::<std::net::IpAddr>().is_ok() {
        let problem = format!("{text:?} is no name of a server; write example.com or *.example.com");
        return Err(FieldError::new(path.clone(), problem));
    }
    any_host(text, || path.clone()).map(HostPattern)
}

fn rule(of: RuleObject, reading: &mut Reading<'_>, path: &FieldPath) -> Result<RouteRule, FieldError> {
    let path = path.clone().key("backendRefs");
    let backends = backends(of.backend_refs, reading, &path)?;
    if let Some(index) = backends.iter().position(|of| of.filters != Default::default()) {
        return Err(FieldError::new(
            path.index(index).key("filters"),
            "are of requests, which nobody reads here",
        ));
    }
    Ok(RouteRule { name: of.name, backends, ..RouteRule::default() })
}
