use std::io::{self, BufRead as _, BufReader, IsTerminal as _};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;

use crate::{cargo, cluster, manifests, setup};

/// What the names of all end-to-end tests begin with that need a control plane of Kubernetes, and of no others.
const WITH_KUBERNETES: &[&str] = &["kubernetes::"];
/// What the names of all begin with that need containerd as well, and of no others.
const WITH_CONTAINERD: &[&str] = &["kubernetes::node::"];
/// What the names of all hold that need helm and kubectl, and of no others.
const WITH_HELM: &[&str] = &[
    "chart::",
    "kubernetes::boot_gate::",
    "kubernetes::check::",
    "kubernetes::conditions::",
    "kubernetes::node::",
    "kubernetes::rights::",
    "kubernetes::webhook::",
];

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Run only tests whose full name holds one of these; and what else test programs take, such as `--nocapture`.
    #[arg(value_name = "FILTER", allow_hyphen_values = true)]
    filters: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::require_root("the end-to-end tests make network namespaces and load eBPF", "cargo xtask test")?;
    setup::ensure(setup::For::Test)?;
    let binary = cargo::build(&cargo::BuildArgs::default())?;
    let mut skipped = Vec::new();
    for (tests, what, found) in [
        (WITH_KUBERNETES, "Kubernetes", cluster::build().map(drop)),
        (WITH_CONTAINERD, "containerd and kubelet", orlop_tests::can_run_nodes()),
        (WITH_HELM, "helm and kubectl", manifests::tools().map(drop)),
    ] {
        if let Err(error) = found {
            eprintln!("no {what} to test with, so these are skipped: {error:#}");
            let list = ["test", "--package", "orlop-tests", "--test", "e2e", "--", "--list"];
            cargo::run(cargo::cargo()?.args(list).args(tests))?;
            skipped.extend(tests.iter().flat_map(|tests| ["--skip", tests]));
        }
    }
    sweep()?;
    let mut command = cargo::cargo()?;
    command
        .args(["test", "--workspace", "--no-fail-fast", "--"])
        .args(&args.filters)
        .args(skipped)
        .env("ORLOP_BIN", binary);
    // They wait as well as work.
    if std::env::var_os("RUST_TEST_THREADS").is_none() {
        let cores = thread::available_parallelism().context("counting the cores")?;
        command.env("RUST_TEST_THREADS", (cores.get() + 1).to_string());
    }
    let (tests, failures) = run_tests(&mut command)?;
    let leftovers = orlop_tests::leftovers().context("looking for what the tests left behind")?;
    for leftover in &leftovers {
        eprintln!("left behind: {leftover}");
    }
    for line in failures {
        eprintln!("{line}");
    }
    if !tests.success() {
        bail!("there are tests that failed: {tests}");
    }
    if !leftovers.is_empty() {
        bail!("the tests left {} things behind; the next run removes them", leftovers.len());
    }
    println!("nothing left behind: no namespace, cgroup, pin, process or file");
    Ok(())
}

/// Runs the test programs and shows what they print. Gives how that ended, and once more what is said of those that
/// failed: it may be a thousand lines up.
fn run_tests(command: &mut Command) -> Result<(ExitStatus, Vec<String>)> {
    if io::stdout().is_terminal() {
        // In colours, and with somebody who can look further up.
        return Ok((command.status().context("running cargo test")?, Vec::new()));
    }
    let mut cargo = command.stdout(Stdio::piped()).spawn().context("running cargo test")?;
    let output = cargo.stdout.take().context("cargo test has no output")?;
    let mut failures = Failures::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("reading what cargo test prints")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        failures.read(&line);
    }
    Ok((cargo.wait().context("waiting for cargo test")?, failures.lines))
}

/// What test programs say of tests that failed.
#[derive(Default)]
struct Failures {
    lines: Vec<String>,
    within: bool,
}

impl Failures {
    fn read(&mut self, line: &str) {
        self.within |= line == "failures:";
        if self.within {
            self.lines.push(line.to_owned());
        }
        self.within &= !line.starts_with("test result:");
    }
}

/// Removes what runs that are over left behind, and says so.
pub(crate) fn sweep() -> Result<()> {
    setup::require_root("network namespaces and pins are root's", "cargo xtask sweep")?;
    for removed in orlop_tests::sweep().context("removing what earlier runs left behind")? {
        println!("removed, left behind by an earlier run: {removed}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    /// The Rust files below a directory, each with the name of its module.
    fn modules(directory: &Path, name: &str, found: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
            let path = entry.path();
            let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                modules(&path, &format!("{name}{stem}::"), found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let own = if stem == "mod" { String::new() } else { format!("{stem}::") };
                found.push((format!("{name}{own}"), fs::read_to_string(&path).unwrap()));
            }
        }
    }

    #[test]
    fn what_is_said_of_tests_that_failed_is_kept() {
        let mut failures = Failures::default();
        let said = "failures:\n\n---- a stdout ----\nwhy\n\nfailures:\n    a\n\ntest result: FAILED. 1 passed; 1 failed";
        let others = "running 2 tests\ntest a ... FAILED\ntest b ... ok\n\n";
        for line in [others, said, others, "test result: ok. 2 passed"].iter().flat_map(|text| text.lines()) {
            failures.read(line);
        }
        assert_eq!(failures.lines.join("\n"), said);
    }

    #[test]
    fn whatever_uses_helm_or_kubectl_is_skipped_where_there_is_none() {
        let mut found = Vec::new();
        modules(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/e2e"), "", &mut found);
        let uses = |text: &str| ["DeployTools", "webhook::Stage"].iter().any(|what| text.contains(what));
        let using: Vec<_> = found.iter().filter(|(_, text)| uses(text)).map(|(name, _)| name).collect();
        assert!(using.len() >= WITH_HELM.len(), "{using:?}");
        for name in using {
            assert!(WITH_HELM.iter().any(|prefix| name.contains(prefix)), "{name}");
        }
    }
}
