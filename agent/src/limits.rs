//! What the machine allows the agent.

use std::{
    fs::{self, File},
    hint, io,
    os::fd::RawFd,
    path::Path,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::{SysconfVar, close, sysconf},
};

/// Between two looks at the memory in use.
const LOOK: Duration = Duration::from_millis(250);
/// What the allocator takes from the kernel's memory, and not from its own.
const LARGE: usize = 64 << 20;

/// By default no more open files than this: there is no use for them.
const DESCRIPTORS: u64 = 1 << 20;
/// For so many the kernel keeps 512 KiB from the start.
const ROOM: u64 = 1 << 16;

/// Each connection takes up to two descriptors: takes so many, by default as many as the system allows, and says how
/// many these are.
pub fn raise_descriptors(wanted: Option<u64>) -> usize {
    if let Err(error) = raise(wanted) {
        tracing::warn!(%error, "cannot set the limit of open files; fewer connections may fit");
    }
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    make_room(limit);
    tracing::info!(limit, "open files that this process may have");
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// The limit that is inherited is one for programs with few files: with CAP_SYS_RESOURCE it may be raised up to
/// `fs.nr_open` (proc(5)), else it stays.
fn raise(wanted: Option<u64>) -> nix::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if let Some(wanted) = wanted {
        return setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted);
    }
    let possible = fs::read_to_string("/proc/sys/fs/nr_open").ok();
    let possible = possible.and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(hard);
    let limit = possible.min(DESCRIPTORS).max(hard);
    match setrlimit(Resource::RLIMIT_NOFILE, limit, limit) {
        Err(Errno::EPERM) => setrlimit(Resource::RLIMIT_NOFILE, hard, hard),
        result => result,
    }
}

/// The kernel doubles the table of a process's open files as they become more, and has whoever opens one then wait for
/// all processors, some 10 ms (`expand_fdtable` in fs/file.c): one that has few threads yet had better have it grown.
fn make_room(limit: u64) {
    let Ok(last) = RawFd::try_from(limit.min(ROOM) - 1) else { return };
    // Without it they wait later on.
    let _ = File::open("/dev/null").and_then(|file| {
        let grown = fcntl(&file, FcntlArg::F_DUPFD_CLOEXEC(last))?;
        Ok(close(grown)?)
    });
}

/// Whether it was for want of open files, which says nothing of what was to be opened.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EMFILE | Errno::ENFILE))
}

/// Nine tenths of what the agent's cgroup, or one that it is in, may have; `None` if none has a limit.
pub fn memory_of_cgroup(mount: &Path) -> Option<u64> {
    // cgroups(7): the line of the unified hierarchy.
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = mount.join(own.lines().find_map(|line| line.strip_prefix("0::/"))?);
    let limit =
        |cgroup: &Path| fs::read_to_string(cgroup.join("memory.max")).ok()?.trim().parse::<u64>().ok();
    let limits = own.ancestors().take_while(|cgroup| cgroup.starts_with(mount)).filter_map(limit);
    Some(limits.min()? / 10 * 9)
}

/// Says by `set_short` that new work is to be refused, for as long as the agent has more than `limit` bytes resident.
pub async fn watch_memory(limit: u64, set_short: impl Fn(bool)) {
    let mut short = false;
    loop {
        let used = resident();
        if (used > limit) != short {
            short = used > limit;
            set_short(short);
            if short {
                tracing::warn!(used, limit, "too much memory in use; refusing what is new");
            } else {
                tracing::info!(used, limit, "enough memory again; taking what is new");
            }
        }
        if short {
            // The allocator gives pages back some time after they were freed, but only when a large block comes
            // or goes: an agent that has become idle would keep them.
            drop(hint::black_box(Vec::<u8>::with_capacity(LARGE)));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Resident memory in bytes (proc(5), statm); 0 if nobody says.
fn resident() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.as_deref().and_then(|statm| statm.split(' ').nth(1)?.parse::<u64>().ok());
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|size| u64::try_from(size).ok());
    pages.zip(page).map_or(0, |(pages, page)| pages * page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_known() {
        assert!(resident() > 1 << 20);
    }
}
