//! Which of the rules of a VirtualService a request follows, by the index and by looking at each in its turn.
#![no_main]

#[path = "../shared/rules.rs"]
mod rules;

use libfuzzer_sys::fuzz_target;
use orlop_model::NamespacedName;
use orlop_model::http::Request;
use orlop_model::world::routing::{HttpMatch, HttpRule, StringMatch};
use rules::Asked;

fuzz_target!(|input: &str| {
    let Some(asked) = Asked::read(input) else { return };
    let Some(service) = asked.snapshot.service(&NamespacedName::new("shop", "web")) else { return };
    let request = asked.request();
    let found = match asked.snapshot.routes().select(service, &request) {
        Ok(None) => return,
        Ok(Some(selected)) => Some(selected.rule.name.as_str()),
        Err(_) => None,
    };
    let wanted = asked.rules.iter().find(|rule| follows(rule, &request));
    assert_eq!(found, wanted.map(|rule| rule.name.as_str()));
});

fn follows(rule: &HttpRule, request: &Request<'_>) -> bool {
    rule.matches.is_empty() || rule.matches.iter().any(|of| holds(of, request))
}

fn holds(of: &HttpMatch, request: &Request<'_>) -> bool {
    let of_mesh = of.gateways.is_empty() || of.gateways.iter().any(|gateway| gateway == "mesh");
    let header = |(name, wanted): &(String, StringMatch)| {
        let of_head = match name.as_str() {
            ":authority" | "host" => Some(request.authority),
            ":method" => Some(request.method),
            ":scheme" => Some(request.scheme),
            ":path" => Some(request.path),
            _ => None,
        };
        let value = of_head.map(str::to_owned);
        value
            .or_else(|| Some(request.headers.value(name)?.into_owned()))
            .is_some_and(|text| is(wanted, &text))
    };
    let parameter = |(name, wanted): &(String, StringMatch)| {
        let pairs = request.query.into_iter().flat_map(|query| query.split('&'));
        let mut values = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        values.find(|(known, _)| known == name).is_some_and(|(_, value)| is(wanted, value))
    };
    let optional =
        |wanted: &Option<StringMatch>, text: &str| wanted.as_ref().is_none_or(|wanted| is(wanted, text));
    let path = match &of.uri {
        Some(StringMatch::Exact(exact)) if of.ignore_uri_case => request.path.eq_ignore_ascii_case(exact),
        Some(StringMatch::Prefix(prefix)) if of.ignore_uri_case => {
            request.path.to_ascii_lowercase().starts_with(&prefix.to_ascii_lowercase())
        }
        wanted => optional(wanted, request.path),
    };
    of_mesh
        && path
        && optional(&of.scheme, request.scheme)
        && optional(&of.method, request.method)
        && of.authority.as_ref().is_none_or(|wanted| is_host(wanted, request.authority))
        && of.headers.iter().all(header)
        && !of.without_headers.iter().any(header)
        // Nobody shows a token.
        && of.claims.is_empty()
        && of.query.iter().all(parameter)
        && of.port.is_none_or(|port| port == request.port)
        && of.source_labels.iter().next().is_none()
        && of.source_namespace.as_ref().is_none_or(|namespace| namespace == request.source_namespace)
}

fn is(wanted: &StringMatch, text: &str) -> bool {
    match wanted {
        StringMatch::Exact(exact) => exact == text,
        StringMatch::Prefix(prefix) => text.starts_with(prefix.as_str()),
        StringMatch::Segments(_) => unreachable!("no VirtualService has any"),
        StringMatch::Regex(regex) => regex.matches(text),
        StringMatch::Present => true,
    }
}

/// In either case, with the port or without.
fn is_host(wanted: &StringMatch, host: &str) -> bool {
    let lower = host.to_ascii_lowercase();
    let wanted = match wanted {
        StringMatch::Exact(text) => StringMatch::Exact(text.to_ascii_lowercase()),
        StringMatch::Prefix(text) => StringMatch::Prefix(text.to_ascii_lowercase()),
        other => other.clone(),
    };
    let bare = lower.trim_end_matches(|c: char| c.is_ascii_digit()).strip_suffix(':');
    is(&wanted, &lower) || bare.is_some_and(|bare| !bare.ends_with(':') && is(&wanted, bare))
}
