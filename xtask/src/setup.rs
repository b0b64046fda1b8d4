use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;

use crate::manifests;

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Also what `cargo xtask bench` needs.
    #[arg(long)]
    bench: bool,
}

/// What a machine should be able to do.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum For {
    /// Build `orlop`.
    Build,
    /// Build it, and run the tests and the demo.
    Test,
    /// All that, and run the benchmarks.
    Bench,
    /// Build it and the tests, and run them on other kernels.
    Kernels,
    /// Build and run the fuzz targets.
    Fuzz,
}

impl For {
    /// Whether this takes what `other` takes.
    fn takes(self, other: Self) -> bool {
        self == other
            || other == Self::Build
            || (other == Self::Test && matches!(self, Self::Bench | Self::Kernels))
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let (purpose, what) = if args.bench { (For::Bench, "bench") } else { (For::Test, "test") };
    ensure(purpose)?;
    let toolchain = if debian_core() { "Debian's rustc-web" } else { "rustup's nightly with rust-src" };
    println!("ready to {what}; the eBPF programs are built by {toolchain} and bpf-linker");
    if let Err(error) = manifests::tools() {
        println!("no helm and kubectl, so what needs them is skipped: {error:#}");
    }
    Ok(())
}

/// Installs what is missing, or fails with the commands that would.
pub(crate) fn ensure(purpose: For) -> Result<()> {
    let steps = missing(purpose);
    if steps.is_empty() {
        return Ok(());
    }
    if let Err(reason) = can_install() {
        let commands: Vec<String> = steps.iter().map(Step::shell).collect();
        bail!("{reason}. Run this first, apt-get as root:\n\n{}\n{}", commands.join(""), alternative(&steps));
    }
    for step in steps {
        step.install()?;
    }
    let still = missing(purpose);
    if !still.is_empty() {
        let commands: Vec<String> = still.iter().map(Step::shell).collect();
        bail!("still missing after the installation:\n\n{}", commands.join(""));
    }
    Ok(())
}

/// Fails with a sentence unless this runs as root.
pub(crate) fn require_root(because: &str, command: &str) -> Result<()> {
    if !is_root() {
        bail!("{because}: run `{command}` as root");
    }
    Ok(())
}

const LINKER_VERSION: &str = "0.13.0";
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
/// `core` for the bpf target, and the LLVM that bpf-linker is built with.
const CORE_PACKAGES: &[&str] = &["rustc-web", "libstd-rust-web-dev-bpf"];
const LINKER_PACKAGES: &[&str] = &["g++", "llvm-22-dev", "zlib1g-dev", "libzstd-dev"];

enum Step {
    Apt(Vec<&'static str>),
    Linker,
}

impl Step {
    fn shell(&self) -> String {
        match self {
            Self::Apt(packages) => {
                format!(
                    "    apt-get update\n    apt-get install --no-install-recommends {}\n",
                    packages.join(" ")
                )
            }
            Self::Linker => format!(
                "    LLVM_PREFIX={LLVM_PREFIX} cargo install bpf-linker --version {LINKER_VERSION} --locked \
                 --no-default-features --features llvm-22\n"
            ),
        }
    }

