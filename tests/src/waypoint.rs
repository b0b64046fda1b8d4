use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::agent::{ADMIN_PORT, METRICS_PORT, READY_PORT, binary, sum_samples, wait_for};
use crate::traffic::{self, Response};
use crate::{Pod, Process};

const POLL: Duration = Duration::from_millis(10);
const HTTP_TIMEOUT: Duration = Duration::from_secs(10);
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// A waypoint or a gateway that runs in a pod; killed when this is dropped.
#[derive(Debug)]
pub struct Waypoint {
    pod: Pod,
    process: Process,
    log: PathBuf,
}

impl Waypoint {
    /// Starts `orlop waypoint` in a pod that is not in the mesh, as the Gateway of the pod's own name, and waits until
    /// it is ready.
    pub fn start(pod: &Pod, args: &[&str]) -> Result<Self> {
        Self::named(pod, pod.name(), args)
    }

    /// Like [`start`](Self::start), as the Gateway of this name.
    pub fn named(pod: &Pod, name: &str, args: &[&str]) -> Result<Self> {
        Self::in_testbed(&binary()?, pod, name, args)
    }

    /// Like [`start`](Self::start), with this program.
    pub fn of(program: &Path, pod: &Pod, args: &[&str]) -> Result<Self> {
        Self::in_testbed(program, pod, pod.name(), args)
    }

    fn in_testbed(program: &Path, pod: &Pod, name: &str, args: &[&str]) -> Result<Self> {
        let all = Self::args(pod, name);
        let all: Vec<_> = all.iter().map(String::as_str).chain(args.iter().copied()).collect();
        Self::run(program, pod, &all)
    }

    fn args(pod: &Pod, name: &str) -> Vec<String> {
        let lab = pod.node().lab();
        let [world, ca] = [lab.world.dir(), &lab.ca_dir()].map(|path| path.to_string_lossy().into_owned());
        let name = format!("{}/{name}", pod.namespace());
        let account = pod.service_account();
        ["--world", &world, "--ca-dir", &ca, "--name", &name, "--service-account", &account]
            .map(str::to_owned)
            .into()
    }

    /// Starts `orlop gateway` in a pod that is not in the mesh, as the Gateway of the pod's own name, and waits until it
    /// is ready.
    pub fn gateway(pod: &Pod, args: &[&str]) -> Result<Self> {
        let mut gateway = Self::gateway_unready(pod, args)?;
        gateway.wait_ready()?;
        Ok(gateway)
    }

    /// Like [`gateway`](Self::gateway), without waiting.
    pub fn gateway_unready(pod: &Pod, args: &[&str]) -> Result<Self> {
        let all = Self::args(pod, pod.name());
        let all: Vec<_> = all.iter().map(String::as_str).chain(args.iter().copied()).collect();
        Self::spawn("gateway", &binary()?, pod, &all)
    }

    /// Starts it with these arguments alone, and some that only tests need, and waits until it is ready.
    pub fn with(pod: &Pod, args: &[&str]) -> Result<Self> {
        Self::run(&binary()?, pod, args)
    }

    fn run(program: &Path, pod: &Pod, args: &[&str]) -> Result<Self> {
        let mut waypoint = Self::spawn("waypoint", program, pod, args)?;
        waypoint.wait_ready()?;
        Ok(waypoint)
    }

    fn spawn(role: &str, program: &Path, pod: &Pod, args: &[&str]) -> Result<Self> {
        let lab = pod.node().lab();
        let log = lab.dir.join(format!("waypoint-{}.{}.log", pod.namespace(), pod.name()));
        let output = File::options().create(true).append(true).open(&log);
        let output = output.with_context(|| format!("opening {}", log.display()))?;
        let mut command = pod.command(&program.to_string_lossy())?;
        command.arg(role).arg("--node").arg(pod.node().name()).args(["--log-format", "json"]).args(args);
        let errors = output.try_clone().context("sharing the log")?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let process = Process::spawn(&mut command)?;
        Ok(Self { pod: pod.clone(), process, log })
    }

    /// Waits until it is ready.
    pub fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            if self.http_get("/healthz/ready", READY_PORT).is_ok_and(|answer| answer.status == 200) {
                return Ok(());
            }
            if !self.process.is_running() || Instant::now() > deadline {
                bail!(
                    "the waypoint {} does not get ready; its log ends:\n{}",
                    self.pod.name(),
                    self.log_tail()
                );
            }
            thread::sleep(POLL);
        }
    }

    /// GET from the pod's loopback.
    pub fn http_get(&self, path: &str, port: u16) -> io::Result<Response> {
        let to = SocketAddr::from(([127, 0, 0, 1], port));
        traffic::get(self.pod.connect(to, HTTP_TIMEOUT)?, &to.to_string(), path)
    }

    /// The admin's `/config_dump`: JSON.
    pub fn config_dump(&self) -> Result<String> {
        Ok(self.http_get("/config_dump", ADMIN_PORT).context("asking the waypoint")?.text())
    }

    /// Polls `/config_dump` until `condition` holds of it; at most 10 s.
    pub fn wait_until(&self, mut condition: impl FnMut(&str) -> bool) -> Result<()> {
        let mut dump = String::new();
        let met = wait_for(Duration::from_secs(10), || {
            dump = self.config_dump().unwrap_or_else(|error| format!("{error:#}"));
            condition(&dump)
        });
        if !met {
            bail!("the waypoint did not get there; its config dump is:\n{dump}");
        }
        Ok(())
    }

    /// The sum of the samples of a metric whose line holds all of `labels`, such as `reporter="waypoint"`.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        let metrics = self.http_get("/metrics", METRICS_PORT).context("asking the waypoint")?.text();
        Ok(sum_samples(&metrics, name, labels))
    }

    /// The log so far.
    pub fn log(&self) -> Result<String> {
        let log = fs::read(&self.log).with_context(|| format!("reading {}", self.log.display()))?;
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    /// The file of the log.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// SIGTERM: the waypoint drains and ends. [`wait`](Self::wait) for it.
    pub fn terminate(&self) -> Result<()> {
        self.process.signal(Signal::SIGTERM)
    }

    /// Waits until the process has ended.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        self.process.wait(timeout)
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    fn log_tail(&self) -> String {
        let log = self.log().unwrap_or_else(|error| format!("{error:#}"));
        let lines: Vec<&str> = log.lines().collect();
        lines.get(lines.len().saturating_sub(40)..).unwrap_or_default().join("\n")
    }
}
