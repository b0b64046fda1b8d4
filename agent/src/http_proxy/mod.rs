//! `orlop waypoint` and `orlop gateway`: world → snapshot → proxy of requests.

mod certificates;
mod credentials;
mod ports;

use std::{
    cell::RefCell,
    net::{IpAddr, SocketAddr, TcpListener},
    path::PathBuf,
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use futures_util::{FutureExt as _, future::OptionFuture};
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
};
use orlop_identity::{DEFAULT_LIFETIME, Identities, ServedCertificates, jwt::KeySources};
use orlop_kube::{ClusterWorld, Kinds, Pods, WorldDirectory};
use orlop_model::{
    Identity, NamespacedName, Snapshot, Workload, WorkloadKind, World,
    http::{Grants, OwnGateway},
};
use orlop_proxy::{Config, HttpLimits, HttpProxy, HttpProxyConfig, Metrics, RequestMetrics};
use prometheus_client::registry::Registry;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    admin::{self, Answer, Endpoint, Servers},
    authority::Authority,
    cli::{GatewayArguments, ProxyArguments, WaypointArguments, WorldArguments},
    dump,
    enrolment::Status,
    figures,
    handover::ServerSockets,
    hosts::Names,
    limits, logging, token_keys,
    traces::Traces,
    worlds::{RoutesOf, Worlds},
};
use certificates::{Certificates, SecretStates};
use credentials::Credentials;
use ports::Ports;

/// Connections that wait to be accepted; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// What a stranger's request may hold of its answer.
const HELD: u64 = 64 << 10;
/// How much memory there is for each stranger's connection: the state of its TLS, and what it may have sent of a head
/// before that counts as a request.
const PER_CONNECTION: u64 = 64 << 10;
/// How long a start waits for the keys of tokens' issuers.
const PATIENCE: Duration = Duration::from_secs(2);

/// What it is, beside what both are.
struct Role {
    routes: RoutesOf,
    listening: Listening,
    client_idle_timeout: Duration,
    stall_timeout: Duration,
    max_connections_per_client: Option<usize>,
    max_requests: Option<usize>,
}

/// Where clients come from.
enum Listening {
    /// Tunnels to this address.
    Tunnels(SocketAddr),
    /// Outside the mesh, to the ports of the Gateway at this address; with the certificates that are in this directory.
    Ports(IpAddr, PathBuf),
}

/// Runs a waypoint.
pub fn waypoint(arguments: WaypointArguments) -> anyhow::Result<()> {
    let WaypointArguments { proxy, require_reference_grants, listen } = arguments;
    let grants = if require_reference_grants { Grants::Required } else { Grants::Optional };
    let role = Role {
        routes: RoutesOf::Waypoint(proxy.name.clone(), grants),
        listening: Listening::Tunnels(listen),
        client_idle_timeout: proxy.idle_timeout,
        stall_timeout: proxy.idle_timeout,
        max_connections_per_client: None,
        max_requests: None,
    };
    run(proxy, role)
}

/// Runs a gateway.
pub fn gateway(arguments: GatewayArguments) -> anyhow::Result<()> {
    let GatewayArguments { proxy, class, pod, certificates, listen_address, .. } = arguments;
    let name = proxy.name.clone();
    let pod = NamespacedName::new(&name.namespace, pod.as_deref().unwrap_or(&name.name));
    let routes = RoutesOf::Gateway(OwnGateway { name, class, pod });
    let listening = Listening::Ports(listen_address, certificates);
    let role = Role {
        routes,
        listening,
        client_idle_timeout: arguments.client_idle_timeout,
        stall_timeout: arguments.stall_timeout,
        max_connections_per_client: arguments.max_connections_per_client,
        max_requests: arguments.max_requests,
    };
    run(proxy, role)
}

/// Runs until SIGTERM or SIGINT, and then until the requests have ended or the drain timeout is over.
fn run(arguments: ProxyArguments, role: Role) -> anyhow::Result<()> {
    logging::start(&arguments.log)?;
    let descriptors = limits::raise_descriptors(None);
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(serve(arguments, role, descriptors))
}

