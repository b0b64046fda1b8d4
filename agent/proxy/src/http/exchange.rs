//! One request and its answer: gather, choose an endpoint, forward, respond.

use std::rc::Rc;

use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::HOST,
    uri::{Authority, PathAndQuery, Scheme},
};
use hyper::{body::Incoming, upgrade};
use orlop_model::Reason;
use tokio::task::spawn_local;

use super::{
    body::{RequestBody, ResponseBody, grpc_status},
    failure, headers,
    io::Io,
    opaque,
    record::RequestRecord,
    session::Session,
    upstream::{Key, Lease, Unanswered, Upstreams},
};
use crate::{hbone, meter::Meter, refusal::Refusal};

/// Serves one request.
pub(super) async fn serve(session: &Rc<Session>, request: Request<Incoming>) -> Response<ResponseBody> {
    let mut record = RequestRecord::new(session, &request);
    match forward(session, request, &mut record).await {
        Ok((response, lease)) => respond(session, response, lease, record),
        Err(refusal) => failure::answer(refusal, record),
    }
}

/// Where both sides go on with something else, once they have agreed to.
struct Switch(upgrade::OnUpgrade);

/// The answer, and what holds its connection.
struct Answered {
    lease: Lease,
    /// What the client goes on with, if it wants to.
    switch: Option<Switch>,
}

async fn forward(
    session: &Rc<Session>,
    mut request: Request<Incoming>,
    record: &mut RequestRecord,
) -> Result<(Response<Incoming>, Answered), Refusal> {
    let authority = headers::authority(&request);
    let authority = authority.ok_or_else(|| bad("no host, more than one, or none that could be"))?;
    record.authority = Some(authority.clone());
    // It would ask for another tunnel.
    if request.method() == Method::CONNECT {
        return Err(bad("CONNECT leads nowhere from here"));
    }

    let snapshot = session.local.worker.shared.snapshot.load_full();
    let endpoint = session.endpoint(&snapshot)?;
    session.check(&snapshot, &endpoint)?;
    let key = session.key(&endpoint);
    record.upstream = Some(endpoint.address);
    record.destination = endpoint.workload;
    record.destination_identity = key.destination.clone();
    let switch = headers::wants_websocket(&request).then(|| Switch(upgrade::on(&mut request)));
    let request = prepare(session, request, &authority, &key, switch.is_some(), record)?;
    let (response, lease) = ask(session, &key, request).await?;
    record.waited = Some(record.age());
    Ok((response, Answered { lease, switch }))
}

/// The request as the server gets it.
fn prepare(
    session: &Session,
    request: Request<Incoming>,
    authority: &Authority,
    key: &Key,
    switches: bool,
    record: &RequestRecord,
) -> Result<Request<RequestBody>, Refusal> {
    let (mut parts, body) = request.into_parts();
    headers::strip(&mut parts.headers);
    if switches {
        headers::upgrade(&mut parts.headers);
    }
    // Who asks, as its certificate has shown: whatever the client says of that is its own words.
    let caller = format!("By={};URI={}", session.local.own.workload.identity, session.peer.identity);
    let caller = HeaderValue::from_str(&caller).map_err(Refusal::internal)?;
    parts.headers.insert(hbone::CLIENT_CERT, caller);
    let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    if key.http2 {
        parts.headers.remove(HOST);
        let uri = Uri::builder().scheme(Scheme::HTTP).authority(authority.clone()).path_and_query(path);
        parts.uri = uri.build().map_err(|error| Refusal::new(Reason::BadRequest, error))?;
        parts.version = Version::HTTP_2;
    } else {
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| bad("a host that is none"))?;
        parts.headers.insert(HOST, host);
        parts.uri = Uri::from(path);
        parts.version = Version::HTTP_11;
    }
    Ok(Request::from_parts(parts, RequestBody::new(body, Rc::clone(&record.sent))))
}

/// Sends the request. A connection that has died unnoticed costs it nothing.
async fn ask(
    session: &Rc<Session>,
    key: &Key,
    mut request: Request<RequestBody>,
) -> Result<(Response<Incoming>, Lease), Refusal> {
    let mut lease = Upstreams::lease(session, key).await?;
    loop {
        match lease.send(request).await {
            Ok(response) => return Ok((response, lease)),
            Err(Unanswered { request: Some(unsent), .. }) if lease.reused => {
                request = unsent;
                lease = Upstreams::open(session, key).await?;
            }
            Err(Unanswered { refusal, .. }) => return Err(refusal),
        }
    }
}

fn respond(
    session: &Rc<Session>,
    response: Response<Incoming>,
    answered: Answered,
    mut record: RequestRecord,
) -> Response<ResponseBody> {
    let Answered { lease, switch } = answered;
    record.code = response.status();
    record.grpc_status = record.grpc_status.or_else(|| grpc_status(response.headers()));
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return match switch {
            Some(switch) => switch_protocols(session, response, switch, lease, record),
            // hyper has read an answer that nobody asked for.
            None => failure::answer(Refusal::new(Reason::UpstreamReset, "101 to no upgrade"), record),
        };
    }
    let (mut parts, body) = response.into_parts();
    headers::strip(&mut parts.headers);
    Response::from_parts(parts, ResponseBody::of_server(body, lease, record))
}

/// Carries what both sides say once they have left HTTP.
fn switch_protocols(
    session: &Rc<Session>,
    response: Response<Incoming>,
    Switch(client): Switch,
    lease: Lease,
    record: RequestRecord,
) -> Response<ResponseBody> {
    let (mut parts, body) = response.into_parts();
    let mut whole = Response::from_parts(parts.clone(), body);
    let server = upgrade::on(&mut whole);
    let idle_timeout = session.local.worker.shared.config.idle_timeout;
    let live = session.local.worker.shared.live.enter(usize::MAX);
    spawn_local(async move {
        // All of it, so that it ends with this.
        let mut record = record;
        let (up, down) = (Meter::default(), Meter::default());
        let result = match tokio::try_join!(client, server) {
            Ok((client, server)) => match (taken(client), taken(server)) {
                (Some(client), Some(server)) => {
                    opaque::copy(client, server, &up, &down, idle_timeout).await.map_err(Refusal::from)
                }
                _ => Err(Refusal::internal("an upgraded connection is not ours")),
            },
            Err(error) => Err(Refusal::new(Reason::Reset, error)),
        };
        record.sent.set(up.total());
        record.received = down.total();
        record.outcome = result.err();
        drop((lease, live));
    });
    headers::strip(&mut parts.headers);
    headers::upgrade(&mut parts.headers);
    Response::from_parts(parts, ResponseBody::empty())
}

/// The connection itself, with what hyper has read of it already in front.
fn taken(upgraded: upgrade::Upgraded) -> Option<Io> {
    let upgrade::Parts { mut io, read_buf, .. } = upgraded.downcast::<Io>().ok()?;
    io.source.unread(read_buf);
    Some(io)
}

fn bad(detail: &str) -> Refusal {
    Refusal::new(Reason::BadRequest, detail)
}
