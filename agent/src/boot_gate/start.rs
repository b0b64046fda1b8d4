//! `orlop gate`: holds the node's pods of the mesh from its start on.

use std::{
    collections::HashSet,
    fs,
    io::ErrorKind,
    os::unix::net::UnixDatagram,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::unistd::geteuid;
use orlop_datapath::{CgroupId, Datapath, DatapathError, Place};
use orlop_kube::WorldFile;
use orlop_model::uids_in_mesh;
use orlop_proxy::Netns;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use super::{MOMENT, each, unit};
use crate::{
    check,
    cli::{GateArguments, PlaceArguments},
    handover, logging,
    sandboxes::PodCgroups,
};

/// How long an agent has to serve for this to be its own affair. By then kubelet has made the cgroups of all pods that
/// the node had.
const SETTLED: Duration = Duration::from_secs(10);

/// Runs until an agent serves, which has the hooks from then on, and whom they hold.
pub fn run(arguments: &GateArguments) -> anyhow::Result<()> {
    logging::start(&arguments.log)?;
    anyhow::ensure!(geteuid().is_root(), "orlop gate needs root, to load eBPF");
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(gate(&arguments.place))
}

async fn gate(place: &PlaceArguments) -> anyhow::Result<()> {
    let known = Known { world: WorldFile::new(&place.state_dir, &place.node), node: &place.node };
    let pods = match handover::is_served(&place.run_dir) {
        true => HashSet::new(),
        false => known.pods()?,
    };
    if pods.is_empty() {
        tracing::info!("an agent serves, or this node had no pods of the mesh");
        unit::mark(&place.run_dir)?;
        return tell_ready();
    }
    let datapath = attach(place)?;
    unit::mark(&place.run_dir)?;
    tracing::info!(pods = pods.len(), "this node's pods of the mesh are held until an agent serves");
    tell_ready()?;

    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    let cgroups = PodCgroups::new(place.pods_cgroup.as_deref(), place.cgroup.as_deref(), &mounts);
    let held = HashSet::new();
    let mut holding = Holding { datapath, cgroups, pods, held, problem: None };
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        () = until_an_agent_serves(&mut holding, &known, &place.run_dir) => tracing::info!("an agent serves"),
        _ = terminate.recv() => tracing::warn!("told to stop: pods that start now are held by an agent alone"),
    }
    Ok(())
}

/// Holds pods as long as nobody serves, and ends once somebody has for a while.
async fn until_an_agent_serves(holding: &mut Holding, known: &Known<'_>, run_dir: &Path) {
    let mut served: Option<Instant> = None;
    loop {
        // One that serves lets go of who has left the mesh meanwhile.
        match (handover::is_served(run_dir), served) {
            (true, Some(since)) if since.elapsed() >= SETTLED => return,
            (true, since) => served = since.or_else(|| Some(Instant::now())),
            (false, since) => {
                if since.is_some() {
                    // It has died, and knew more.
                    match known.pods() {
                        Ok(pods) => holding.pods = pods,
                        Err(error) => tracing::error!("{error:#}; going by what was known before"),
                    }
                }
                served = None;
                holding.hold_new();
            }
        }
        sleep(MOMENT).await;
    }
}

/// What the last agent knew.
struct Known<'a> {
    world: WorldFile,
    node: &'a str,
}

impl Known<'_> {
    /// The UIDs of this node's pods of the mesh, also of those that have ended: kubelet starts static ones again.
    fn pods(&self) -> anyhow::Result<HashSet<Arc<str>>> {
        let world = self.world.read()?;
        Ok(world.map(|world| uids_in_mesh(&world, self.node)).unwrap_or_default())
    }
}

/// The pods that are held when their cgroups come.
struct Holding {
    datapath: Arc<Datapath>,
    cgroups: PodCgroups,
    pods: HashSet<Arc<str>>,
    /// Each once: an agent may have let go of it.
    held: HashSet<CgroupId>,
    /// What was the matter with the last step, which is told once.
    problem: Option<String>,
}

impl Holding {
    fn hold_new(&mut self) {
        let problem = match self.cgroups.all() {
            Ok(cgroups) => each(&cgroups, |(uid, path)| self.hold(uid, path)),
            // kubelet has not made where they are.
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => Some(format!("cannot list the pods' cgroups: {error}")),
        };
        if problem != self.problem
            && let Some(error) = &problem
        {
            tracing::error!(error, "the boot gate is not as it should be");
        }
        self.problem = problem;
    }

    fn hold(&mut self, uid: &str, path: &Path) -> Result<(), DatapathError> {
        if !self.pods.contains(uid) {
            return Ok(());
        }
        let gate = self.datapath.gate();
        let id = match gate.id(path) {
            Err(DatapathError::File { source, .. }) if source.kind() == ErrorKind::NotFound => return Ok(()),
            id => id?,
        };
        if !self.held.contains(&id) {
            gate.hold(id)?;
            self.held.insert(id);
        }
        Ok(())
    }
}

/// Puts the hooks in force.
fn attach(place: &PlaceArguments) -> anyhow::Result<Arc<Datapath>> {
    let own_netns = Netns::open(Path::new("/proc/self/ns/net")).context("cannot open our own netns")?;
    check::require_capabilities(true)?;
    let of = Place {
        bpffs: &place.bpffs,
        cgroup: place.cgroup.as_deref(),
        // kubelet makes it, later.
        pods_cgroup: place.pods_cgroup.as_deref().filter(|path| path.is_dir()),
        node: own_netns.cookie(),
        boot_gate: true,
    };
    let datapath = Datapath::open(&of).and_then(|datapath| datapath.attach().map(|()| datapath));
    datapath.map(Arc::new).map_err(|error| check::explain(error, of.bpffs, of.cgroup))
}

/// Tells systemd, if that has started it (sd_notify(3)).
fn tell_ready() -> anyhow::Result<()> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let socket = UnixDatagram::unbound().context("cannot make a socket")?;
    let told = socket.send_to(b"READY=1", &path);
    told.with_context(|| format!("cannot tell systemd at {}", path.display())).map(drop)
}
