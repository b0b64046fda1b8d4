//! `orlop node`: world → snapshot → kernel and proxy.

use std::{
    fs, future, io, mem,
    net::{IpAddr, SocketAddr},
    os::fd::BorrowedFd,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use nix::unistd::geteuid;
use orlop_datapath::{Datapath, Place, Services, Sockets, Verdicts, let_go_of_code};
use orlop_identity::{DEFAULT_LIFETIME, Identities};
use orlop_model::{Choice, Snapshot};
use orlop_proxy::{Config, DnsConfig, Kernel, Metrics, Netns, Proxy};
use prometheus_client::registry::Registry;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
    time::timeout,
};

use crate::{
    admin::{self, Admin, Servers},
    authority::Authority,
    boot_gate::{
        Behind, BootGate,
        unit::{self, Unit},
    },
    check,
    cli::{CleanArguments, NodeArguments, SameNode, Switch},
    enrolment::{Applied, Enrolment, Status},
    events, figures,
    handover::{
        self, Coming, Door, Estate, HANDOVER, Leaving, Meeting, Predecessor, ServerSockets, Successor,
    },
    hosts::Names,
    keeper::Keeping,
    last_world, limits, logging,
    sandboxes::{Changes, PodCgroups, Sandboxes},
    source::Source,
    udp,
    worlds::Worlds,
};

/// Runs until SIGTERM or SIGINT, and then until the connections have ended or the drain timeout is over.
pub fn run(arguments: NodeArguments) -> anyhow::Result<()> {
    logging::start(&arguments.log)?;
    anyhow::ensure!(geteuid().is_root(), "orlop node needs root, to load eBPF and to enter pods' namespaces");
    let descriptors = limits::raise_descriptors(arguments.max_descriptors);
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(node(arguments, descriptors))
}

/// Removes the pins.
pub fn clean(arguments: &CleanArguments) -> anyhow::Result<()> {
    unit::forget(&arguments.state_dir)?;
    orlop_datapath::remove(&arguments.bpffs).map_err(Into::into)
}

