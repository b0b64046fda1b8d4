//! Which other origins' scripts may ask (the Fetch standard, section 3.2).

use http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{
        ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
        ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
        ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
    },
    request,
};
use orlop_model::world::routing::{Cors, StringMatch};

/// The origin of the request, if it is one that may ask.
pub(super) fn origin(cors: &Cors, request: &request::Parts) -> Option<HeaderValue> {
    let origin = request.headers.get(ORIGIN)?;
    let text = origin.to_str().ok()?;
    let allowed = cors.origins.iter().any(|wanted| match wanted {
        StringMatch::Exact(exact) => exact == "*" || exact == text,
        StringMatch::Prefix(prefix) => text.starts_with(prefix.as_str()),
        StringMatch::Regex(regex) => regex.matches(text),
        StringMatch::Present => true,
    });
    allowed.then(|| origin.clone())
}

/// Whether the request only asks whether another one may be made.
pub(super) fn is_preflight(request: &request::Parts) -> bool {
    request.method == Method::OPTIONS
        && request.headers.contains_key(ORIGIN)
        && request.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// What a preflight is answered with.
pub(super) fn preflight(cors: &Cors, origin: HeaderValue) -> HeaderMap {
    let mut headers = HeaderMap::new();
    allow(cors, origin, &mut headers);
    list(&mut headers, ACCESS_CONTROL_ALLOW_METHODS, &cors.methods);
    list(&mut headers, ACCESS_CONTROL_ALLOW_HEADERS, &cors.headers);
    if let Some(age) = cors.max_age {
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(age.as_secs()));
    }
    headers
}

/// What is added to any other answer.
pub(super) fn answer(cors: &Cors, origin: HeaderValue, headers: &mut HeaderMap) {
    allow(cors, origin, headers);
    list(headers, ACCESS_CONTROL_EXPOSE_HEADERS, &cors.expose);
}

fn allow(cors: &Cors, origin: HeaderValue, headers: &mut HeaderMap) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    if cors.credentials {
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
}

fn list(headers: &mut HeaderMap, name: HeaderName, values: &[String]) {
    if let Ok(value) = HeaderValue::from_str(&values.join(","))
        && !values.is_empty()
    {
        headers.insert(name, value);
    }
}
