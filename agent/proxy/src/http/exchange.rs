//! One request and its answer: gather, authorize, select the rule, answer or forward, respond.

use std::{rc::Rc, sync::Arc};

use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, SET_COOKIE, TRANSFER_ENCODING},
    request,
    uri::{Authority, PathAndQuery, Scheme},
};
use hyper::{
    body::{Body as _, Incoming},
    upgrade,
};
use orlop_model::{
    Behind, Endpoint, NamespacedName, Reason, Snapshot,
    http::{Action, Choice, Rule, Selected, Split, normalised},
    world::{
        ExtensionProvider,
        routing::{Abort, HeaderChanges, Redirect},
    },
};
use tokio::{task::spawn_local, time::sleep};

use super::{
    activity::{Activity, Patience},
    authenticate::{self, Credentials},
    authorize::{self, Seen, asked},
    authorizer::{self, Asking},
    body::{ResponseBody, grpc_status},
    cors, edge, failure,
    flags::Flag,
    forward, grpc, headers,
    hello::Watch,
    io::Io,
    key::Key,
    limit, mirror, opaque,
    passed::Passed,
    record::RequestRecord,
    replay::{Replay, RequestBody},
    rewrite::{self, Destined},
    session::Session,
    upstream::Lease,
};
use crate::{hbone, meter::Meter, refusal::Refusal};

/// Serves one request.
pub(super) async fn serve(
    session: &Rc<Session>,
    request: Request<Incoming>,
    activity: Rc<Activity>,
) -> Response<ResponseBody> {
    let mut record = RequestRecord::new(session, &request, Rc::clone(&activity));
    let patience = Patience::of_stalled(session);
    let handled = tokio::select! {
        handled = handle(session, request, &mut record) => handled,
        () = activity.unanswered(&patience) => Err(Refusal::new(Reason::IdleTimeout, "nothing moved")),
    };
    activity.answers();
    match handled {
        Ok(Answer::Own(response)) => failure::own(response, record),
        Ok(Answer::Server(response, answered)) => respond(session, response, *answered, record),
        Err(_) if record.is_too_large() => failure::answer(Reason::BodyTooLarge.into(), record),
        Err(refusal) => failure::answer(refusal, record),
    }
}

/// Where an answer is from.
enum Answer {
    Own(Response<Vec<u8>>),
    Server(Response<Incoming>, Box<Answered>),
}

/// What holds the connection of a server's answer.
pub(super) struct Answered {
    pub(super) lease: Lease,
    /// What the client goes on with, if it wants to.
    switch: Option<upgrade::OnUpgrade>,
    /// When the answer must have ended.
    pub(super) deadline: Option<tokio::time::Instant>,
}

