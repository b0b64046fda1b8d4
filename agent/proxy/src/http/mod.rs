//! Waypoints and gateways: read the HTTP that comes through tunnels or from outside the mesh, and carry each request to an
//! endpoint.
//!
//! A client's connection goes one way: [`listener`] or [`edge`] → [`session`] (what is it for, what does it speak) →
//! [`exchange`] for each request (may it, which rule, what answer) → [`forward`] (which endpoint, how often) →
//! [`upstream`]. What is not HTTP goes through [`opaque`], where [`stream`] says.

mod activity;
mod alike;
mod authenticate;
mod authorize;
mod authorizer;
mod balance;
mod body;
mod buckets;
mod call;
mod clients;
mod connections;
mod cors;
mod dial;
mod edge;
mod exchange;
mod failure;
mod flags;
mod forward;
mod grpc;
mod headers;
mod held_back;
pub(crate) mod hello;
mod hosts;
mod io;
mod key;
mod limit;
mod listener;
mod metrics;
mod mirror;
mod opaque;
mod outlet;
mod outlier;
mod pace;
mod passed;
mod record;
mod replay;
pub(crate) mod rewrite;
mod serve;
mod session;
mod shared_limit;
mod sniff;
mod stream;
mod tokens;
pub(crate) mod told;
mod trace;
mod unanswered;
mod upstream;

use std::{
    io as std_io,
    net::{IpAddr, SocketAddr, TcpListener},
    os::fd::BorrowedFd,
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use opentelemetry_sdk::trace::SdkTracer;
use orlop_identity::{
    ClientCredentials, Identities, ReadyAuthorities, ServedCertificates, jwt::KeySources, outsiders_config,
};
use orlop_model::{Choice, NamespacedName, Snapshot, Workload, world::routing::Percent};
use tokio::{
    sync::watch,
    task::spawn_local,
    time::{sleep, timeout},
};

use self::{
    balance::Draws,
    buckets::Buckets,
    clients::{Clients, Requests},
    hosts::{HostCache, Hosts},
    metrics::RequestSeriesCache,
    upstream::Upstreams,
};
pub use self::{
    metrics::RequestMetrics,
    outlet::{Answered, NotSent, Outgoing, Outlet, outlet},
    trace::Share,
};
use crate::{
    Config, Kernel, Metrics,
    affinity::Affinity,
    flow::{Flow, Flows},
    limits::Limits,
    log_format::LogFormat,
    shared::{InFlight, Live, Phase, Shared},
    worker::{Crew, Worker},
};

/// What a waypoint or a gateway is.
#[derive(Debug)]
pub struct HttpProxyConfig {
    /// The Gateway's, which labels name.
    pub name: NamespacedName,
    /// Itself as a workload: its identity, and what its peers are told of it.
    pub workload: Workload,
    /// Limits and timeouts of tunnels and connections.
    pub proxy: Config,
    /// Limits and timeouts of HTTP.
    pub http: HttpLimits,
    /// By what tokens are verified.
    pub keys: KeySources,
    /// What clients from outside the mesh are shown.
    pub served: Arc<ServedCertificates>,
    /// What servers outside of the mesh are known by and shown.
    pub credentials: Arc<ClientCredentials>,
    /// What makes spans of requests.
    pub tracer: Option<SdkTracer>,
    /// What is to be sent in its own name.
    pub outgoing: Option<Outgoing>,
    /// What the access log is like.
    pub log: AccessLog,
}

/// What the access log is like.
#[derive(Clone, Debug)]
pub struct AccessLog {
    /// How its lines are made, if not as all others of the log are.
    pub format: Option<Arc<LogFormat>>,
    /// How many of the requests have one.
    pub sampling: Percent,
}

/// Limits and timeouts of HTTP, of clients and servers alike.
#[derive(Clone, Debug)]
pub struct HttpLimits {
    /// How long what a client sends first may take, on ports that don't say what they speak: after this, it is
    /// passed on as it is.
    pub detection_timeout: Duration,
    /// How long a request's head may take from its first byte on; a connection may take up to twice that.
    pub header_timeout: Duration,
    /// Headers of one request or answer.
    pub max_headers: usize,
    /// The size of a head in bytes.
    pub max_header_size: usize,
    /// The size of a request's body in bytes.
    pub max_body_size: u64,
    /// Requests that a client may have open in one HTTP/2 connection.
    pub max_streams: u32,
    /// Connections to one server that wait for the next request, of one caller on one worker.
    pub max_idle: usize,
    /// How long they wait.
    pub idle_timeout: Duration,
    /// How long a client's connection may wait for the next request, at the least.
    pub client_idle_timeout: Duration,
    /// Connections of one client from outside the mesh; further ones are refused.
    pub max_connections_per_client: usize,
    /// Requests of all clients from outside the mesh at once, of which each has half at the most; further ones are refused.
    pub max_requests: usize,
    /// A request of which nothing moves for this long, at the least, neither of its body nor of its answer, is broken off.
    pub stall_timeout: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            detection_timeout: Duration::from_secs(5),
            header_timeout: Duration::from_secs(15),
            max_headers: 100,
            max_header_size: 64 << 10,
            max_body_size: 1 << 40,
            max_streams: 100,
            max_idle: 128,
            idle_timeout: Duration::from_secs(60),
            client_idle_timeout: Duration::from_secs(3600),
            max_connections_per_client: usize::MAX,
            max_requests: usize::MAX,
            stall_timeout: Duration::from_secs(3600),
        }
    }
}

