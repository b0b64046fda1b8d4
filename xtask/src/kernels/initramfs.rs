use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Programs;
use super::debian::Image;

/// What the testbed needs and a cloud kernel has as a module, if at all.
const MODULES: &[&str] = &["veth", "bridge", "tcp_diag"];
/// The tests that a guest runs, by the beginnings of their names: each hook in both families, the tunnel, and the way
/// from socket to socket on one node.
/// They need no tools but iproute2, and do little, as everything takes twenty times as long under emulation.
pub(super) const TESTS: &[&str] = &[
    "redirect::a_non_blocking_connect_works",
    "redirect::a_pod_reaches_itself_without_the_proxy",
    "redirect::a_source_port_used_again_leads_where_it_was_dialled",
    "redirect::both_ends_see_each_other_over_ipv4",
    "redirect::both_ends_see_each_other_over_ipv6",
    "redirect::both_ends_see_each_other_through_ipv4_mapped_sockets",
    "redirect::the_proxys_ports_dialled_from_inside_are_closed_with_a_reason",
    "redirect::the_proxys_ports_dialled_from_outside_are_refused_by_the_kernel",
    "redirect::two_pods_use_the_same_source_port_at_once",
    "redirect::udp_is_left_alone",
    "tunnel::ends::a_client_that_has_said_all_still_gets_the_answer",
    "tunnel::ends::a_reset_by_the_server_reaches_the_client",
    "tunnel::pooling::pods_and_identities_do_not_share_tunnels",
    "failclosed::a_killed_agents_pods_are_refused_at_once",
    "samenode::attacks::the_four_tuple_of_a_connection_serves_nobody_else",
    "samenode::connections_live_on_and_are_made_without_an_agent",
    "samenode::hbone_keeps_the_proxy_in_the_way",
    "samenode::services::a_service_goes_straight_and_the_client_sees_its_address",
    "samenode::the_second_connection_goes_straight_and_is_recorded",
    "samenode::what_policy_forbids_is_closed_and_refused",
];
const INIT: &str = include_str!("init.sh");

const FILE: u32 = 0o100_755;
const DIRECTORY: u32 = 0o040_755;

/// Writes an initramfs with everything that the guest needs; with no tests unless `with_tests`.
pub(super) fn write(to: &Path, image: &Image, programs: &Programs, with_tests: bool) -> Result<()> {
    let mut archive = Archive::default();
    for dir in ["proc", "sys", "dev", "tmp", "run", "modules", "usr/bin", "usr/sbin"] {
        archive.directory(dir);
    }
    archive.file("init", INIT.as_bytes());
    archive.copy("bin/busybox", &programs.busybox)?;
    archive.copy("usr/bin/orlop", &programs.orlop)?;
    if with_tests {
        archive.program("usr/bin/e2e", &programs.tests)?;
        for tool in ["ip", "ss"] {
            archive.program(&format!("usr/bin/{tool}"), &find(tool)?)?;
        }
        archive.file("tests", TESTS.join(" ").as_bytes());
        for (order, (name, module)) in modules(&image.modules)?.into_iter().enumerate() {
            archive.file(&format!("modules/{order:02}-{name}"), &module);
        }
    }
    fs::write(to, archive.end()).with_context(|| format!("writing {}", to.display()))
}

/// A cpio archive of the format "newc", as the kernel takes it (Documentation/driver-api/early-userspace).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    inodes: u32,
    names: BTreeSet<String>,
}

impl Archive {
    /// A directory and its parents.
    fn directory(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
        if self.names.insert(path.to_owned()) {
            self.entry(path, DIRECTORY, &[]);
        }
    }

