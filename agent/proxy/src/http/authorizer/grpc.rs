//! The question and the answer of `envoy.service.auth.v3.Authorization`.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use http::{
    HeaderName, HeaderValue, StatusCode, Version,
    header::{COOKIE, HOST},
};
use orlop_model::Behind;

use super::super::{
    call::Failed,
    failure::Extra,
    headers::{is_unfit, remove},
    session::Session,
};
use super::answer::{Answer, Changes, How};
use super::messages::{
    self, Address, AttributeContext, CheckRequest, CheckResponse, Denied, HeaderOption, HttpRequest, Peer,
    Request, SocketAddress, Timestamp,
};
use super::{Asking, Body, shown_headers};

pub(super) fn question(session: &Session, of: &Asking<'_>, body: &Body) -> CheckRequest {
    let own = &session.local.own.workload;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = Timestamp {
        seconds: i64::try_from(now.as_secs()).unwrap_or_default(),
        nanos: i32::try_from(now.subsec_nanos()).unwrap_or_default(),
    };
    let source = session.source.as_ref().map(|workload| workload.names.canonical_service.to_string());
    let dialled = match of.target {
        Behind::Service { dialled, .. } => *dialled,
        Behind::Workload { address, .. } | Behind::Gateway { address, .. } => Some(*address),
    };
    let (text, bytes) = if body.packed {
        (String::new(), body.bytes.to_vec())
    } else {
        (String::from_utf8_lossy(&body.bytes).into_owned(), Vec::new())
    };
    let http = HttpRequest {
        id: of.parts.headers.get("x-request-id").map(lossy).unwrap_or_default(),
        method: of.parts.method.to_string(),
        headers: headers(session, of, body),
        path: of.destined.path.to_string(),
        host: of.destined.authority.to_string(),
        scheme: session.scheme.to_owned(),
        size: of.size(),
        protocol: protocol(of.parts.version).to_owned(),
        body: text,
        raw_body: bytes,
    };
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(Peer {
                address: Some(address(session.client)),
                service: source.unwrap_or_default(),
                principal: session.identity().map(ToString::to_string).unwrap_or_default(),
            }),
            destination: Some(Peer {
                address: dialled.map(address),
                service: String::new(),
                principal: own.identity.to_string(),
            }),
            request: Some(Request { time: Some(time), http: Some(http) }),
        }),
    }
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}

fn address(of: SocketAddr) -> Address {
    let socket = SocketAddress { address: of.ip().to_string(), port_value: of.port().into() };
    Address { socket_address: Some(socket) }
}

/// All of them, as the server would see them.
fn headers(session: &Session, of: &Asking<'_>, body: &Body) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    let pseudo = [
        (":authority", of.destined.authority.as_str()),
        (":method", of.parts.method.as_str()),
        (":path", of.destined.path.as_str()),
        (":scheme", "http"),
    ];
    all.extend(pseudo.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let mut shown = shown_headers(session, of, body);
    // That is the authority: a client may have written another one, which goes no further.
    remove(&mut shown, HOST.as_str());
    for (name, value) in &shown {
        let between = if name == COOKIE { "; " } else { "," };
        all.entry(name.as_str().to_owned())
            .and_modify(|all| *all = format!("{all}{between}{}", lossy(value)))
            .or_insert_with(|| lossy(value));
    }
    all
}

fn lossy(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// What is missing in an answer is what denies.
pub(super) fn read(answer: CheckResponse) -> Result<Answer, Failed> {
    let status = answer.status.ok_or_else(|| Failed::wrong("it answers without a status"))?;
    if status.code == 0 {
        return Ok(match allowed(answer.denied, answer.ok.unwrap_or_default()) {
            Ok((to_server, to_client)) => Answer::Allowed { to_server, to_client },
            Err(problem) => Answer::Unfit(problem.to_owned()),
        });
    }
    if answer.error.is_some() {
        return Err(Failed::Away(format!("it could not tell, with status {}", status.code)));
    }
    let denied = answer.denied.unwrap_or_default();
    let code = denied.status.and_then(|status| u16::try_from(status.code).ok());
    // What says that it went well, or something in between, would be taken for the server's own answer.
    let code =
        code.filter(|code| (300..=599).contains(code)).and_then(|code| StatusCode::from_u16(code).ok());
    let headers = denied.headers.iter().filter_map(|of| of.header.as_ref()?.pair().ok().flatten());
    let headers = headers.filter(|(name, _)| !is_unfit(name)).collect();
    let body = (!denied.body.is_empty()).then(|| denied.body.into());
    let extra = Extra { status: code, headers, body };
    Ok(Answer::Denied { extra, why: status.message.chars().take(200).collect() })
}

/// What becomes of the headers for the server and of those for the client.
fn allowed(denied: Option<Denied>, ok: messages::Ok) -> Result<(Changes, Changes), &'static str> {
    if denied.is_some() {
        return Err("it answers that the request may pass and may not");
    }
    if !(ok.query_parameters_to_set.is_empty() && ok.query_parameters_to_remove.is_empty()) {
        return Err("it lets pass another query, which nobody makes of it here");
    }
    let mut to_server = changes(&ok.headers, How::Overwrite)?;
    // Envoy leaves out what can't be removed, too.
    let removed = ok.headers_to_remove.iter().filter_map(|name| HeaderName::try_from(name).ok());
    removed.for_each(|name| to_server.remove(name));
    Ok((to_server, changes(&ok.response_headers, How::Append)?))
}

/// Where a header does not say how it is set, `default` counts.
fn changes(headers: &[HeaderOption], default: How) -> Result<Changes, &'static str> {
    let mut changes = Changes::default();
    for of in headers {
        let how = match (&of.append, of.append_action) {
            (Some(append), _) if append.value => How::Append,
            (Some(_), _) => How::Overwrite,
            (None, 0) => default,
            (None, 1) => How::IfAbsent,
            (None, 2) => How::Overwrite,
            (None, 3) => How::IfPresent,
            (None, _) => return Err("it sets a header in a way that is not known"),
        };
        let Some(header) = &of.header else { continue };
        if let Some((name, value)) = header.pair()? {
            changes.set(name, value, how);
        }
    }
    Ok(changes)
}
