//! Where spans go: to a collector by OTLP.

mod exporter;

use std::time::Duration;

use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracer, SdkTracerProvider},
};
use orlop_model::{NamespacedName, world::routing::Percent};
use orlop_proxy::{Outgoing, Share, outlet};

use self::exporter::Exporter;
use crate::cli::TraceArguments;

/// How long a collector may take to take some.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Spans on their way. They wait in a queue of 2,048 spans; what comes while it is full is lost, and said so in the log.
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Starts to send if that is wanted, in the name of this Gateway, whose proxy is to have what goes through the mesh.
    /// Must be called within a runtime.
    pub fn start(arguments: &TraceArguments, gateway: &NamespacedName) -> Option<(Self, Outgoing)> {
        let collector = arguments.otlp.clone()?;
        let (outlet, outgoing) = outlet();
        // Who continues a trace does as whoever began it.
        let share = Share(Percent((arguments.trace_sampling * 10_000.0).round() as u32));
        let resource = Resource::builder_empty()
            .with_service_name(format!("{}.{}", gateway.name, gateway.namespace))
            .with_attribute(KeyValue::new("k8s.namespace.name", gateway.namespace.to_string()))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(Exporter::new(collector, outlet))
            .with_sampler(Sampler::ParentBased(Box::new(share)))
            .with_resource(resource.build());
        Some((Self(provider.build()), outgoing))
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