async fn handle(
    session: &Rc<Session>,
    request: Request<Incoming>,
    record: &mut RequestRecord,
) -> Result<Answer, Refusal> {
    if session.is_from_outside() {
        edge::admit(session, record)?;
    }
    session.local.worker.shared.limits.memory()?;
    // Of HTTP/1 they are counted as they are read.
    if headers::count(request.headers()) > session.local.own.limits.max_headers {
        return Err(Refusal::new(Reason::HeaderLimit, "more headers than may be"));
    }
    if !headers::ends_clearly(request.headers()) {
        // What follows on the connection may be anything.
        record.extra = (request.version() != Version::HTTP_2).then(failure::and_close);
        return Err(bad("more than one length, or another transfer coding than chunked alone"));
    }
    if request.body().size_hint().lower() > record.max_body() {
        return Err(Reason::BodyTooLarge.into());
    }
    let authority = headers::authority(&request);
    let authority = authority.ok_or_else(|| bad("no host, more than one, or none that could be"))?;
    record.authority = Some(authority.clone());
    // It would ask for another tunnel.
    if request.method() == Method::CONNECT {
        return Err(bad("CONNECT leads nowhere from here"));
    }
    let path = normal_path(request.uri())?;

    let snapshot = session.local.worker.shared.snapshot.load_full();
    let (mut parts, body) = request.into_parts();
    // From here on all see what the server will.
    headers::for_next_hop(parts.version, &mut parts.headers);
    if session.is_from_outside() {
        edge::introduce(session, &mut parts.headers);
        record.asks_with(&parts.headers);
    }
    let mut destined = Destined { authority, path };
    let credentials = Credentials::of(session, &snapshot, &parts.headers, &destined);
    let presented = credentials.as_deref();
    authenticate::apply(presented, &snapshot, &session.target, &mut parts.headers, &mut destined)?;
    // What is taken out of headers, or asked about, must not come after them.
    let trails = presented.is_none() && !snapshot.routes().has_providers();
    let sent = (Rc::clone(&record.sent), record.max_body());
    let replay = Replay::new(body, parts.version == Version::HTTP_2, trails, sent);
    let mut asking = Asking {
        target: &session.target,
        port: session.port(),
        parts: &mut parts,
        destined: &destined,
        credentials: presented,
        body: Some(&replay),
    };
    check(session, &snapshot, &mut asking, record).await?;
    let passed = &record.checked.providers;
    record.judgement = Some(authorize::request(session, &snapshot, &parts, &destined, presented, passed)?);
    let dialled = (&session.target, session.port());
    limit::take(session, &snapshot, dialled, (&parts, &destined), presented, record).await?;
    if headers::wants_websocket(parts.version, &parts.headers) {
        let mut asked = parts.clone();
        asked.extensions.clear();
        let credentials = credentials.clone();
        let asked = Template { parts: asked, destined: destined.clone(), credentials, rules: [None, None] };
        let passed = record.checked.providers.clone();
        record.goes_on = Some(Box::new(GoesOn { asked, passed, elsewhere: None, at: None }));
    }
    let Some(selected) = select(session, &snapshot, &parts, &destined, presented)? else {
        let plan = forward::Plan::unrouted(session, &snapshot)?;
        let asked = Template { parts, destined, credentials, rules: [None, None] };
        let (response, answered) = send(session, plan, asked, replay, record).await?;
        return Ok(Answer::Server(response, Box::new(answered)));
    };
    let rule = selected.rule;
    record.rule = Some((Arc::clone(&rule.resource), rule.name.clone()));
    let choice = match &rule.action {
        Action::Route(split) if split.has_cors() => Some(choose(session, split)?),
        _ => None,
    };
    // What must not pass is not let ask whether it may.
    let cors = choice.and_then(Choice::cors).or(rule.cors.as_ref());
    let cors = cors.filter(|_| !matches!(rule.action, Action::Invalid(_)));
    let origin = cors.and_then(|cors| Some((cors, cors::origin(cors, &parts)?)));
    if let Some(answer) = cors.and_then(|cors| cors::preflight(cors, &parts)) {
        return Ok(Answer::Own(answer.map(|()| Vec::new())));
    }
    let asked = Template { parts, destined, credentials, rules: [None, None] };
    let answer = act(session, &snapshot, (&selected, choice), asked, replay, record).await;
    answer.map(|mut answer| {
        let headers = match &mut answer {
            Answer::Own(response) => response.headers_mut(),
            Answer::Server(response, _) => response.headers_mut(),
        };
        if let Some((cors, origin)) = origin {
            cors::answer(cors, origin, headers);
        }
        answer
    })
}

/// The path in its one form, which policies, routes and the server see.
fn normal_path(uri: &Uri) -> Result<PathAndQuery, Refusal> {
    let given = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let path = if given.path().is_empty() { "/" } else { given.path() };
    let normal = normalised(path).map_err(|error| Refusal::new(Reason::BadRequest, error))?;
    if normal == given.path() {
        return Ok(given);
    }
    let text = match given.query() {
        Some(query) => format!("{normal}?{query}"),
        None => normal.into_owned(),
    };
    PathAndQuery::try_from(text).map_err(|error| Refusal::new(Reason::BadRequest, error))
}

fn select<'s>(
    session: &Session,
    snapshot: &'s Snapshot,
    parts: &request::Parts,
    destined: &Destined,
    credentials: Option<&Credentials>,
) -> Result<Option<Selected<'s>>, Refusal> {
    let headers = Seen(&parts.headers);
    let claims = credentials.map(|of| of.claims(snapshot, &session.target)).unwrap_or_default();
    let mut asked = asked(session, parts, destined, &headers);
    asked.claims = &claims;
    if let Behind::Gateway { entrance, .. } = &session.target {
        return snapshot.routes().select_at_gateway(&asked, entrance).map(Some).map_err(Refusal::from);
    }
    let Some(service) = session.service() else { return Ok(None) };
    snapshot.routes().select(service, &asked).map_err(Refusal::from)
}

