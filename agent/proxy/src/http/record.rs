//! One record a request. Dropping it writes the access log and counts the request, so that no way out can forget to.

mod logged;

use std::{
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version, uri::Authority};
use opentelemetry::KeyValue;
use orlop_model::{
    Endpoint, Identity, Judgement, NamespacedName, Reason, Service, Workload,
    http::Limit,
    world::{header_text::HeaderOperator, routing::HeaderChanges},
};
use tracing::field::display;

use self::logged::{Line, LoggedHeaders};
use super::{
    activity::Activity,
    authorizer::Checked,
    clients::Room,
    exchange::GoesOn,
    failure::Extra,
    flags::Flags,
    headers,
    key::Key,
    metrics::RequestKey,
    passed::Passed,
    rewrite::{Before, Destined},
    session::Session,
    tokens::TokenPlaces,
    told::{self, Ended, Telling},
    trace::{self, Trace},
};
use crate::{refusal::Refusal, series::Place};

/// A request from its head to the end of its answer.
pub(super) struct RequestRecord {
    session: Rc<Session>,
    pub(super) started: Instant,
    method: Method,
    version: Version,
    pub(super) authority: Option<Authority>,
    path: http::Uri,
    pub(super) grpc: bool,
    /// The answer's status.
    pub(super) code: StatusCode,
    pub(super) grpc_status: Option<u8>,
    /// Where the request went, if it did.
    pub(super) upstream: Option<SocketAddr>,
    pub(super) destination: Option<Arc<Workload>>,
    pub(super) destination_identity: Option<Identity>,
    pub(super) service: Option<Arc<Service>>,
    /// The resource of the rule that it follows, and the rule's name.
    pub(super) rule: Option<(Arc<NamespacedName>, String)>,
    /// How often it was sent.
    pub(super) attempts: u32,
    /// What is known of how it went, beside why it failed.
    pub(super) flags: Flags,
    /// To be set by the answer.
    pub(super) cookie: Option<String>,
    /// What the client has sent of the request's body.
    pub(super) sent: Rc<Passed>,
    /// What it has of that which there is for all that strangers ask.
    pub(super) room: Option<Room>,
    /// Whether anything moves.
    pub(super) activity: Rc<Activity>,
    /// What the server has sent of the answer's body.
    pub(super) received: Passed,
    /// Until the head of the answer was there.
    pub(super) waited: Option<Duration>,
    /// What policies said when it was let in.
    pub(super) judgement: Option<Judgement>,
    /// What was asked, where that goes on once it is answered, so that it can be judged again.
    pub(super) goes_on: Option<Box<GoesOn>>,
    /// Its span, if it is traced.
    pub(super) trace: Option<Trace>,
    /// Where a token may be in it, of which nothing is told.
    tokens: TokenPlaces,
    /// What Telemetries want told of it.
    telling: Option<Box<Telling>>,
    /// Those that the access log's format has.
    request_headers: LoggedHeaders,
    answer_headers: LoggedHeaders,
    /// What those said who were asked about it.
    pub(super) checked: Checked,
    /// What was asked before rules changed it, where headers tell of that.
    before: Option<Box<Before>>,
    /// What else the client is told with the server's answer.
    pub(super) to_client: Vec<(HeaderName, HeaderValue)>,
    /// The limits that it was counted for.
    pub(super) counted: Vec<Arc<Limit>>,
    /// What an answer of our own has beyond what its reason says.
    pub(super) extra: Option<Box<Extra>>,
    /// Why it ended otherwise than both ends wanted.
    pub(super) outcome: Option<Refusal>,
}

