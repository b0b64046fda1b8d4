use std::borrow::Cow;

use super::Request;
use super::token::{Claims, Values};
use crate::world::Labels;
use crate::world::routing::{HttpMatch, StringMatch};

/// Whether all that the match says holds of the request. `labels` are those of the client, where they are known.
pub(super) fn holds(of: &HttpMatch, request: &Request<'_>, labels: Option<&Labels>) -> bool {
    let header = |name: &str| match name {
        ":authority" | "host" => Some(Cow::Borrowed(request.authority)),
        ":method" => Some(Cow::Borrowed(request.method)),
        ":scheme" => Some(Cow::Borrowed(request.scheme)),
        ":path" => Some(Cow::Borrowed(request.path)),
        name => request.headers.value(name),
    };
    let named = |(name, wanted): &(String, StringMatch)| is(wanted, header(name).as_deref());
    let parameter = |(name, wanted): &(String, StringMatch)| {
        is(wanted, request.query.and_then(|query| parameter(query, name)))
    };
    let says = |claims: &Claims, (names, wanted): &(Vec<String>, StringMatch)| match claims.values(names) {
        Values::Texts(texts) => texts.iter().any(|text| is(wanted, Some(text))),
        Values::Other => *wanted == StringMatch::Present,
        Values::Missing => false,
    };
    of.port.is_none_or(|port| port == request.port)
        && of.uri.as_ref().is_none_or(|uri| is_path(uri, of.ignore_uri_case, request.path))
        && of.method.as_ref().is_none_or(|wanted| is(wanted, Some(request.method)))
        && of.scheme.as_ref().is_none_or(|wanted| is(wanted, Some(request.scheme)))
        && of.authority.as_ref().is_none_or(|wanted| is_authority(wanted, request.authority))
        && of.headers.iter().all(named)
        && !of.without_headers.iter().any(named)
        // Of several tokens one must say all of it.
        && (of.claims.is_empty()
            || request.claims.iter().any(|token| of.claims.iter().all(|claim| says(token, claim))))
        && !of.without_claims.iter().any(|claim| request.claims.iter().any(|token| says(token, claim)))
        && of.query.iter().all(parameter)
        && of.source_namespace.as_ref().is_none_or(|namespace| namespace == request.source_namespace)
        && of
            .source_labels
            .iter()
            .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

fn is(wanted: &StringMatch, text: Option<&str>) -> bool {
    let Some(text) = text else { return false };
    match wanted {
        StringMatch::Exact(exact) => text == exact,
        StringMatch::Prefix(prefix) => text.starts_with(prefix.as_str()),
        StringMatch::Segments(prefix) => {
            text.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        StringMatch::Regex(regex) => regex.matches(text),
        StringMatch::Present => true,
    }
}

fn is_path(wanted: &StringMatch, ignore_case: bool, path: &str) -> bool {
    match wanted {
        StringMatch::Exact(exact) if ignore_case => path.eq_ignore_ascii_case(exact),
        StringMatch::Prefix(prefix) if ignore_case => {
            path.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        }
        wanted => is(wanted, Some(path)),
    }
}

/// Host names are the same in either case, and with their port or without.
fn is_authority(wanted: &StringMatch, authority: &str) -> bool {
    let authority = authority.to_ascii_lowercase();
    let host = without_port(&authority);
    let wanted = match wanted {
        StringMatch::Exact(exact) => &StringMatch::Exact(exact.to_ascii_lowercase()),
        StringMatch::Prefix(prefix) => &StringMatch::Prefix(prefix.to_ascii_lowercase()),
        wanted => wanted,
    };
    is(wanted, Some(&authority)) || (host != authority && is(wanted, Some(host)))
}

fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !host.ends_with(':') => host,
        _ => authority,
    }
}

/// The first value of the parameter, as it is written.
pub(super) fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value)
}
