//! Spans to a collector by OTLP, over gRPC or as binary protobuf over HTTP: through the mesh where that knows the
//! collector's service, and else in clear.

use anyhow::Context as _;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, TE},
};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::{
    tonic::collector::trace::v1::ExportTraceServiceRequest,
    transform::{
        common::tonic::ResourceAttributesWithSchema, trace::tonic::group_spans_by_resource_and_scope,
    },
};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    trace::{SpanData, SpanExporter},
};
use orlop_proxy::{Answered, NotSent, Outlet};
use prost::Message as _;
use tokio::{net::TcpStream, runtime::Handle, time::timeout};

use super::TIMEOUT;

const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// So much of an answer is read.
const MAX_ANSWER: usize = 64 << 10;

/// Posts spans: a batch every few seconds.
#[derive(Debug)]
pub struct Exporter {
    collector: Uri,
    resource: ResourceAttributesWithSchema,
    runtime: Handle,
    outlet: Outlet,
}

impl Exporter {
    /// Must be called within a runtime, which carries the spans that don't go through the mesh.
    pub fn new(collector: Uri, outlet: Outlet) -> Self {
        let resource = ResourceAttributesWithSchema::default();
        Self { collector, resource, runtime: Handle::current(), outlet }
    }
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let message = ExportTraceServiceRequest { resource_spans };
        let (collector, outlet) = (self.collector.clone(), self.outlet.clone());
        let exported = async move { timeout(TIMEOUT, export(&outlet, &collector, &message)).await };
        // Whoever asks for it is on a thread of its own, outside of the runtime, where there are no timers either.
        let exported = self.runtime.spawn(exported);
        let failed = |problem: String| OTelSdkError::InternalFailure(problem);
        match exported.await.map_err(|error| failed(error.to_string()))? {
            Ok(exported) => exported.map_err(|error| failed(format!("{}: {error:#}", self.collector))),
            Err(_) => Err(OTelSdkError::Timeout(TIMEOUT)),
        }
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = resource.into();
    }
}

/// Where a path is named it is that of OTLP over HTTP: that over gRPC has its own.
fn is_grpc(collector: &Uri) -> bool {
    collector.path() == "/"
}

async fn export(outlet: &Outlet, collector: &Uri, message: &ExportTraceServiceRequest) -> anyhow::Result<()> {
    let request = request(collector, message)?;
    let answered = match outlet.send(request.clone()).await {
        Ok(answered) => answered,
        Err(NotSent::NoService) => in_clear(request).await?,
        Err(NotSent::Failed(problem)) => anyhow::bail!(problem),
    };
    judge(&answered, is_grpc(collector))
}

fn request(collector: &Uri, message: &ExportTraceServiceRequest) -> anyhow::Result<Request<Bytes>> {
    let authority = collector.authority().context("it names no host")?.as_str();
    if is_grpc(collector) {
        let length = u32::try_from(message.encoded_len())?;
        // Not compressed, and how long it is.
        let mut body = vec![0];
        body.extend(length.to_be_bytes());
        message.encode(&mut body)?;
        let uri = Uri::builder().scheme("http").authority(authority).path_and_query(EXPORT).build()?;
        let request = Request::builder().version(Version::HTTP_2).method(Method::POST).uri(uri);
        let request = request.header(CONTENT_TYPE, "application/grpc").header(TE, "trailers");
        return Ok(request.body(body.into())?);
    }
    let body = Bytes::from(message.encode_to_vec());
    let request = Request::builder().method(Method::POST).uri(collector).header(HOST, authority);
    let request = request.header(CONTENT_TYPE, "application/x-protobuf");
    Ok(request.header(CONTENT_LENGTH, HeaderValue::from(body.len())).body(body)?)
}

/// Each by a connection of its own.
async fn in_clear(request: Request<Bytes>) -> anyhow::Result<Answered> {
    let authority = request.uri().authority().context("it names no host")?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let io = TokioIo::new(TcpStream::connect((host, authority.port_u16().unwrap_or(80))).await?);
    if request.version() == Version::HTTP_2 {
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        return asked(connection, async { sender.send_request(request.map(Full::new)).await }).await;
    }
    let (mut sender, connection) = http1::handshake(io).await?;
    let (mut parts, body) = request.into_parts();
    // As servers are asked, rather than proxies.
    parts.uri = Uri::from(parts.uri.path_and_query().context("it names no path")?.clone());
    asked(connection, async { sender.send_request(Request::from_parts(parts, Full::new(body))).await }).await
}

/// What is answered, while the connection is carried.
async fn asked(
    connection: impl Future<Output = hyper::Result<()>>,
    answer: impl Future<Output = hyper::Result<Response<Incoming>>>,
) -> anyhow::Result<Answered> {
    let answered = async {
        let (mut head, body) = answer.await?.into_parts();
        let read = Limited::new(body, MAX_ANSWER).collect().await;
        let read = read.map_err(|error| anyhow::anyhow!("its answer: {error}"))?;
        head.headers.extend(read.trailers().cloned().unwrap_or_default());
        Ok(Answered { status: head.status, headers: head.headers })
    };
    tokio::select! {
        biased;
        answered = answered => answered,
        // It ends with the answer, or because there is none.
        ended = connection => Err(ended.err().map_or_else(|| anyhow::anyhow!("no answer"), Into::into)),
    }
}

fn judge(answered: &Answered, grpc: bool) -> anyhow::Result<()> {
    let Answered { status, headers } = answered;
    if grpc && *status == StatusCode::OK {
        let said = grpc_status(headers);
        anyhow::ensure!(said == "0", "it answered with gRPC's status {said}");
        return Ok(());
    }
    anyhow::ensure!(status.is_success(), "it answered {status}");
    Ok(())
}

fn grpc_status(headers: &HeaderMap) -> &str {
    headers.get(GRPC_STATUS).and_then(|status| status.to_str().ok()).unwrap_or("(none)")
}