async fn node(arguments: NodeArguments, descriptors: usize) -> anyhow::Result<()> {
    check::require_capabilities(arguments.gate.boot_gate)?;
    let at = &arguments.place;
    // Before anything is changed: a world that can't be read leaves what is in force as it is.
    let Arrival { coming, world, mut predecessor } = arrive(&arguments).await?;
    let authority = Authority::open(&arguments.authority, &arguments.names.trust_domain)?;
    let identities = Identities::new(authority.ca, arguments.names.trust_domain.clone(), DEFAULT_LIFETIME);
    if predecessor.is_some() && world.is_kept() {
        bail!("another agent serves this node by now, which knows more of the world than the disk");
    }
    let own_netns = Netns::open(Path::new("/proc/self/ns/net")).context("cannot open our own netns")?;
    let place = Place {
        bpffs: &at.bpffs,
        cgroup: at.cgroup.as_deref(),
        pods_cgroup: at.pods_cgroup.as_deref(),
        node: own_netns.cookie(),
        boot_gate: arguments.gate.boot_gate,
    };
    let open = || {
        let datapath = Datapath::open(&place)?;
        // While another agent serves, its programs do too.
        if predecessor.is_none() {
            datapath.attach()?;
        }
        Ok(Arc::new(datapath))
    };
    let datapath = open().map_err(|error| check::explain(error, place.bpffs, place.cgroup))?;
    if let Some(note) = check::no_pods_cgroup(place.cgroup, place.pods_cgroup) {
        tracing::warn!("{note}");
    }
    let same_node = spares_the_proxy(arguments.same_node);

    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    registry.register_collector(Box::new(admin::Refused(Arc::clone(&datapath))));
    let status = watch::Sender::new(Status::default());
    registry.register_collector(Box::new(last_world::Gauge(status.subscribe())));
    registry.register_collector(Box::new(figures::Pods(status.subscribe())));
    registry.register_collector(Box::new(figures::Certificates(identities.clone())));
    let counts = udp::Counts { datapath: Arc::clone(&datapath), status: status.subscribe() };
    registry.register_collector(Box::new(counts));
    if arguments.gate.boot_gate {
        registry.register_collector(Box::new(Behind(Arc::clone(&datapath))));
    }
    let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
    let proxy = Arc::new(Proxy::start(
        config(&arguments, descriptors),
        Arc::clone(&snapshot),
        identities.clone(),
        SocketHooks {
            sockets: datapath.sockets().clone(),
            same_node: same_node.then(|| (datapath.verdicts().clone(), datapath.services().clone())),
        },
        metrics,
    )?);

    let events = events::Reader::start(&datapath, Arc::clone(&snapshot), Arc::clone(&proxy))?;
    let admin = Admin {
        node: at.node.clone(),
        run_dir: at.run_dir.clone(),
        datapath: Arc::clone(&datapath),
        registry: Arc::new(registry),
        snapshot: Arc::clone(&snapshot),
        proxy: Arc::clone(&proxy),
        identities: identities.clone(),
        status: status.subscribe(),
    };
    let mut none = ServerSockets::new();
    let inherited = predecessor.as_mut().map_or(&mut none, |predecessor| &mut predecessor.servers);
    let servers = Servers::listen(arguments.admin, arguments.metrics, arguments.ready, inherited).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let cgroups = at.cgroup.clone().or_else(|| orlop_datapath::cgroup2_mount().ok());
    let memory = arguments.max_memory.or_else(|| limits::memory_of_cgroup(&cgroups?));
    if let Some(limit) = memory {
        let proxy = Arc::clone(&proxy);
        tokio::spawn(async move {
            limits::watch_memory(limit, |short| proxy.set_short_of_memory(short)).await;
        });
    }
    let renewal = identities.clone();
    tokio::spawn(async move { renewal.run().await });
    tokio::spawn(authority.upkeep);
    let takes_over = predecessor.is_some();
    let (keeper, inherited) = match &mut predecessor {
        Some(predecessor) => (Keeping::new(&at.run_dir), mem::take(&mut predecessor.pods)),
        None => Keeping::arrive(&at.run_dir).await,
    };
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    let sandboxes = Sandboxes::new(at.pods_cgroup.as_deref(), at.cgroup.as_deref(), &mounts);
    let sandbox_changes = sandboxes.watch().context("cannot watch pods' cgroups")?;
    let boot_gate = arguments.gate.boot_gate.then(|| {
        let cgroups = PodCgroups::new(at.pods_cgroup.as_deref(), at.cgroup.as_deref(), &mounts);
        let kubelet = &arguments.gate.kubelet_dir;
        BootGate::new(&at.node, kubelet, Arc::clone(&datapath), cgroups)
    });
    let enrolment = Enrolment::new(
        Arc::clone(&datapath),
        Arc::clone(&proxy),
        identities,
        sandboxes,
        same_node,
        inherited,
        takes_over,
    );
    let settings = arguments.names.settings(&at.node);
    let names = Names::start(arguments.host_resolver);
    let publisher = Arc::clone(&proxy);
    let publish = move |snapshot| publisher.publish(snapshot);
    let mut keeping = JoinSet::new();
    let mut worlds = Worlds::new(world.watch(&mut keeping), names, settings, Box::new(publish));
    worlds.resolve().await;
    let mut agent = Agent {
        node: at.node.clone(),
        datapath,
        proxy: Arc::clone(&proxy),
        admin,
        servers,
        status,
        sandbox_changes,
        boot_gate,
        unit: Unit::of(&arguments),
        from_start: watch::channel(false).1,
        keeper,
        coming: Some(coming),
        serving: watch::Sender::new(false),
        giving: watch::Sender::new(false),
        given_up: JoinSet::new(),
    };
    let (serving, mut giving) = (agent.serving.subscribe(), agent.giving.subscribe());
    let mut told = false;
    let stopped = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        told = true;
        // Another that is to be waited for comes to one that serves; this one may be coming itself.
        if !*serving.borrow() {
            return;
        }
        // Nobody would serve if this one went now.
        let come = async {
            handover::nobody_awaited(&at.run_dir).await;
            let _ = giving.wait_for(|giving| !giving).await;
        };
        if timeout(HANDOVER, come).await.is_err() {
            tracing::warn!(after = ?HANDOVER, "the agent that comes does not serve yet; stopping all the same");
        }
    };
    let successor = tokio::select! {
        result = agent.run(&mut worlds, enrolment, predecessor, &at.run_dir) => Some(result?),
        () = stopped => None,
    };

    events.stop();
    agent.status.send_modify(|status| status.draining = true);
    let timeout = arguments.drain_timeout;
    match successor {
        Some(successor) => {
            // From here on that one keeps its own.
            keeping.abort_all();
            tracing::info!(
                connections = proxy.connections(),
                ?timeout,
                "handed over; keeping what can't be moved"
            );
            let left = leave(&mut worlds, &proxy, &successor, timeout).await?;
            if arguments.linger && !told {
                tracing::info!(connections = left, "waiting to be told to stop");
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                    () = handover::nobody_serves(&at.run_dir) => {}
                }
            }
            tracing::info!(connections = left, "stopped");
        }
        None => {
            tracing::info!(connections = proxy.connections(), ?timeout, "draining");
            let left = drain(&proxy, &agent.keeper, &at.run_dir, timeout).await;
            let next =
                if agent.keeper.holds() { "who dials waits for it" } else { "enrolled pods are refused" };
            tracing::info!(connections = left, "stopped; until an agent is back, {next}");
        }
    }
    Ok(())
}

