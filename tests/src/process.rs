use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::Netns;

/// A process that is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts `command`.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        Ok(Self { child, name })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The handle of the process, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Whether the process has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid()).context("process id")?);
        kill(pid, signal).with_context(|| format!("sending {signal} to {} ({pid})", self.name))
    }

    /// Waits until the process ends.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) =
                self.child.try_wait().with_context(|| format!("waiting for {}", self.name))?
            {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} (process {}) still runs after {timeout:?}", self.name, self.pid());
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// From now on it may open no file beyond so many: `RLIMIT_NOFILE`.
    pub fn limit_files(&self, limit: u64) -> Result<()> {
        let mut command = Command::new("prlimit");
        command.arg(format!("--pid={}", self.pid())).arg(format!("--nofile={limit}:"));
        let status = command.status().context("is prlimit installed? (`apt-get install util-linux`)")?;
        if !status.success() {
            bail!("prlimit of {} ended with {status}", self.name);
        }
        Ok(())
    }

    /// CPU time used so far, user and system.
    pub fn cpu_time(&self) -> Result<Duration> {
        let path = format!("/proc/{}/stat", self.pid());
        let stat = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        // proc(5): fields 14 and 15, in ticks of 10 ms.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        Ok(Duration::from_millis(ticks * 10))
    }

    /// Resident memory in bytes.
    pub fn rss(&self) -> Result<u64> {
        self.status_number("VmRSS:").map(|kib| kib * 1024)
    }

    /// Number of threads.
    pub fn threads(&self) -> Result<u64> {
        self.status_number("Threads:")
    }

    /// Memory of the BPF maps that the process has open, in bytes, as the kernel counts it: each once.
    pub fn bpf_memory(&self) -> Result<u64> {
        let path = format!("/proc/{}/fdinfo", self.pid());
        let mut maps = BTreeMap::new();
        for entry in fs::read_dir(&path).with_context(|| format!("reading {path}"))? {
            // Descriptors come and go.
            let Ok(text) = entry.and_then(|entry| fs::read_to_string(entry.path())) else { continue };
            let number =
                |key| text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok());
            if let (Some(map), Some(bytes)) = (number("map_id:"), number("memlock:")) {
                maps.insert(map, bytes);
            }
        }
        Ok(maps.values().sum())
    }

    fn status_number(&self, key: &str) -> Result<u64> {
        let path = format!("/proc/{}/status", self.pid());
        let status = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.with_context(|| format!("no {key} in {path}"))
    }

    /// SIGKILL, and waits until the process is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("killing {}", self.name))?;
        self.child.wait().map(drop).with_context(|| format!("waiting for {}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// A command whose process joins a network namespace and a cgroup before it runs `program`, in this order: who looks into
/// the cgroup must find nobody there who is still on the machine's own network.
///
/// Unlike `ip netns exec` this leaves the mounts alone, so cgroupfs and bpffs stay visible.
pub(crate) fn command_in(program: &str, netns: &Netns, cgroup: &Path) -> Result<Command> {
    let netns = netns.open()?;
    let mut command = Command::new(program);
    // SAFETY: between fork and exec the closure only calls setns; it takes no lock and allocates nothing.
    unsafe {
        command.pre_exec(move || Ok(setns(&netns, CloneFlags::CLONE_NEWNET)?));
    }
    join(&mut command, cgroup)?;
    Ok(command)
}

/// A command whose process joins a cgroup before it runs `program`.
pub(crate) fn command_in_cgroup(program: &str, cgroup: &Path) -> Result<Command> {
    let mut command = Command::new(program);
    join(&mut command, cgroup)?;
    Ok(command)
}

fn join(command: &mut Command, cgroup: &Path) -> Result<()> {
    let procs = cgroup.join("cgroup.procs");
    let procs = File::options()
        .write(true)
        .open(&procs)
        .with_context(|| format!("opening {}: is its testbed gone?", procs.display()))?;
    // SAFETY: between fork and exec the closure only writes to an open file; it takes no lock and allocates
    // nothing.
    unsafe {
        command.pre_exec(move || (&procs).write_all(b"0"));
    }
    Ok(())
}
