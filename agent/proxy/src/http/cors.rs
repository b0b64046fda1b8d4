//! Which other origins' scripts may ask (the Fetch standard, section 3.2).

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
        ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
        ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
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
        StringMatch::Prefix(prefix) | StringMatch::Segments(prefix) => text.starts_with(prefix.as_str()),
        StringMatch::Regex(regex) => regex.matches(text),
        StringMatch::Present => true,
    });
    allowed.then(|| origin.clone())
}

/// The answer to a preflight, which only asks whether another request may be made; `None` if the request is none, or one
/// of an origin that may not ask and is passed on.
pub(super) fn preflight(cors: &Cors, request: &request::Parts) -> Option<Response<()>> {
    let asked = &request.headers;
    let wanted = asked.get(ACCESS_CONTROL_REQUEST_METHOD).filter(|_| asked.contains_key(ORIGIN))?;
    if request.method != Method::OPTIONS {
        return None;
    }
    let mut response = Response::new(());
    let Some(origin) = origin(cors, request) else {
        *response.status_mut() = StatusCode::NO_CONTENT;
        return cors.answers_all.then_some(response);
    };
    let headers = response.headers_mut();
    allow(cors, origin, headers);
    allow_list(cors, headers, ACCESS_CONTROL_ALLOW_METHODS, &cors.methods, Some(wanted));
    let wanted = asked.get(ACCESS_CONTROL_REQUEST_HEADERS);
    allow_list(cors, headers, ACCESS_CONTROL_ALLOW_HEADERS, &cors.headers, wanted);
    // The standard wants it of other answers alone; Envoy and the Gateway API's conformance tests have it here, too.
    allow_list(cors, headers, ACCESS_CONTROL_EXPOSE_HEADERS, &cors.expose, None);
    if let Some(age) = cors.max_age {
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(age.as_secs()));
    }
    Some(response)
}

/// What is added to any other answer.
pub(super) fn answer(cors: &Cors, origin: HeaderValue, headers: &mut HeaderMap) {
    allow(cors, origin, headers);
    allow_list(cors, headers, ACCESS_CONTROL_EXPOSE_HEADERS, &cors.expose, None);
}

fn allow(cors: &Cors, origin: HeaderValue, headers: &mut HeaderMap) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    if cors.credentials {
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
}

/// With credentials a `*` is taken for the name itself (the Fetch standard, section 3.2.5), so that what was asked for
/// is said instead of it.
fn allow_list(
    cors: &Cors,
    headers: &mut HeaderMap,
    name: HeaderName,
    values: &[String],
    wanted: Option<&HeaderValue>,
) {
    if !cors.credentials || !values.iter().any(|value| value == "*") {
        list(headers, name, values);
    } else if let Some(wanted) = wanted {
        headers.insert(name, wanted.clone());
    }
}

fn list(headers: &mut HeaderMap, name: HeaderName, values: &[String]) {
    if let Ok(value) = HeaderValue::from_str(&values.join(","))
        && !values.is_empty()
    {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(headers: &[(&str, &str)]) -> request::Parts {
        let mut request = http::Request::builder().method(Method::OPTIONS).uri("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn cors(origin: &str, names: &str, credentials: bool) -> Cors {
        Cors {
            origins: vec![StringMatch::Exact(origin.to_owned())],
            methods: vec![names.to_owned()],
            headers: vec![names.to_owned()],
            expose: vec![names.to_owned()],
            credentials,
            ..Cors::default()
        }
    }

    const PREFLIGHT: [(&str, &str); 3] = [
        ("origin", "https://a"),
        ("access-control-request-method", "PUT"),
        ("access-control-request-headers", "x-one,x-two"),
    ];

    #[test]
    fn with_credentials_a_star_becomes_what_was_asked_for() {
        for (credentials, methods, headers) in [(false, "*", "*"), (true, "PUT", "x-one,x-two")] {
            let cors = cors("*", "*", credentials);
            let answer = preflight(&cors, &asks(&PREFLIGHT)).unwrap();
            assert_eq!(answer.headers()[ACCESS_CONTROL_ALLOW_ORIGIN], "https://a");
            assert_eq!(answer.headers()[ACCESS_CONTROL_ALLOW_METHODS], methods);
            assert_eq!(answer.headers()[ACCESS_CONTROL_ALLOW_HEADERS], headers);
            assert_eq!(answer.headers().contains_key(ACCESS_CONTROL_EXPOSE_HEADERS), !credentials);
            // A star would expose nothing then.
            let mut headers = HeaderMap::new();
            super::answer(&cors, HeaderValue::from_static("https://a"), &mut headers);
            assert_eq!(headers.contains_key(ACCESS_CONTROL_EXPOSE_HEADERS), !credentials);
        }
    }

    #[test]
    fn preflights_of_other_origins_are_answered_with_nothing_or_passed_on() {
        let other = asks(&[("origin", "https://b"), PREFLIGHT[1]]);
        let mut cors = cors("https://a", "PUT", false);
        assert!(preflight(&cors, &other).is_none());
        cors.answers_all = true;
        let answer = preflight(&cors, &other).unwrap();
        assert!(answer.status().is_success() && answer.headers().is_empty());
        // What is no preflight is not answered.
        assert!(preflight(&cors, &asks(&PREFLIGHT[..1])).is_none());
        let mut get = asks(&PREFLIGHT);
        get.method = Method::GET;
        assert!(preflight(&cors, &get).is_none());
    }
}