/// The running waypoint or gateway.
pub struct HttpProxy {
    shared: Arc<Shared>,
    crew: Crew,
    own: Arc<Own>,
}

/// What every worker knows of the proxy.
pub(crate) struct Own {
    pub(crate) name: NamespacedName,
    pub(crate) workload: Arc<Workload>,
    pub(crate) limits: HttpLimits,
    pub(crate) metrics: RequestMetrics,
    pub(crate) hosts: Hosts,
    pub(crate) keys: KeySources,
    pub(crate) served: Arc<ServedCertificates>,
    pub(crate) credentials: Arc<ClientCredentials>,
    pub(crate) authorities: ReadyAuthorities,
    pub(crate) tracer: Option<SdkTracer>,
    pub(crate) log: AccessLog,
    pub(crate) buckets: Buckets,
    pub(crate) clients: Arc<Clients>,
    pub(crate) requests: Arc<Requests>,
}

/// A port that clients from outside the mesh come to. Dropping it closes the port; what is open goes on.
#[derive(Debug)]
#[must_use]
pub struct OpenPort(#[expect(dead_code, reason = "its drop is what counts")] watch::Sender<()>);

/// One worker's part of a listener, or of what is sent in the proxy's own name.
pub(crate) struct Local {
    pub(crate) worker: Rc<Worker>,
    pub(crate) own: Arc<Own>,
    pub(crate) upstreams: Upstreams,
    pub(crate) series: RequestSeriesCache,
    pub(crate) host_cache: HostCache,
    pub(crate) draws: Draws,
    /// Held by each copy of a request that is under way.
    pub(crate) mirrored: Rc<()>,
}

impl HttpProxy {
    /// Starts the workers. What [`HttpProxy::publish`] puts in force is there to see in `snapshot`.
    pub fn start(
        config: HttpProxyConfig,
        snapshot: Arc<ArcSwap<Snapshot>>,
        identities: Identities,
        metrics: Metrics,
        requests: RequestMetrics,
    ) -> std_io::Result<Self> {
        let HttpProxyConfig { name, workload, proxy, http, keys, served, credentials, tracer, outgoing, log } =
            config;
        let workers = proxy.workers;
        let shared = Arc::new(Shared {
            flows: Flows::new(proxy.flow_buffer, log.format.clone()),
            limits: Limits::new(&proxy),
            diallers: Default::default(),
            config: proxy,
            snapshot,
            identities,
            kernel: Box::new(NoKernel),
            metrics,
            in_flight: InFlight::default(),
            affinity: Affinity::default(),
            live: Live::new(),
            movable: Live::new(),
            sources: Live::new(),
            questions: Live::new(),
            generation: watch::Sender::new(0),
            phase: watch::Sender::new(Phase::Serving),
        });
        let crew = Crew::start(workers, &shared)?;
        let own = Arc::new(Own {
            name,
            workload: Arc::new(workload),
            limits: http,
            metrics: requests,
            hosts: Hosts::default(),
            keys,
            served,
            credentials,
            authorities: ReadyAuthorities::default(),
            tracer,
            log,
            buckets: Buckets::default(),
            clients: Arc::default(),
            requests: Arc::default(),
        });
        if let Some(outgoing) = outgoing {
            let own = Arc::clone(&own);
            crew.run(0, move |worker| {
                spawn_local(outgoing.run(Local::start(worker, own)));
            });
        }
        Ok(Self { shared, crew, own })
    }

    /// Takes tunnels from this socket.
    pub fn listen(&self, listener: &TcpListener) -> std_io::Result<()> {
        self.on_each(listener, |local, listener| {
            spawn_local(listener::run(local, listener));
        })
    }

    /// Takes clients from outside the mesh from this socket, as a gateway does, until the port is closed.
    pub fn open(&self, listener: &TcpListener) -> std_io::Result<OpenPort> {
        let (open, is_open) = watch::channel(());
        let port = listener.local_addr()?.port();
        let shown = edge::Shown { shared: Arc::clone(&self.shared), own: Arc::clone(&self.own), port };
        let tls = outsiders_config(Arc::new(shown)).map_err(std_io::Error::other)?;
        let tls = Arc::new(tls);
        self.on_each(listener, move |local, listener| {
            spawn_local(edge::run(local, listener, Arc::clone(&tls), is_open.clone()));
        })?;
        Ok(OpenPort(open))
    }

    fn on_each(
        &self,
        listener: &TcpListener,
        run: impl Fn(Rc<Local>, TcpListener) + Clone + Send + 'static,
    ) -> std_io::Result<()> {
        listener.set_nonblocking(true)?;
        for index in 0..self.crew.len() {
            let (listener, own, run) = (listener.try_clone()?, Arc::clone(&self.own), run.clone());
            self.crew.run(index, move |worker| {
                run(Local::start(worker, own), listener);
            });
        }
        Ok(())
    }

    /// Puts a snapshot in force: for new requests at once, and for open connections by judging them again. Must be
    /// called within a runtime, where the keys of tokens' issuers are fetched.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        let generation = snapshot.generation();
        let routes = snapshot.routes();
        self.own.keys.want(&routes.remote_keys(), routes.node_addresses());
        self.own.buckets.keep(routes.all_limits());
        self.shared.snapshot.store(snapshot);
        self.shared.generation.send_replace(generation);
    }

    /// Whether new connections are refused, since there is hardly any memory left.
    pub fn set_short_of_memory(&self, short: bool) {
        self.shared.limits.set_short_of_memory(short);
    }

    /// The last connections that ended, other than HTTP, the oldest first.
    pub fn flows(&self) -> Vec<Arc<Flow>> {
        self.shared.flows.recent()
    }

    /// Connections that are open.
    pub fn connections(&self) -> usize {
        self.shared.live.count()
    }

    /// Takes no more tunnels, tells clients to take further requests elsewhere, and waits until what is open has
    /// ended or `limit` has passed. Returns how many connections were left.
    pub async fn drain(&self, limit: Duration) -> usize {
        self.shared.phase.send_replace(Phase::Draining { held: false });
        let _ = timeout(limit, self.shared.live.ended()).await;
        self.connections()
    }
}

