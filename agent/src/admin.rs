//! The HTTP endpoints of the node: admin on loopback, metrics, readiness.

use std::{
    convert::Infallible,
    net::SocketAddr,
    os::fd::{AsFd as _, BorrowedFd},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::CONTENT_TYPE,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use orlop_datapath::Datapath;
use orlop_identity::Identities;
use orlop_model::Snapshot;
use orlop_proxy::{Flow, Proxy};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

use crate::{
    dump,
    enrolment::Status,
    handover::{self, ServerSockets},
    last_world::Age,
    udp,
};

/// A client may take this long for its request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the endpoints answer from.
#[derive(Clone)]
pub struct Admin {
    pub node: String,
    pub run_dir: PathBuf,
    pub datapath: Arc<Datapath>,
    pub registry: Arc<Registry>,
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    pub proxy: Arc<Proxy>,
    pub identities: Identities,
    pub status: watch::Receiver<Status>,
}

/// What answers a role's endpoints.
pub trait Answer: Clone + Send + Sync + 'static {
    /// Answers one request, of whatever method.
    fn answer(&self, endpoint: Endpoint, request: &Request<Incoming>) -> Response<Full<Bytes>>;
}

#[derive(Clone, Copy, Debug)]
pub enum Endpoint {
    Admin,
    Metrics,
    Ready,
}

/// The endpoints' listening sockets.
pub struct Servers {
    listeners: Vec<(Endpoint, SocketAddr, Arc<TcpListener>)>,
    accepting: JoinSet<()>,
}

impl Servers {
    /// Listens on all three, or takes the sockets of `inherited`.
    pub async fn listen(
        admin: SocketAddr,
        metrics: SocketAddr,
        ready: SocketAddr,
        inherited: &mut ServerSockets,
    ) -> anyhow::Result<Self> {
        let endpoints = [
            (Endpoint::Admin, admin, "--admin"),
            (Endpoint::Metrics, metrics, "--metrics"),
            (Endpoint::Ready, ready, "--ready"),
        ];
        let mut listeners = Vec::new();
        for (endpoint, address, flag) in endpoints {
            let listener = match inherited.remove(&address) {
                Some(socket) => TcpListener::from_std(socket.into()),
                None => TcpListener::bind(address).await,
            };
            let listener = listener
                .with_context(|| format!("cannot listen on {address}; choose another with {flag}"))?;
            listeners.push((endpoint, address, Arc::new(listener)));
        }
        Ok(Self { listeners, accepting: JoinSet::new() })
    }

    /// Answers until [`Servers::stop`].
    pub fn serve(&mut self, admin: &impl Answer) {
        for (endpoint, _, listener) in &self.listeners {
            self.accepting.spawn(accept(admin.clone(), *endpoint, Arc::clone(listener)));
        }
    }

    /// Takes no more requests, and leaves the sockets open.
    pub fn stop(&mut self) {
        self.accepting.abort_all();
    }

    /// The sockets, by their address.
    pub fn sockets(&self) -> impl Iterator<Item = (SocketAddr, BorrowedFd<'_>)> {
        self.listeners.iter().map(|(_, address, listener)| (*address, listener.as_fd()))
    }
}

async fn accept(admin: impl Answer, endpoint: Endpoint, listener: Arc<TcpListener>) {
    loop {
        let Ok((tcp, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let admin = admin.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request| {
                let response = admin.answer(endpoint, &request);
                async { Ok::<_, Infallible>(response) }
            });
            // A client that breaks off has nobody to tell.
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(tcp), answer)
                .await;
        });
    }
}

impl Answer for Admin {
    fn answer(&self, endpoint: Endpoint, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        }
        match (endpoint, request.uri().path()) {
            (Endpoint::Admin, "/config_dump") => self.config_dump(),
            (Endpoint::Admin, "/flows") => flows(&self.proxy.flows()),
            (Endpoint::Admin, "/udp") => self.udp(),
            (Endpoint::Admin, "/") => text(StatusCode::OK, "GET /config_dump\nGET /flows\nGET /udp\n"),
            (Endpoint::Metrics, "/metrics") => metrics(&self.registry),
            (Endpoint::Ready, "/healthz/ready") => ready(&self.status.borrow()),
            // Both answer at one address, and who asks means the one that comes.
            (Endpoint::Ready, "/healthz/started") if handover::is_awaited(&self.run_dir) => {
                text(StatusCode::SERVICE_UNAVAILABLE, "another agent comes, and does not serve yet\n")
            }
            (Endpoint::Ready, "/healthz/started") => ready(&self.status.borrow()),
            _ => text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }
}

