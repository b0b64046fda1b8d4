use std::{io, path::PathBuf};

/// Why the kernel side could not be set up or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatapathError {
    /// The binary was built without an eBPF toolchain.
    #[error("this orlop was built without its eBPF programs; run `cargo xtask setup` and build again")]
    NoObject,
    /// No cgroup2 file system is mounted.
    #[error(
        "no cgroup2 mount in /proc/mounts; mount one (`mount -t cgroup2 none /sys/fs/cgroup`) or name it with --cgroup"
    )]
    NoCgroup,
    /// The pin directory is not on a BPF file system.
    #[error("{} is not on a BPF file system; mount one (`mount -t bpf bpf /sys/fs/bpf`) or choose another --bpffs", .0.display())]
    NotBpffs(PathBuf),
    /// A file or directory could not be used.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The object is not what this agent expects.
    #[error("the eBPF object inside this binary is broken; build it again")]
    Object(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The kernel refused a part of the object.
    #[error(
        "cannot load {what} (kernel 5.15 or newer and root, or CAP_NET_ADMIN and CAP_SYS_ADMIN, are needed)"
    )]
    Load {
        /// Which part.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The object has no such part: object and agent are of different builds.
    #[error("the eBPF object has no {0}; build the whole workspace again")]
    Missing(&'static str),
    /// The kernel refused a program.
    #[error("the kernel refuses program {program}; its verifier says: {log}")]
    Verifier {
        /// Name of the program.
        program: &'static str,
        /// The verifier's log.
        log: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// What is in the cgroup could not be held.
    #[error("{} is of no cgroup2 hierarchy, or too deep in it, to be held until its pod is enrolled", .0.display())]
    NotGateable(PathBuf),
    /// A map operation failed.
    #[error("cannot {action} map {map}")]
    Map {
        /// What was tried.
        action: &'static str,
        /// Name of the map.
        map: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Connections could not be closed.
    #[error("cannot close connections of a pod that policy no longer allows")]
    Close(#[source] io::Error),
    /// A link operation failed.
    #[error("cannot {action} the link {}", path.display())]
    Link {
        /// What was tried.
        action: &'static str,
        /// The link's pin.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}
