mod build;
mod definitions;
mod detached;
mod parts;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::libc;

use crate::id::Id;
use crate::process::{command_in, command_in_cgroup};
use crate::sweep::clean;
use crate::{Node, Process, Relay, cgroup};
pub use build::{build, control_plane_binary, published_definitions};
pub use detached::{DetachedControlPlane, start_detached, stop_detached};
pub(crate) use parts::tails;
use parts::{Part, Serves, port};

/// How long a part may take to start, on a machine that is busy with other things.
const READY_TIMEOUT: Duration = Duration::from_secs(120);

/// The control plane of a Kubernetes cluster on this machine's loopback: etcd, the API server with RBAC, and the
/// controllers for everything but nodes and volumes.
///
/// It has no node, and nothing that schedules or runs pods, unless it is [on one](Self::start_on). Dropping it ends its
/// processes and removes its files.
#[derive(Debug)]
pub struct ControlPlane {
    home: Home,
    binary: PathBuf,
    port: u16,
    place: Place,
    etcd: Mutex<Option<Process>>,
    api: Mutex<Option<Process>>,
    controllers: Mutex<Option<Process>>,
    scheduler: Mutex<Option<Process>>,
}

#[derive(Debug)]
enum Place {
    /// The machine's loopback. The socket keeps the port while no API server has it.
    Loopback { _reserved: OwnedFd },
    /// A node's network, and the way there from the machine's loopback.
    Node { node: Node, _way: Relay },
}

impl Place {
    fn serves(&self) -> Serves {
        match self {
            Self::Loopback { .. } => Serves::Loopback,
            Self::Node { node, .. } => Serves::Nodes(node.ipv4()),
        }
    }
}

