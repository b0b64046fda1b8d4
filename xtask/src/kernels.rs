//! The kernel matrix: boots Debian's kernels in an emulator, and in each loads and attaches every program and
//! sends traffic through them.

mod debian;
mod guest;
mod initramfs;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;

use crate::{cargo, image, setup};
use guest::Outcome;

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Only kernels of these lines or suites, for example `6.1` or `unstable`.
    versions: Vec<String>,
    /// Look for newer kernels now; otherwise once a week.
    #[arg(long)]
    fresh: bool,
    /// Also print the console of a kernel that passes.
    #[arg(long)]
    console: bool,
}

/// A kernel of the matrix: the cloud kernel of a suite of Debian.
struct Kernel {
    suite: &'static str,
    /// As people ask for it; the newest is whatever it is.
    line: &'static str,
    /// The processor that it sees.
    processor: &'static str,
    wanted: Wanted,
}

const ANY: &str = "max";
/// QEMU 7.2 (Debian 12's) loses flags after cmpxchg16b, of which Linux 6.12 crashes. Linux 7.2 in turn allocates
/// no socket storage without it.
const NO_CMPXCHG16B: &str = "max,-cx16";

enum Wanted {
    /// It has everything, and the tests pass.
    Runs,
    /// Too old: `orlop check` says so, and names these.
    Refuses(&'static [&'static str]),
}

const KERNELS: &[Kernel] = &[
    Kernel {
        suite: "bullseye",
        line: "5.10",
        processor: ANY,
        wanted: Wanted::Refuses(&[
            "kernel (since Linux 5.15): this is 5.10: run Linux 5.15 or newer",
            "SO_NETNS_COOKIE (since Linux 5.14): ",
            "bpf_get_netns_cookie in sockops (since Linux 5.15): ",
        ]),
    },
    Kernel { suite: "bookworm", line: "6.1", processor: NO_CMPXCHG16B, wanted: Wanted::Runs },
    Kernel { suite: "bookworm-backports", line: "6.12", processor: NO_CMPXCHG16B, wanted: Wanted::Runs },
    Kernel { suite: "unstable", line: "newest", processor: ANY, wanted: Wanted::Runs },
];

/// A guest has one processor: as many as the smallest machine that we test on has cores.
const AT_ONCE: usize = 2;

