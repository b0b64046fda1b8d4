//! `orlop gate`: holds pods of the mesh that kubelet starts by itself, which no agent is asked for. These are static pods,
//! and after a reboot, until an agent serves, those that the node had.

use std::{
    collections::{BTreeSet, HashSet},
    env, fs,
    io::ErrorKind,
    os::unix::{fs::MetadataExt as _, net::UnixDatagram},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use anyhow::Context as _;
use nix::unistd::geteuid;
use orlop_datapath::{CgroupId, Datapath, DatapathError, Gate, Place};
use orlop_kube::WorldFile;
use orlop_model::uids_in_mesh;
use orlop_proxy::Netns;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use super::{
    MOMENT, each,
    static_pods::{StaticPod, StaticPods},
    unit,
};
use crate::{
    check,
    cli::{GateArguments, PlaceArguments},
    handover, logging,
    sandboxes::PodCgroups,
};

/// Runs until it is told to stop, or another program, or none, is where this one was.
pub fn run(arguments: &GateArguments) -> anyhow::Result<()> {
    logging::start(&arguments.log)?;
    anyhow::ensure!(geteuid().is_root(), "orlop gate needs root, to load eBPF");
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(gate(arguments))
}

async fn gate(arguments: &GateArguments) -> anyhow::Result<()> {
    let program = Program::own()?;
    let place = &arguments.place;
    let mut holding = Holding::new(arguments)?;
    holding.learn()?;
    if !holding.wanted.is_empty() {
        holding.datapath()?;
    }
    unit::mark(&place.run_dir)?;
    tracing::info!(pods = holding.wanted.len(), "pods of the mesh are held from their start on");
    tell_ready()?;
    let mut terminate = signal(SignalKind::terminate())?;
    loop {
        holding.hold_new();
        tokio::select! {
            () = sleep(MOMENT) => {}
            _ = terminate.recv() => {
                tracing::warn!("told to stop: pods that start now are held by an agent alone");
                return Ok(());
            }
        }
        match program.is_there() {
            Some(true) => {}
            Some(false) => {
                anyhow::bail!("another version of this program is there, which systemd is to start")
            }
            None => {
                tracing::info!("nobody wants pods to be held any more");
                return Ok(());
            }
        }
    }
}

/// What this process runs.
struct Program {
    path: PathBuf,
    file: (u64, u64),
}

impl Program {
    fn own() -> anyhow::Result<Self> {
        let path = env::current_exe().context("cannot tell which program this is")?;
        let metadata = fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { path, file: (metadata.dev(), metadata.ino()) })
    }

    /// Whether it is still what is there; `None` if nothing is.
    fn is_there(&self) -> Option<bool> {
        match fs::metadata(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            found => Some(found.is_ok_and(|found| (found.dev(), found.ino()) == self.file)),
        }
    }
}

/// The pods that are held when their cgroups come.
struct Holding<'a> {
    place: &'a PlaceArguments,
    /// Open once somebody is to be held.
    datapath: Option<Arc<Datapath>>,
    cgroups: PodCgroups,
    statics: StaticPods,
    world: WorldFile,
    /// What `wanted` was made of.
    seen: Option<Seen>,
    /// By UID.
    wanted: HashSet<Arc<str>>,
    /// Each once: an agent may have let go of it.
    held: HashSet<CgroupId>,
    /// What was the matter with the last step, which is told once.
    problem: Option<String>,
}

#[derive(PartialEq)]
struct Seen {
    is_served: bool,
    statics: Arc<BTreeSet<StaticPod>>,
    /// Which file the last known world is in, of which change; `None` where it does not matter, or there is none.
    world: Option<(u64, SystemTime)>,
}

impl<'a> Holding<'a> {
    fn new(arguments: &'a GateArguments) -> anyhow::Result<Self> {
        let place = &arguments.place;
        let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
        Ok(Self {
            place,
            datapath: None,
            cgroups: PodCgroups::new(place.pods_cgroup.as_deref(), place.cgroup.as_deref(), &mounts),
            statics: StaticPods::new(&arguments.static_pods, &place.node),
            world: WorldFile::new(&place.state_dir, &place.node),
            seen: None,
            wanted: HashSet::new(),
            held: HashSet::new(),
            problem: None,
        })
    }

    /// Looks who is to be held by what the last agent knew: static pods, and, while nobody serves, all pods of the mesh
    /// that this node had, also those that have ended. If that can't be told it stays as it was.
    fn learn(&mut self) -> anyhow::Result<()> {
        let is_served = handover::is_served(&self.place.run_dir);
        let statics = self.statics.found().context("cannot list the directories of pods' logs")?;
        let matters = !is_served || !statics.is_empty();
        let world = fs::metadata(self.world.path()).ok().filter(|_| matters);
        let world = world.and_then(|file| Some((file.ino(), file.modified().ok()?)));
        let seen = Seen { is_served, statics, world };
        if self.seen.as_ref() == Some(&seen) {
            return Ok(());
        }
        let Seen { statics, .. } = self.seen.insert(seen);
        let world = if world.is_some() { self.world.read()? } else { None };
        self.wanted = match world {
            Some(world) => uids_in_mesh(&world, &self.place.node, &self.statics.pods(statics)),
            None => HashSet::new(),
        };
        if is_served {
            let uids: HashSet<_> = statics.iter().map(|pod| &pod.uid).collect();
            self.wanted.retain(|uid| uids.contains(uid));
        }
        Ok(())
    }

    fn hold_new(&mut self) {
        let learnt = self.learn().err().map(|error| format!("{error:#}; going by what was known before"));
        let held = self.hold_all();
        let problem = learnt.or(held);
        if problem != self.problem
            && let Some(error) = &problem
        {
            tracing::error!(error, "the boot gate is not as it should be");
        }
        self.problem = problem;
    }

    fn hold_all(&mut self) -> Option<String> {
        if self.wanted.is_empty() {
            return None;
        }
        let mut cgroups = match self.cgroups.all() {
            // kubelet has not made where they are.
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => return Some(format!("cannot list the pods' cgroups: {error}")),
            Ok(cgroups) => cgroups,
        };
        cgroups.retain(|(uid, _)| self.wanted.contains(&**uid));
        if cgroups.is_empty() {
            return None;
        }
        match self.datapath() {
            Ok(datapath) => each(&cgroups, |(_, path)| self.hold(datapath.gate(), path)),
            Err(error) => Some(format!("{error:#}")),
        }
    }

    fn hold(&mut self, gate: &Gate, path: &Path) -> Result<(), DatapathError> {
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

    /// With the hooks in force.
    fn datapath(&mut self) -> anyhow::Result<Arc<Datapath>> {
        if let Some(datapath) = &self.datapath {
            return Ok(Arc::clone(datapath));
        }
        let datapath = attach(self.place)?;
        Ok(Arc::clone(self.datapath.insert(datapath)))
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
    // An agent that serves has them in force.
    let attach = |datapath: &Datapath| match handover::is_served(&place.run_dir) {
        true => Ok(()),
        false => datapath.attach(),
    };
    let datapath = Datapath::open(&of).and_then(|datapath| attach(&datapath).map(|()| datapath));
    datapath.map(Arc::new).map_err(|error| check::explain(error, of.bpffs, of.cgroup))
}

/// Tells systemd, if that has started it (sd_notify(3)).
fn tell_ready() -> anyhow::Result<()> {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let socket = UnixDatagram::unbound().context("cannot make a socket")?;
    let told = socket.send_to(b"READY=1", &path);
    told.with_context(|| format!("cannot tell systemd at {}", path.display())).map(drop)
}
