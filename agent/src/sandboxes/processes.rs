//! The processes of a cgroup, and their network namespaces.

use std::{
    fs::{self, File, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
};

/// A pod's cgroup, the runtime's for a container, and what that may make itself.
const MAX_DEPTH: usize = 6;

/// Tells network namespaces apart for as long as they are open somewhere: device and inode.
pub type NetnsId = (u64, u64);

/// A process that lives in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodProcess {
    pub pid: u32,
    /// In clock ticks since boot.
    start: u64,
    pub netns: NetnsId,
}

impl PodProcess {
    /// Whether the process still lives, and in the same network namespace.
    pub fn lives(&self) -> bool {
        start_time(self.pid) == Some(self.start) && netns_of(self.pid).is_ok_and(|netns| netns == self.netns)
    }

    /// Opens the network namespace of the process, which must still be in the pod's cgroup.
    pub fn open_netns(&self, is_pods: impl Fn(&str) -> bool) -> io::Result<File> {
        let netns = File::open(netns_path(self.pid))?;
        let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", self.pid))?;
        // The id may be another process's by now.
        let same = id(&netns.metadata()?) == self.netns && start_time(self.pid) == Some(self.start);
        if same && cgroups.split(['/', '\n']).any(is_pods) {
            return Ok(netns);
        }
        Err(io::Error::other("its process ended meanwhile"))
    }
}

/// The process of a pod's cgroup that has lived there longest, not counting those in one of `outside`.
///
/// Runtimes keep a process of their own for as long as a pod has its network namespace, started before any of the
/// pod's. CRI-O may do without: there it is the pod's first that lives, and what watches over it is on the node's
/// network, as is everything that a runtime runs for a pod. So a process that has moved to a network namespace of its
/// own making is not taken for the pod.
pub fn oldest(cgroup: &Path, outside: &[NetnsId]) -> io::Result<Option<PodProcess>> {
    let mut pids = Vec::new();
    processes(cgroup, MAX_DEPTH, &mut pids)?;
    let found = pids.into_iter().filter_map(|pid| {
        // One that has ended since is no candidate.
        let process = PodProcess { pid, start: start_time(pid)?, netns: netns_of(pid).ok()? };
        (!outside.contains(&process.netns)).then_some(process)
    });
    Ok(found.min_by_key(|process| (process.start, process.pid)))
}

/// The network namespace of a process.
pub fn netns_of(pid: u32) -> io::Result<NetnsId> {
    fs::metadata(netns_path(pid)).map(|metadata| id(&metadata))
}

/// The network namespace that an open file stands for.
fn id(metadata: &Metadata) -> NetnsId {
    (metadata.dev(), metadata.ino())
}

fn netns_path(pid: u32) -> String {
    format!("/proc/{pid}/ns/net")
}

fn processes(cgroup: &Path, depth: usize, pids: &mut Vec<u32>) -> io::Result<()> {
    // A threaded cgroup gives no processes: its threads' are further up.
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    // 0 is a process of another PID namespace.
    pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid != 0));
    if depth == 0 {
        return Ok(());
    }
    for entry in fs::read_dir(cgroup)? {
        let Ok(entry) = entry else { continue };
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // It may be gone since it was listed.
            let _ = processes(&entry.path(), depth - 1, pids);
        }
    }
    Ok(())
}

/// proc(5): field 22. The command's name before may hold spaces and parentheses.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process;

    use super::*;

    #[test]
    fn a_process_knows_whether_it_lives() {
        let me = process::id();
        let process = PodProcess { pid: me, start: start_time(me).unwrap(), netns: netns_of(me).unwrap() };
        assert!(process.lives());
        assert!(!PodProcess { start: process.start + 1, ..process }.lives());
        assert!(!PodProcess { netns: (0, 0), ..process }.lives());
    }

    #[test]
    fn a_netns_is_opened_only_from_the_pods_cgroup() {
        let me = process::id();
        let process = PodProcess { pid: me, start: start_time(me).unwrap(), netns: netns_of(me).unwrap() };
        assert!(process.open_netns(|_| true).is_ok());
        assert!(process.open_netns(|_| false).is_err());
    }
}