impl RequestRecord {
    pub(super) fn new<B>(session: &Rc<Session>, request: &Request<B>, activity: Rc<Activity>) -> Self {
        let grpc = headers::is_grpc(request.headers());
        session.active.set(session.active.get() + 1);
        session.pace.asked();
        session.requests.set(session.requests.get().wrapping_add(1));
        let sent = Rc::new(Passed::new(grpc));
        activity.begin(Rc::clone(&sent));
        let snapshot = session.local.worker.shared.snapshot.load();
        let told = snapshot.routes().told(&session.target);
        let tracer = session.local.own.tracer.as_ref().filter(|_| told.is_none_or(|told| !told.untraced));
        let sampling = told.and_then(|told| told.sampling);
        let trace =
            tracer.and_then(|tracer| Trace::begin(tracer, request.method(), request.headers(), sampling));
        let is_told = told.is_some() || session.local.own.log.format.is_some();
        let tokens = match is_told {
            true => TokenPlaces::of(&snapshot, &session.target),
            false => TokenPlaces::default(),
        };
        let telling = told.map(|told| Box::new(Telling::new(told, request.headers(), &tokens)));
        let mut record = Self {
            session: Rc::clone(session),
            started: Instant::now(),
            method: request.method().clone(),
            version: request.version(),
            authority: None,
            path: request.uri().clone(),
            grpc,
            code: StatusCode::OK,
            grpc_status: None,
            upstream: None,
            destination: None,
            destination_identity: None,
            service: session.service().cloned(),
            rule: None,
            attempts: 1,
            flags: Flags::default(),
            cookie: None,
            sent,
            room: None,
            activity,
            received: Passed::new(grpc),
            waited: None,
            judgement: None,
            goes_on: None,
            trace,
            tokens,
            telling,
            request_headers: LoggedHeaders::default(),
            answer_headers: LoggedHeaders::default(),
            checked: Checked::default(),
            before: None,
            to_client: Vec::new(),
            counted: Vec::new(),
            extra: None,
            // Unless somebody says otherwise: the client is gone.
            outcome: Some(Reason::Reset.into()),
        };
        record.asks_with(request.headers());
        record
    }

    /// These are the request's headers.
    pub(super) fn asks_with(&mut self, headers: &HeaderMap) {
        if let Some(format) = &self.session.local.own.log.format {
            self.request_headers = LoggedHeaders::of(format.request_headers(), headers, &self.tokens);
        }
    }

    /// These are the answer's headers.
    pub(super) fn is_answered_with(&mut self, headers: &HeaderMap) {
        if let Some(format) = &self.session.local.own.log.format {
            self.answer_headers =
                LoggedHeaders::of(format.response_headers(), headers, &TokenPlaces::default());
        }
    }

    /// Keeps what is asked, if what rules do to headers tells of that.
    pub(super) fn keep(&mut self, changes: &HeaderChanges, headers: &HeaderMap, destined: &Destined) {
        if self.before.is_none() && changes.has_operators() {
            self.before = Some(Box::new(Before { headers: headers.clone(), destined: destined.clone() }));
        }
    }

    /// What a header tells of it.
    pub(super) fn told(&self, operator: &HeaderOperator) -> Option<Vec<u8>> {
        logged::told(self, operator)
    }

    pub(super) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// How many bytes its body may have.
    pub(super) fn max_body(&self) -> u64 {
        self.session.local.own.limits.max_body_size
    }

    /// Whether more has come of its body.
    pub(super) fn is_too_large(&self) -> bool {
        self.sent.bytes() > self.max_body()
    }

    /// Where an attempt went.
    pub(super) fn went_to(&mut self, endpoint: &Endpoint, key: &Key) {
        self.upstream = Some(endpoint.address);
        self.destination = endpoint.workload.clone();
        self.destination_identity = key.destination.clone();
    }

