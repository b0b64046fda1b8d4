//! Finds the network namespaces of this node's pods as the kernel has them: the cgroup that kubelet named after the
//! pod's UID, the processes in it, and theirs. Neither the container runtime nor a CNI plugin is asked.

mod cgroups;
mod names;
mod processes;
mod watch;

use std::{
    collections::{HashMap, VecDeque},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

pub use cgroups::PodCgroups;
pub use names::{is_static, is_uid};
pub use processes::NetnsId;
use processes::{PodProcess, netns_of, oldest};
pub use watch::Changes;

/// How deep below the root of a hierarchy kubelet may have been told to work.
const MAX_DEPTH: usize = 4;
/// So many cgroups are looked into for kubelet's. Users of the node may make others without end, deeper ones mostly.
const MAX_SEARCHED: usize = 4096;
/// So many entries one of kubelet's may have. It makes some hundred pods.
const MAX_ENTRIES: usize = 16384;

/// Where pods' network namespaces are.
#[derive(Debug)]
pub struct Sandboxes {
    /// The cgroups below which pods' are, or where to look for them.
    roots: Roots,
    /// The node's own network namespace, and this process's.
    outside: Vec<NetnsId>,
    /// The cgroups of pods, as last listed.
    cgroups: HashMap<String, PathBuf>,
    /// The process that stood for a pod when it was last looked for.
    processes: HashMap<String, PodProcess>,
}

#[derive(Debug)]
enum Roots {
    Named(PathBuf),
    /// Hierarchies, in the order of preference.
    Below(Vec<PathBuf>),
}

/// A pod's network namespace.
#[derive(Debug)]
pub struct Sandbox {
    pub netns: File,
    pub id: NetnsId,
}

impl Sandboxes {
    /// Looks below `pods_cgroup`, or else for what kubelet made in the hierarchies of `cgroup` and `mounts`, which is
    /// the text of `/proc/mounts`.
    pub fn new(pods_cgroup: Option<&Path>, cgroup: Option<&Path>, mounts: &str) -> Self {
        let roots = match pods_cgroup {
            Some(path) => Roots::Named(path.to_owned()),
            None => Roots::Below(hierarchies(cgroup, mounts)),
        };
        // In a container without the node's PIDs, process 1 is the container's.
        let outside = ["1".to_owned(), std::process::id().to_string()];
        let outside = outside.iter().filter_map(|pid| netns_of(pid.parse().ok()?).ok()).collect();
        Self { roots, outside, cgroups: HashMap::new(), processes: HashMap::new() }
    }

    /// The network namespace of the pod with this UID; `None` while no process of it runs.
    pub fn find(&mut self, uid: &str) -> anyhow::Result<Option<Sandbox>> {
        let known = self.processes.get(uid).filter(|process| process.lives()).copied();
        let process = match known {
            Some(process) => process,
            None => match self.look(uid)? {
                Some(process) => process,
                None => return Ok(None),
            },
        };
        self.processes.insert(uid.to_owned(), process);
        let is_pods = |name: &str| names::pod_uid(name).as_deref() == Some(uid);
        match process.open_netns(is_pods) {
            Ok(netns) => Ok(Some(Sandbox { netns, id: process.netns })),
            // It has just ended; another may come.
            Err(error) => {
                tracing::debug!(uid, pid = process.pid, %error, "not the pod's process any more");
                self.processes.remove(uid);
                Ok(None)
            }
        }
    }

    /// Forgets the pods that are not among these.
    pub fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        self.processes.retain(|uid, _| wanted(uid));
    }

    /// Tells whenever a pod's cgroup comes, goes, or gets its first process or loses its last.
    pub fn watch(&self) -> io::Result<Changes> {
        match &self.roots {
            Roots::Named(root) => Changes::of_pods(root),
            Roots::Below(hierarchies) => Changes::below(hierarchies),
        }
    }

    fn look(&mut self, uid: &str) -> anyhow::Result<Option<PodProcess>> {
        if self.cgroups.get(uid).is_none_or(|path| !path.is_dir()) {
            self.cgroups = self.list().context("cannot list the pods' cgroups")?;
        }
        let Some(cgroup) = self.cgroups.get(uid) else { return Ok(None) };
        match oldest(cgroup, &self.outside) {
            // It went just now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            found => found.with_context(|| format!("cannot read the pod's cgroup {}", cgroup.display())),
        }
    }

    fn list(&self) -> io::Result<HashMap<String, PathBuf>> {
        Ok(pods_below(&self.roots.find()?)?.into_iter().collect())
    }
}

impl Roots {
    /// The cgroups that all pods' are below. Where processes are in several hierarchies, they are the same ones.
    fn find(&self) -> io::Result<Vec<PathBuf>> {
        match self {
            Self::Named(root) => Ok(vec![root.clone()]),
            Self::Below(hierarchies) => {
                for hierarchy in hierarchies {
                    let roots = pods_roots(hierarchy)?;
                    if !roots.is_empty() {
                        return Ok(roots);
                    }
                }
                Ok(Vec::new())
            }
        }
    }
}

/// Every pod's cgroup, by its UID.
fn pods_below(roots: &[PathBuf]) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for root in roots {
        for (name, path) in children(root)? {
            if let Some(uid) = names::pod_uid(&name) {
                found.push((uid, path));
            } else if names::is_quality(&name) {
                let pods = children(&path)?.into_iter();
                found.extend(pods.filter_map(|(name, path)| Some((names::pod_uid(&name)?, path))));
            }
        }
    }
    Ok(found)
}

/// The cgroup v2 hierarchy first, then those of v1: kubelet may use them on a hybrid machine.
fn hierarchies(cgroup: Option<&Path>, mounts: &str) -> Vec<PathBuf> {
    let mounted = |kind: &'static str| {
        mounts.lines().filter_map(move |line| {
            let mut fields = line.split(' ').skip(1);
            let (path, found) = (fields.next()?, fields.next()?);
            (found == kind).then(|| PathBuf::from(path))
        })
    };
    let v2 = cgroup.map(Path::to_owned).into_iter().chain(mounted("cgroup2"));
    v2.chain(mounted("cgroup")).collect()
}

/// The cgroups of a hierarchy below which all pods' are.
fn pods_roots(hierarchy: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    // The upper ones first.
    let mut left = VecDeque::from([(hierarchy.to_owned(), 0)]);
    let mut seen = 0;
    while let Some((path, depth)) = left.pop_front() {
        for (name, path) in directories(&path)? {
            if names::is_pods_root(&name) {
                found.push(path);
            } else if depth < MAX_DEPTH && seen < MAX_SEARCHED {
                seen += 1;
                left.push_back((path, depth + 1));
            }
        }
    }
    Ok(found)
}

/// The directories in one of kubelet's, by name; none if it is gone.
fn children(path: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let children: Vec<_> = directories(path)?.take(MAX_ENTRIES + 1).collect();
    if children.len() > MAX_ENTRIES {
        let what = format!("{} has more than {MAX_ENTRIES} cgroups", path.display());
        return Err(io::Error::other(what));
    }
    Ok(children)
}

fn directories(path: &Path) -> io::Result<impl Iterator<Item = (String, PathBuf)>> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        entries => Some(entries?),
    };
    let entries = entries.into_iter().flat_map(|entries| entries.map_while(Result::ok));
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(dirs.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_comes_first() {
        let mounts = "cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\nproc /proc proc rw 0 0\n";
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(hierarchies(None, mounts), paths(&["/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids"]));
        assert_eq!(hierarchies(Some(Path::new("/host/cgroup")), ""), paths(&["/host/cgroup"]));
    }
}
