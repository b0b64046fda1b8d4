//! What a route does besides choosing a backend.

use std::time::Duration;

use orlop_model::world::gateway_api::{RouteFilters, RouteKind, RouteMirror};
use orlop_model::world::header_text::HeaderText;
use orlop_model::world::routing::{
    Cors, HeaderChange, PathChange, Percent, Redirect, RedirectPort, Rewrite, StringMatch,
};
use serde::Deserialize;

use super::{BackendObject, Reading};
use crate::field::{FieldError, FieldPath, host, port};
use crate::virtual_service::{header_name, header_value};

/// Only what its `type` says is read of it. One of another type may have any fields: it is not skipped.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct FilterObject {
    #[serde(rename = "type")]
    kind: String,
    request_header_modifier: Option<ModifierObject>,
    response_header_modifier: Option<ModifierObject>,
    request_mirror: Option<MirrorObject>,
    request_redirect: Option<RedirectObject>,
    url_rewrite: Option<RewriteObject>,
    cors: Option<CorsObject>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ModifierObject {
    set: Vec<HeaderObject>,
    add: Vec<HeaderObject>,
    remove: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderObject {
    name: String,
    value: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct MirrorObject {
    backend_ref: BackendObject,
    percent: Option<u32>,
    fraction: Option<FractionObject>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FractionObject {
    numerator: u32,
    denominator: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct RedirectObject {
    scheme: Option<String>,
    hostname: Option<String>,
    path: Option<PathObject>,
    port: Option<i32>,
    status_code: Option<u16>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RewriteObject {
    hostname: Option<String>,
    path: Option<PathObject>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PathObject {
    #[serde(rename = "type")]
    kind: String,
    replace_full_path: Option<String>,
    replace_prefix_match: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct CorsObject {
    allow_origins: Vec<String>,
    allow_credentials: Option<bool>,
    allow_methods: Vec<String>,
    allow_headers: Vec<String>,
    expose_headers: Vec<String>,
    max_age: Option<u32>,
}

/// What preflights may be remembered for where nothing is said.
const MAX_AGE: u32 = 5;

/// Each type but mirrors may be there once.
pub(super) fn convert(
    objects: Vec<FilterObject>,
    reading: &Reading<'_>,
    path: &FieldPath,
) -> Result<RouteFilters, FieldError> {
    let mut found = RouteFilters::default();
    let mut seen: Vec<String> = Vec::new();
    for (index, object) in objects.into_iter().enumerate() {
        let path = path.clone().index(index);
        let kind = object.kind.clone();
        if kind != "RequestMirror" && seen.contains(&kind) {
            return Err(FieldError::new(path, format!("is a second {kind}; write one")));
        }
        let known = take(object, &mut found, reading, &path)?;
        if !known && found.unsupported.is_none() {
            found.unsupported = Some(format!("has the filter {kind:?}, which is not supported"));
        }
        seen.push(kind);
    }
    if found.redirect.is_some() && found.rewrite.is_some() {
        let problem = "has RequestRedirect and URLRewrite; keep one of them";
        return Err(FieldError::new(path.clone(), problem));
    }
    Ok(found)
}

/// False if there is no such filter.
fn take(
    object: FilterObject,
    found: &mut RouteFilters,
    reading: &Reading<'_>,
    path: &FieldPath,
) -> Result<bool, FieldError> {
    fn there<T>(object: Option<T>, field: &str, path: &FieldPath) -> Result<(T, FieldPath), FieldError> {
        let path = path.clone().key(field);
        let object = object
            .ok_or_else(|| FieldError::new(path.clone(), "is missing, and the type says it is there"))?;
        Ok((object, path))
    }
    let http = reading.kind == RouteKind::Http;
    match object.kind.as_str() {
        "RequestHeaderModifier" => {
            let (object, path) = there(object.request_header_modifier, "requestHeaderModifier", path)?;
            found.headers.request = modifier(object, &path)?;
        }
        "ResponseHeaderModifier" => {
            let (object, path) = there(object.response_header_modifier, "responseHeaderModifier", path)?;
            found.headers.response = modifier(object, &path)?;
        }
        "RequestMirror" => {
            let (object, path) = there(object.request_mirror, "requestMirror", path)?;
            found.mirrors.push(mirror(object, reading.namespace, &path)?);
        }
        "RequestRedirect" if http => {
            let (object, path) = there(object.request_redirect, "requestRedirect", path)?;
            found.redirect = Some(redirect(object, &path)?);
        }
        "URLRewrite" if http => {
            let (object, path) = there(object.url_rewrite, "urlRewrite", path)?;
            found.rewrite = Some(Rewrite {
                authority: hostname(object.hostname, &path)?,
                path: object.path.map(|of| path_change(of, &path.key("path"))).transpose()?,
                ..Rewrite::default()
            });
        }
        "CORS" if http => {
            let (object, path) = there(object.cors, "cors", path)?;
            found.cors = Some(cors(object, &path)?);
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// Of one name there is one action.
fn modifier(of: ModifierObject, path: &FieldPath) -> Result<HeaderChange, FieldError> {
    let mut seen: Vec<String> = Vec::new();
    let mut name = |text: &str, path: FieldPath| {
        let name = header_name(text, || path.clone())?;
        if name.starts_with(':') {
            return Err(FieldError::new(path, "is not the name of a header"));
        }
        if seen.contains(&name) {
            return Err(FieldError::new(path, format!("{name} is there twice; do one thing to each header")));
        }
        seen.push(name.clone());
        Ok(name)
    };
    let mut pairs = |objects: Vec<HeaderObject>, field: &str| {
        let pairs = objects.into_iter().enumerate().map(|(index, HeaderObject { name: text, value })| {
            let path = path.clone().key(field).index(index);
            let value = header_value(value, || path.clone().key("value"))?;
            // The specification has no operators.
            Ok((name(&text, path.key("name"))?, HeaderText::verbatim(value)))
        });
        pairs.collect::<Result<Vec<_>, FieldError>>()
    };
    let (set, add) = (pairs(of.set, "set")?, pairs(of.add, "add")?);
    let remove = of.remove.iter().enumerate();
    let remove = remove.map(|(index, text)| name(text, path.clone().key("remove").index(index)));
    Ok(HeaderChange { set, add, remove: remove.collect::<Result<_, _>>()? })
}

fn mirror(of: MirrorObject, namespace: &str, path: &FieldPath) -> Result<RouteMirror, FieldError> {
    let at = |field: &str| path.clone().key(field);
    let (part, whole, field) = match (of.percent, of.fraction) {
        (None, None) => (1, 1, "percent"),
        (Some(percent), None) => (percent, 100, "percent"),
        (None, Some(of)) => (of.numerator, of.denominator.unwrap_or(100), "fraction"),
        (Some(_), Some(_)) => {
            return Err(FieldError::new(at("percent"), "is beside fraction; keep one of them"));
        }
    };
    if whole == 0 || part > whole {
        return Err(FieldError::new(at(field), format!("{part} of {whole} is no share; write 0 to all")));
    }
    let percent = u64::from(part) * u64::from(Percent::ALL.0) / u64::from(whole);
    Ok(RouteMirror {
        backend: of.backend_ref.convert(namespace, &at("backendRef"))?,
        percent: Percent(u32::try_from(percent).unwrap_or(Percent::ALL.0)),
    })
}

fn redirect(of: RedirectObject, path: &FieldPath) -> Result<Redirect, FieldError> {
    let at = |field: &str| path.clone().key(field);
    let code = of.status_code.unwrap_or(302);
    if !matches!(code, 301 | 302 | 303 | 307 | 308) {
        let problem = format!("{code} is not 301, 302, 303, 307 or 308");
        return Err(FieldError::new(at("statusCode"), problem));
    }
    if let Some(scheme) = &of.scheme
        && !matches!(scheme.as_str(), "http" | "https")
    {
        return Err(FieldError::new(at("scheme"), format!("{scheme:?} is neither http nor https")));
    }
    let port = match (of.port, &of.scheme) {
        (Some(number), _) => RedirectPort::Number(port(number, || at("port"))?),
        (None, Some(_)) => RedirectPort::OfScheme,
        // Where a gateway has a listener, a Service has a port.
        (None, None) => RedirectPort::OfRequest,
    };
    Ok(Redirect {
        uri: None,
        authority: hostname(of.hostname, path)?,
        port,
        scheme: of.scheme,
        code,
        path: of.path.map(|of| path_change(of, &at("path"))).transpose()?,
    })
}

fn hostname(of: Option<String>, path: &FieldPath) -> Result<Option<String>, FieldError> {
    let of = of.filter(|of| !of.is_empty());
    of.map(|of| host(&of, || path.clone().key("hostname"))).transpose()
}

fn path_change(of: PathObject, path: &FieldPath) -> Result<PathChange, FieldError> {
    let (change, field) = match (of.kind.as_str(), of.replace_full_path, of.replace_prefix_match) {
        ("ReplaceFullPath", Some(text), None) => (PathChange::Full(text), "replaceFullPath"),
        ("ReplacePrefixMatch", None, Some(text)) => (PathChange::Prefix(text), "replacePrefixMatch"),
        _ => {
            let problem =
                "needs the type ReplaceFullPath or ReplacePrefixMatch, and what is named like it alone";
            return Err(FieldError::new(path.clone(), problem));
        }
    };
    let (PathChange::Full(text) | PathChange::Prefix(text)) = &change;
    if text.contains(['?', '#']) || text.split('/').any(|of| of == "." || of == "..") || !is_printable(text) {
        return Err(FieldError::new(path.clone().key(field), format!("{text:?} is no path")));
    }
    Ok(change)
}

fn is_printable(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn cors(of: CorsObject, path: &FieldPath) -> Result<Cors, FieldError> {
    let at = |field: &str| path.clone().key(field);
    let origins = of.allow_origins.iter().enumerate();
    let origins = origins.map(|(index, text)| {
        let problem = || {
            let problem =
                format!("{text:?} is no origin; write https://example.com, https://*.example.com or *");
            FieldError::new(at("allowOrigins").index(index), problem)
        };
        origin(text).ok_or_else(problem)
    });
    let names = |names: Vec<String>, field: &str| {
        let names = names.iter().enumerate().map(|(index, name)| match name.as_str() {
            "*" => Ok("*".to_owned()),
            name => header_name(name, || at(field).index(index)),
        });
        names.collect::<Result<Vec<_>, FieldError>>()
    };
    Ok(Cors {
        origins: origins.collect::<Result<_, _>>()?,
        methods: of
            .allow_methods
            .into_iter()
            .enumerate()
            .map(|(index, method)| header_value(method, || at("allowMethods").index(index)))
            .collect::<Result<_, _>>()?,
        headers: names(of.allow_headers, "allowHeaders")?,
        expose: names(of.expose_headers, "exposeHeaders")?,
        max_age: Some(Duration::from_secs(of.max_age.unwrap_or(MAX_AGE).into())),
        credentials: of.allow_credentials.unwrap_or(false),
        answers_all: true,
    })
}

/// `*`, or scheme, host and perhaps port. A `*` in the host stands for one label or more; the port that a scheme has
/// anyway is in no `Origin`.
fn origin(text: &str) -> Option<StringMatch> {
    if text == "*" {
        return Some(StringMatch::Exact(text.to_owned()));
    }
    let (scheme, rest) = text.split_once("://")?;
    let own = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return None,
    };
    let rest = rest.strip_suffix(own).unwrap_or(rest).to_ascii_lowercase();
    if rest.is_empty() || !rest.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._*:[]".contains(&b)) {
        return None;
    }
    let text = format!("{scheme}://{rest}");
    if !text.contains('*') {
        return Some(StringMatch::Exact(text));
    }
    let escaped = text.replace('.', r"\.").replace('[', r"\[").replace(']', r"\]");
    escaped.replace('*', "[^/:]+").parse().ok().map(StringMatch::Regex)
}