/// Does what the rule says; its destination may be chosen already.
async fn act(
    session: &Rc<Session>,
    snapshot: &Arc<Snapshot>,
    (selected, choice): (&Selected<'_>, Option<&Choice>),
    asked: Template,
    replay: Replay,
    record: &mut RequestRecord,
) -> Result<Answer, Refusal> {
    let rule = selected.rule;
    let Template { mut parts, destined, credentials, .. } = asked;
    if let Some(response) = fault(session, rule, record).await {
        record.flags.add(Flag::FaultInjected);
        return match response {
            Abort::Http(status) => own(status, Vec::new()).map(Answer::Own),
            Abort::Grpc(status) => {
                record.grpc = true;
                let mut refusal = Refusal::new(Reason::FaultInjected, "the rule aborts it");
                refusal.detail = format!("gRPC status {status}");
                record.grpc_status = Some(status);
                Err(refusal)
            }
        };
    }
    record.keep(&rule.headers, &parts.headers, &destined);
    match &rule.action {
        Action::Redirect(to) => redirect(session, to, selected, &destined, &[&rule.headers], record),
        Action::Direct(direct) => {
            let mut response = own(direct.status, direct.body.clone())?;
            if !direct.body.is_empty() {
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            }
            rewrite::change_response(&[&rule.headers], response.headers_mut(), &|of| record.told(of));
            Ok(Answer::Own(response))
        }
        Action::Invalid(problem) => Err(Refusal::new(Reason::InvalidRoute, problem)),
        Action::Route(split) => {
            let choice = choice.map_or_else(|| choose(session, split), Ok)?;
            let changes = [&rule.headers, &choice.headers];
            record.keep(&choice.headers, &parts.headers, &destined);
            if let Some(to) = choice.own.as_ref().and_then(|own| own.redirect.as_ref()) {
                return redirect(session, to, selected, &destined, &changes, record);
            }
            let rewrite = choice.own.as_ref().map_or(&rule.rewrite, |own| &own.rewrite);
            let mut destined = rewrite::rewritten(rewrite.as_ref(), selected.prefix, destined)?;
            let introduced = session.is_from_outside().then(|| edge::introduced(&parts.headers));
            rewrite::change_request(&changes, &mut parts.headers, &mut destined, &|of| record.told(of))?;
            if let Some(introduced) = introduced {
                edge::insist(introduced, &mut parts.headers);
            }
            let plan = forward::Plan::routed(session, snapshot, choice, rule)?;
            let rules = [Some(Arc::clone(&rule.resource)), rule.root.clone()];
            let asked = Template { parts, destined, credentials, rules };
            let (mut response, answered) = send(session, plan, asked, replay, record).await?;
            rewrite::change_response(&changes, response.headers_mut(), &|of| record.told(of));
            Ok(Answer::Server(response, Box::new(answered)))
        }
    }
}

fn own(status: u16, body: Vec<u8>) -> Result<Response<Vec<u8>>, Refusal> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).map_err(Refusal::internal)?;
    Ok(response)
}

fn redirect(
    session: &Session,
    to: &Redirect,
    selected: &Selected<'_>,
    destined: &Destined,
    changes: &[&HeaderChanges],
    record: &RequestRecord,
) -> Result<Answer, Refusal> {
    let port = match &session.target {
        // An application's port says nothing of how it is reached.
        Behind::Workload { .. } => 80,
        Behind::Service { .. } | Behind::Gateway { .. } => session.port(),
    };
    let mut response = rewrite::redirect(to, destined, selected.prefix, (session.scheme, port))?;
    rewrite::change_response(changes, response.headers_mut(), &|of| record.told(of));
    Ok(Answer::Own(response.map(|()| Vec::new())))
}

fn choose<'s>(session: &Session, split: &'s Split) -> Result<&'s Choice, Refusal> {
    Ok(split.pick(session.local.draws.split.next()).ok_or(Reason::NoSuchDestination)?)
}

/// Waits if the rule wants that, and says how the request is to fail, if it is.
async fn fault(session: &Session, rule: &Rule, record: &mut RequestRecord) -> Option<Abort> {
    let draws = &session.local.draws;
    if let Some((delay, percent)) = rule.fault.delay
        && percent.hits(draws.delay.next())
    {
        record.flags.add(Flag::DelayInjected);
        sleep(delay).await;
    }
    rule.fault.abort.and_then(|(abort, percent)| percent.hits(draws.abort.next()).then_some(abort))
}

