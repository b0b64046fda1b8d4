use std::path::PathBuf;

use clap::Args;

use super::Output;

#[derive(Args, Debug)]
pub struct CheckArguments {
    /// A cluster, instead of this machine: of the one that $KUBECONFIG or ~/.kube/config names.
    #[arg(long, conflicts_with_all = ["bpffs", "cgroup", "pods_cgroup"])]
    pub kube: bool,
    /// The cluster that this names.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["bpffs", "cgroup", "pods_cgroup"])]
    pub kubeconfig: Option<PathBuf>,
    /// The cluster of this context of the kubeconfig.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["bpffs", "cgroup", "pods_cgroup"])]
    pub context: Option<String>,
    /// The namespace that Orlop is installed in, or will be.
    #[arg(long, short, default_value = "orlop-system")]
    pub namespace: String,
    /// How to print it.
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// Where maps and links would be pinned.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/orlop")]
    pub bpffs: PathBuf,
    /// The cgroup2 hierarchy to attach to [default: the mount found in /proc/mounts].
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    /// The cgroup that every pod's is below [default: kubepods.slice or kubepods, if the hierarchy has one].
    #[arg(long, value_name = "DIR")]
    pub pods_cgroup: Option<PathBuf>,
}

impl CheckArguments {
    /// Whether it is about a cluster.
    pub fn of_cluster(&self) -> bool {
        self.kube || self.kubeconfig.is_some() || self.context.is_some()
    }
}
