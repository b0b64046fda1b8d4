use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::traffic::{self, Response};
use crate::{Node, Pod, Process};

/// The port of `/config_dump`, on the node's loopback.
pub const ADMIN_PORT: u16 = 15000;
/// The port of `/metrics`.
pub const METRICS_PORT: u16 = 15020;
/// The port of `/healthz/ready`.
pub const READY_PORT: u16 = 15021;

const POLL: Duration = Duration::from_millis(10);
const HTTP_TIMEOUT: Duration = Duration::from_secs(10);

/// How to start an agent.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// The program; by default `$ORLOP_BIN`, or `orlop` in cargo's directory that this program is in.
    pub binary: Option<PathBuf>,
    /// Watch the cluster of this kubeconfig instead of the world directory.
    pub kubeconfig: Option<PathBuf>,
    /// `--drain-timeout`; by default the agent's own.
    pub drain_timeout: Option<Duration>,
    /// More arguments, after the others.
    pub args: Vec<String>,
    /// More environment.
    pub env: Vec<(String, String)>,
    /// How long it may take to become ready.
    pub ready_timeout: Duration,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self {
            binary: None,
            kubeconfig: None,
            drain_timeout: None,
            args: Vec::new(),
            env: Vec::new(),
            // An emulated machine is twenty times as slow.
            ready_timeout: Duration::from_secs(60),
        }
    }
}

/// A node's agent; killed when this is dropped.
#[derive(Debug)]
pub struct Agent {
    node: Node,
    options: AgentOptions,
    binary: PathBuf,
    process: Process,
    log: PathBuf,
}

impl Agent {
    pub(crate) fn start(node: &Node, options: AgentOptions) -> Result<Self> {
        let binary = match &options.binary {
            Some(binary) => binary.clone(),
            None => binary()?,
        };
        let log = node.lab().dir.join(format!("agent-{}.log", node.name()));
        let process = spawn(node, &options, &binary, &log)?;
        let mut agent = Self { node: node.clone(), options, binary, process, log };
        agent.wait_ready()?;
        Ok(agent)
    }

    /// SIGKILL; returns once the process is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// SIGTERM: the agent drains and ends. [`wait`](Self::wait) for it.
    pub fn terminate(&self) -> Result<()> {
        self.process.signal(Signal::SIGTERM)
    }