    fn install(&self) -> Result<()> {
        let start = Instant::now();
        match self {
            Self::Apt(packages) => {
                println!("installing with apt-get: {}", packages.join(" "));
                apt_get(&["update", "-qq"])?;
                let options = ["install", "-y", "-qq", "--no-install-recommends"];
                apt_get(&[&options[..], packages].concat())?;
            }
            Self::Linker => {
                println!("installing with cargo: bpf-linker {LINKER_VERSION} (takes about 3 minutes)");
                let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
                command.args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked"]);
                command.args(["--no-default-features", "--features", "llvm-22"]);
                quiet(command.env("LLVM_PREFIX", LLVM_PREFIX))?;
            }
        }
        println!("installed in {:.0} s", start.elapsed().as_secs_f32());
        Ok(())
    }
}

/// Only looks at files and runs one `bpf-linker --version`: quick when nothing is missing.
fn missing(purpose: For) -> Vec<Step> {
    let linker = has_linker();
    let mut packages = Vec::new();
    if !debian_core() && !nightly_core() {
        packages.extend(CORE_PACKAGES);
    }
    if !linker {
        packages.extend(LINKER_PACKAGES);
    }
    let mut tools = vec![(For::Build, "cc", "gcc"), (For::Build, "cc", "libc6-dev")];
    tools.extend([(For::Test, "ip", "iproute2"), (For::Test, "bpftool", "bpftool")]);
    // What shows that nothing is changed inside a pod.
    tools.extend([(For::Test, "iptables-save", "iptables"), (For::Test, "nft", "nftables")]);
    // Opens sockets of every kind in a pod that is held.
    tools.push((For::Test, "perl", "perl"));
    // A node of Kubernetes, and what runs in its pods.
    tools.extend([(For::Test, "containerd", "containerd"), (For::Test, "runc", "runc")]);
    tools.push((For::Test, "/usr/lib/cni/bridge", "containernetworking-plugins"));
    tools.push((For::Test, "/bin/busybox", "busybox-static"));
    tools.extend([(For::Bench, "iperf3", "iperf3"), (For::Bench, "wrk", "wrk")]);
    tools.extend([(For::Bench, "h2load", "nghttp2-client"), (For::Bench, "openssl", "openssl")]);
    tools.extend([(For::Bench, "nghttpd", "nghttp2-server"), (For::Bench, "taskset", "util-linux")]);
    tools.push((For::Fuzz, "c++", "g++"));
    tools.extend([(For::Kernels, "qemu-system-x86_64", "qemu-system-x86"), (For::Kernels, "xz", "xz-utils")]);
    for (needed_for, program, package) in tools {
        if purpose.takes(needed_for) && !on_path(program) {
            packages.push(package);
        }
    }
    let mut steps = Vec::new();
    if !packages.is_empty() {
        steps.push(Step::Apt(packages));
    }
    if !linker {
        steps.push(Step::Linker);
    }
    steps
}

fn can_install() -> Result<(), String> {
    if !is_root() {
        return Err("something is missing, and only root can install it".to_owned());
    }
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let has = |line: &str| release.lines().any(|found| found.replace('"', "") == line);
    if !has("ID=debian") || !has("VERSION_ID=12") || !on_path("apt-get") {
        return Err("something is missing, and this installs it on Debian 12 only; \
                    elsewhere take the packages of the same purpose"
            .to_owned());
    }
    Ok(())
}

fn alternative(missing: &[Step]) -> &'static str {
    let bpf = missing.iter().any(|step| match step {
        Step::Apt(packages) => packages.contains(&CORE_PACKAGES[0]),
        Step::Linker => true,
    });
    if !bpf {
        return "";
    }
    "\nInstead of rustc-web, llvm-22 and a bpf-linker built with it, rustup will do:\n\n    \
     rustup toolchain install nightly --profile minimal --component rust-src\n    \
     cargo install bpf-linker --locked\n"
}

/// Debian's compiler, with `core` prebuilt for the bpf target.
fn debian_core() -> bool {
    Path::new("/usr/bin/rustc").exists() && Path::new("/usr/lib/rustlib/bpfel-unknown-none/lib").is_dir()
}

/// A nightly toolchain of rustup's with the source of `core`.
fn nightly_core() -> bool {
    let home =
        env::var_os("RUSTUP_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".rustup")));
    let toolchains = home.and_then(|home| fs::read_dir(home.join("toolchains")).ok());
    toolchains.into_iter().flatten().flatten().any(|toolchain| {
        toolchain.file_name().to_string_lossy().starts_with("nightly-")
            && toolchain.path().join("lib/rustlib/src/rust/library/core").is_dir()
    })
}

/// A bpf-linker that runs: after an upgrade of the system its LLVM may be gone.
fn has_linker() -> bool {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")));
    let installed = home.map(|home| home.join("bin/bpf-linker")).filter(|path| path.is_file());
    let mut command = Command::new(installed.unwrap_or_else(|| PathBuf::from("bpf-linker")));
    let status = command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn is_root() -> bool {
    // The file's owner is the effective user of this process: proc(5).
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

fn apt_get(args: &[&str]) -> Result<()> {
    quiet(Command::new("apt-get").args(args).env("DEBIAN_FRONTEND", "noninteractive"))
}

/// Shows what a command printed only if it failed.
fn quiet(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output();
    let name = command.get_program().to_string_lossy().into_owned();
    let output = output.with_context(|| format!("running {name}"))?;
    if !output.status.success() {
        let text = [output.stdout, output.stderr].concat();
        bail!("{name} failed ({}):\n{}", output.status, String::from_utf8_lossy(&text).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_can_be_pasted_into_a_shell() {
        let apt = Step::Apt(vec!["iproute2", "wrk"]).shell();
        assert!(apt.contains("apt-get install --no-install-recommends iproute2 wrk\n"), "{apt}");
        assert!(Step::Linker.shell().contains("LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker"));
    }

    #[test]
    fn rustup_is_offered_for_the_bpf_toolchain_only() {
        assert_eq!(alternative(&[Step::Apt(vec!["iproute2"])]), "");
        assert!(alternative(&[Step::Linker]).contains("rust-src"));
    }
}