impl ControlPlane {
    /// One for all tests of this process, which must share it: each keeps to namespaces of its own. It ends with
    /// the process.
    pub fn shared() -> Result<&'static Self> {
        static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
        STARTED
            .get_or_init(|| {
                let started = Self::start().map_err(|error| format!("{error:#}"))?;
                // Statics are not dropped.
                // SAFETY: the function takes and gives nothing, as atexit(3) wants it, and does not unwind.
                unsafe { libc::atexit(end_shared) };
                SHARED.get_or_init(|| started);
                Ok(())
            })
            .clone()
            .map_err(|error| anyhow!(error))?;
        SHARED.get().context("the control plane has ended")
    }

    /// One of one's own.
    pub fn start() -> Result<Self> {
        let (reserved, port) = port()?;
        let started = Self::start_at(port, Place::Loopback { _reserved: reserved });
        started.context("starting a Kubernetes control plane")
    }

    /// One with a scheduler, whose API server is on a node's network and is there for [nodes](crate::KubeNode) of the
    /// same testbed. From this machine it is reached like any other.
    pub fn start_on(node: &Node) -> Result<Self> {
        let way = Relay::to_node(node)?;
        let port = way.port();
        let started = Self::start_at(port, Place::Node { node: node.clone(), _way: way });
        started.with_context(|| format!("starting a Kubernetes control plane on {}", node.name()))
    }

    fn start_at(port: u16, place: Place) -> Result<Self> {
        let home = Home::create()?;
        let binary = control_plane_binary()?;
        parts::credentials(&binary, &home.dir, port, place.serves())?;
        let none = || Mutex::new(None);
        let plane = Self {
            home,
            binary,
            port,
            place,
            etcd: none(),
            api: none(),
            controllers: none(),
            scheduler: none(),
        };
        plane.run(Part::Etcd, &plane.etcd)?;
        plane.start_api()?;
        plane.run(Part::Controllers, &plane.controllers)?;
        if let Place::Node { .. } = plane.place {
            plane.run(Part::Scheduler, &plane.scheduler)?;
        }
        plane.wait_ready("controllers")?;
        Ok(plane)
    }

    /// For whom may do everything.
    pub fn kubeconfig(&self) -> PathBuf {
        self.home.dir.join("admin.kubeconfig")
    }

    /// The address of the node that it is on.
    pub fn node_address(&self) -> Option<Ipv4Addr> {
        match &self.place {
            Place::Loopback { .. } => None,
            Place::Node { node, .. } => Some(node.ipv4()),
        }
    }

    /// Makes kubeconfigs for a node's kubelet and kube-proxy.
    pub(crate) fn node_kubeconfigs(&self, node: &str) -> Result<[PathBuf; 2]> {
        let address = self.node_address().context("this control plane is for no nodes")?;
        let mut command = Command::new(&self.binary);
        command.arg("node-credentials").arg(&self.home.dir);
        command.args([&format!("https://{address}:{}", self.port), node]);
        checked(&mut command, "making a node's credentials")?;
        Ok(["", "-proxy"].map(|suffix| self.home.dir.join(format!("{node}{suffix}.kubeconfig"))))
    }

    /// Waits until a node is ready for pods.
    pub(crate) fn wait_for_node(&self, node: &str) -> Result<()> {
        self.wait_ready(&format!("node/{node}"))
    }

    /// Where the API server listens, with a certificate for this address.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// The CA's certificate, as PEM.
    pub fn authority(&self) -> Result<String> {
        fs::read_to_string(self.home.dir.join("ca.crt")).context("reading the cluster's CA certificate")
    }

    /// A command that runs on the machine's own network and ends with the control plane at the latest.
    pub fn command(&self, program: &Path) -> Result<Command> {
        command_in_cgroup(&program.to_string_lossy(), &self.home.cgroup)
    }

    /// The directory of its files, which go with it.
    pub fn dir(&self) -> &Path {
        &self.home.dir
    }

    /// What service accounts have asked the API server on a loopback for: events of `audit.k8s.io/v1`, one a line.
    pub fn asked(&self) -> Result<String> {
        let path = self.home.dir.join("audit.log");
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }

    /// Kills the API server.
    pub fn stop_api(&self) {
        *lock(&self.api) = None;
    }

    /// Starts the API server if it was stopped, and waits until it answers.
    pub fn start_api(&self) -> Result<()> {
        if lock(&self.api).is_none() {
            self.run(Part::Api, &self.api)?;
        }
        self.wait_ready("api")
    }

    fn run(&self, part: Part, place: &Mutex<Option<Process>>) -> Result<()> {
        let binary = self.binary.to_string_lossy();
        let command = match &self.place {
            Place::Loopback { .. } => command_in_cgroup(&binary, &self.home.cgroup)?,
            Place::Node { node, .. } => command_in(&binary, node.netns(), &self.home.cgroup)?,
        };
        *lock(place) = Some(part.start(command, &self.home.dir, self.port, self.place.serves())?);
        Ok(())
    }

    fn wait_ready(&self, what: &str) -> Result<()> {
        let mut command = Command::new(&self.binary);
        parts::wait_ready(&mut command, &self.kubeconfig(), what, READY_TIMEOUT)
            .with_context(|| format!("the parts' logs end:\n{}", parts::log_tails(&self.home.dir)))
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        for part in [&self.scheduler, &self.controllers, &self.api, &self.etcd] {
            *lock(part) = None;
        }
    }
}

static SHARED: OnceLock<ControlPlane> = OnceLock::new();

extern "C" fn end_shared() {
    if let Some(plane) = SHARED.get() {
        for part in [&plane.scheduler, &plane.controllers, &plane.api, &plane.etcd] {
            *lock(part) = None;
        }
        plane.home.remove();
    }
}

/// The directory and the cgroup of a control plane, which [`sweep`](crate::sweep) knows too.
#[derive(Debug)]
struct Home {
    id: Id,
    dir: PathBuf,
    cgroup: PathBuf,
}

impl Home {
    fn create() -> Result<Self> {
        let id = Id::new()?;
        let dir = std::env::temp_dir().join(id.to_string());
        let cgroup = cgroup::root()?.join(id.to_string());
        let home = Self { id, dir, cgroup };
        fs::create_dir(&home.dir).with_context(|| format!("creating {}", home.dir.display()))?;
        cgroup::create(&home.cgroup)?;
        Ok(home)
    }

    fn remove(&self) {
        if let Err(error) = clean(&self.id) {
            eprintln!("cleaning up after the control plane {}: {error:#}", self.id);
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.remove();
    }
}

fn lock(part: &Mutex<Option<Process>>) -> MutexGuard<'_, Option<Process>> {
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Fails with what to do unless the output says that all went well.
pub(crate) fn checked(command: &mut Command, what: &str) -> Result<()> {
    let output = command.output().with_context(|| format!("{what}: running {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!("{what}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
