//! Traces: a span for each request, and below it one for each time that it is sent on.
//!
//! Who asks and who answers are told of them in headers: W3C's `traceparent` and `tracestate`, and B3's too where those
//! came. A request that comes with neither begins a trace. Without a tracer headers pass as they are.

use std::{collections::HashMap, net::SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use opentelemetry::{
    Context, KeyValue, SpanId, TraceFlags, TraceId,
    propagation::TextMapPropagator,
    trace::{
        Link, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt as _, TraceState, Tracer as _,
    },
};
use opentelemetry_sdk::{
    propagation::TraceContextPropagator,
    trace::{Sampler, SamplingResult, SdkTracer, ShouldSample},
};
use orlop_model::world::routing::Percent;

use crate::refusal::Refusal;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// How much of a text a span keeps: spans wait in memory until the collector takes them.
const MAX_TEXT: usize = 1024;
/// Of a `tracestate`: what everybody who passes it on should keep.
const MAX_STATE: usize = 512;

/// The span of a request.
pub(super) struct Trace {
    tracer: SdkTracer,
    context: Context,
    /// The client's own method, which all its spans are named after.
    method: Method,
    speaks: Speaks,
}

/// Which of the requests are traced that begin a trace: as many as a Telemetry says, or else these.
#[derive(Clone, Debug)]
pub struct Share(pub Percent);

impl ShouldSample for Share {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let percent = parent.and_then(|parent| parent.get::<Percent>()).unwrap_or(&self.0);
        let share = Sampler::TraceIdRatioBased(f64::from(percent.0) / 1e6);
        share.should_sample(parent, trace, name, kind, attributes, links)
    }
}

/// The span of an attempt. It ends when this is dropped.
pub(super) struct Attempt {
    context: Context,
    /// That of the request.
    parent: SpanId,
    speaks: Speaks,
}

/// Which of B3's headers came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Speaks {
    one_header: bool,
    many: bool,
}

impl Trace {
    /// Begins the span of a request, of which `sampling` says how many are traced if they begin a trace. `None` if the client wants it not to be traced and says no more of it.
    pub(super) fn begin(
        tracer: &SdkTracer,
        method: &Method,
        headers: &HeaderMap,
        sampling: Option<Percent>,
    ) -> Option<Self> {
        let (mut parent, speaks) = parent(headers)?;
        if let Some(share) = sampling {
            parent = parent.with_value(share);
        }
        let span = SpanBuilder::from_name(method.as_str().to_owned()).with_kind(SpanKind::Server);
        let span = tracer.build_with_context(span, &parent);
        let context = Context::new().with_span(span);
        Some(Self { tracer: tracer.clone(), context, method: method.clone(), speaks })
    }

    /// Of the trace that it is part of, in hexadecimal.
    pub(super) fn id(&self) -> String {
        self.context.span().span_context().trace_id().to_string()
    }

    /// Whether anybody will see it.
    pub(super) fn is_recorded(&self) -> bool {
        self.context.span().is_recording()
    }

    /// Begins the span of an attempt at this endpoint.
    pub(super) fn attempt(&self, endpoint: SocketAddr, number: u32) -> Attempt {
        let mut span = SpanBuilder::from_name(self.method.as_str().to_owned()).with_kind(SpanKind::Client);
        if self.is_recorded() {
            let mut about = vec![
                KeyValue::new("http.request.method", self.method.as_str().to_owned()),
                KeyValue::new("server.address", endpoint.ip().to_string()),
                KeyValue::new("server.port", i64::from(endpoint.port())),
            ];
            if number > 0 {
                about.push(KeyValue::new("http.request.resend_count", i64::from(number)));
            }
            span = span.with_attributes(about);
        }
        let span = self.tracer.build_with_context(span, &self.context);
        let parent = self.context.span().span_context().span_id();
        Attempt { context: Context::new().with_span(span), parent, speaks: self.speaks }
    }

    /// Ends it, with what is known of the request by then.
    pub(super) fn end(&self, name: Option<&str>, about: Vec<KeyValue>, failure: Option<String>) {
        let span = self.context.span();
        if let Some(name) = name {
            span.update_name(format!("{} {name}", self.method));
        }
        span.set_attributes(about);
        if let Some(failure) = failure {
            span.set_status(Status::error(failure));
        }
        span.end();
    }
}

impl Attempt {
    /// Tells the server of it.
    pub(super) fn tell(&self, headers: &mut HeaderMap) {
        let mut carrier = HashMap::new();
        TraceContextPropagator::new().inject_context(&self.context, &mut carrier);
        for name in [TRACEPARENT, TRACESTATE] {
            let value = carrier.get(name.as_str()).map(String::as_str).unwrap_or_default();
            set(headers, name, value);
        }
        let (span, parent) = (self.context.span().span_context().clone(), self.parent);
        let sampled = if span.is_sampled() { "1" } else { "0" };
        if self.speaks.one_header {
            set(headers, B3, &format!("{}-{}-{sampled}-{parent}", span.trace_id(), span.span_id()));
        }
        if self.speaks.many {
            set(headers, B3_TRACE, &span.trace_id().to_string());
            set(headers, B3_SPAN, &span.span_id().to_string());
            set(headers, B3_PARENT, &parent.to_string());
            set(headers, B3_SAMPLED, sampled);
            headers.remove(B3_FLAGS);
        }
    }