    fn log(&self, duration: Duration) {
        let session = &self.session;
        let workload =
            |of: &Option<Arc<Workload>>| of.as_ref().map(|workload| display(workload.name.clone()));
        let (reason, detail) = match &self.outcome {
            Some(refusal) => (Some(refusal.reason.as_str()), Some(refusal.detail.as_str())),
            None => (None, None),
        };
        let judged = self.outcome.as_ref().and_then(|refusal| refusal.judgement.as_ref());
        let judgement = judged.or(self.judgement.as_ref());
        let dry_run = judgement.filter(|judgement| !judgement.dry_run.is_empty()).map(|judgement| {
            let said =
                judgement.dry_run.iter().map(|said| format!("{}: {}", said.policy, said.outcome.as_str()));
            said.collect::<Vec<_>>().join(", ")
        });
        tracing::info!(
            target: "access",
            method = self.method.as_str(),
            authority = self.authority.as_ref().map(Authority::as_str),
            path = self.path.path(),
            protocol = format_args!("{:?}", self.version),
            code = self.told_code(),
            grpc_status = self.grpc_status,
            src = %session.client,
            src_workload = workload(&session.source),
            src_identity = session.identity().map(display),
            dst = self.upstream.map(display),
            dst_workload = workload(&self.destination),
            dst_identity = self.destination_identity.clone().map(display),
            dst_service = self.service.as_ref().map(|service| &*service.hostname),
            rule = self.rule.as_ref().map(|(resource, _)| display(resource)),
            rule_name = self.rule.as_ref().map(|(_, name)| name.as_str()).filter(|name| !name.is_empty()),
            attempts = (self.attempts > 1).then_some(self.attempts),
            bytes_received = self.sent.bytes(),
            bytes_sent = self.received.bytes(),
            waited_us = self.waited.map(|waited| waited.as_micros() as u64),
            duration_us = duration.as_micros() as u64,
            flags = %self.flags(),
            reason,
            detail = detail.filter(|detail| !detail.is_empty()),
            policy = judgement.and_then(|judgement| judgement.policy.as_ref()).map(display),
            audit = judgement.is_some_and(|judgement| judgement.audit).then_some(true),
            dry_run,
            "request"
        );
    }

    /// Ends the span. Attributes are named as OpenTelemetry does, where it does.
    fn trace(&self) {
        let Some(trace) = &self.trace else { return };
        let name = self.service.as_ref().map(|service| &*service.hostname);
        if !trace.is_recorded() {
            return trace.end(None, Vec::new(), None);
        }
        let version = match self.version {
            Version::HTTP_2 => "2",
            Version::HTTP_10 => "1.0",
            _ => "1.1",
        };
        let mut about = vec![
            KeyValue::new("http.request.method", self.method.as_str().to_owned()),
            KeyValue::new("http.response.status_code", i64::from(self.told_code())),
            KeyValue::new("network.protocol.version", version),
            KeyValue::new("url.scheme", self.session.scheme),
            KeyValue::new("url.path", trace::shortened(self.path.path())),
            KeyValue::new("client.address", self.session.client.ip().to_string()),
            KeyValue::new("response_flags", self.flags().to_string()),
        ];
        let caller = self.session.identity().map(ToString::to_string);
        about.extend(caller.map(|caller| KeyValue::new("source.principal", caller)));
        let authority = self.authority.as_ref().map(|authority| trace::shortened(authority.as_str()));
        about.extend(authority.map(|authority| KeyValue::new("server.address", authority)));
        let status = self.grpc_status.map(i64::from);
        about.extend(status.map(|status| KeyValue::new("rpc.grpc.status_code", status)));
        let refused = self.outcome.as_ref().map(|refusal| refusal.reason.as_str());
        about.extend(refused.map(|reason| KeyValue::new("error.type", reason)));
        about.extend(self.telling.iter().flat_map(|telling| telling.span_tags()));
        let failure = match &self.outcome {
            Some(refusal) => {
                Some(trace::shortened(&format!("{}: {}", refusal.reason.as_str(), refusal.detail)))
            }
            None => self.code.is_server_error().then(String::new),
        };
        trace.end(name, about, failure);
    }