/// Sends the request, and copies of it where the rule wants some.
async fn send(
    session: &Rc<Session>,
    mut plan: forward::Plan<'_>,
    asked: Template,
    replay: Replay,
    record: &mut RequestRecord,
) -> Result<(Response<Incoming>, Answered), Refusal> {
    let Template { mut parts, destined, credentials, rules } = asked;
    // Rules may have added what is for this hop alone.
    headers::for_next_hop(parts.version, &mut parts.headers);
    let deadline = grpc::deadline(&parts.headers).and_then(|given| record.started.checked_add(given));
    plan.deadline = deadline.map(tokio::time::Instant::from_std);
    let mut whole = Request::from_parts(parts, ());
    let switch = headers::wants_websocket(whole.version(), whole.headers()).then(|| upgrade::on(&mut whole));
    let mut parts = whole.into_parts().0;
    // Who asks, as its certificate has shown: whatever the client says of that is its own words.
    if let Some(caller) = session.identity() {
        let caller = format!("By={};URI={caller}", session.local.own.workload.identity);
        let caller = HeaderValue::from_str(&caller).map_err(Refusal::internal)?;
        headers::remove(&mut parts.headers, hbone::CLIENT_CERT);
        parts.headers.insert(hbone::CLIENT_CERT, caller);
    }
    let mut template = Template { parts, destined, credentials, rules };
    // Without what the service that the rule leads to wants in headers: a mirror may trust another one's word.
    let copied = (!plan.mirrors.is_empty()).then(|| template.clone());
    if let Some((service, port)) = plan.service()
        && let Some(target) = authorize::further(session, service, port, &template)
    {
        further(session, plan.snapshot, (target, port), &mut template, &replay, record).await?;
    }
    if let Some(template) = copied.filter(|_| switch.is_none()) {
        mirror::start(session, &plan, &template, &replay);
    }
    let (response, lease, deadline) = forward::send(session, &plan, &template, &replay, record).await?;
    record.waited = Some(record.age());
    Ok((response, Answered { lease, switch, deadline }))
}

/// Whether another service that a rule leads to may be asked it. Who was asked about what was dialled is asked anew:
/// this is another request.
async fn further(
    session: &Rc<Session>,
    snapshot: &Arc<Snapshot>,
    (target, port): (Behind, u16),
    template: &mut Template,
    replay: &Replay,
    record: &mut RequestRecord,
) -> Result<(), Refusal> {
    template.authenticate(snapshot, &target)?;
    let dialled = std::mem::take(&mut record.checked.providers);
    check(session, snapshot, &mut template.asking((&target, port), Some(replay)), record).await?;
    let passed = std::mem::replace(&mut record.checked.providers, dialled);
    let judgement = authorize::elsewhere(session, snapshot, (&target, port), template, &passed)?;
    if let Some(so_far) = &mut record.judgement {
        so_far.add(judgement);
    }
    let asked = (template.parts(), template.destined());
    limit::take(session, snapshot, (&target, port), asked, template.credentials(), record).await?;
    if let Some(goes_on) = &mut record.goes_on {
        let asked = template.clone();
        goes_on.elsewhere = Some(Elsewhere { target, port, asked, passed });
    }
    Ok(())
}

/// Asks whoever is to be asked.
async fn check(
    session: &Rc<Session>,
    snapshot: &Snapshot,
    asking: &mut Asking<'_>,
    record: &mut RequestRecord,
) -> Result<(), Refusal> {
    let passed = authorizer::ask(session, snapshot, asking, &mut record.checked).await;
    passed.map_err(|(refusal, extra)| {
        record.extra = extra;
        refusal
    })
}

/// What was asked, where that goes on once it is answered: it is judged again whenever policies change.
pub(super) struct GoesOn {
    /// As it came.
    pub(super) asked: Template,
    /// Those who were asked about it and let it pass.
    pub(super) passed: Vec<Arc<ExtensionProvider>>,
    /// Where a rule has led to, if that was elsewhere.
    pub(super) elsewhere: Option<Elsewhere>,
    /// Whoever answers it.
    pub(super) at: Option<Endpoint>,
}

/// Another service that a rule has led to.
pub(super) struct Elsewhere {
    pub(super) target: Behind,
    pub(super) port: u16,
    /// What it was asked.
    pub(super) asked: Template,
    /// As of [`GoesOn`].
    pub(super) passed: Vec<Arc<ExtensionProvider>>,
}

/// A request as every attempt sends it.
#[derive(Clone)]
pub(super) struct Template {
    parts: request::Parts,
    destined: Destined,
    credentials: Option<Rc<Credentials>>,
    /// The resources whose rules have made of the request what it is: of a delegate's, also that which delegates.
    rules: [Option<Arc<NamespacedName>>; 2],
}

impl Template {
    /// Whether it is what policies of this namespace's services were asked about, or what the namespace alone has made
    /// of that.
    pub(super) fn is_own(&self, namespace: &str) -> bool {
        self.rules.iter().flatten().all(|rule| rule.namespace == namespace)
    }

