//! Runs the fuzz targets for a while each, from the kept corpus: `fuzz/` in the layout of cargo-fuzz, built
//! with this toolchain, since coverage needs no nightly one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;

use crate::{cargo, root, setup};

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Only these targets.
    targets: Vec<String>,
    /// How long each target runs.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// The same inputs in the same order each time, by this number; 0 for others each time.
    #[arg(long, default_value_t = 0)]
    seed: u32,
    /// Put the inputs found so far that reach new code into the kept corpus, instead of looking for more.
    #[arg(long)]
    keep: bool,
    /// Only see that every target compiles.
    #[arg(long, conflicts_with = "keep")]
    check: bool,
}

/// One for each core of the smallest machine that we test on.
const AT_ONCE: usize = 2;
/// No target takes longer for an input of some kilobytes, in seconds.
const SLOWEST: u32 = 10;
/// In MiB.
const MEMORY: u32 = 1024;
/// Longer inputs only make it slow, in bytes.
const LONGEST: u32 = 16 << 10;

/// What libFuzzer needs in the code: counters of edges, and what comparisons compare.
const FLAGS: &[&str] = &[
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(setup::For::Fuzz)?;
    let fuzz = root()?.join("fuzz");
    let known = targets(&fuzz)?;
    let unknown = args.targets.iter().find(|name| !known.contains(name));
    if let Some(unknown) = unknown {
        bail!("no fuzz target {unknown}: there are {}", known.join(", "));
    }
    let wanted = known.into_iter().filter(|name| args.targets.is_empty() || args.targets.contains(name));
    if args.check {
        return check(&fuzz);
    }
    let programs = build(&fuzz)?;
    let left = Mutex::new(wanted.collect::<Vec<_>>());
    let next = || left.lock().ok()?.pop();
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(target) = next() {
                    let work = Work { target: &target, fuzz: &fuzz, program: programs.join(&target) };
                    let done = if args.keep { work.keep() } else { work.search(args.seconds, args.seed) };
                    match done {
                        Ok(line) => println!("{target:12}  {line}"),
                        Err(error) => {
                            println!("{target:12}  FAILED: {error:#}");
                            failed.lock().map(|mut failed| failed.push(target)).ok();
                        }
                    }
                }
            });
        }
    });
    match failed.into_inner().unwrap_or_default().as_slice() {
        [] => Ok(()),
        failed => bail!("found something with {}", failed.join(", ")),
    }
}

/// The names of the targets: those of the files.
fn targets(fuzz: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(fuzz.join("fuzz_targets")).context("reading fuzz/fuzz_targets")? {
        let path = entry?.path();
        names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

/// Builds every target at once, and says which directory they are in.
fn build(fuzz: &Path) -> Result<PathBuf> {
    let target_dir = compile(fuzz, "build", FLAGS)?;
    Ok(target_dir.join(host()?).join("debug"))
}

/// Sees that they compile, without what libFuzzer needs in them.
fn check(fuzz: &Path) -> Result<()> {
    compile(fuzz, "check", &FLAGS[..1]).map(drop)
}

/// Has cargo build or check every target, and says which directory it worked in.
fn compile(fuzz: &Path, how: &str, flags: &[&str]) -> Result<PathBuf> {
    let target_dir = cargo::target_dir()?.join("fuzz");
    // What is fuzzed has the versions that ship; the rest is libFuzzer.
    fs::copy(root()?.join("Cargo.lock"), fuzz.join("Cargo.lock")).context("copying Cargo.lock")?;
    let mut command = cargo::cargo()?;
    command.args([how, "--bins", "--manifest-path"]).arg(fuzz.join("Cargo.toml"));
    command.arg("--target-dir").arg(&target_dir);
    // With a target named, the flags leave build scripts and macros alone.
    command.args(["--target", &host()?]).env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    // What is fuzzed of the kernel side is in user space.
    command.env("ORLOP_EBPF", "skip");
    cargo::run(&mut command)?;
    Ok(target_dir)
}

fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("running rustc")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc does not say what its host is")
}

/// One target and its inputs: those kept in the repository, and those found on this machine.
struct Work<'a> {
    target: &'a str,
    fuzz: &'a Path,
    program: PathBuf,
}

impl Work<'_> {
    fn kept(&self) -> PathBuf {
        self.fuzz.join("corpus").join(self.target)
    }

    fn found(&self) -> Result<PathBuf> {
        let dir = cargo::target_dir()?.join("fuzz/corpus").join(self.target);
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(dir)
    }

    fn search(&self, seconds: u32, seed: u32) -> Result<String> {
        let failures = cargo::target_dir()?.join("fuzz/failures").join(self.target);
        fs::create_dir_all(&failures).with_context(|| format!("creating {}", failures.display()))?;
        let log = self.libfuzzer(&[
            format!("-max_total_time={seconds}"),
            format!("-seed={seed}"),
            format!("-timeout={SLOWEST}"),
            format!("-artifact_prefix={}/", failures.display()),
            "-print_final_stats=1".to_owned(),
            self.found()?.display().to_string(),
            self.kept().display().to_string(),
        ])?;
        summary(&log).context("libFuzzer ended without its figures")
    }

    fn keep(&self) -> Result<String> {
        let count = || fs::read_dir(self.kept()).map_or(0, Iterator::count);
        let before = count();
        let dirs = [self.kept().display().to_string(), self.found()?.display().to_string()];
        self.libfuzzer(&[&["-merge=1".to_owned()], &dirs[..]].concat())?;
        Ok(format!("{} inputs kept, {} of them new", count(), count() - before))
    }

    fn libfuzzer(&self, args: &[String]) -> Result<String> {
        let mut command = Command::new(&self.program);
        command.args([format!("-max_len={LONGEST}"), format!("-rss_limit_mb={MEMORY}")]).args(args);
        let output = command.stdin(Stdio::null()).output().context("running it")?;
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            let tail: Vec<_> = log.lines().collect();
            bail!("{}\n{}", output.status, tail[tail.len().saturating_sub(60)..].join("\n"));
        }
        Ok(log)
    }
}

/// What was done, in a line: from libFuzzer's last status line and its final figures.
fn summary(log: &str) -> Option<String> {
    let figure = |name: &str| {
        let line = log.lines().find_map(|line| line.strip_prefix("stat::")?.strip_prefix(name));
        line.map(|line| line.trim_start_matches(':').trim())
    };
    let last = log.lines().rev().find(|line| line.starts_with('#') && line.contains(" cov: "))?;
    let edges = last.split(" cov: ").nth(1)?.split(' ').next()?;
    let (runs, rate) = (figure("number_of_executed_units")?, figure("average_exec_per_sec")?);
    Some(format!("ok: {runs} inputs, {rate} a second, {edges} edges of the code reached"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_summed_up() {
        let log = "#2\tINITED cov: 30 ft: 31\n#900\tDONE   cov: 321 ft: 500 corp: 9/90b\nDone 900 runs in 3 s\n\
                   stat::number_of_executed_units: 900\nstat::average_exec_per_sec:     300\n";
        assert_eq!(summary(log).unwrap(), "ok: 900 inputs, 300 a second, 321 edges of the code reached");
        assert_eq!(summary("#2\tINITED cov: 30\n"), None);
    }
}
