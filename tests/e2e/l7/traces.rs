//! Spans of requests, as a collector gets them.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use nix::sys::socket::{Shutdown, shutdown};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span, span::SpanKind, status::StatusCode};
use orlop_tests::traffic::request;
use orlop_tests::{Pod, PodSpec, ServiceSpec, TargetPort, wait_for};
use prost::Message as _;
use tokio::sync::watch;
use tokio::task::spawn_local;

use super::Stage;
use super::routes::routes;
use super::scripted::{Reply, Scripted};
use super::telemetry;
use crate::hbone::within;
use crate::mesh::{NAMESPACE, TIMEOUT};

const PORT: u16 = 4317;
const HTTP_PORT: u16 = 4318;
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

const STRICT_AND_FOR_THE_WAYPOINT_ALONE: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: collector, namespace: shop}
spec:
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/gate]}}]
";

/// An OTLP collector in a pod.
struct Collector {
    stop: watch::Sender<bool>,
    got: Arc<Mutex<Vec<ResourceSpans>>>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    fn start(pod: &Pod) -> Self {
        let (stop, mut stopped) = watch::channel(false);
        let (ready, started) = channel();
        let (pod, got) = (pod.clone(), Arc::default());
        let kept = Arc::clone(&got);
        let thread = thread::spawn(move || {
            within(&pod, async move || {
                let listener = tokio::net::TcpListener::bind(("0.0.0.0", PORT)).await.unwrap();
                ready.send(()).unwrap();
                loop {
                    tokio::select! {
                        accepted = listener.accept() => {
                            drop(spawn_local(serve(accepted.unwrap().0, Arc::clone(&kept))));
                        }
                        _ = stopped.wait_for(|stop| *stop) => return,
                    }
                }
            });
        });
        started.recv_timeout(TIMEOUT).unwrap();
        Self { stop, got, thread: Some(thread) }
    }

    /// Of requests.
    fn served(&self) -> Vec<Span> {
        self.spans().into_iter().filter(|span| span.kind == SpanKind::Server as i32).collect()
    }

