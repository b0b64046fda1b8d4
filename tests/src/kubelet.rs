//! Pods as kubelet and a container runtime make them: the names of cgroups, and the process that keeps a sandbox.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;

use crate::netns::Netns;
use crate::process::command_in;
use crate::{Process, cgroup};

/// kubelet's `--cgroup-driver`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupDriver {
    /// Slices and scopes.
    Systemd,
    /// Plain directories.
    Cgroupfs,
}

/// What makes the containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerRuntime {
    /// Each pod has a process that does nothing.
    Containerd,
    /// A pod has only its containers' processes, and one on the node's network that watches over each.
    Crio,
}

/// How kubelet names the cgroups of pods.
#[derive(Clone, Copy, Debug)]
pub struct PodCgroups {
    /// Its driver.
    pub driver: CgroupDriver,
    /// Its container runtime.
    pub runtime: ContainerRuntime,
    /// `burstable`, `besteffort`, or `None` for pods that are guaranteed what they ask for.
    pub quality: Option<&'static str>,
}

impl Default for PodCgroups {
    fn default() -> Self {
        Self {
            driver: CgroupDriver::Systemd,
            runtime: ContainerRuntime::Containerd,
            quality: Some("burstable"),
        }
    }
}

impl PodCgroups {
    /// The cgroup that all pods' are below, in the one that kubelet has.
    pub(crate) fn root(self, kubelet: &Path) -> PathBuf {
        kubelet.join(match self.driver {
            CgroupDriver::Systemd => "kubepods.slice",
            CgroupDriver::Cgroupfs => "kubepods",
        })
    }

    /// A pod's, by its UID.
    pub(crate) fn pod(self, kubelet: &Path, uid: &str) -> PathBuf {
        let mut path = self.root(kubelet);
        match self.driver {
            CgroupDriver::Systemd => {
                let mut slice = "kubepods".to_owned();
                if let Some(quality) = self.quality {
                    slice = format!("{slice}-{quality}");
                    path.push(format!("{slice}.slice"));
                }
                path.push(format!("{slice}-pod{}.slice", uid.replace('-', "_")));
            }
            CgroupDriver::Cgroupfs => {
                path.extend(self.quality);
                path.push(format!("pod{uid}"));
            }
        }
        path
    }

    /// A container's, in a pod's.
    fn container(self, prefix: &str) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let id = format!("{:064x}", NEXT.fetch_add(1, Ordering::Relaxed));
        match (self.driver, self.runtime) {
            (CgroupDriver::Systemd, ContainerRuntime::Containerd) => format!("cri-containerd-{id}.scope"),
            (CgroupDriver::Systemd, ContainerRuntime::Crio) => format!("crio-{prefix}{id}.scope"),
            (CgroupDriver::Cgroupfs, ContainerRuntime::Containerd) => id,
            (CgroupDriver::Cgroupfs, ContainerRuntime::Crio) => format!("crio-{prefix}{id}"),
        }
    }
}

/// A pod's sandbox: the processes that keep it, and the cgroup that its containers' processes run in.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) container: PathBuf,
    _processes: Vec<Process>,
}

impl Sandbox {
    pub(crate) fn start(cgroups: PodCgroups, pod: &Path, netns: &Netns, node: &Netns) -> Result<Self> {
        let make = |prefix: &str| {
            let path = pod.join(cgroups.container(prefix));
            cgroup::create(&path).map(|()| path)
        };
        let run = |netns: &Netns, cgroup: &Path| {
            Process::spawn(command_in("sleep", netns, cgroup)?.arg("infinity").stdin(Stdio::null()))
        };
        let processes = match cgroups.runtime {
            ContainerRuntime::Containerd => vec![run(netns, &make("")?)?],
            ContainerRuntime::Crio => vec![run(node, &make("conmon-")?)?],
        };
        let container = make("")?;
        let mut processes = processes;
        if cgroups.runtime == ContainerRuntime::Crio {
            // The container's own.
            processes.push(run(netns, &container)?);
        }
        Ok(Self { container, _processes: processes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_systemd_slice_has_its_parents_name() {
        let cgroups = PodCgroups::default();
        let path = cgroups.pod(Path::new("/k"), "12-34");
        let wanted = "/k/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod12_34.slice";
        assert_eq!(path, Path::new(wanted));
        let path = PodCgroups { quality: None, ..cgroups }.pod(Path::new("/k"), "12-34");
        assert_eq!(path, Path::new("/k/kubepods.slice/kubepods-pod12_34.slice"));
    }

    #[test]
    fn cgroupfs_has_plain_names() {
        let cgroups = PodCgroups { driver: CgroupDriver::Cgroupfs, ..PodCgroups::default() };
        assert_eq!(cgroups.pod(Path::new("/k"), "12-34"), Path::new("/k/kubepods/burstable/pod12-34"));
    }
}
