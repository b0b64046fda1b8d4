use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Where cgroup v2 is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on a hybrid machine.
pub(crate) fn root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("reading /proc/mounts")?;
    match root_in(&mounts) {
        Some(root) => Ok(root),
        None => bail!("cgroup v2 is not mounted: `mount -t cgroup2 none /sys/fs/cgroup`"),
    }
}

fn root_in(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (target, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(target))
    })
}

/// Makes a cgroup and its parents.
pub(crate) fn create(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| {
        format!("creating the cgroup {}: is cgroup v2 mounted read-write here?", dir.display())
    })
}

/// Kills every process in `dir` and under it, and waits until they are gone.
pub(crate) fn kill(dir: &Path) -> Result<()> {
    kill_all(dir)?;
    let populated =
        || fs::read_to_string(dir.join("cgroup.events")).is_ok_and(|text| text.contains("populated 1"));
    let deadline = Instant::now() + Duration::from_secs(5);
    while populated() {
        if Instant::now() > deadline {
            bail!("processes in {} do not end", dir.display());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Kills every process in `dir` and under it, waits until they are gone, and removes it.
pub(crate) fn remove(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        // A process that forks while we look is caught by the next round.
        kill_all(dir)?;
        match remove_tree(dir) {
            Ok(()) => return Ok(()),
            Err(_) if !dir.exists() => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("removing the cgroup {}", dir.display()));
            }
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// The cgroups of version 1 whose names somebody knows, with what they are. Whoever made them did so in the cgroup that
/// it was in, or below.
pub(crate) fn named<T>(known: impl Fn(&str) -> Option<T>) -> Vec<(T, PathBuf)> {
    /// Below a hierarchy's root.
    const DEPTH: usize = 4;
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let roots = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (place, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup").then(|| (PathBuf::from(place), 0))
    });
    let mut left: Vec<_> = roots.collect();
    let mut found = Vec::new();
    while let Some((dir, depth)) = left.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            match entry.file_name().to_str().and_then(&known) {
                Some(what) => found.push((what, entry.path())),
                None if depth < DEPTH => left.push((entry.path(), depth + 1)),
                None => {}
            }
        }
    }
    found
}

/// Removes a cgroup of version 1, whose processes have been told to end.
pub(crate) fn remove_version_1(dir: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match remove_tree(dir) {
            Ok(()) => return Ok(()),
            Err(_) if !dir.exists() => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("removing the cgroup {}", dir.display()));
            }
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn kill_all(dir: &Path) -> Result<()> {
    // Linux 5.14; takes the whole subtree at once.
    match fs::write(dir.join("cgroup.kill"), "1") {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !dir.exists() => Ok(()),
        Err(error) => Err(error).with_context(|| format!("killing the cgroup {}", dir.display())),
    }
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_machine_mounts_it_lower() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(root_in(mounts), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(root_in("proc /proc proc rw 0 0\n"), None);
    }
}
