//! A control plane that outlives the program that started it, for people.

use std::fmt::Write as _;
use std::fs;
use std::mem;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::parts::{self, Part, Serves};
use super::{READY_TIMEOUT, control_plane_binary};
use crate::Process;
use crate::id::start_time;
use crate::wait_for;

/// What [`start_detached`] started.
#[derive(Debug)]
pub struct DetachedControlPlane {
    /// For whom may do everything.
    pub kubeconfig: PathBuf,
}

const PROCESSES: &str = "processes";

/// Starts a control plane with its files in `dir`; it runs until [`stop_detached`].
pub fn start_detached(dir: &Path) -> Result<DetachedControlPlane> {
    if dir.exists() {
        bail!("there is a cluster in {} already: `cargo xtask cluster down` ends it", dir.display());
    }
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let binary = control_plane_binary()?;
    let kubeconfig = dir.join("admin.kubeconfig");
    let (_reserved, port) = parts::port()?;
    parts::credentials(&binary, dir, port, Serves::Loopback)?;
    let mut started: Vec<Process> = Vec::new();
    let mut record = String::new();
    for part in Part::ALL {
        let process = part.start(Command::new(&binary), dir, port, Serves::Loopback)?;
        let start = start_time(process.pid()).context("a part of the control plane ended at once")?;
        let _ = writeln!(record, "{} {start}", process.pid());
        fs::write(dir.join(PROCESSES), &record).context("writing down what was started")?;
        started.push(process);
        if let Part::Api = part {
            parts::wait_ready(&mut Command::new(&binary), &kubeconfig, "api", READY_TIMEOUT)
                .with_context(|| format!("the parts' logs end:\n{}", parts::log_tails(dir)))?;
        }
    }
    parts::wait_ready(&mut Command::new(&binary), &kubeconfig, "controllers", READY_TIMEOUT)?;
    // It goes on without us.
    started.into_iter().for_each(mem::forget);
    Ok(DetachedControlPlane { kubeconfig })
}

/// Ends the control plane with its files in `dir`, and removes them. Says whether there was one.
pub fn stop_detached(dir: &Path) -> Result<bool> {
    if !dir.exists() {
        return Ok(false);
    }
    let record = fs::read_to_string(dir.join(PROCESSES)).unwrap_or_default();
    for line in record.lines() {
        let Some((pid, start)) = line.split_once(' ') else { continue };
        let (Ok(pid), Ok(start)) = (pid.parse::<u32>(), start.parse::<u64>()) else { continue };
        // One that nobody has waited for is still there, and has no command line any more.
        let command_line = format!("/proc/{pid}/cmdline");
        let runs =
            || start_time(pid) == Some(start) && fs::read(&command_line).is_ok_and(|line| !line.is_empty());
        if runs() {
            let raw = i32::try_from(pid).context("process id")?;
            kill(Pid::from_raw(raw), Signal::SIGKILL).with_context(|| format!("ending process {pid}"))?;
            if !wait_for(READY_TIMEOUT, || !runs()) {
                bail!("process {pid} does not end");
            }
        }
    }
    fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
    Ok(true)
}
