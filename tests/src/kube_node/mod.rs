//! A node as people have it: containerd, kubelet and kube-proxy.

mod config;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::control_plane::{checked, control_plane_binary};
use crate::process::command_in;
use crate::{ControlPlane, Image, Node, Process, cgroup, wait_for};

/// For a program to start, on a machine that is busy with other things.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The programs of Debian's packages containerd, runc, containernetworking-plugins, busybox-static and nftables.
const PROGRAMS: [&str; 6] =
    ["containerd", "containerd-shim-runc-v2", "ctr", "runc", "/usr/lib/cni/bridge", "/bin/busybox"];

/// A node of a [control plane](ControlPlane::start_on) that runs pods, from images that it was [given](Self::load).
///
/// containerd and kubelet see cgroups, mounts, processes and `/var/lib` of their own. Dropping it ends all pods.
#[derive(Debug)]
pub struct KubeNode {
    node: Node,
    home: PathBuf,
    /// The process outside whose child is process 1 inside.
    machine: Process,
}

impl KubeNode {
    /// Starts it on a node of the testbed, which must be the one that the control plane is on, or one that the wire
    /// leads to from there, and waits until it is ready.
    pub fn start(node: &Node, plane: &ControlPlane) -> Result<Self> {
        let started = Self::start_machine(node, plane).and_then(|node| {
            node.load_helpers()?;
            plane.wait_for_node(node.node.name())?;
            Ok(node)
        });
        started.with_context(|| format!("starting containerd and kubelet on {}", node.name()))
    }

    fn start_machine(node: &Node, plane: &ControlPlane) -> Result<Self> {
        can_run_nodes()?;
        let home = node.lab().dir.join(format!("machine-{}", node.name()));
        fs::create_dir_all(home.join("etc/cni/net.d")).context("making the machine's directory")?;
        let write = |name: &str, content: &[u8]| {
            let path = home.join(name);
            fs::write(&path, content).with_context(|| format!("writing {}", path.display())).map(|()| path)
        };
        let runc = match may_give_resources()? {
            true => PathBuf::from("runc"),
            false => write("runc.sh", include_bytes!("runc.sh"))?,
        };
        make_executable(&home.join("runc.sh"))?;
        write("machine.sh", include_bytes!("machine.sh"))?;
        write("units.sh", include_bytes!("units.sh"))?;
        write("containerd.toml", config::containerd(&runc).as_bytes())?;
        write("etc/cni/net.d/10-pods.conflist", config::cni(node).to_string().as_bytes())?;
        // Services' addresses lead nowhere, but there must be a way for kube-proxy to change it.
        node.netns().ip("route add 10.96.0.0/16 dev br0\nroute add fd00:96::/108 dev br0\n")?;
        let [kubelet, proxy] = plane.node_kubeconfigs(node.name())?;
        let dns = plane.node_address().context("the control plane is on no node")?.to_string();
        let authority = plane.dir().join("ca.crt");
        write("kubelet.yaml", config::kubelet(&authority, &dns).to_string().as_bytes())?;
        write("proxy.yaml", config::proxy(&proxy, node.name()).to_string().as_bytes())?;
        write("start", start_script(node, plane, &home, &kubelet, &dns)?.as_bytes())?;

        let machine = Self::boot(node, &home)?;
        let started = Self { node: node.clone(), home, machine };
        started.wait_for_containerd()?;
        Ok(started)
    }

    fn boot(node: &Node, home: &Path) -> Result<Process> {
        let name = format!("{}-{}", node.lab().id, node.name());
        let cgroup = node.lab().cgroup.join(&name);
        cgroup::create(&cgroup)?;
        let log = fs::File::options().create(true).append(true).open(home.join("machine.log"));
        let log = log.context("making the machine's log")?;
        let mut command = command_in("sh", node.netns(), &cgroup)?;
        command.arg(home.join("machine.sh")).arg(home).arg(name).stdin(Stdio::null());
        command.stdout(log.try_clone().context("sharing the log")?).stderr(log);
        Process::spawn(&mut command)
    }

    fn wait_for_containerd(&self) -> Result<()> {
        let socket = self.home.join(SOCKET_BELOW);
        if !wait_for(START_TIMEOUT, || socket.exists()) {
            bail!("containerd does not start:\n{}", self.log_tails());
        }
        Ok(())
    }

    /// Ends all its processes at once, forgets what a machine forgets without power, and starts it again: `/var` is
    /// as it was, and there are no pods' processes and networks, no cgroups, no mounts, no eBPF programs and nothing
    /// in `/run`.
    pub fn reboot(&mut self) -> Result<()> {
        self.machine.kill()?;
        let name = format!("{}-{}", self.node.lab().id, self.node.name());
        cgroup::remove(&self.node.lab().cgroup.join(&name))?;
        for (_, path) in cgroup::named(|found| (found == name).then_some(())) {
            cgroup::remove_version_1(&path)?;
        }
        let run = self.home.join("run");
        fs::remove_dir_all(&run).with_context(|| format!("emptying {}", run.display()))?;
        self.machine = Self::boot(&self.node, &self.home)?;
        self.wait_for_containerd()
    }

