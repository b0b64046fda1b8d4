//! What this process must be allowed (capabilities(7)).

use std::{fs, io};

use super::Feature;

/// By its number in linux/capability.h, with what is impossible without it. The kernel takes `CAP_SYS_ADMIN` for
/// `CAP_BPF` and `CAP_PERFMON`, too.
const NEEDED: [(u32, &str, &str); 3] = [
    (21, "CAP_SYS_ADMIN", "no program can be loaded, and no network namespace of a pod be entered"),
    (12, "CAP_NET_ADMIN", "connections that policy no longer allows would stay open"),
    (19, "CAP_SYS_PTRACE", "network namespaces of pods are not found in /proc"),
];
/// What the boot gate needs besides.
const OF_BOOT_GATE: (u32, &str, &str) =
    (2, "CAP_DAC_READ_SEARCH", "before Linux 6.11, the boot gate finds no cgroup by its id");

/// The capabilities that `orlop node`, with or without a boot gate, can't do without, and whether this process has them.
pub fn capabilities(boot_gate: bool) -> Vec<Feature> {
    let effective = effective();
    let feature = |(number, name, without): (u32, &str, &str)| {
        let found = match &effective {
            Ok(effective) if effective >> number & 1 == 1 => Ok(()),
            Ok(_) => Err(format!("without it {without}: run this as root; in a container, add it")),
            Err(error) => Err(format!("/proc/self/status: {error}")),
        };
        Feature { name: format!("capability {name}"), since: None, found }
    };
    NEEDED.into_iter().chain(boot_gate.then_some(OF_BOOT_GATE)).map(feature).collect()
}

/// `CapEff`, a bit for each capability (proc_pid_status(5)).
fn effective() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it has no CapEff"))
}
