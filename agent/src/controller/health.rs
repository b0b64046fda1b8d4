//! Whether a controller or a webhook is ready, for its probe, and its metrics.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode, body::Bytes, body::Incoming, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, sync::watch};

use crate::admin;

/// `/healthz/ready`, `/healthz/live`, `/version` and `/metrics`.
pub struct Health(watch::Sender<bool>);

impl Health {
    pub async fn start(address: SocketAddr, registry: Registry) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}; choose another with --ready"))?;
        let ready = watch::Sender::new(false);
        let (readiness, registry) = (ready.subscribe(), Arc::new(registry));
        tokio::spawn(async move {
            loop {
                let Ok((tcp, _)) = listener.accept().await else {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let (readiness, registry) = (readiness.clone(), Arc::clone(&registry));
                tokio::spawn(async move {
                    let answer = service_fn(move |request| {
                        let response = answer(&request, *readiness.borrow(), &registry);
                        async { Ok::<_, Infallible>(response) }
                    });
                    // A client that breaks off has nobody to tell.
                    let _ = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(Duration::from_secs(5))
                        .serve_connection(TokioIo::new(tcp), answer)
                        .await;
                });
            }
        });
        Ok(Self(ready))
    }

    pub fn ready(&self) {
        self.0.send_replace(true);
    }

    pub fn not_ready(&self) {
        self.0.send_replace(false);
    }
}

fn answer(request: &Request<Incoming>, ready: bool, registry: &Registry) -> Response<Full<Bytes>> {
    let (status, body) = match (request.uri().path(), ready) {
        ("/metrics", _) => return admin::metrics(registry),
        ("/version", _) => (StatusCode::OK, env!("CARGO_PKG_VERSION")),
        ("/healthz/live", _) => (StatusCode::OK, "alive\n"),
        ("/healthz/ready", true) => (StatusCode::OK, "ready\n"),
        ("/healthz/ready", false) => {
            (StatusCode::SERVICE_UNAVAILABLE, "not yet, or no more; the log says why\n")
        }
        _ => (StatusCode::NOT_FOUND, "not found\n"),
    };
    admin::text(status, body)
}
