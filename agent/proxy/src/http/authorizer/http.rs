//! A provider that is asked by a request like the one that it is about.

use std::collections::HashSet;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri, Version,
    header::{AUTHORIZATION, CONTENT_LENGTH, COOKIE, HOST},
    response,
};
use orlop_model::{
    http::is_alike,
    world::{HttpCheck, security::Pattern},
};

use super::super::{
    call::Failed,
    failure::Extra,
    headers::{is_unfit, strip},
    replay::RequestBody,
    session::Session,
};
use super::answer::{Answer, Changes, How};
use super::{Asking, Body, shown_headers};
use crate::hbone::CLIENT_CERT;

/// What of the request's headers the server is not to get: Envoy's.
const REMOVED: &str = "x-envoy-auth-headers-to-remove";

/// The method, path and host of the request, and what of its headers the provider is to see.
pub(super) fn question(
    session: &Session,
    of: &Asking<'_>,
    how: &HttpCheck,
    body: &Body,
) -> Result<Request<RequestBody>, String> {
    let uri = format!("{}{}", how.path_prefix, of.destined.path);
    let uri = Uri::try_from(uri).map_err(|error| error.to_string())?;
    let whole = RequestBody::whole(body.bytes.clone());
    let mut request = Request::new(whole);
    *request.version_mut() = Version::HTTP_11;
    *request.method_mut() = of.parts.method.clone();
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    for (name, value) in &shown_headers(session, of, body) {
        if is_shown(how, name) && !is_unfit_for_question(name) {
            headers.append(name, value.clone());
        }
    }
    for (name, value) in &how.added {
        let pair = HeaderName::try_from(name).ok().zip(HeaderValue::try_from(value).ok());
        let (name, value) = pair.ok_or("a header that it is to get is none")?;
        headers.insert(name, value);
    }
    // As Envoy has it: whom the request is for.
    let host = of.destined.authority.as_str();
    headers.insert(HOST, HeaderValue::try_from(host).map_err(|error| error.to_string())?);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.bytes.len()));
    Ok(request)
}

fn is_shown(how: &HttpCheck, name: &HeaderName) -> bool {
    *name == AUTHORIZATION || name.as_str() == super::PARTIAL || any(&how.shown, name)
}

fn is_unfit_for_question(name: &HeaderName) -> bool {
    is_unfit(name) && name.as_str() != CLIENT_CERT
}

fn any(patterns: &[Pattern], name: &HeaderName) -> bool {
    patterns.iter().any(|pattern| pattern.matches(name.as_str()))
}

/// Whether it is an answer, and that answer is no.
pub(super) fn refuses(status: StatusCode) -> bool {
    !(status == StatusCode::OK || status.is_server_error())
}

/// 200 lets it pass, an error of the server's is none of an answer, and all else refuses it.
pub(super) fn read(
    mut head: response::Parts,
    body: Bytes,
    how: &HttpCheck,
    asked: &HeaderMap,
) -> Result<Answer, Failed> {
    if head.status != StatusCode::OK && !refuses(head.status) {
        return Err(Failed::Away(format!("it answers with status {}", head.status)));
    }
    // Also what `Connection` names is between the two alone.
    strip(&mut head.headers);
    if head.status == StatusCode::OK {
        let mut to_server = unforged(how, asked);
        let removed = head.headers.get_all(REMOVED).iter().filter_map(|names| names.to_str().ok());
        for name in removed.flat_map(|names| names.split(',')) {
            HeaderName::try_from(name.trim()).ok().into_iter().for_each(|name| to_server.remove(name));
        }
        return Ok(Answer::Allowed {
            to_server: picked(to_server, &head.headers, &how.to_upstream, How::Overwrite),
            to_client: picked(Changes::default(), &head.headers, &how.to_client_on_allow, How::Append),
        });
    }
    let all = how.to_client_on_deny.is_empty();
    let headers = head.headers.iter().filter(|(name, _)| all || any(&how.to_client_on_deny, name));
    let headers = headers.filter(|(name, _)| !is_unfit(name));
    let headers = headers.map(|(name, value)| (name.clone(), value.clone())).collect();
    // It may have said 204, 101 or 777: nobody but the server says that all went well, and nobody what is no answer.
    let is_no = (300..=499).contains(&head.status.as_u16());
    let status = if is_no { head.status } else { StatusCode::FORBIDDEN };
    let why = format!("with status {}", head.status);
    Ok(Answer::Denied { extra: Extra { status: Some(status), headers, body: Some(body) }, why })
}

/// Without what a client has written in the place of what the provider is to set.
pub(super) fn unforged(how: &HttpCheck, asked: &HeaderMap) -> Changes {
    let mut changes = Changes::default();
    for name in asked.keys().filter(|name| is_its_own(how, name)) {
        changes.remove(name.clone());
    }
    changes
}

/// Whether a header is the provider's to write, also in a spelling that some servers take for the same. What clients
/// have to say themselves stays as they said it if the provider has seen it and lets it be.
fn is_its_own(how: &HttpCheck, name: &HeaderName) -> bool {
    let seen = (*name == AUTHORIZATION || *name == COOKIE) && is_shown(how, name);
    let plain = name.as_str().replace(['_', '.'], "-");
    let is = |pattern: &Pattern| match pattern {
        Pattern::Exact(wanted) => is_alike(wanted, name.as_str()),
        other => other.matches(name.as_str()) || other.matches(&plain),
    };
    !seen && how.to_upstream.iter().any(is)
}

fn picked(mut changes: Changes, headers: &HeaderMap, patterns: &[Pattern], first: How) -> Changes {
    let mut seen = HashSet::new();
    for (name, value) in headers.iter().filter(|(name, _)| any(patterns, name)) {
        let how = if seen.insert(name) { first } else { How::Append };
        changes.set(name.clone(), value.clone(), how);
    }
    changes
}