pub(crate) fn run(args: &Args) -> Result<()> {
    let named = |kernel: &&Kernel| {
        args.versions.is_empty()
            || args.versions.iter().any(|name| [kernel.suite, kernel.line].contains(&name.as_str()))
    };
    let kernels: Vec<&Kernel> = KERNELS.iter().filter(named).collect();
    if kernels.is_empty() {
        let known: Vec<_> = KERNELS.iter().map(|kernel| kernel.line).collect();
        bail!("no such kernel: there are {}", known.join(", "));
    }
    setup::ensure(setup::For::Kernels)?;
    let dir = cargo::target_dir()?.join("kernels");
    let programs = Programs::build(&dir)?;
    println!("{:8}  {:34}  {:>7}  outcome", "line", "kernel", "time");
    let left = Mutex::new(kernels.into_iter());
    let next = || left.lock().ok()?.next();
    let failed = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(kernel) = next() {
                    if !report(kernel, &dir, &programs, args) {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    match failed.into_inner() {
        0 => Ok(()),
        failed => bail!("Orlop does not hold on {failed} kernels"),
    }
}

/// Boots the kernel and prints its row; says whether all is well.
fn report(kernel: &Kernel, dir: &Path, programs: &Programs, args: &Args) -> bool {
    let start = Instant::now();
    let (release, outcome) = match boot(kernel, dir, programs, args) {
        Ok((release, outcome)) => (release, outcome),
        Err(error) => ("?".to_owned(), Err(error)),
    };
    let time = start.elapsed().as_secs();
    match &outcome {
        Ok(outcome) => println!("{:8}  {release:34}  {time:5} s  ok: {outcome}", kernel.line),
        Err(error) => println!("{:8}  {release:34}  {time:5} s  FAILED: {error:#}", kernel.line),
    }
    outcome.is_ok()
}

/// What runs in the guests.
struct Programs {
    /// The very binary of the image.
    orlop: PathBuf,
    /// The end-to-end tests.
    tests: PathBuf,
    busybox: PathBuf,
}

impl Programs {
    fn build(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(Self {
            orlop: image::static_binary()?,
            tests: cargo::build_tests()?,
            busybox: debian::busybox(&dir.join("busybox"))?,
        })
    }
}

/// Boots the kernel; says which release it is, and what came of it.
fn boot(kernel: &Kernel, dir: &Path, programs: &Programs, args: &Args) -> Result<(String, Result<String>)> {
    let dir = dir.join(kernel.suite);
    let image = debian::kernel(kernel.suite, &dir, args.fresh)
        .with_context(|| format!("getting {}", kernel.suite))?;
    let archive = dir.join("initramfs");
    let runs = matches!(kernel.wanted, Wanted::Runs);
    initramfs::write(&archive, &image, programs, runs).context("making the initramfs")?;
    let outcome = guest::boot(&image.vmlinuz, &archive, kernel.processor)?;
    let judged = judge(kernel, &outcome);
    if judged.is_err() || args.console {
        println!("{}", outcome.console);
    }
    Ok((image.release, judged))
}

fn judge(kernel: &Kernel, outcome: &Outcome) -> Result<String> {
    let check = outcome.result("check")?;
    match kernel.wanted {
        Wanted::Refuses(features) => {
            if check != "2" {
                bail!("`orlop check` ended with {check} where it should have refused");
            }
            if let Some(missing) = features.iter().find(|feature| !outcome.console.contains(*feature)) {
                bail!("`orlop check` does not say `{missing}`");
            }
            Ok(format!("too old, and `orlop check` names the {} features it lacks", outcome.missing()))
        }
        Wanted::Runs => {
            if check != "0" {
                bail!("`orlop check` ended with {check}");
            }
            let passed = outcome.passed()?;
            let tests = outcome.result("tests")?;
            if tests != "0" {
                bail!("the tests ended with {tests}");
            }
            if passed < initramfs::TESTS.len() {
                bail!("only {passed} tests ran: has one that xtask names been renamed?");
            }
            Ok(format!(
                "every program loads and attaches; {passed} tests of redirection, tunnels and the same node pass"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: &str = "guest check: 0\r\ntest result: ok. 99 passed; 0 failed;\r\nguest tests: 0\r\n";

    fn judged(wanted: Wanted, console: &str) -> Result<String> {
        judge(
            &Kernel { suite: "s", line: "l", processor: ANY, wanted },
            &Outcome { console: console.to_owned() },
        )
    }

    #[test]
    fn a_kernel_passes_only_if_it_says_so() {
        assert!(judged(Wanted::Runs, OK).unwrap().contains("99 tests"));
        for bad in [
            "",
            "guest check: 0\r\n",
            &OK.replace("tests: 0", "tests: 101"),
            &OK.replace("check: 0", "check: 2"),
        ] {
            assert!(judged(Wanted::Runs, bad).is_err(), "{bad}");
        }
        assert!(judged(Wanted::Runs, &OK.replace("99 passed", "1 passed")).is_err(), "too few ran");
    }

    #[test]
    fn an_old_kernel_must_name_what_it_lacks() {
        let console = "  sk_lookup (since Linux 5.9): Invalid argument\r\nguest check: 2\r\n";
        assert!(judged(Wanted::Refuses(&["sk_lookup (since Linux 5.9)"]), console).is_ok());
        assert!(judged(Wanted::Refuses(&["sockops"]), console).is_err());
        assert!(judged(Wanted::Refuses(&[]), OK).is_err());
    }
}
