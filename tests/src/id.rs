use std::fmt;
use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

const PREFIX: &str = "orlop-";

/// Names a testbed by its owner: process id, the process's start time, and a count within it.
///
/// The start time (clock ticks since boot) tells a living owner from a later process with its id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id {
    pid: u32,
    start: u64,
    count: u32,
}

impl Id {
    /// A new id owned by this process.
    pub(crate) fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let pid = std::process::id();
        let start = start_time(pid).context("reading the start time in /proc/self/stat")?;
        Ok(Self { pid, start, count: COUNT.fetch_add(1, Ordering::Relaxed) })
    }

    /// The id that `name` begins with: `orlop-PID-START-COUNT` or `orlop-PID-START-COUNT-…`.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix(PREFIX)?.splitn(4, '-');
        Some(Self {
            pid: parts.next()?.parse().ok()?,
            start: parts.next()?.parse().ok()?,
            count: parts.next()?.parse().ok()?,
        })
    }

    /// Whether the process that made this id still runs.
    pub(crate) fn owner_alive(&self) -> bool {
        start_time(self.pid) == Some(self.start)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}-{}-{}", self.pid, self.start, self.count)
    }
}

/// When a process started, in clock ticks since boot; `None` once it has ended.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may hold spaces and parentheses: count fields from the last one. proc(5): field 22.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_back_to_its_id() {
        let id = Id::new().unwrap();
        assert_eq!(Id::parse(&id.to_string()), Some(id.clone()));
        assert_eq!(Id::parse(&format!("{id}-p-shop.web-1")), Some(id));
    }

    #[test]
    fn foreign_names_are_nobodys() {
        for name in ["orlop", "orlop-1-2", "orlop-web-2-3", "cni-1-2-3", ""] {
            assert_eq!(Id::parse(name), None, "{name}");
        }
    }

    #[test]
    fn a_reused_process_id_is_not_the_owner() {
        let id = Id::new().unwrap();
        assert!(id.owner_alive());
        assert!(!Id { start: id.start - 1, ..id }.owner_alive());
    }
}