    /// The whole of it, where something depends on that.
    fn ended(&self, duration: Duration) -> Option<Ended<'_>> {
        Some(Ended {
            telling: self.telling.as_deref()?,
            method: self.method.as_str(),
            uri: &self.path,
            tokens: &self.tokens,
            host: self.authority.as_ref().map(Authority::as_str),
            scheme: self.session.scheme,
            protocol: self.protocol(),
            code: self.told_code(),
            grpc_status: self.grpc_status,
            reason: self.outcome.as_ref().map(|refusal| refusal.reason.as_str()),
            received: self.sent.bytes(),
            sent: self.received.bytes(),
            duration,
            client: self.session.client,
            principal: self.session.identity().map(Identity::as_str),
            upstream: self.upstream,
            dialled: self.session.dialled(),
            port: self.session.port(),
        })
    }

    /// As Envoy writes it.
    fn protocol(&self) -> &'static str {
        match self.version {
            Version::HTTP_2 => "HTTP/2",
            Version::HTTP_10 => "HTTP/1.0",
            _ => "HTTP/1.1",
        }
    }

    /// The answer's status; as Envoy has it 0 if there was none, since the client was gone before.
    fn told_code(&self) -> u16 {
        let is_gone = self.outcome.as_ref().is_some_and(|refusal| refusal.reason == Reason::Reset);
        if is_gone && self.waited.is_none() { 0 } else { self.code.as_u16() }
    }

    fn flags(&self) -> Flags {
        self.outcome.as_ref().map_or(self.flags, |refusal| self.flags.with(refusal.reason))
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        self.session.active.set(self.session.active.get() - 1);
        self.session.pace.answered();
        self.activity.end();
        if self.activity.has_stalled() && self.outcome.is_some() {
            self.outcome =
                Some(Refusal::new(Reason::IdleTimeout, "nothing of it was passed on for too long"));
        }
        if self.is_too_large() && self.outcome.is_some() && self.goes_on.is_none() {
            self.outcome = Some(Reason::BodyTooLarge.into());
        }
        let duration = self.age();
        let ended = self.ended(duration);
        let logged = ended.as_ref().is_none_or(|ended| {
            let logging = &ended.telling.told.logging;
            !logging.disabled && logging.filter.as_ref().is_none_or(|filter| filter.holds(ended))
        });
        let local = &self.session.local;
        let log = &local.own.log;
        if logged
            && tracing::enabled!(target: "access", tracing::Level::INFO)
            && log.sampling.hits(local.draws.log.next())
        {
            match &log.format {
                Some(format) => format.write(&Line(self, duration)),
                None => self.log(duration),
            }
        }
        let tags = ended.map(|ended| {
            let of_messages: &[_] = if self.grpc { &told::OF_MESSAGES } else { &[] };
            let of = |metrics: &[_]| told::tags(&ended.telling.told, metrics, &ended);
            [of(&told::METRICS), of(of_messages)].concat()
        });
        self.trace();
        let session = &self.session;
        if let Some(refusal) = &self.outcome {
            session.local.own.metrics.failed(refusal.reason);
        }
        let own = &session.local.own.workload;
        // A gateway asks for those whom nobody knows.
        let (source, source_identity) = match session.identity() {
            Some(identity) => (session.source.clone(), identity),
            None => (Some(Arc::clone(own)), &own.identity),
        };
        let key = RequestKey {
            direction: session.direction(),
            source: Place(source),
            source_identity: source_identity.clone(),
            destination: Place(self.destination.take()),
            destination_identity: self.destination_identity.take(),
            service: Place(self.service.take()),
            grpc: self.grpc,
            code: self.told_code(),
            grpc_status: self.grpc_status,
            flags: self.flags(),
            told: Place(self.telling.as_ref().map(|telling| Arc::clone(&telling.told))),
            tags: tags.unwrap_or_default(),
        };
        let series = session.local.series.get(&session.local.own.metrics, key);
        series.requests.inc();
        series.duration.observe(duration.as_secs_f64() * 1e3);
        series.sent.observe(self.sent.bytes() as f64);
        series.received.observe(self.received.bytes() as f64);
        if let Some(messages) = &series.messages {
            messages.sent.inc_by(self.sent.messages());
            messages.received.inc_by(self.received.messages());
        }
    }
}