async fn serve(arguments: ProxyArguments, role: Role, descriptors: usize) -> anyhow::Result<()> {
    let mut stopped = pin!(stopped()?);
    let authority = Authority::open(&arguments.authority, &arguments.names.trust_domain)?;
    let identities = Identities::new(authority.ca, arguments.names.trust_domain.clone(), DEFAULT_LIFETIME);
    let keys = token_keys::sources(arguments.host_resolver, arguments.jwks_roots.as_deref())?;
    let (traces, outgoing) = Traces::start(&arguments.traces, &arguments.name).unzip();
    let tracer = traces.as_ref().map(Traces::tracer);
    let memory =
        arguments.max_memory.or_else(|| limits::memory_of_cgroup(&orlop_datapath::cgroup2_mount().ok()?));
    let config = HttpProxyConfig {
        tracer,
        outgoing,
        ..config(&arguments, &role, (descriptors, memory), keys.clone())
    };
    let served = Arc::clone(&config.served);
    let credentials = Credentials::new(arguments.credentials.clone(), Arc::clone(&config.credentials));
    let credentials = Rc::new(RefCell::new(credentials));
    let identity = config.workload.identity.clone();
    identities.ensure(&identity)?;

    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let requests = RequestMetrics::register(&mut registry);
    registry.register_collector(Box::new(token_keys::Fetches(keys.clone())));
    registry.register_collector(Box::new(figures::Certificates(identities.clone())));
    let secrets = SecretStates::default();
    if matches!(role.listening, Listening::Ports(..)) {
        registry.register_collector(Box::new(secrets.clone()));
    }
    let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
    let proxy = HttpProxy::start(config, Arc::clone(&snapshot), identities.clone(), metrics, requests)?;
    let proxy = Arc::new(proxy);
    // Of the Gateway's ports, why some are not open.
    let closed = watch::Sender::new(None);
    let status = watch::Sender::new(Status::default());
    let admin = Admin {
        name: arguments.name.to_string(),
        registry: Arc::new(registry),
        snapshot,
        proxy: Arc::clone(&proxy),
        identities: identities.clone(),
        identity,
        status: status.subscribe(),
        closed: closed.subscribe(),
    };
    let mut listeners = match role.listening {
        Listening::Tunnels(address) => Listeners::Tunnels(
            listen(address)
                .with_context(|| format!("cannot listen on {address}; choose another with --listen"))?,
        ),
        Listening::Ports(address, dir) => {
            let certificates = Rc::new(RefCell::new(Certificates::new(dir, served, secrets)));
            Listeners::Ports(Ports::at(address), certificates)
        }
    };
    let mut none = ServerSockets::new();
    let mut servers = Servers::listen(arguments.admin, arguments.metrics, arguments.ready, &mut none).await?;
    servers.serve(&admin);

    if let Some(limit) = memory {
        let proxy = Arc::clone(&proxy);
        tokio::spawn(async move {
            limits::watch_memory(limit, |short| proxy.set_short_of_memory(short)).await;
        });
    }
    let renewal = identities.clone();
    tokio::spawn(async move { renewal.run().await });
    tokio::spawn(authority.upkeep);
    let world = tokio::select! {
        world = watch_world(&arguments.world) => world?,
        () = &mut stopped => return Ok(()),
    };
    let names = Names::start(arguments.host_resolver);
    let settings = arguments.names.settings(&arguments.node);
    let publisher = Arc::clone(&proxy);
    let certificates = match &listeners {
        Listeners::Ports(_, certificates) => Some(Rc::clone(certificates)),
        Listeners::Tunnels(_) => None,
    };
    let held = Rc::clone(&credentials);
    let publish = Box::new(move |snapshot: Arc<Snapshot>| {
        // Before anybody asks for them.
        held.borrow_mut().read(&snapshot);
        if let Some(certificates) = &certificates {
            certificates.borrow_mut().read(&snapshot);
        }
        publisher.publish(snapshot);
    });
    let worlds = Worlds::new(world, names, settings, publish);
    let mut worlds = worlds.with_routes(role.routes);
    worlds.resolve().await;
    let mut published = worlds.publish();
    // Without them tokens that are good would be refused at first.
    let _ = timeout(PATIENCE, keys.tried()).await;
    if let Listeners::Tunnels(listener) = &listeners {
        proxy.listen(listener)?;
    }
    loop {
        credentials.borrow_mut().read(&published);
        let mut again = credentials.borrow().again();
        if let Listeners::Ports(ports, certificates) = &mut listeners {
            let mut certificates = certificates.borrow_mut();
            certificates.read(&published);
            closed.send_replace(ports.open(&proxy, &arguments.name, &published));
            again = ports.retry().or(certificates.again()).or(again);
        }
        status.send_modify(|status| status.generation = published.generation());
        tokio::select! {
            changed = worlds.changed() => {
                changed?;
                published = worlds.publish();
            }
            () = OptionFuture::from(again.map(sleep)).map(drop), if again.is_some() => {}
            () = &mut stopped => break,
        }
    }
    status.send_modify(|status| status.draining = true);
    let limit = arguments.drain_timeout;
    tracing::info!(connections = proxy.connections(), timeout = ?limit, "draining");
    drop(listeners);
    let left = tokio::select! {
        left = proxy.drain(limit) => left,
        never = worlds.publish_all() => match never? {},
    };
    if let Some(traces) = traces {
        traces.stop().await;
    }
    tracing::info!(connections = left, "stopped");
    Ok(())
}

/// SIGTERM or SIGINT, caught from now on: a container's first process gets no signal that it doesn't catch.
fn stopped() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// The world; of a cluster, once it has been listed.
async fn watch_world(arguments: &WorldArguments) -> anyhow::Result<watch::Receiver<Arc<World>>> {
    match &arguments.directory {
        Some(directory) => Ok(WorldDirectory::open(directory)?.watch()),
        None => {
            let kubeconfig = arguments.kubeconfig.as_deref();
            Ok(ClusterWorld::open(kubeconfig, Kinds::OfWaypoints, Pods::Live).await?.watch())
        }
    }
}

