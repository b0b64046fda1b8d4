//! What the programs and their loader need of the kernel, tried one by one.
//!
//! A version number proves little: distributions build features out, backport some, and updates of stable
//! kernels have broken the verifier. So each feature is tried with the smallest program that uses it, and
//! in the end the real programs are loaded.

mod capabilities;
mod known;

use std::{
    error::Error,
    fmt::{self, Display},
    fs::{self, File},
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::Path,
    ptr,
};

use aya_obj::generated::{bpf_insn, bpf_map_type::BPF_MAP_TYPE_LRU_HASH};
use nix::{
    libc,
    sys::{
        resource::{RLIM_INFINITY, Resource, setrlimit},
        socket::{AddressFamily, SockFlag, SockType, socket},
    },
};

use crate::{
    DatapathError, links,
    object::{self, Constants},
    sys::{self, MapDefinition, ProgramDefinition, ProgramKind},
};
pub use capabilities::capabilities;

/// A version of Linux: major and minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

/// The oldest kernel that has everything.
const OLDEST: Version = Version(5, 15);
/// What may have been left out of a kernel that is new enough.
const OPTIONS: &str =
    "CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF, CONFIG_NET_SOCK_MSG, CONFIG_INET and CONFIG_IPV6";
/// How much of the verifier's log is told: its end says why.
const LOG_LINES: usize = 5;

/// One thing that Orlop needs, and whether it is there.
#[derive(Clone, Debug)]
pub struct Feature {
    /// What it is.
    pub name: String,
    /// The first kernel with it, if that is what it depends on.
    pub since: Option<Version>,
    /// If it is missing: what the system said, and what to do.
    pub found: Result<(), String>,
}

/// Tries everything that [`Datapath`](crate::Datapath) uses, with what is missing told. Leaves nothing behind.
///
/// Without a [capability](capabilities), bpf(2) or a file system, the rest is not tried: it would fail for that
/// reason.
pub fn features(bpffs: &Path, cgroup: Option<&Path>) -> Vec<Feature> {
    // Before 5.11, maps count against this limit.
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    let mut probe = Probe { running: running(), features: capabilities(false) };
    if probe.missing() != 0 {
        return probe.features;
    }
    probe.add("bpf(2)", None, small_map().map(drop).map_err(no_bpf));
    probe.add("cgroup2 file system", None, open_cgroup(cgroup).map(drop));
    probe.add("BPF file system", None, bpf_file_system(bpffs));
    if probe.missing() == 0 {
        probe.version();
        probe.sockets();
        probe.maps();
        probe.program_kinds();
        probe.links(cgroup);
    }
    if probe.missing() == 0 {
        probe.programs();
    }
    probe.features
}

struct Probe {
    running: Option<Version>,
    features: Vec<Feature>,
}

impl Probe {
    fn missing(&self) -> usize {
        self.features.iter().filter(|feature| feature.found.is_err()).count()
    }

    fn add(&mut self, name: impl Into<String>, since: Option<Version>, found: Result<(), String>) {
        let remedy = |said| match since {
            None => said,
            Some(since) if self.running.is_some_and(|running| running < since) => {
                format!("{said}: run Linux {OLDEST} or newer")
            }
            Some(_) => format!("{said}: this kernel may be built without it; Orlop needs {OPTIONS}"),
        };
        self.features.push(Feature { name: name.into(), since, found: found.map_err(remedy) });
    }

    fn version(&mut self) {
        let found = match self.running {
            Some(running) if running < OLDEST => Err(format!("this is {running}")),
            _ => Ok(()),
        };
        self.add("kernel", Some(OLDEST), found);
    }

    fn sockets(&mut self) {
        self.add("SO_NETNS_COOKIE", Some(Version(5, 14)), netns_cookie().map(drop).map_err(text));
    }

    fn maps(&mut self) {
        match object::try_maps() {
            Ok(types) => {
                for (map_type, made) in types {
                    let (name, since) = known::map_type(map_type);
                    self.add(format!("map type {name}"), since, made.map_err(text));
                }
            }
            Err(error) => self.add("eBPF object", None, Err(text(error))),
        }
    }

