//! What `orlop node` and `orlop gate` are told of the boot gate, and where on a node they are.

use std::{ffi::OsString, path::PathBuf};

use clap::Args;

use super::LogArguments;

/// Which node it is, and where on it things are.
#[derive(Args, Debug)]
pub struct PlaceArguments {
    /// Name of this node, as pods have it in spec.nodeName.
    #[arg(long, env = "NODE_NAME")]
    pub node: String,
    /// Where maps and links are pinned; on a BPF file system.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/orlop")]
    pub bpffs: PathBuf,
    /// Where the agent that runs hands over to a new one: one directory for each node.
    #[arg(long, value_name = "DIR", default_value = "/run/orlop")]
    pub run_dir: PathBuf,
    /// Where the last known world of a cluster is kept, for an agent that starts while the API server is away.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/orlop")]
    pub state_dir: PathBuf,
    /// The cgroup2 hierarchy to attach to [default: the mount found in /proc/mounts].
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    /// The cgroup that every pod's is below: what runs on the node's network but in there is no probe of
    /// kubelet's [default: kubepods.slice or kubepods, if the hierarchy has one].
    #[arg(long, value_name = "DIR")]
    pub pods_cgroup: Option<PathBuf>,
}

/// `--NAME=VALUE`
fn named(name: &str, value: OsString) -> OsString {
    let mut arg = OsString::from(format!("--{name}="));
    arg.push(value);
    arg
}

impl PlaceArguments {
    /// The arguments that say the same.
    pub fn to_args(&self) -> Vec<OsString> {
        let paths = [
            ("bpffs", Some(&self.bpffs)),
            ("run-dir", Some(&self.run_dir)),
            ("state-dir", Some(&self.state_dir)),
            ("cgroup", self.cgroup.as_ref()),
            ("pods-cgroup", self.pods_cgroup.as_ref()),
        ];
        let paths = paths.into_iter().filter_map(|(name, path)| Some(named(name, path?.into())));
        [named("node", (&self.node).into())].into_iter().chain(paths).collect()
    }
}

/// Where kubelet has static pods and tells of them, as `orlop gate` looks for them.
#[derive(Args, Clone, Debug)]
pub struct StaticPodArguments {
    /// kubelet's staticPodPath: the manifests of pods that it runs by itself.
    #[arg(long, value_name = "DIR", default_value = "/etc/kubernetes/manifests")]
    pub static_pod_path: PathBuf,
    /// kubelet's podLogsDir.
    #[arg(long, value_name = "DIR", default_value = "/var/log/pods")]
    pub pod_logs_dir: PathBuf,
}

impl StaticPodArguments {
    /// The arguments that say the same.
    pub fn to_args(&self) -> [OsString; 2] {
        let [path, logs] = [&self.static_pod_path, &self.pod_logs_dir].map(|path| path.clone().into());
        [named("static-pod-path", path), named("pod-logs-dir", logs)]
    }
}

/// The boot gate of `orlop node`.
#[derive(Args, Debug)]
pub struct BootGateArguments {
    /// Hold pods that ask for it, over a volume of gate.orlop.dev, from their start until they are enrolled.
    #[arg(long)]
    pub boot_gate: bool,
    /// kubelet's --root-dir, for --boot-gate.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet", requires = "boot_gate")]
    pub kubelet_dir: PathBuf,
    /// Where systemd has its units: writes one that runs `orlop gate`, with a copy of this program in --state-dir, from
    /// when the node starts, so that also those are held that have no such volume: after a reboot, and static ones.
    #[arg(long, value_name = "DIR", requires_all = ["boot_gate", "kube"])]
    pub boot_gate_unit: Option<PathBuf>,
    #[command(flatten)]
    pub static_pods: StaticPodArguments,
}

#[derive(Args, Debug)]
pub struct GateArguments {
    #[command(flatten)]
    pub place: PlaceArguments,
    #[command(flatten)]
    pub static_pods: StaticPodArguments,
    #[command(flatten)]
    pub log: LogArguments,
}
