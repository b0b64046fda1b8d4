//! `orlop node`: world → snapshot → kernel and proxy.

use std::{io, net::SocketAddr, os::fd::BorrowedFd, path::Path, sync::Arc};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use nix::unistd::geteuid;
use orlop_datapath::{Datapath, Place, Sockets};
use orlop_identity::{DEFAULT_LIFETIME, EmbeddedCa, Identities};
use orlop_kube::WorldDirectory;
use orlop_model::{Finding, Settings, Severity, Snapshot, World, compile};
use orlop_proxy::{Config, Kernel, Metrics, Netns, Proxy};
use prometheus_client::registry::Registry;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{
    admin::{self, Admin},
    check,
    cli::{CleanArguments, NodeArguments},
    enrolment::{Enrolment, Status},
    events, limits, logging, udp,
};

/// Runs until SIGTERM or SIGINT, and then until the connections have ended or the drain timeout is over.
pub fn run(arguments: NodeArguments) -> anyhow::Result<()> {
    logging::start(&arguments.log)?;
    anyhow::ensure!(geteuid().is_root(), "orlop node needs root, to load eBPF and to enter pods' namespaces");
    limits::raise_descriptors();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(node(arguments))
}

/// Removes the pins.
pub fn clean(arguments: &CleanArguments) -> anyhow::Result<()> {
    orlop_datapath::remove(&arguments.bpffs).map_err(Into::into)
}

async fn node(arguments: NodeArguments) -> anyhow::Result<()> {
    // Before anything is changed: a world that can't be read leaves what is in force as it is.
    let world = WorldDirectory::open(&arguments.world)?;
    let ca = EmbeddedCa::open(&arguments.ca_dir, &arguments.names.trust_domain)?;
    let identities = Identities::new(Arc::new(ca), arguments.names.trust_domain.clone(), DEFAULT_LIFETIME);
    let own_netns = Netns::open(Path::new("/proc/self/ns/net")).context("cannot open our own netns")?;
    let place = Place {
        bpffs: &arguments.bpffs,
        cgroup: arguments.cgroup.as_deref(),
        pods_cgroup: arguments.pods_cgroup.as_deref(),
        node: own_netns.cookie(),
    };
    let datapath =
        Datapath::open(&place).map_err(|error| check::explain(error, place.bpffs, place.cgroup))?;
    let datapath = Arc::new(datapath);

    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    registry.register_collector(Box::new(admin::Refused(Arc::clone(&datapath))));
    let status = watch::Sender::new(Status::default());
    let counts = udp::Counts { datapath: Arc::clone(&datapath), status: status.subscribe() };
    registry.register_collector(Box::new(counts));
    let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
    let proxy = Arc::new(Proxy::start(
        config(&arguments),
        Arc::clone(&snapshot),
        identities.clone(),
        SocketHooks(datapath.sockets().clone()),
        metrics,
    )?);

    let events = events::Reader::start(&datapath, Arc::clone(&snapshot))?;
    let servers = Admin {
        node: arguments.node.clone(),
        datapath: Arc::clone(&datapath),
        registry: Arc::new(registry),
        snapshot: Arc::clone(&snapshot),
        identities: identities.clone(),
        status: status.subscribe(),
    };
    servers.serve(arguments.admin, arguments.metrics, arguments.ready).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let renewal = identities.clone();
    tokio::spawn(async move { renewal.run().await });
    let enrolment = Enrolment::new(datapath, Arc::clone(&proxy), identities);
    let follow = follow(world.watch(), arguments.names.settings(&arguments.node), &proxy, enrolment, &status);
    tokio::select! {
        result = follow => result?,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }

    events.stop();
    status.send_modify(|status| status.draining = true);
    tracing::info!(connections = proxy.connections(), timeout = ?arguments.drain_timeout, "draining");
    let left = proxy.drain(arguments.drain_timeout).await;
    tracing::info!(connections = left, "stopped; enrolled pods are refused until an agent is back");
    Ok(())
}

/// Compiles each state of the world, puts it in force for new connections, and brings the kernel in step.
async fn follow(
    mut worlds: watch::Receiver<Arc<World>>,
    settings: Settings,
    proxy: &Proxy,
    mut enrolment: Enrolment,
    status: &watch::Sender<Status>,
) -> anyhow::Result<()> {
    let mut findings = Vec::new();
    for generation in 1.. {
        let world = Arc::clone(&worlds.borrow_and_update());
        let snapshot = Arc::new(compile(&world, &settings, generation));
        drop(world);
        proxy.publish(Arc::clone(&snapshot));
        report(&mut findings, snapshot.findings());
        loop {
            let applied;
            (enrolment, applied) = enrolment.apply(Arc::clone(&snapshot)).await?;
            let complete = applied.failed.is_empty();
            status.send_modify(|status| status.applied(generation, applied));
            // A pod whose netns is not there yet will have one soon.
            tokio::select! {
                changed = worlds.changed() => break changed.context("the world's watcher has ended")?,
                () = tokio::time::sleep(Enrolment::RETRY), if !complete => {}
            }
        }
    }
    Ok(())
}

/// Says of each resource that needs attention what is the matter, once.
fn report(known: &mut Vec<Finding>, found: &[Finding]) {
    for finding in found.iter().filter(|finding| !known.contains(finding)) {
        let Finding { kind, name, severity, message } = finding;
        match severity {
            Severity::Info => tracing::info!(kind, %name, message, "finding"),
            Severity::Warning | Severity::Error => tracing::warn!(kind, %name, message, "finding"),
        }
    }
    *known = found.to_vec();
}

fn config(arguments: &NodeArguments) -> Config {
    let default = Config::default();
    Config {
        workers: arguments.workers.unwrap_or(default.workers),
        connect_timeout: arguments.connect_timeout,
        handshake_timeout: arguments.handshake_timeout,
        idle_timeout: arguments.idle_timeout,
        tunnel_idle_timeout: arguments.tunnel_idle_timeout,
        max_connections: arguments.max_connections,
        ..default
    }
}

/// The proxy's view of the kernel side.
struct SocketHooks(Sockets);

impl Kernel for SocketHooks {
    fn take_original_destination(
        &self,
        netns: u64,
        source: SocketAddr,
        port: u16,
    ) -> io::Result<Option<SocketAddr>> {
        self.0.take_original_destination(netns, source, port)
    }

    fn claim(&self, socket: BorrowedFd<'_>, client: Option<SocketAddr>) -> io::Result<()> {
        self.0.claim(socket, client)
    }
}
