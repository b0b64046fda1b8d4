//! Spans to a collector by OTLP over HTTP, as binary protobuf.

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Uri,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
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
use prost::Message as _;
use tokio::{net::TcpStream, runtime::Handle, time::timeout};

use super::TIMEOUT;

/// Posts spans, each batch by a connection of its own: there is one every few seconds.
#[derive(Debug)]
pub struct HttpExporter {
    collector: Uri,
    resource: ResourceAttributesWithSchema,
    runtime: Handle,
}

impl HttpExporter {
    /// Must be called within a runtime, which carries the spans.
    pub fn new(collector: Uri) -> Self {
        Self { collector, resource: ResourceAttributesWithSchema::default(), runtime: Handle::current() }
    }
}

impl SpanExporter for HttpExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let body = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
        let collector = self.collector.clone();
        // Whoever asks for it is on a thread of its own, outside of the runtime, where there are no timers either.
        let posted = self.runtime.spawn(async move { timeout(TIMEOUT, post(collector, body.into())).await });
        let failed = |problem: String| OTelSdkError::InternalFailure(problem);
        match posted.await.map_err(|error| failed(error.to_string()))? {
            Ok(posted) => posted.map_err(|error| failed(format!("{}: {error:#}", self.collector))),
            Err(_) => Err(OTelSdkError::Timeout(TIMEOUT)),
        }
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = resource.into();
    }
}

async fn post(collector: Uri, body: Bytes) -> anyhow::Result<()> {
    let authority = collector.authority().context("it names no host")?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let tcp = TcpStream::connect((host, authority.port_u16().unwrap_or(80))).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(tcp)).await?;
    let request = Request::post(collector.path_and_query().map_or("/", |path| path.as_str()))
        .header(HOST, authority.as_str())
        .header(CONTENT_TYPE, "application/x-protobuf")
        .body(Full::new(body))?;
    let answered = async { sender.send_request(request).await };
    let status = tokio::select! {
        biased;
        answer = answered => answer?.status(),
        // It ends with the answer, or because there is none.
        ended = connection => return Err(ended.err().map_or_else(|| anyhow::anyhow!("no answer"), Into::into)),
    };
    anyhow::ensure!(status.is_success(), "it answered {status}");
    Ok(())
}