/// An agent that has changed nothing yet.
struct Arrival {
    coming: Coming,
    world: Source,
    predecessor: Option<Box<Predecessor>>,
}

/// Reads the world, and meets the agent that serves if there is one. One of another version is waited for.
async fn arrive(arguments: &NodeArguments) -> anyhow::Result<Arrival> {
    let run_dir = &arguments.place.run_dir;
    loop {
        let coming = Coming::announce(run_dir);
        let coming = coming.with_context(|| format!("cannot use --run-dir {}", run_dir.display()))?;
        let world = Source::open(arguments).await?;
        let predecessor = match Predecessor::meet(run_dir, &arguments.place.node).await? {
            Meeting::Nobody => None,
            Meeting::Predecessor(predecessor) => Some(predecessor),
            Meeting::Foreigner(foreigner) => {
                // Whoever replaces agents is to end it.
                drop((coming, world));
                tracing::warn!("waiting until the agent that runs has ended: {}", foreigner.reason);
                let mut terminate = signal(SignalKind::terminate())?;
                tokio::select! {
                    () = foreigner.ended() => continue,
                    _ = terminate.recv() => bail!("told to stop while it waited for the agent that runs to end"),
                }
            }
        };
        return Ok(Arrival { coming, world, predecessor });
    }
}

/// After another agent has taken over: moves what can be moved, and keeps the rest until it has ended or
/// `timeout` has passed. Policy applies to it as before.
async fn leave(
    worlds: &mut Worlds,
    proxy: &Proxy,
    successor: &Successor,
    timeout: Duration,
) -> anyhow::Result<usize> {
    let mut leaving = Leaving::new(proxy.hand_over());
    let start = Instant::now();
    loop {
        let was_open = leaving.is_open();
        let left = tokio::select! {
            left = proxy.drain(timeout.saturating_sub(start.elapsed()), false) => left,
            never = worlds.publish_all() => match never? {},
            () = async {
                successor.move_all(&mut leaving, proxy).await;
                future::pending().await
            } => unreachable!("it is pending"),
        };
        successor.move_rest(&mut leaving, proxy).await;
        // What the other agent did not take is here again.
        if leaving.is_open() == was_open {
            return Ok(left);
        }
    }
}

/// Nobody takes over: lets what is open end. Whoever dials meanwhile waits in what the keeper holds, or is refused.
async fn drain(proxy: &Proxy, keeper: &Keeping, run_dir: &Path, timeout: Duration) -> usize {
    let start = Instant::now();
    let mut held = keeper.leave();
    if held {
        tokio::select! {
            left = proxy.drain(timeout, true) => return left,
            () = keeper.lost() => {}
        }
        // One that has come meanwhile has the same sockets.
        held = handover::is_awaited(run_dir) || handover::is_served(run_dir);
    }
    proxy.drain(timeout.saturating_sub(start.elapsed()), held).await
}

/// The running agent.
struct Agent {
    node: String,
    datapath: Arc<Datapath>,
    proxy: Arc<Proxy>,
    admin: Admin,
    servers: Servers,
    status: watch::Sender<Status>,
    sandbox_changes: Changes,
    boot_gate: Option<BootGate>,
    /// Until it serves.
    unit: Option<Unit>,
    /// Whether pods are held from the node's start on.
    from_start: watch::Receiver<bool>,
    keeper: Keeping,
    /// Until it serves.
    coming: Option<Coming>,
    serving: watch::Sender<bool>,
    /// Whether everything is being given to another agent, or has been.
    giving: watch::Sender<bool>,
    /// New agents that did not get ready, for as long as they run.
    given_up: JoinSet<()>,
}