impl Admin {
    fn config_dump(&self) -> Response<Full<Bytes>> {
        json(dump::config(&self.node, &self.snapshot.load(), &self.status.borrow(), &self.identities))
    }

    fn udp(&self) -> Response<Full<Bytes>> {
        match udp::dump(&self.datapath, &self.status.borrow(), &self.snapshot.load()) {
            Ok(json) => typed(StatusCode::OK, "application/json", json),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error:#}\n")),
        }
    }
}

/// Exports the hooks' own refusals.
#[derive(Debug)]
pub struct Refused(pub Arc<Datapath>);

impl Collector for Refused {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let counts = match self.0.refused() {
            Ok(counts) => counts,
            Err(error) => {
                tracing::warn!(%error, "no figures of the hooks' refusals");
                return Ok(());
            }
        };
        let mut family = encoder.encode_descriptor(
            "orlop_kernel_refused",
            "Connections that a hook refused by itself, by reason",
            None,
            prometheus_client::metrics::MetricType::Counter,
        )?;
        for (reason, count) in counts {
            let label = [("reason", reason)];
            ConstCounter::new(count).encode(family.encode_family(&label)?)?;
        }
        let pairs = ConstGauge::new(i64::try_from(self.0.verdicts().pairs()).unwrap_or(i64::MAX));
        let help = "Pairs of pod and address that talk without the proxy";
        let kind = prometheus_client::metrics::MetricType::Gauge;
        pairs.encode(encoder.encode_descriptor("orlop_same_node_pairs", help, None, kind)?)?;
        if let Ok(lost) = self.0.lost_events() {
            let help = "Events of the hooks that came too often or that nobody read in time";
            let kind = prometheus_client::metrics::MetricType::Counter;
            let lost = ConstCounter::new(lost);
            lost.encode(encoder.encode_descriptor("orlop_kernel_events_lost", help, None, kind)?)?;
        }
        Ok(())
    }
}

/// One JSON object a line, the oldest first.
pub fn flows(flows: &[Arc<Flow>]) -> Response<Full<Bytes>> {
    let mut body = Vec::new();
    for flow in flows {
        if let Err(error) = serde_json::to_writer(&mut body, &**flow) {
            return text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n"));
        }
        body.push(b'\n');
    }
    typed(StatusCode::OK, "application/jsonl", body)
}

/// In the Prometheus text format.
pub fn metrics(registry: &Registry) -> Response<Full<Bytes>> {
    let mut body = String::new();
    match prometheus_client::encoding::text::encode(&mut body, registry) {
        Ok(()) => typed(StatusCode::OK, OPENMETRICS, body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
    }
}

/// Whether new connections are served.
pub fn ready(status: &Status) -> Response<Full<Bytes>> {
    match (status.draining, status.generation) {
        (true, _) => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        (false, 0) => {
            text(StatusCode::SERVICE_UNAVAILABLE, "the first state of the world is not applied yet\n")
        }
        _ => match status.as_of.map(Age::now) {
            None => text(StatusCode::OK, "ready\n"),
            Some(Age { as_of, age }) => text(
                StatusCode::OK,
                &format!(
                    "ready, by the world of {as_of} from disk, {age} old: the Kubernetes API has not answered yet\n"
                ),
            ),
        },
    }
}

pub fn json(dump: serde_json::Result<String>) -> Response<Full<Bytes>> {
    match dump {
        Ok(json) => typed(StatusCode::OK, "application/json", json),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
    }
}

pub fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    typed(status, "text/plain; charset=utf-8", body.to_owned())
}

pub fn typed(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    response
}