    /// Has kubelet run a pod without being told by the API server, which hears of it from kubelet.
    pub fn static_pod(&self, name: &str, manifest: &serde_json::Value) -> Result<()> {
        let directory = self.home.join("etc/kubernetes/manifests");
        // kubelet reads what it finds there, however little is written of it.
        let (new, path) = (self.home.join("manifest"), directory.join(format!("{name}.json")));
        fs::write(&new, manifest.to_string()).with_context(|| format!("writing {}", new.display()))?;
        fs::rename(&new, &path).with_context(|| format!("writing {}", path.display()))
    }

    /// The node, whose network this one has.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The directory that its `/var/lib/kubelet`, `/run/orlop` and the like are in.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// A command that sees what the node's containerd and kubelet see.
    pub fn command(&self, program: &str) -> Result<Command> {
        let parent = self.machine.pid();
        let path = format!("/proc/{parent}/task/{parent}/children");
        let children = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let init = children.split_whitespace().next().context("the machine has ended")?;
        let mut command = Command::new("nsenter");
        command.args(["--target", init, "--mount", "--pid", "--cgroup", "--net", "--", program]);
        command.stdin(Stdio::null());
        Ok(command)
    }

    /// Gives it the images of an OCI layout, which are called `repository:TAG` from then on.
    pub fn load(&self, layout: &Path, repository: &str) -> Result<()> {
        let archive = self.home.join("image.tar");
        let mut tar = Command::new("tar");
        checked(tar.arg("-cf").arg(&archive).arg("-C").arg(layout).arg("."), "packing an image")?;
        let mut ctr = self.command("ctr")?;
        ctr.args(["--namespace", "k8s.io", "images", "import", "--base-name", repository]).arg(&archive);
        checked(&mut ctr, "loading an image")?;
        fs::remove_file(&archive).context("removing an image that was loaded")
    }

    /// The image of sandboxes, and one of busybox for tests.
    fn load_helpers(&self) -> Result<()> {
        let busybox = fs::read("/bin/busybox").context("reading /bin/busybox")?;
        let files: &[(&str, u32, &[u8])] = &[("bin/busybox", 0o755, &busybox)];
        for (name, args) in [("pause", &["sleep", "2147483647"][..]), ("busybox", &[])] {
            let layout = self.home.join(name);
            let entry: Vec<_> = ["/bin/busybox"].iter().chain(args).collect();
            Image::write_alone(&layout, "1", files, &json!({"Entrypoint": entry}))?;
            self.load(&layout, &format!("orlop.test/{name}"))?;
        }
        Ok(())
    }

    /// The last lines that each of its programs logged.
    pub fn log_tails(&self) -> String {
        crate::control_plane::tails(
            &self.home,
            &["machine", "units", "containerd", "kubelet", "kube-proxy", "dns"],
        )
    }
}

/// The image that the tests' pods are of: `/bin/busybox` alone.
pub const BUSYBOX: &str = "orlop.test/busybox:1";

/// [`config::SOCKET`] in the machine's home.
const SOCKET_BELOW: &str = "run/containerd/containerd.sock";

/// Run by process 1, which starts systemd's units of type `notify` before the rest, as systemd does. A kubelet that ends is started again, as by a machine's init: it does so where containerd does not
/// answer yet.
fn start_script(
    node: &Node,
    plane: &ControlPlane,
    home: &Path,
    kubeconfig: &Path,
    dns: &str,
) -> Result<String> {
    let binary = control_plane_binary()?;
    let (binary, home, name) = (binary.display(), home.display(), node.name());
    let mut script = format!(
        "cd {home}\n\
         containerd --config containerd.toml >containerd.log 2>&1 &\n\
         until [ -S {} ]; do sleep 0.02; done\n\
         . {home}/units.sh\n\
         forever() {{ while :; do \"$@\" || :; sleep 0.5; done; }}\n\
         forever {binary} kubelet --config=kubelet.yaml --kubeconfig={} --hostname-override={name} --node-ip={} \
         >kubelet.log 2>&1 &\n\
         {binary} kube-proxy --config=proxy.yaml >kube-proxy.log 2>&1 &\n",
        config::SOCKET,
        kubeconfig.display(),
        node.ipv4(),
    );
    if plane.node_address() == Some(node.ipv4()) {
        let kubeconfig = plane.kubeconfig();
        script += &format!("{binary} dns {} {dns}:53 >dns.log 2>&1 &\n", kubeconfig.display());
    }
    Ok(script)
}

/// Whether what a [`KubeNode`] runs is installed.
pub fn can_run_nodes() -> Result<()> {
    match PROGRAMS.iter().find(|program| !is_there(program)) {
        Some(missing) => bail!("{missing} is not installed: run `cargo xtask setup`"),
        None => Ok(()),
    }
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Whether containers can have `CAP_SYS_RESOURCE`.
fn may_give_resources() -> Result<bool> {
    const SYS_RESOURCE: u32 = 24;
    let status = fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let bounding = bounding.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    Ok(bounding.context("there is no CapBnd in /proc/self/status")? >> SYS_RESOURCE & 1 == 1)
}

fn make_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    match path.exists() {
        true => fs::set_permissions(path, fs::Permissions::from_mode(0o755)).context("making it executable"),
        false => Ok(()),
    }
}
