//! The cgroups of pods, without a look into them.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use super::{Roots, hierarchies, names, pods_below};

/// Where pods' cgroups of version 2 are.
#[derive(Debug)]
pub struct PodCgroups {
    roots: Roots,
    /// As last looked for.
    found: Mutex<Vec<PathBuf>>,
}

impl PodCgroups {
    /// Looks where [`Sandboxes::new`](super::Sandboxes::new) does, but for hierarchies of version 1.
    pub fn new(pods_cgroup: Option<&Path>, cgroup: Option<&Path>, mounts: &str) -> Self {
        let roots = match pods_cgroup {
            Some(path) => Roots::Named(path.to_owned()),
            None => {
                let version2 = mounts.lines().filter(|line| line.split(' ').nth(2) == Some("cgroup2"));
                Roots::Below(hierarchies(cgroup, &version2.collect::<Vec<_>>().join("\n")))
            }
        };
        Self { roots, found: Mutex::default() }
    }

    /// The cgroup of the pod with this UID, by its name alone: it costs the same however many pods there are.
    pub fn find(&self, uid: &str) -> io::Result<Option<PathBuf>> {
        let mut roots = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if roots.is_empty() {
            *roots = self.roots.find()?;
        }
        let candidates = roots.iter().flat_map(|root| {
            let name = root.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            names::pod_cgroups(name, uid).map(|below| root.join(below))
        });
        let found = candidates.into_iter().find(|path| path.is_dir());
        if found.is_none() {
            // kubelet may have been told to work elsewhere since.
            roots.clear();
        }
        Ok(found)
    }

    /// All of them, by UID.
    pub fn all(&self) -> io::Result<Vec<(String, PathBuf)>> {
        pods_below(&self.roots.find()?)
    }
}

#[cfg(test)]
mod tests {
    use std::{env, fs, process};

    use super::*;

    #[test]
    fn a_pods_cgroup_is_found_below_every_root() {
        let directory = env::temp_dir().join(format!("orlop-cgroups-{}", process::id()));
        let paths = [
            "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podaa_1.slice",
            "kubepods/besteffort/podbb-2",
            "kubepods/podcc",
        ];
        for path in paths {
            fs::create_dir_all(directory.join(path)).unwrap();
        }
        let cgroups = PodCgroups::new(None, Some(&directory), "");
        let found = ["aa-1", "bb-2", "cc"].map(|uid| cgroups.find(uid).unwrap());
        assert_eq!(found, paths.map(|path| Some(directory.join(path))));
        assert_eq!(cgroups.find("dd").unwrap(), None);
        assert_eq!(cgroups.all().unwrap().len(), 3);
        fs::remove_dir_all(directory).unwrap();
    }
}