    /// Verifies what the client has shown by what is asked of it there.
    pub(super) fn authenticate(&mut self, snapshot: &Snapshot, target: &Behind) -> Result<(), Refusal> {
        let Self { parts, destined, credentials, .. } = self;
        authenticate::apply(credentials.as_deref(), snapshot, target, &mut parts.headers, destined)
    }

    /// Itself, to be asked about.
    pub(super) fn asking<'a>(
        &'a mut self,
        (target, port): (&'a Behind, u16),
        body: Option<&'a Replay>,
    ) -> Asking<'a> {
        let Self { parts, destined, credentials, .. } = self;
        Asking { target, port, parts, destined, credentials: credentials.as_deref(), body }
    }

    pub(super) fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_deref()
    }

    pub(super) fn method(&self) -> &Method {
        &self.parts.method
    }

    pub(super) fn headers(&self) -> &http::HeaderMap {
        &self.parts.headers
    }

    pub(super) fn parts(&self) -> &request::Parts {
        &self.parts
    }

    pub(super) fn destined(&self) -> &Destined {
        &self.destined
    }

    pub(super) fn query(&self) -> Option<&str> {
        self.destined.path.query()
    }

    /// The request as this connection wants it.
    pub(super) fn request(&self, key: &Key, body: RequestBody) -> Result<Request<RequestBody>, Refusal> {
        let mut parts = self.parts.clone();
        let Destined { authority, path } = &self.destined;
        if key.http2 {
            parts.headers.remove(HOST);
            let scheme = if key.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP };
            let uri = Uri::builder().scheme(scheme).authority(authority.clone());
            let uri = uri.path_and_query(path.clone()).build();
            parts.uri = uri.map_err(|error| Refusal::new(Reason::BadRequest, error))?;
            parts.version = Version::HTTP_2;
        } else {
            parts.headers.insert(HOST, host(authority)?);
            parts.uri = Uri::from(path.clone());
            parts.version = Version::HTTP_11;
            // Of GET and HEAD hyper would send no body that does not say its length.
            let is_open = !body.is_end_stream() && body.size_hint().exact().is_none();
            if is_open && !parts.headers.contains_key(CONTENT_LENGTH) {
                parts.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
        }
        Ok(Request::from_parts(parts, body))
    }
}

fn host(authority: &Authority) -> Result<HeaderValue, Refusal> {
    HeaderValue::from_str(authority.as_str()).map_err(|_| bad("a host that is none"))
}

fn respond(
    session: &Rc<Session>,
    response: Response<Incoming>,
    answered: Answered,
    mut record: RequestRecord,
) -> Response<ResponseBody> {
    let Answered { lease, switch, deadline } = answered;
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
    if record.grpc && !headers::is_grpc(&parts.headers) {
        record.received = Passed::default();
    }
    headers::strip(&mut parts.headers);
    record.is_answered_with(&parts.headers);
    record.checked.answer(&mut parts.headers);
    for (name, value) in record.to_client.drain(..) {
        parts.headers.append(name, value);
    }
    if let Some(cookie) = record.cookie.take().and_then(|cookie| HeaderValue::try_from(cookie).ok()) {
        parts.headers.append(SET_COOKIE, cookie);
    }
    Response::from_parts(parts, ResponseBody::of_server(body, lease, deadline, record))
}

/// Carries what both sides say once they have left HTTP.
fn switch_protocols(
    session: &Rc<Session>,
    mut response: Response<Incoming>,
    client: upgrade::OnUpgrade,
    lease: Lease,
    record: RequestRecord,
) -> Response<ResponseBody> {
    let server = upgrade::on(&mut response);
    let (mut parts, _) = response.into_parts();
    let bounds = lease.bounds();
    let live = session.local.worker.shared.live.enter_always();
    let session = Rc::clone(session);
    // How long it may be idle from here on is another matter.
    record.activity.end();
    spawn_local(async move {
        // All of it, so that it ends with this.
        let mut record = record;
        let (up, down) = (Meter::default(), Meter::default());
        let result = match tokio::try_join!(client, server) {
            Ok((client, server)) => match (taken(client), taken(server)) {
                (Some(client), Some(server)) => {
                    let withdrawn = authorize::withdrawn(&session, record.goes_on.as_deref());
                    let (client, server) = ((client, Watch::Nothing), (server, Watch::Nothing));
                    opaque::copy(client, server, (&up, &down), bounds, withdrawn).await
                }
                _ => Err(Refusal::internal("an upgraded connection is not ours")),
            },
            Err(error) => Err(Refusal::new(Reason::Reset, error)),
        };
        record.sent.set_bytes(up.total());
        record.received.set_bytes(down.total());
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