impl Local {
    fn start(worker: &Rc<Worker>, own: Arc<Own>) -> Rc<Self> {
        let local = Rc::new(Self {
            worker: Rc::clone(worker),
            own,
            upstreams: Upstreams::default(),
            series: RequestSeriesCache::default(),
            host_cache: HostCache::default(),
            draws: Draws::default(),
            mirrored: Rc::new(()),
        });
        spawn_local(sweep(Rc::downgrade(&local), local.own.limits.idle_timeout));
        local
    }

    /// Whether there is hardly room for more of what clients from outside the mesh ask.
    pub(crate) fn is_short_of_room(&self) -> bool {
        self.worker.shared.limits.memory().is_err()
            || self.own.requests.count() >= self.own.limits.max_requests
    }
}

/// Closes what nobody has used for long, as long as there is one that uses it.
async fn sweep(local: Weak<Local>, idle: Duration) {
    loop {
        sleep(idle / 4).await;
        let Some(local) = local.upgrade() else { return };
        local.upstreams.forget_idle(idle);
    }
}

/// The proxy's sockets are nobody else's: no hook sees them.
struct NoKernel;

impl Kernel for NoKernel {
    fn original_destination(&self, _: BorrowedFd<'_>) -> std_io::Result<Option<(SocketAddr, Choice)>> {
        Ok(None)
    }

    fn last(&self, _: u64, _: SocketAddr) -> Option<SocketAddr> {
        None
    }

    fn went(&self, _: u64, _: SocketAddr, _: SocketAddr) {}

    fn resolver(&self, _: u64, _: SocketAddr) -> std_io::Result<Option<SocketAddr>> {
        Ok(None)
    }

    fn allow(&self, _: u64, _: u64, _: IpAddr, _: SocketAddr) {}

    fn claim(&self, _: BorrowedFd<'_>, _: Option<SocketAddr>) -> std_io::Result<()> {
        Ok(())
    }
}