    fn file(&mut self, path: &str, content: &[u8]) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
        if self.names.insert(path.to_owned()) {
            self.entry(path, FILE, content);
        }
    }

    fn copy(&mut self, path: &str, from: &Path) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
        self.file(path, &content);
        Ok(())
    }

    /// A program, with the shared libraries that it is linked with at the same paths as here.
    fn program(&mut self, path: &str, from: &Path) -> Result<()> {
        self.copy(path, from)?;
        let output = Command::new("ldd").arg(from).output().context("running ldd")?;
        for library in libraries(&String::from_utf8_lossy(&output.stdout)) {
            self.copy(library.trim_start_matches('/'), Path::new(library))?;
        }
        Ok(())
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inodes += 1;
        let sizes = (content.len() as u32, name.len() as u32 + 1);
        let fields = [self.inodes, mode, 0, 0, 1, 0, sizes.0, 0, 0, 0, 0, sizes.1, 0];
        self.bytes.extend(b"070701");
        self.bytes.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
        self.bytes.extend(name.bytes().chain([0]));
        self.align();
        self.bytes.extend(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn end(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

/// The paths in what ldd prints: `NAME => PATH (ADDRESS)`, or for the loader `PATH (ADDRESS)`.
fn libraries(ldd: &str) -> impl Iterator<Item = &str> {
    ldd.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
}

/// The modules that the testbed needs, each after those that it depends on. What is not there is built in.
fn modules(dir: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    walk(dir, &mut files)?;
    let mut loaded = Vec::new();
    for name in MODULES {
        add_module(name, &files, &mut loaded)?;
    }
    Ok(loaded)
}

fn add_module(name: &str, files: &[PathBuf], loaded: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    if loaded.iter().any(|(known, _)| known == name) {
        return Ok(());
    }
    let is_it = |path: &&PathBuf| {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        file.split_once(".ko").is_some_and(|(stem, _)| stem.replace('-', "_") == name)
    };
    let Some(path) = files.iter().find(is_it) else { return Ok(()) };
    let module = decompressed(path)?;
    for dependency in dependencies(&module) {
        add_module(&dependency, files, loaded)?;
    }
    loaded.push((name.to_owned(), module));
    Ok(())
}

/// The `depends=` of a module's `.modinfo` section, which is a row of C strings.
fn dependencies(module: &[u8]) -> Vec<String> {
    let strings = module.split(|byte| *byte == 0).filter_map(|string| string.strip_prefix(b"depends="));
    let names = strings.flat_map(|names| names.split(|byte| *byte == b','));
    names
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).replace('-', "_"))
        .collect()
}

fn decompressed(path: &Path) -> Result<Vec<u8>> {
    let tool = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(path).with_context(|| format!("reading {}", path.display())),
    };
    let output =
        Command::new(tool).arg("-dc").arg(path).output().with_context(|| format!("running {tool}"))?;
    if !output.status.success() {
        bail!("{tool} {}: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

fn walk(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry.with_context(|| format!("reading {}", dir.display()))?.path();
        if path.is_dir() {
            walk(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

fn find(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/sbin".into(), "/usr/sbin".into()]);
    let found = dirs.map(|dir| dir.join(program)).find(|path| path.is_file());
    found.with_context(|| format!("no `{program}` on this machine"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_each_entry_once_and_aligned() {
        let mut archive = Archive::default();
        archive.file("usr/bin/a", b"hello");
        archive.file("usr/bin/b", b"");
        let bytes = archive.end();
        let heads = bytes.windows(6).filter(|window| window == b"070701").count();
        assert_eq!(heads, 5, "usr, usr/bin, two files and the end");
        assert_eq!(bytes.len() % 4, 0);
        // The size of the first file, in the seventh field of the third header.
        let third = bytes.windows(6).enumerate().filter(|(_, window)| window == b"070701").nth(2).unwrap().0;
        assert_eq!(&bytes[third + 6 + 6 * 8..][..8], b"00000005");
    }

    #[test]
    fn libraries_are_read_from_ldd() {
        let ldd = "\tlinux-vdso.so.1 (0x7f)\n\tlibc.so.6 => /lib/libc.so.6 (0x7f)\n\t/lib64/ld.so (0x7f)\n";
        assert_eq!(libraries(ldd).collect::<Vec<_>>(), ["/lib/libc.so.6", "/lib64/ld.so"]);
        assert_eq!(libraries("\tstatically linked\n").count(), 0);
    }

    #[test]
    fn dependencies_are_read_from_a_module() {
        assert_eq!(dependencies(b"\x7fELF\0license=GPL\0depends=stp,llc-x\0name=bridge\0"), ["stp", "llc_x"]);
        assert_eq!(dependencies(b"license=GPL\0depends=\0"), [""; 0]);
    }
}