impl Agent {
    /// Puts each state of the world in force, until another agent has taken over.
    async fn run(
        &mut self,
        worlds: &mut Worlds,
        mut enrolment: Enrolment,
        mut predecessor: Option<Box<Predecessor>>,
        run_dir: &Path,
    ) -> anyhow::Result<Successor> {
        let mut door = None;
        if predecessor.is_none() {
            door = Some(Door::open(run_dir)?);
            self.serve()?;
        }
        let mut starting = true;
        loop {
            let snapshot = worlds.publish();
            loop {
                // First, so that a pod that has left the mesh is not held once it is withdrawn.
                if predecessor.is_none()
                    && let Some(gate) = &mut self.boot_gate
                    && let Some(gated) = gate.keep(&snapshot, *self.from_start.borrow_and_update())
                {
                    self.status.send_modify(|status| status.gated = Some(gated));
                }
                let mut applied;
                (enrolment, applied) = tokio::select! {
                    applied = enrolment.apply(Arc::clone(&snapshot)) => applied?,
                    Some(error) = given_up(predecessor.as_deref()) => return Err(error),
                };
                if let Some(predecessor) = predecessor.take() {
                    door = Some(self.take_over(predecessor, &applied).await?);
                    enrolment.taken_over();
                    // Only now is it this agent's to withdraw and to cut what its world does not hold.
                    (enrolment, applied) = enrolment.apply(Arc::clone(&snapshot)).await?;
                }
                self.keeper.renew(enrolment.kept());
                let (complete, waiting) = (applied.failed.is_empty(), !applied.waiting.is_empty());
                self.status.send_modify(|status| status.applied(&snapshot, applied));
                if mem::take(&mut starting) {
                    // All that it is for is to have less in memory.
                    let_go_of_code().unwrap_or_else(|error| tracing::debug!(%error, "code stays in memory"));
                }
                let door = door.as_mut().context("nobody listens in --run-dir")?;
                let waits = enrolment.waits();
                // A pod whose netns is not there yet will have one soon.
                tokio::select! {
                    changed = worlds.changed() => break changed?,
                    Ok(()) = self.from_start.changed() => {}
                    changed = self.sandbox_changes.next() => changed.context("cannot watch pods' cgroups")?,
                    () = tokio::time::sleep(Enrolment::RETRY), if !complete => {}
                    () = tokio::time::sleep(Enrolment::LOOK_AGAIN), if waiting => {}
                    () = tokio::time::sleep(Enrolment::RETRY_DNS), if enrolment.lacks_dns() => {}
                    () = tokio::time::sleep(waits.unwrap_or_default()), if waits.is_some() => {}
                    // It may have replaced something after it was given up.
                    Some(_) = self.given_up.join_next() => enrolment.restore()?,
                    successor = door.knock() => match self.give(worlds, &mut enrolment, door, successor).await? {
                        Some(successor) => return Ok(successor),
                        None => break,
                    }
                }
            }
        }
    }

    fn serve(&mut self) -> anyhow::Result<()> {
        self.proxy.serve();
        self.serving.send_replace(true);
        self.coming = None;
        self.keeper.begin();
        self.servers.serve(&self.admin);
        if let Some(unit) = self.unit.take() {
            self.from_start = unit.renew();
        }
        self.boot_gate.as_mut().map_or(Ok(()), BootGate::serve)
    }

    /// Takes over from the agent before, once every pod is enrolled here too.
    async fn take_over(
        &mut self,
        mut predecessor: Box<Predecessor>,
        applied: &Applied,
    ) -> anyhow::Result<Door> {
        if let Some(lost) = predecessor.loses(&applied.failed) {
            bail!("cannot take over from the agent that runs, which serves on: {lost}");
        }
        self.datapath.attach()?;
        predecessor.take_over().await.context("the agent that runs does not hand over")?;
        self.serve()?;
        // Those that this agent has no use for.
        predecessor.servers.clear();
        let door = Door::inherit(predecessor.door.try_clone()?)?;
        tracing::info!(pods = applied.enrolled.len(), "taken over from the agent before");
        let proxy = Arc::clone(&self.proxy);
        let expected = proxy.expect();
        tokio::spawn(async move { predecessor.receive_all(&proxy, expected).await });
        Ok(door)
    }