    /// Any signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Waits until the process has ended.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        self.process.wait(timeout)
    }

    /// Whether the process runs.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// Kills the agent if it still runs, starts it again and waits until it is ready.
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        self.start_again()?;
        self.wait_ready()
    }

    /// Starts the agent once more and waits until it has taken over from the one that runs, which is given.
    pub fn upgrade(&mut self) -> Result<Process> {
        let taken_over = |log: &str| log.matches("taken over from the agent before").count();
        let before = taken_over(&self.log()?);
        let new = self.start_beside(&[])?;
        let old = mem::replace(&mut self.process, new);
        self.wait_log(|log| taken_over(log) > before, self.options.ready_timeout)?;
        Ok(old)
    }

    /// Starts another agent of this node, with more arguments.
    pub fn start_beside(&self, args: &[&str]) -> Result<Process> {
        let mut options = self.options.clone();
        options.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        spawn(&self.node, &options, &self.binary, &self.log)
    }

    /// Starts a keeper beside the agent, and waits until that has it hold its sockets. Its log is in [`Self::log`], too.
    pub fn keeper(&self, hold: Duration) -> Result<Process> {
        let holds = |log: &str| log.matches("a keeper holds what this agent listens on").count();
        let before = holds(&self.log()?);
        let keeper = self.start_keeper(hold)?;
        self.wait_log(|log| holds(log) > before, self.options.ready_timeout)?;
        Ok(keeper)
    }

    /// Starts a keeper beside the agent, which may have one already. It has no capabilities, as in the DaemonSet.
    pub fn start_keeper(&self, hold: Duration) -> Result<Process> {
        let mut command = self.node.command("setpriv")?;
        command.args(["--bounding-set=-all", "--inh-caps=-all"]).arg(&self.binary);
        command.arg("keeper").arg("--run-dir").arg(self.node.run_dir());
        command.arg("--hold").arg(format!("{}ms", hold.as_millis()));
        logged(&mut command, &self.log)
    }

    /// Starts the agent again after it ended, without waiting until it is ready.
    pub fn start_again(&mut self) -> Result<()> {
        self.process = spawn(&self.node, &self.options, &self.binary, &self.log)?;
        Ok(())
    }

    /// Waits until `/healthz/ready` says 200.
    pub fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + self.options.ready_timeout;
        loop {
            if self.http_get("/healthz/ready", READY_PORT).is_ok_and(|answer| answer.status == 200) {
                return Ok(());
            }
            if !self.process.is_running() {
                bail!(
                    "the agent of {} ended while starting; its log ends:\n{}",
                    self.node.name(),
                    self.log_tail()
                );
            }
            if Instant::now() > deadline {
                let timeout = self.options.ready_timeout;
                bail!(
                    "the agent of {} is not ready after {timeout:?}; its log ends:\n{}",
                    self.node.name(),
                    self.log_tail()
                );
            }
            thread::sleep(POLL);
        }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The node it runs on.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// GET from the node's loopback.
    pub fn http_get(&self, path: &str, port: u16) -> io::Result<Response> {
        let to = SocketAddr::from(([127, 0, 0, 1], port));
        traffic::get(self.node.connect(to, HTTP_TIMEOUT)?, &to.to_string(), path)
    }

    /// The admin's `/config_dump`: JSON.
    pub fn config_dump(&self) -> Result<String> {
        self.body("/config_dump", ADMIN_PORT)
    }

    /// The pods of this node that are in the mesh, as `namespace/name`.
    pub fn enrolled(&self) -> Result<BTreeSet<String>> {
        Ok(keys_of(&self.config_dump()?, "enrolled"))
    }

    /// Waits until exactly these pods of this node are in the mesh.
    pub fn wait_enrolled<'a>(&self, pods: impl IntoIterator<Item = &'a Pod>) -> Result<()> {
        let wanted: BTreeSet<String> =
            pods.into_iter().map(|pod| format!("{}/{}", pod.namespace(), pod.name())).collect();
        self.wait_until(|dump| keys_of(dump, "enrolled") == wanted)
            .with_context(|| format!("waiting until {wanted:?} are enrolled, and no other pod"))
    }

    /// The metrics in the Prometheus text format.
    pub fn metrics(&self) -> Result<String> {
        self.body("/metrics", METRICS_PORT)
    }

    /// The sum of the samples of a metric whose line holds all of `labels`, such as `reporter="source"`.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        Ok(sum_samples(&self.metrics()?, name, labels))
    }

    /// Polls `/config_dump` until `condition` holds of it; at most 10 s.
    pub fn wait_until(&self, mut condition: impl FnMut(&str) -> bool) -> Result<()> {
        let mut dump = String::new();
        let met = wait_for(Duration::from_secs(10), || {
            dump = self.config_dump().unwrap_or_else(|error| format!("{error:#}"));
            condition(&dump)
        });
        if !met {
            bail!("the agent of {} did not get there; its config dump is:\n{dump}", self.node.name());
        }
        Ok(())
    }

    /// The log, also of earlier starts.
    pub fn log(&self) -> Result<String> {
        let log = fs::read(&self.log).with_context(|| format!("reading {}", self.log.display()))?;
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    /// The file of the log.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Polls the log until `condition` holds of it.
    pub fn wait_log(&self, mut condition: impl FnMut(&str) -> bool, timeout: Duration) -> Result<()> {
        let met = wait_for(timeout, || self.log().is_ok_and(|log| condition(&log)));
        if !met {
            bail!("not in the log of {} after {timeout:?}; it ends:\n{}", self.node.name(), self.log_tail());
        }
        Ok(())
    }

    /// CPU time used so far, user and system.
    pub fn cpu_time(&self) -> Result<Duration> {
        self.process.cpu_time()
    }

    /// Resident memory in bytes.
    pub fn rss(&self) -> Result<u64> {
        self.process.rss()
    }

    /// Memory of the BPF maps it has open, in bytes.
    pub fn bpf_memory(&self) -> Result<u64> {
        self.process.bpf_memory()
    }

    /// Number of threads.
    pub fn threads(&self) -> Result<u64> {
        self.process.threads()
    }

    fn body(&self, path: &str, port: u16) -> Result<String> {
        let answer =
            self.http_get(path, port).with_context(|| format!("GET {path} of {}", self.node.name()))?;
        if answer.status != 200 {
            bail!("GET {path} of {}: status {}", self.node.name(), answer.status);
        }
        Ok(answer.text())
    }

    fn log_tail(&self) -> String {
        let log = self.log().unwrap_or_else(|error| format!("{error:#}"));
        let lines: Vec<&str> = log.lines().collect();
        lines.get(lines.len().saturating_sub(40)..).unwrap_or_default().join("\n")
    }
}