    /// The kinds of our programs, and the helpers that ours of that kind call.
    fn program_kinds(&mut self) {
        let loaded = object::load(None, &Constants::WIDEST).ok();
        for (name, kind) in links::programs() {
            let (section, since) = known::program(kind);
            let accepted = load(kind, &ALLOW).map(drop).map_err(refusal);
            let there = accepted.is_ok();
            self.add(format!("program type {section}"), Some(since), accepted);
            // Without the type or the maps, nothing can be said of helpers.
            let Some(loaded) = loaded.as_ref().filter(|_| there) else { continue };
            let mut newest = since;
            let helpers = loaded.helpers(name).unwrap_or_default();
            let missing_before = self.missing();
            for &helper in &helpers {
                let (helper_name, since) = known::helper(helper, kind);
                newest = since.map_or(newest, |since| since.max(newest));
                if let Err(said) = may_call(kind, helper) {
                    self.add(format!("bpf_{helper_name} in {section}"), since, Err(said));
                }
            }
            if self.missing() == missing_before {
                self.add(format!("{} helpers in {section}", helpers.len()), Some(newest), Ok(()));
            }
        }
    }

    /// Links to programs that let everything pass, for the time of the call.
    fn links(&mut self, cgroup: Option<&Path>) {
        let found = open_cgroup(cgroup).and_then(|cgroup| link(ProgramKind::Getpeername4, &cgroup));
        self.add("links to cgroups", Some(Version(5, 7)), found);
        let netns = File::open("/proc/self/ns/net").map_err(text);
        self.add(
            "links to network namespaces",
            Some(Version(5, 9)),
            netns.and_then(|netns| link(ProgramKind::SkLookup, &netns)),
        );
    }

    fn programs(&mut self) {
        let loaded = match object::load(None, &Constants::WIDEST) {
            Ok(loaded) => loaded,
            Err(error) => return self.add("eBPF object", None, Err(text(error))),
        };
        for (name, kind) in links::programs() {
            let accepted = loaded.program(name, kind).map(drop).map_err(|error| match error {
                DatapathError::Verifier { log, source, .. } => refusal((source, log)),
                error => text(error),
            });
            self.add(format!("program {name}"), None, accepted);
        }
    }
}

/// One instruction: what it does, and its immediate value.
type Instruction = (u8, i32);

/// `r0 = 1; exit`: lets everything pass, whatever the kind of program.
const ALLOW: [Instruction; 2] = [(0xb7, 1), (0x95, 0)];
const CALL: u8 = 0x85;

fn load(kind: ProgramKind, program: &[Instruction]) -> Result<OwnedFd, (io::Error, String)> {
    let plain = |(code, imm): &Instruction| bpf_insn {
        code: *code,
        _bitfield_align_1: [],
        _bitfield_1: bpf_insn::new_bitfield_1(0, 0),
        off: 0,
        imm: *imm,
    };
    let instructions: Vec<_> = program.iter().map(plain).collect();
    sys::program_load(&ProgramDefinition {
        name: "orlop_check",
        kind,
        instructions: &instructions,
        license: c"Dual MIT/GPL",
        btf: None,
        func_info: (&[], 0),
        line_info: (&[], 0),
    })
}

/// Whether a program of this kind may call the helper. Its arguments are missing, which the verifier looks at
/// only once it has found the helper.
fn may_call(kind: ProgramKind, helper: i32) -> Result<(), String> {
    let [set, exit] = ALLOW;
    let Err((_, log)) = load(kind, &[(CALL, helper), set, exit]) else { return Ok(()) };
    let unknown = ["unknown func", "invalid func", "cannot use helper"];
    match log.lines().find(|line| unknown.iter().any(|words| line.contains(words))) {
        Some(line) => Err(line.to_owned()),
        None => Ok(()),
    }
}

/// Makes a link, replaces its program and takes it off again.
fn link(kind: ProgramKind, target: &File) -> Result<(), String> {
    let program = load(kind, &ALLOW).map_err(refusal)?;
    let link = sys::link_create(program.as_fd(), target.as_fd(), kind).map_err(text)?;
    sys::link_update(link.as_fd(), program.as_fd()).map_err(text)?;
    sys::link_detach(link.as_fd()).map_err(text)
}

