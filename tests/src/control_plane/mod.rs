mod build;
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
use crate::process::command_in_cgroup;
use crate::sweep::clean;
use crate::{Process, cgroup};
pub use build::{build, control_plane_binary};
pub use detached::{DetachedControlPlane, start_detached, stop_detached};
use parts::{Part, port};

/// How long a part may take to start, on a machine that is busy with other things.
const READY_TIMEOUT: Duration = Duration::from_secs(120);

/// The control plane of a Kubernetes cluster on this machine's loopback: etcd, the API server with RBAC, and the
/// controllers for everything but nodes and volumes.
///
/// It has no node, and nothing that schedules or runs pods. Dropping it ends its processes and removes its files.
#[derive(Debug)]
pub struct ControlPlane {
    home: Home,
    binary: PathBuf,
    port: u16,
    // Keeps the port while no API server has it.
    _reserved: OwnedFd,
    etcd: Mutex<Option<Process>>,
    api: Mutex<Option<Process>>,
    controllers: Mutex<Option<Process>>,
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
        let home = Home::create()?;
        let started = Self::start_in(&home.dir.clone(), home);
        started.context("starting a Kubernetes control plane")
    }

    fn start_in(dir: &Path, home: Home) -> Result<Self> {
        let binary = control_plane_binary()?;
        let (reserved, port) = port()?;
        parts::credentials(&binary, dir, port)?;
        let none = || Mutex::new(None);
        let plane =
            Self { home, binary, port, _reserved: reserved, etcd: none(), api: none(), controllers: none() };
        plane.run(Part::Etcd, &plane.etcd)?;
        plane.start_api()?;
        plane.run(Part::Controllers, &plane.controllers)?;
        plane.wait_ready("controllers")?;
        Ok(plane)
    }

    /// For whom may do everything.
    pub fn kubeconfig(&self) -> PathBuf {
        self.home.dir.join("admin.kubeconfig")
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
        let command = command_in_cgroup(&self.binary.to_string_lossy(), &self.home.cgroup)?;
        *lock(place) = Some(part.start(command, &self.home.dir, self.port)?);
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
        for part in [&self.controllers, &self.api, &self.etcd] {
            *lock(part) = None;
        }
    }
}

static SHARED: OnceLock<ControlPlane> = OnceLock::new();

extern "C" fn end_shared() {
    if let Some(plane) = SHARED.get() {
        for part in [&plane.controllers, &plane.api, &plane.etcd] {
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