/// Polls `condition` every 10 ms, or with pauses as long as it takes itself, until it holds, at most for `timeout`; says
/// whether it held.
pub fn wait_for(timeout: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        let asked = Instant::now();
        if condition() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(POLL.max(asked.elapsed()));
    }
}

fn spawn(node: &Node, options: &AgentOptions, binary: &Path, log: &Path) -> Result<Process> {
    let mut command = node.command(&binary.to_string_lossy())?;
    command.arg("node").arg("--node").arg(node.name());
    match &options.kubeconfig {
        Some(kubeconfig) => {
            command.arg("--state-dir").arg(node.run_dir().join("state"));
            command.arg("--kube").arg("--kubeconfig").arg(kubeconfig)
        }
        None => command.arg("--world").arg(node.lab().world.dir()),
    };
    if !options.args.iter().any(|arg| arg == "--ca-address") {
        command.arg("--ca-dir").arg(node.lab().ca_dir());
    }
    command.arg("--bpffs").arg(node.bpffs_dir());
    command.arg("--run-dir").arg(node.run_dir());
    command.args(["--admin", &format!("127.0.0.1:{ADMIN_PORT}")]);
    command.args(["--metrics", &format!("0.0.0.0:{METRICS_PORT}")]);
    command.args(["--ready", &format!("0.0.0.0:{READY_PORT}")]);
    if let Some(timeout) = options.drain_timeout {
        command.arg("--drain-timeout").arg(format!("{}ms", timeout.as_millis()));
    }
    command.args(&options.args).envs(options.env.iter().map(|(key, value)| (key, value)));
    logged(&mut command, log)
}

/// Starts `command`, which writes to the end of `log`.
fn logged(command: &mut Command, log: &Path) -> Result<Process> {
    let output = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("opening {}", log.display()))?;
    let errors = output.try_clone().context("sharing the log")?;
    command.stdin(Stdio::null()).stdout(output).stderr(errors);
    Process::spawn(command)
}

/// The `orlop` program: `$ORLOP_BIN`, or the one in cargo's directory that this program is in.
pub fn binary() -> Result<PathBuf> {
    if let Some(binary) = std::env::var_os("ORLOP_BIN") {
        return Ok(PathBuf::from(binary));
    }
    let me = std::env::current_exe().context("finding this program's own path")?;
    // Tests are in target/PROFILE/deps, programs in target/PROFILE.
    let found = me.ancestors().skip(1).take(2).map(|dir| dir.join("orlop")).find(|path| path.is_file());
    found.context("no `orlop` beside this program: run `cargo xtask build`, or set ORLOP_BIN")
}

/// The keys of the first object of this name in indented JSON.
fn keys_of(json: &str, name: &str) -> BTreeSet<String> {
    let head = format!("\"{name}\": {{");
    let mut lines = json.lines().skip_while(|line| !line.ends_with(&head));
    let Some(first) = lines.next() else { return BTreeSet::new() };
    let depth = |line: &str| line.len() - line.trim_start().len();
    let inside = lines.take_while(|line| depth(line) > depth(first));
    let keys = inside.filter(|line| depth(line) == depth(first) + 2);
    keys.filter_map(|line| Some(line.trim_start().strip_prefix('"')?.split_once("\":")?.0.to_owned()))
        .collect()
}

pub(crate) fn sum_samples(metrics: &str, name: &str, labels: &[&str]) -> f64 {
    let samples = metrics.lines().filter(|line| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    });
    samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enrolled_pods_are_read_from_the_dump() {
        let dump = "{\n  \"enrolled\": {\n    \"shop/a\": {\n      \"netns_cookie\": 7\n    },\n    \
                    \"shop/b\": {}\n  },\n  \"node\": \"n1\"\n}\n";
        assert_eq!(keys_of(dump, "enrolled"), ["shop/a", "shop/b"].map(str::to_owned).into());
        assert_eq!(keys_of("{\n  \"enrolled\": {},\n  \"node\": \"n1\"\n}", "enrolled"), BTreeSet::new());
    }

    #[test]
    fn samples_are_summed_by_name_and_labels() {
        let metrics = "# TYPE a counter\na_total{x=\"1\",y=\"2\"} 3\na_total{x=\"1\",y=\"3\"} 4\na_total{x=\"2\"} 5\na 7\n";
        assert!((sum_samples(metrics, "a_total", &["x=\"1\""]) - 7.0).abs() < 1e-9);
        assert!((sum_samples(metrics, "a", &[]) - 7.0).abs() < 1e-9);
        assert!(sum_samples(metrics, "b", &[]).abs() < 1e-9);
    }
}
