//! Where spans go: to a collector by OTLP.

mod http;

use std::time::Duration;

use anyhow::Context as _;
use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracer, SdkTracerProvider},
};
use orlop_model::{NamespacedName, world::routing::Percent};
use orlop_proxy::Share;

use self::http::HttpExporter;
use crate::cli::TraceArguments;

/// How long a collector may take to take some.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Spans on their way. They wait in a queue of 2,048 spans; what comes while it is full is lost, and said so in the log.
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Starts to send if that is wanted, in the name of this Gateway. Must be called within a runtime, which carries
    /// them.
    pub fn start(arguments: &TraceArguments, gateway: &NamespacedName) -> anyhow::Result<Option<Self>> {
        let Some(collector) = &arguments.otlp else { return Ok(None) };
        // Who continues a trace does as whoever began it.
        let share = Share(Percent((arguments.trace_sampling * 10_000.0).round() as u32));
        let resource = Resource::builder_empty()
            .with_service_name(format!("{}.{}", gateway.name, gateway.namespace))
            .with_attribute(KeyValue::new("k8s.namespace.name", gateway.namespace.to_string()))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        let provider = SdkTracerProvider::builder();
        // Where a path is named it is that of OTLP over HTTP: that over gRPC has its own.
        let provider = if collector.path() == "/" {
            let exporter = SpanExporter::builder()
                .with_tonic()
                .with_endpoint(collector.to_string())
                .with_timeout(TIMEOUT)
                .build()
                .with_context(|| format!("cannot send spans to {collector}: see --otlp"))?;
            provider.with_batch_exporter(exporter)
        } else {
            provider.with_batch_exporter(HttpExporter::new(collector.clone()))
        };
        let provider =
            provider.with_sampler(Sampler::ParentBased(Box::new(share))).with_resource(resource.build());
        Ok(Some(Self(provider.build())))
    }

    pub fn tracer(&self) -> SdkTracer {
        self.0.tracer("orlop")
    }

    /// Sends what is left.
    pub async fn stop(self) {
        // The runtime that carries them goes on meanwhile.
        let stopped = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(TIMEOUT)).await;
        if let Ok(Err(error)) = stopped {
            tracing::warn!(%error, "the last spans are lost");
        }
    }
}
