//! Pods that are held until they are enrolled, by their cgroups.

use std::{
    fs::{self, File},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use orlop_common::MAX_POD_DEPTH;

use crate::{DatapathError, cgroup, file, map_error, maps::Map};

/// Of a cgroup of version 2: unique for as long as the machine runs.
pub type CgroupId = u64;

/// The cgroups below which sockets are held until their netns is enrolled.
#[derive(Debug)]
pub struct Gate {
    gated: Map<CgroupId, u32>,
    /// Of the hierarchy.
    root: PathBuf,
    hierarchy: File,
}

impl Gate {
    pub(crate) fn new(gated: OwnedFd, root: PathBuf, hierarchy: File) -> Self {
        Self { gated: Map::new(gated), root, hierarchy }
    }

    /// The id of a pod's cgroup; an error if the hooks would not find what is below it.
    pub fn id(&self, cgroup: &Path) -> Result<CgroupId, DatapathError> {
        let kind = statfs(cgroup).map_err(|errno| file("look at", cgroup)(errno.into()))?;
        let depth = cgroup.strip_prefix(&self.root).map(|below| below.components().count());
        if kind.filesystem_type() != CGROUP2_SUPER_MAGIC || depth.is_ok_and(|depth| depth > MAX_POD_DEPTH) {
            return Err(DatapathError::NotGateable(cgroup.to_owned()));
        }
        // Its inode's number is its id (5.5).
        Ok(fs::metadata(cgroup).map_err(file("look at", cgroup))?.ino())
    }

    /// Holds a pod, from the next socket on that is made in it.
    pub fn hold(&self, cgroup: CgroupId) -> Result<(), DatapathError> {
        self.gated.insert(cgroup, 1).map_err(map_error("write", "GATED"))
    }

    /// Holds it no more.
    pub fn release(&self, cgroup: CgroupId) -> Result<(), DatapathError> {
        self.gated.remove(cgroup).map_err(map_error("write", "GATED"))
    }

    /// Holds it no more if it is gone for good; what can't be told is held.
    pub fn release_gone(&self, id: CgroupId) -> Result<(), DatapathError> {
        if cgroup::exists(self.hierarchy.as_fd(), id).map_err(file("look for a cgroup in", &self.root))? {
            return Ok(());
        }
        self.release(id)
    }

    /// Those that are held until they are enrolled, or were, by this agent or an earlier one.
    pub fn held(&self) -> Result<Vec<CgroupId>, DatapathError> {
        self.gated.keys().map_err(map_error("list", "GATED"))
    }
}