/// What clients come to.
enum Listeners {
    Tunnels(TcpListener),
    Ports(Ports, Rc<RefCell<Certificates>>),
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn config(
    arguments: &ProxyArguments,
    role: &Role,
    (descriptors, memory): (usize, Option<u64>),
    keys: KeySources,
) -> HttpProxyConfig {
    let (name, names) = (&arguments.name, &arguments.names);
    let account = arguments.service_account.as_deref().unwrap_or(&name.name);
    let proxy = Config::default();
    // One to each side of a connection, and some that are no connection's.
    let fit = descriptors / 16 * 7;
    let in_memory = |each| memory.map(|all| usize::try_from(all / each).unwrap_or(usize::MAX).max(1));
    let fit = match &role.listening {
        Listening::Tunnels(_) => fit,
        Listening::Ports(..) => in_memory(PER_CONNECTION).map_or(fit, |most| most.min(fit)),
    };
    let max_connections = arguments.max_connections.unwrap_or(proxy.max_connections.min(fit));
    HttpProxyConfig {
        workload: Workload {
            name: match &role.routes {
                RoutesOf::Waypoint(..) => name.clone(),
                RoutesOf::Gateway(gateway) => gateway.pod.clone(),
            },
            kind: WorkloadKind::Pod,
            uid: Arc::default(),
            identity: Identity::new(&names.trust_domain, &name.namespace, account),
            node: arguments.node.as_str().into(),
            addresses: Default::default(),
            enrolled: true,
            names: Arc::new(orlop_model::Names {
                owner: name.name.clone(),
                canonical_service: name.name.clone(),
                canonical_revision: "latest".into(),
                app: name.name.clone(),
                version: "latest".into(),
                cluster: names.cluster.as_str().into(),
            }),
        },
        name: name.clone(),
        proxy: Config {
            workers: arguments.workers.unwrap_or(proxy.workers),
            connect_timeout: arguments.connect_timeout,
            idle_timeout: arguments.idle_timeout,
            max_connections,
            max_descriptors: descriptors,
            ..proxy
        },
        http: HttpLimits {
            detection_timeout: arguments.detection_timeout,
            header_timeout: arguments.header_timeout,
            max_headers: arguments.max_headers,
            max_header_size: usize::try_from(arguments.max_header_size).unwrap_or(usize::MAX),
            max_body_size: arguments.max_body_size,
            max_streams: arguments.max_streams,
            client_idle_timeout: role.client_idle_timeout,
            stall_timeout: role.stall_timeout,
            max_connections_per_client: role
                .max_connections_per_client
                .unwrap_or(max_connections.div_ceil(2)),
            // Half of the memory is for what they hold.
            max_requests: role.max_requests.or(in_memory(2 * HELD)).unwrap_or(max_connections),
            ..HttpLimits::default()
        },
        keys,
        served: Arc::new(ServedCertificates::default()),
        credentials: Arc::default(),
        tracer: None,
        outgoing: None,
        log: arguments.access_log.access_log(),
    }
}

/// What the endpoints answer from.
#[derive(Clone)]
struct Admin {
    name: String,
    registry: Arc<Registry>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    proxy: Arc<HttpProxy>,
    identities: Identities,
    /// The proxy's own.
    identity: Identity,
    status: watch::Receiver<Status>,
    closed: watch::Receiver<Option<String>>,
}

impl Answer for Admin {
    fn answer(&self, endpoint: Endpoint, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET {
            return admin::text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        }
        match (endpoint, request.uri().path()) {
            (Endpoint::Admin, "/config_dump") => {
                let snapshot = self.snapshot.load();
                admin::json(dump::config(&self.name, &snapshot, &self.status.borrow(), &self.identities))
            }
            (Endpoint::Admin, "/flows") => admin::flows(&self.proxy.flows()),
            (Endpoint::Admin, "/") => admin::text(StatusCode::OK, "GET /config_dump\nGET /flows\n"),
            (Endpoint::Metrics, "/metrics") => admin::metrics(&self.registry),
            (Endpoint::Ready, "/healthz/live") => admin::text(StatusCode::OK, "alive\n"),
            (Endpoint::Ready, "/healthz/ready") if !self.identities.is_valid(&self.identity) => {
                admin::text(StatusCode::SERVICE_UNAVAILABLE, "no certificate yet: see /config_dump\n")
            }
            (Endpoint::Ready, "/healthz/ready") => match &*self.closed.borrow() {
                Some(why) => admin::text(StatusCode::SERVICE_UNAVAILABLE, &format!("{why}\n")),
                None => admin::ready(&self.status.borrow()),
            },
            _ => admin::text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }
}