    /// Ends it, with what came of it.
    pub(super) fn end(self, result: Result<StatusCode, &Refusal>) {
        let span = self.context.span();
        match result {
            Ok(status) => {
                span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
                if status.is_client_error() || status.is_server_error() {
                    span.set_status(Status::error(""));
                }
            }
            Err(refusal) => {
                span.set_attribute(KeyValue::new("error.type", refusal.reason.as_str()));
                span.set_status(Status::error(shortened(&refusal.detail)));
            }
        }
        span.end();
    }
}

/// The beginning of a text that a client has chosen.
pub(super) fn shortened(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_TEXT)].to_owned()
}

/// Sets a header, or takes it out if it would be empty.
fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    match HeaderValue::from_str(value) {
        Ok(value) if !value.is_empty() => drop(headers.insert(name, value)),
        _ => drop(headers.remove(name)),
    }
}

/// What the request is part of: W3C's headers count before B3's. `None` if B3's say that it must not be traced, and
/// not what it is part of.
fn parent(headers: &HeaderMap) -> Option<(Context, Speaks)> {
    let b3 = b3(headers)?;
    let w3c = w3c(headers);
    let parent = if w3c.span().span_context().is_valid() { w3c } else { b3.0 };
    Some((parent, b3.1))
}

/// <https://www.w3.org/TR/trace-context/>: several `traceparent` are none, several `tracestate` are one.
fn w3c(headers: &HeaderMap) -> Context {
    let mut carrier = HashMap::new();
    let mut parents = headers.get_all(TRACEPARENT).iter();
    if let (Some(parent), None) = (parents.next(), parents.next()) {
        let text = |value: &HeaderValue| value.to_str().unwrap_or_default().to_owned();
        carrier.insert(TRACEPARENT.as_str().to_owned(), text(parent));
        let states: Vec<_> = headers.get_all(TRACESTATE).iter().map(text).collect();
        let states = states.join(",");
        if states.len() <= MAX_STATE {
            carrier.insert(TRACESTATE.as_str().to_owned(), states);
        }
    }
    TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier)
}