fn netns_cookie() -> io::Result<u64> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let (mut cookie, mut size) = (0u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the kernel writes at most `size` bytes to `cookie`.
    let result = unsafe {
        let value = ptr::from_mut(&mut cookie).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, value, &raw mut size)
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

fn small_map() -> io::Result<OwnedFd> {
    let map_type = BPF_MAP_TYPE_LRU_HASH as u32;
    let (key_size, value_size, max_entries) = (size_of::<u32>() as u32, size_of::<u32>() as u32, 1);
    let definition = MapDefinition {
        name: "orlop_check",
        map_type,
        key_size,
        value_size,
        max_entries,
        flags: 0,
        btf: None,
    };
    sys::map_create(&definition)
}

fn no_bpf(error: io::Error) -> String {
    let remedy = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "run this as root of the machine; in a container, with a seccomp profile that lets bpf(2) pass"
        }
        _ => "this kernel is built without CONFIG_BPF_SYSCALL; take another",
    };
    format!("{error}: {remedy}")
}

fn open_cgroup(cgroup: Option<&Path>) -> Result<File, String> {
    let path = cgroup.map_or_else(crate::cgroup2_mount, |path| Ok(path.to_owned())).map_err(text)?;
    File::open(&path).map_err(|error| format!("{}: {error}", path.display()))
}

/// The directory for the pins, or the one that it will be made in.
fn bpf_file_system(bpffs: &Path) -> Result<(), String> {
    let there = bpffs.ancestors().find(|path| path.exists()).unwrap_or(bpffs);
    crate::require_bpffs(there).map_err(|error| match error {
        DatapathError::NotBpffs(_) => text(DatapathError::NotBpffs(bpffs.to_owned())),
        error => text(error),
    })
}

fn running() -> Option<Version> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some(Version(numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn refusal((error, log): (io::Error, String)) -> String {
    // The last line but for statistics says why; those before it, where.
    let lines: Vec<_> = log.lines().filter(|line| !line.starts_with("processed ")).collect();
    let end = &lines[lines.len().saturating_sub(LOG_LINES)..];
    if end.is_empty() {
        error.to_string()
    } else {
        format!("{error}; the verifier says: {}", end.join(" | "))
    }
}

/// An error with its sources, on one line.
fn text(error: impl Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

impl Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_helper_and_map_type_of_the_programs_has_a_name() {
        for map_type in object::try_maps().unwrap_or_default().into_keys() {
            assert!(known::map_type(map_type).1.is_some(), "add map type {map_type} to features/known.rs");
        }
        let Ok(loaded) = object::load(None, &Constants::WIDEST) else { return };
        for (name, kind) in links::programs() {
            for helper in loaded.helpers(name).unwrap() {
                assert!(known::helper(helper, kind).1.is_some(), "add helper {helper} to features/known.rs");
            }
        }
    }

    #[test]
    fn a_missing_feature_says_what_to_do() {
        let mut probe = Probe { running: Some(Version(5, 10)), features: Vec::new() };
        probe.version();
        probe.add("old", Some(Version(5, 2)), Err("Invalid argument".into()));
        probe.add("new", Some(Version(5, 14)), Err("Invalid argument".into()));
        let found: Vec<_> = probe.features.iter().map(|feature| feature.found.clone().unwrap_err()).collect();
        assert_eq!(found[0], "this is 5.10: run Linux 5.15 or newer");
        assert!(
            found[1].contains("built without it") && found[1].contains("CONFIG_CGROUP_BPF"),
            "{}",
            found[1]
        );
        assert_eq!(found[2], "Invalid argument: run Linux 5.15 or newer");
    }

    #[test]
    fn a_refusal_tells_the_end_of_the_log() {
        let log = "0: r1 = r10\n1: r2 = 0\n2: (85) call x\nR2 !read_ok\nprocessed 3 insns (limit 1000000)\n";
        let told = refusal((io::Error::from_raw_os_error(libc::EACCES), log.into()));
        assert!(told.ends_with("2: (85) call x | R2 !read_ok"), "{told}");
    }

    #[test]
    fn the_running_kernel_has_a_version() {
        assert!(running().is_some_and(|version| version > Version(4, 0)));
    }
}
