use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::id::Id;
use crate::{cgroup, netns};

/// Where the testbed's agents pin maps and links.
pub(crate) const BPFFS: &str = "/sys/fs/bpf";

/// Removes what runs that are over left behind, and says what. Things of living runs stay.
pub fn sweep() -> Result<Vec<String>> {
    let found = leftovers()?;
    let dead: BTreeSet<Id> = all()?.into_iter().map(|(id, _)| id).filter(|id| !id.owner_alive()).collect();
    for id in &dead {
        clean(id)?;
    }
    Ok(found)
}

/// What runs that are over left behind: namespaces, cgroups, pins, processes and files, one line each.
pub fn leftovers() -> Result<Vec<String>> {
    list(|id| !id.owner_alive())
}

/// What there is of the testbed with this [`id`](crate::Testbed::id), whether it lives or not.
pub fn leftovers_of(testbed: &str) -> Result<Vec<String>> {
    let wanted = Id::parse(testbed).with_context(|| format!("{testbed} is not the id of a testbed"))?;
    list(|id| *id == wanted)
}

/// Removes everything of one testbed: first the processes, then what they hold.
pub(crate) fn clean(id: &Id) -> Result<()> {
    let mut first_error = Ok(());
    let mut note = |result: Result<()>| {
        if first_error.is_ok() {
            first_error = result;
        }
    };
    note(cgroup::root().and_then(|root| cgroup::remove(&root.join(id.to_string()))));
    for (_, path) in cgroup::named(Id::parse).into_iter().filter(|(owner, _)| owner == id) {
        note(cgroup::remove_version_1(&path));
    }
    note(remove_dir(&Path::new(BPFFS).join(id.to_string())));
    for (_, path) in named(Path::new(netns::DIR)).into_iter().filter(|(owner, _)| owner == id) {
        note(netns::remove(&path));
    }
    note(remove_dir(&std::env::temp_dir().join(id.to_string())));
    first_error
}

fn list(wanted: impl Fn(&Id) -> bool) -> Result<Vec<String>> {
    Ok(all()?.into_iter().filter(|(id, _)| wanted(id)).map(|(_, what)| what).collect())
}

fn all() -> Result<Vec<(Id, String)>> {
    let mut found = Vec::new();
    let places = [
        ("network namespace", PathBuf::from(netns::DIR)),
        ("cgroup", cgroup::root()?),
        ("BPF pins", PathBuf::from(BPFFS)),
        ("files", std::env::temp_dir()),
    ];
    for (kind, place) in places {
        found.extend(named(&place).into_iter().map(|(id, path)| (id, format!("{kind} {}", path.display()))));
    }
    let cgroups = cgroup::named(Id::parse).into_iter();
    found.extend(cgroups.map(|(id, path)| (id, format!("cgroup {}", path.display()))));
    found.extend(processes()?);
    Ok(found)
}

fn named(dir: &Path) -> Vec<(Id, PathBuf)> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| Some((Id::parse(entry.file_name().to_str()?)?, entry.path())))
        .collect()
}

/// Processes that live in a testbed's cgroup.
fn processes() -> Result<Vec<(Id, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("reading /proc")?.flatten() {
        // Processes may end between listing and reading: those are no leftovers.
        let Ok(cgroups) = fs::read_to_string(entry.path().join("cgroup")) else { continue };
        let Some(id) =
            cgroups.lines().find_map(|line| line.strip_prefix("0::")?.split('/').find_map(Id::parse))
        else {
            continue;
        };
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        // A zombie waits for its parent and holds nothing.
        if command.is_empty() {
            continue;
        }
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        found.push((id, format!("process {} {}", entry.file_name().display(), command.trim())));
    }
    Ok(found)
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}