    /// Gives everything to another agent. If that fails it is as if nobody had come.
    async fn give(
        &mut self,
        worlds: &mut Worlds,
        enrolment: &mut Enrolment,
        door: &Door,
        successor: Successor,
    ) -> anyhow::Result<Option<Successor>> {
        tracing::info!("another agent wants to take over");
        let pods: Vec<_> = enrolment.pods().collect();
        let servers: Vec<_> = self.servers.sockets().collect();
        let estate = Estate { node: &self.node, pods: &pods, servers: &servers, door };
        self.giving.send_replace(true);
        let given = tokio::select! {
            given = successor.give(&estate) => given,
            never = worlds.publish_all() => match never? {},
        };
        match given {
            Ok(()) => {
                self.servers.stop();
                self.keeper.hand_over();
                Ok(Some(successor))
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "not handed over; serving on");
                enrolment.restore()?;
                successor.give_up(&format!("{error:#}")).await;
                self.giving.send_replace(false);
                self.given_up.spawn(async move { successor.ended().await });
                Ok(None)
            }
        }
    }
}

/// Until the agent that runs has given this one up, if there is one.
async fn given_up(predecessor: Option<&Predecessor>) -> Option<anyhow::Error> {
    Some(predecessor?.gives_up().await)
}

/// Whether pods of this node talk without the proxy. Where the kernel can't close their connections, policy could
/// not be enforced on them.
fn spares_the_proxy(wanted: SameNode) -> bool {
    if wanted != SameNode::Kernel {
        return false;
    }
    let note = check::cannot_close();
    if let Some(note) = &note {
        tracing::warn!("{note}");
    }
    note.is_none()
}

fn config(arguments: &NodeArguments, descriptors: usize) -> Config {
    let default = Config::default();
    // One to each side of a connection, and some that are no connection's.
    let fit = descriptors / 16 * 7;
    let max_connections = arguments.max_connections.unwrap_or(default.max_connections.min(fit));
    Config {
        workers: arguments.workers.unwrap_or(default.workers),
        connect_timeout: arguments.connect_timeout,
        handshake_timeout: arguments.handshake_timeout,
        idle_timeout: arguments.idle_timeout,
        tunnel_idle_timeout: arguments.tunnel_idle_timeout,
        max_connections,
        max_connections_per_pod: arguments.max_connections_per_pod.unwrap_or(max_connections / 2),
        max_descriptors: descriptors,
        flow_buffer: arguments.flow_buffer,
        dns: DnsConfig {
            enabled: arguments.dns == Switch::On,
            upstream: arguments.dns_upstream,
            ..default.dns
        },
        ..default
    }
}

/// The proxy's view of the kernel side.
struct SocketHooks {
    sockets: Sockets,
    /// Where pods of this node may do without the proxy.
    same_node: Option<(Verdicts, Services)>,
}

impl Kernel for SocketHooks {
    fn original_destination(&self, accepted: BorrowedFd<'_>) -> io::Result<Option<(SocketAddr, Choice)>> {
        self.sockets.original_destination(accepted)
    }

    fn allow(&self, generation: u64, netns: u64, source: IpAddr, destination: SocketAddr) {
        let Some((verdicts, _)) = &self.same_node else { return };
        if let Err(error) = verdicts.allow(generation, netns, source, destination) {
            tracing::warn!(%source, %destination, %error, "pods of this node go on talking through the proxy");
        }
    }

    fn last(&self, netns: u64, service: SocketAddr) -> Option<SocketAddr> {
        let (_, services) = self.same_node.as_ref()?;
        services.last(netns, service).ok().flatten()
    }

    fn went(&self, netns: u64, service: SocketAddr, endpoint: SocketAddr) {
        let Some((_, services)) = &self.same_node else { return };
        if let Err(error) = services.went(netns, service, endpoint) {
            tracing::warn!(%service, %endpoint, %error, "connections to this service go on through the proxy");
        }
    }

    fn resolver(&self, netns: u64, source: SocketAddr) -> io::Result<Option<SocketAddr>> {
        self.sockets.resolver(netns, source)
    }

    fn claim(&self, socket: BorrowedFd<'_>, client: Option<SocketAddr>) -> io::Result<()> {
        self.sockets.claim(socket, client)
    }
}