    fn spans(&self) -> Vec<Span> {
        let got = self.got.lock().unwrap();
        got.iter().flat_map(|of| &of.scope_spans).flat_map(|scope| scope.spans.clone()).collect()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(tcp: tokio::net::TcpStream, got: Arc<Mutex<Vec<ResourceSpans>>>) {
    let Ok(mut connection) = h2::server::handshake(tcp).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        let got = Arc::clone(&got);
        spawn_local(async move {
            let _ = take(request, respond, &got).await;
        });
    }
}

async fn take(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    got: &Mutex<Vec<ResourceSpans>>,
) -> Result<(), h2::Error> {
    assert_eq!(request.uri().path(), "/opentelemetry.proto.collector.trace.v1.TraceService/Export");
    let (mut body, mut receive) = (Vec::new(), request.into_body());
    while let Some(data) = receive.data().await {
        let data = data?;
        receive.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    // A flag and the length come first.
    let message = ExportTraceServiceRequest::decode(&body[5..]).unwrap();
    got.lock().unwrap().extend(message.resource_spans);
    let response = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let mut send = respond.send_response(response, false)?;
    send.send_data(Bytes::from_static(&[0; 5]), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    send.send_trailers(trailers)
}

/// One that takes what is posted, until it has got something.
fn take_posted(pod: &Pod) -> JoinHandle<Vec<ResourceSpans>> {
    let listener = pod.run(|| TcpListener::bind(("0.0.0.0", HTTP_PORT))).unwrap().unwrap();
    thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut stream = BufReader::new(stream);
        let (mut head, mut length) = (String::new(), 0);
        while stream.read_line(&mut head).unwrap() > 2 {
            let last = head.lines().last().unwrap().to_ascii_lowercase();
            if let Some(value) = last.strip_prefix("content-length: ") {
                length = value.parse().unwrap();
            }
        }
        let head = head.to_ascii_lowercase();
        assert!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
        assert!(head.contains("content-type: application/x-protobuf\r\n"), "{head}");
        let mut body = vec![0; length];
        stream.read_exact(&mut body).unwrap();
        stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
        ExportTraceServiceRequest::decode(&body[..]).unwrap().resource_spans
    })
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attribute(span: &Span, key: &str) -> Option<String> {
    let value = &span.attributes.iter().find(|attribute| attribute.key == key)?.value;
    match value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        _ => None,
    }
}

#[test]
fn a_request_and_its_attempts_are_part_of_the_callers_trace() {
    let stage = Stage::with(&["--otlp", "http://127.0.0.1:4317", "--trace-sampling", "0"]);
    let collector = Collector::start(&stage.gate);
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let server = Scripted::start(&stage.mesh.server, |_| {
        let first = ASKED.fetch_add(1, Ordering::SeqCst) == 0;
        Reply::Answer(if first { 503 } else { 200 }, String::new())
    });
    let retried = "- retries: {attempts: 1, retryOn: \"503\"}\n  route: [{destination: {host: web}}]";
    stage.change(|| stage.mesh.testbed.world().write("routes.yaml", &routes(retried)).unwrap());
    let ask = |path: &str, headers: &str| {
        let head = format!("GET {path} HTTP/1.1\r\nhost: web\r\n{headers}\r\n");
        assert_eq!(request(&mut stage.connect(), &head).unwrap().status, 200);
    };
    ask("/traced?secret", &format!("traceparent: 00-{TRACE}-{PARENT}-01\r\ntracestate: a=b\r\n"));
    ask("/untraced", &format!("traceparent: 00-{TRACE}-{PARENT}-00\r\n"));
    ask("/b3", &format!("x-b3-traceid: {TRACE}\r\nx-b3-spanid: {PARENT}\r\nx-b3-sampled: 0\r\n"));
    ask("/new", "");

    // What waits to be sent is, before the waypoint ends.
    stage.waypoint.terminate().unwrap();
    assert!(wait_for(2 * TIMEOUT, || collector.spans().len() >= 3), "{:?}", collector.spans());
    let spans = collector.spans();
    let of = |kind: SpanKind| spans.iter().filter(move |span| span.kind == kind as i32).collect::<Vec<_>>();
    let (servers, mut attempts) = (of(SpanKind::Server), of(SpanKind::Client));
    let [span] = servers.as_slice() else { panic!("{spans:?}") };
    assert_eq!((hex(&span.trace_id), hex(&span.parent_span_id)), (TRACE.to_owned(), PARENT.to_owned()));
    assert_eq!(span.name, "GET web.shop.svc.cluster.local");
    for (key, wanted) in [
        ("http.response.status_code", "200"),
        ("url.path", "/traced"),
        ("response_flags", "-"),
        ("source.principal", "spiffe://cluster.local/ns/shop/sa/client"),
    ] {
        assert_eq!(attribute(span, key).as_deref(), Some(wanted), "{key}");
    }
    attempts.sort_by_key(|span| span.start_time_unix_nano);
    let codes: Vec<_> = attempts
        .iter()
        .map(|attempt| {
            assert_eq!(attempt.parent_span_id, span.span_id);
            attribute(attempt, "http.response.status_code").unwrap()
        })
        .collect();
    assert_eq!(codes, ["503", "200"]);
    assert_eq!(attempts[0].status.as_ref().unwrap().code, StatusCode::Error as i32);
    assert_eq!(attribute(attempts[1], "http.request.resend_count").as_deref(), Some("1"));

    // The server is told of the attempt that it sees, also of one that nobody traces.
    let asked = server.asked();
    let told = |path: &str, name: &str| -> BTreeSet<String> {
        let of = asked.iter().filter(|asked| asked.line.contains(path));
        of.filter_map(|asked| asked.headers.get(name).cloned()).collect()
    };
    let wanted = attempts.iter().map(|attempt| format!("00-{TRACE}-{}-01", hex(&attempt.span_id)));
    assert_eq!(told("/traced", "traceparent"), wanted.collect());
    assert_eq!(told("/traced", "tracestate"), BTreeSet::from(["a=b".to_owned()]));
    let untraced = told("/untraced", "traceparent").pop_first().unwrap();
    assert!(untraced.starts_with(&format!("00-{TRACE}-")) && untraced.ends_with("-00"), "{untraced}");
    assert!(!untraced.contains(PARENT));
    assert_eq!(told("/b3", "x-b3-traceid"), BTreeSet::from([TRACE.to_owned()]));
    assert_ne!(told("/b3", "x-b3-spanid"), BTreeSet::from([PARENT.to_owned()]));
    assert_eq!(told("/b3", "x-b3-sampled"), BTreeSet::from(["0".to_owned()]));
    assert!(told("/new", "traceparent").pop_first().unwrap().ends_with("-00"));
}

#[test]
fn a_collector_with_a_path_gets_spans_over_http() {
    let stage = Stage::with(&["--otlp", "http://127.0.0.1:4318/v1/traces", "--trace-sampling", "100"]);
    let taking = take_posted(&stage.gate);
    let _server = Scripted::status(&stage.mesh.server, 200);
    assert_eq!(stage.get("/posted").status, 200);
    stage.waypoint.terminate().unwrap();
    let got = taking.join().unwrap();
    let service = got[0].resource.as_ref().unwrap().attributes.iter().find(|of| of.key == "service.name");
    assert!(format!("{service:?}").contains("gate.shop"), "{service:?}");
    let spans: Vec<_> = got.iter().flat_map(|of| &of.scope_spans).flat_map(|of| &of.spans).collect();
    let paths: Vec<_> = spans.iter().filter_map(|span| attribute(span, "url.path")).collect();
    assert!(paths.contains(&"/posted".to_owned()), "{spans:?}");
}

#[test]
fn a_collector_in_the_mesh_gets_spans_from_the_waypoint_as_itself_and_by_mutual_tls() {
    for (collector, port) in
        [("http://collector:4317", PORT), ("http://collector.shop:4318/v1/traces", HTTP_PORT)]
    {
        let mut stage = Stage::with(&["--otlp", collector, "--trace-sampling", "100"]);
        let _server = Scripted::status(&stage.mesh.server, 200);
        let pod = stage.mesh.nodes[0].pod(NAMESPACE, "collector", PodSpec::new()).unwrap();
        stage.mesh.agents()[0].wait_enrolled([&stage.mesh.client, &pod]).unwrap();
        let service = ServiceSpec::new(NAMESPACE, "collector", port, TargetPort::Number(port));
        let service = service.cluster_ips(stage.mesh.testbed.vip()).endpoints([&pod]);
        stage.change(|| {
            let world = stage.mesh.testbed.world();
            world.service(&service).unwrap();
            world.write("strict.yaml", STRICT_AND_FOR_THE_WAYPOINT_ALONE).unwrap();
        });
        let addr = pod.addr(port);
        if port == PORT {
            let collector = Collector::start(&pod);
            assert!(stage.gate.connect(addr, TIMEOUT).is_err(), "nobody gets there in clear");
            assert_eq!(stage.get("/traced").status, 200);
            stage.waypoint.terminate().unwrap();
            stage.waypoint.wait(2 * TIMEOUT).unwrap();
            assert_eq!(collector.served().len(), 1);
        } else {
            let taking = take_posted(&pod);
            assert_eq!(stage.get("/traced").status, 200);
            stage.waypoint.terminate().unwrap();
            assert!(!taking.join().unwrap().is_empty());
        }
    }
}

#[test]
fn a_telemetry_says_how_many_requests_are_traced() {
    for (own, said, traced) in [("0", 100, 5), ("100", 0, 0)] {
        let mut stage = Stage::with(&["--otlp", "http://127.0.0.1:4317", "--trace-sampling", own]);
        let collector = Collector::start(&stage.gate);
        let server = Scripted::status(&stage.mesh.server, 200);
        telemetry::put(&stage, &format!("  tracing: [{{randomSamplingPercentage: {said}}}]\n"));
        (0..5).for_each(|_| assert_eq!(stage.get("/").status, 200));
        stage.waypoint.terminate().unwrap();
        stage.waypoint.wait(2 * TIMEOUT).unwrap();
        wait_for(TIMEOUT, || collector.served().len() == traced);
        assert_eq!(collector.served().len(), traced, "{said} percent");
        let sampled = if traced > 0 { "-01" } else { "-00" };
        assert!(server.asked().iter().all(|asked| asked.headers["traceparent"].ends_with(sampled)));
    }
}

#[test]
fn a_telemetry_says_what_spans_are_tagged_with_and_whether_there_are_any() {
    let mut stage = Stage::with(&["--otlp", "http://127.0.0.1:4317", "--trace-sampling", "100"]);
    let collector = Collector::start(&stage.gate);
    let server = Scripted::status(&stage.mesh.server, 200);
    telemetry::put(
        &stage,
        "  tracing:\n  - customTags:\n      place: {literal: {value: here}}\n      \
         user: {header: {name: X-User}}\n      team: {header: {name: x-team, defaultValue: nobodys}}\n      \
         gone: {header: {name: x-gone}}\n",
    );
    let ask = |path: &str, headers: &str| {
        let head = format!("GET {path} HTTP/1.1\r\nhost: web\r\n{headers}\r\n");
        assert_eq!(request(&mut stage.connect(), &head).unwrap().status, 200);
    };
    ask("/tagged", "x-user: ann\r\n");
    telemetry::put(&stage, "  tracing: [{disableSpanReporting: true}]\n");
    let parent = format!("00-{TRACE}-{PARENT}-01");
    ask("/silent", &format!("traceparent: {parent}\r\n"));
    ask("/silent", "");
    stage.waypoint.terminate().unwrap();
    stage.waypoint.wait(2 * TIMEOUT).unwrap();
    assert!(wait_for(TIMEOUT, || !collector.served().is_empty()));
    let spans = collector.served();
    let [span] = spans.as_slice() else { panic!("{spans:?}") };
    for (key, wanted) in [
        ("url.path", Some("/tagged")),
        ("place", Some("here")),
        ("user", Some("ann")),
        ("team", Some("nobodys")),
        ("gone", None),
    ] {
        assert_eq!(attribute(span, key).as_deref(), wanted, "{key}");
    }
    // As they came.
    let asked = server.asked();
    assert_eq!(asked[1].headers["traceparent"], parent);
    assert!(!asked[2].headers.contains_key("traceparent"), "{:?}", asked[2]);
}

#[test]
fn a_collector_that_hangs_delays_no_request_and_gets_what_comes_later() {
    let stage = Stage::with(&["--otlp", "http://127.0.0.1:4317"]);
    let _server = Scripted::status(&stage.mesh.server, 200);
    // It takes a connection, and says nothing on it.
    let listener = stage.gate.run(|| TcpListener::bind(("127.0.0.1", PORT))).unwrap().unwrap();
    let mut stream = stage.connect();
    let mut ask = |path: &str| {
        let head = format!("GET {path} HTTP/1.1\r\nhost: web\r\ntraceparent: 00-{TRACE}-{PARENT}-01\r\n\r\n");
        let start = Instant::now();
        assert_eq!(request(&mut stream, &head).unwrap().status, 200);
        start.elapsed()
    };
    ask("/first");
    let (hangs, _) = listener.accept().unwrap();
    // More than wait for it: the rest is lost.
    let slowest = (0..3000).map(|_| ask("/lost")).max().unwrap();
    assert!(slowest < TIMEOUT / 2, "{slowest:?}");
    drop(hangs);
    // A process that another test has just forked may hold it for a moment.
    shutdown(listener.as_raw_fd(), Shutdown::Both).unwrap();
    drop(listener);
    let collector = Collector::start(&stage.gate);
    // It may take until the time of what is on its way is over.
    let comes = || {
        ask("/after");
        collector.served().iter().any(|span| attribute(span, "url.path").as_deref() == Some("/after"))
    };
    assert!(wait_for(4 * TIMEOUT, comes), "{} came", collector.served().len());
    assert!(collector.served().len() < 3000, "nothing was lost");
}