/// <https://github.com/openzipkin/b3-propagation>: one header, or many.
fn b3(headers: &HeaderMap) -> Option<(Context, Speaks)> {
    let get = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let (one, trace) = (get(B3), get(B3_TRACE));
    let speaks = Speaks { one_header: one.is_some(), many: trace.is_some() };
    let (trace, span, sampled) = match (one, trace) {
        // "0", or TRACE-SPAN, -SAMPLED and -PARENT perhaps.
        (Some(one), _) => {
            let mut parts = one.split('-');
            match (parts.next(), parts.next()) {
                (Some(decision), None) => (None, None, Some(decision)),
                (trace, span) => (trace, span, parts.next()),
            }
        }
        (None, trace) => {
            let debug = get(B3_FLAGS).filter(|flags| *flags == "1");
            (trace, get(B3_SPAN), debug.or_else(|| get(B3_SAMPLED)))
        }
    };
    let no = matches!(sampled, Some("0" | "false"));
    let ids = trace.zip(span).and_then(|(trace, span)| {
        let trace = (trace.len() == 16 || trace.len() == 32).then(|| TraceId::from_hex(trace).ok())??;
        Some((trace, (span.len() == 16).then(|| SpanId::from_hex(span).ok())??))
    });
    let Some((trace, span)) = ids else { return (!no).then(|| (Context::new(), speaks)) };
    let flags = if no { TraceFlags::NOT_SAMPLED } else { TraceFlags::SAMPLED };
    let context = SpanContext::new(trace, span, flags, true, TraceState::NONE);
    Some((Context::new().with_remote_span_context(context), speaks))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::{
        error::OTelSdkResult,
        trace::{SdkTracerProvider, SpanData, SpanExporter},
    };

    use super::*;

    #[derive(Clone, Debug, Default)]
    struct Kept(Arc<Mutex<Vec<SpanData>>>);

    impl SpanExporter for Kept {
        async fn export(&self, mut batch: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().unwrap().append(&mut batch);
            Ok(())
        }
    }

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn ids(headers: &HeaderMap) -> Option<(String, String, bool)> {
        let (context, _) = parent(headers)?;
        let span = context.span().span_context().clone();
        span.is_valid().then(|| (span.trace_id().to_string(), span.span_id().to_string(), span.is_sampled()))
    }

    #[test]
    fn a_request_says_what_it_is_part_of() {
        let whole = |sampled| Some((TRACE.to_owned(), SPAN.to_owned(), sampled));
        for (given, wanted) in [
            (headers(&[("traceparent", &format!("00-{TRACE}-{SPAN}-01"))]), whole(true)),
            (headers(&[("traceparent", &format!("00-{TRACE}-{SPAN}-00"))]), whole(false)),
            (headers(&[("b3", &format!("{TRACE}-{SPAN}-1-05e3ac9a4f6e3b90"))]), whole(true)),
            (headers(&[("b3", &format!("{TRACE}-{SPAN}-0"))]), whole(false)),
            (headers(&[("b3", &format!("{TRACE}-{SPAN}-d"))]), whole(true)),
            (headers(&[("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-sampled", "0")]), whole(false)),
            (headers(&[("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-flags", "1")]), whole(true)),
            (headers(&[]), None),
            (headers(&[("traceparent", "00-zz-1-01")]), None),
            (headers(&[("b3", "é")]), None),
            (headers(&[("b3", "1-2-3")]), None),
        ] {
            assert_eq!(ids(&given), wanted, "{given:?}");
        }
        let mut twice = headers(&[("traceparent", &format!("00-{TRACE}-{SPAN}-01"))]);
        twice.append(TRACEPARENT, format!("00-{TRACE}-{SPAN}-00").parse().unwrap());
        assert_eq!(ids(&twice), None);
    }

    #[test]
    fn what_clients_write_takes_no_more_room_than_that() {
        let parent = format!("00-{TRACE}-{SPAN}-01");
        let state = |length| {
            w3c(&headers(&[("traceparent", &parent), ("tracestate", &format!("a={}", "b".repeat(length)))]))
        };
        let kept = |length| state(length).span().span_context().trace_state().get("a").is_some();
        assert!(kept(200) && !kept(600));
        assert_eq!(shortened("/a"), "/a");
        assert_eq!(shortened(&"é".repeat(1000)).len(), MAX_TEXT);
        assert_eq!(shortened(&format!("/{}", "é".repeat(1000))).len(), MAX_TEXT - 1);
    }

    #[test]
    fn a_client_may_want_no_trace() {
        assert!(parent(&headers(&[("b3", "0")])).is_none());
        assert!(parent(&headers(&[("x-b3-sampled", "0")])).is_none());
        assert!(parent(&headers(&[("b3", "1")])).is_some());
    }

    #[test]
    fn a_telemetry_says_how_many_are_traced_of_those_that_begin_a_trace() {
        let share = Sampler::ParentBased(Box::new(Share(Percent(0))));
        let provider = SdkTracerProvider::builder().with_sampler(share).build();
        let tracer = provider.tracer("test");
        let is_traced = |headers: &HeaderMap, sampling| {
            Trace::begin(&tracer, &Method::GET, headers, sampling).unwrap().is_recorded()
        };
        let none = HeaderMap::new();
        assert!(!is_traced(&none, None) && is_traced(&none, Some(Percent::ALL)));
        let unwanted = headers(&[("traceparent", &format!("00-{TRACE}-{SPAN}-00"))]);
        assert!(!is_traced(&unwanted, Some(Percent::ALL)));
        let wanted = headers(&[("traceparent", &format!("00-{TRACE}-{SPAN}-01"))]);
        assert!(is_traced(&wanted, Some(Percent(0))));
    }

    #[test]
    fn attempts_are_below_the_request_and_the_server_is_told() {
        let kept = Kept::default();
        let sampler = Sampler::ParentBased(Box::new(Sampler::AlwaysOff));
        let provider =
            SdkTracerProvider::builder().with_sampler(sampler).with_simple_exporter(kept.clone()).build();
        let tracer = provider.tracer("test");
        let mut sent = headers(&[("b3", &format!("{TRACE}-{SPAN}-1")), ("tracestate", "a=b")]);
        let trace = Trace::begin(&tracer, &Method::GET, &sent, None).unwrap();
        let endpoint = SocketAddr::from(([192, 0, 2, 1], 80));
        let attempt = trace.attempt(endpoint, 1);
        attempt.tell(&mut sent);
        attempt.end(Ok(StatusCode::SERVICE_UNAVAILABLE));
        trace.end(Some("web"), Vec::new(), None);
        let spans = kept.0.lock().unwrap().clone();
        let [attempt, request] = spans.as_slice() else { panic!("{spans:?}") };
        assert_eq!((&*request.name, &*attempt.name), ("GET web", "GET"));
        assert_eq!(request.parent_span_id.to_string(), SPAN);
        assert_eq!(attempt.parent_span_id, request.span_context.span_id());
        let told = attempt.span_context.span_id();
        assert_eq!(sent[TRACEPARENT], format!("00-{TRACE}-{told}-01"));
        assert_eq!(sent[B3], format!("{TRACE}-{told}-1-{}", request.span_context.span_id()));
        assert!(!sent.contains_key(TRACESTATE) && !sent.contains_key(B3_TRACE));
        // Nobody sees one that is not sampled, but servers are told that it isn't.
        let mut sent = HeaderMap::new();
        let trace = Trace::begin(&tracer, &Method::GET, &sent, None).unwrap();
        trace.attempt(endpoint, 0).tell(&mut sent);
        assert!(!trace.is_recorded() && sent[TRACEPARENT].to_str().unwrap().ends_with("-00"));
        assert_eq!(kept.0.lock().unwrap().len(), 2);
    }
}
