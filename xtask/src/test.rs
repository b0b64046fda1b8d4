use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;
use orlop_tests::Ztunnel;

use crate::{cargo, cluster, root, setup};

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Run only tests whose full name holds one of these.
    filters: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::require_root("the end-to-end tests make network namespaces and load eBPF", "cargo xtask test")?;
    setup::ensure(setup::For::Test)?;
    let binary = cargo::build(&cargo::BuildArgs::default())?;
    let control_plane = cluster::build();
    if let Err(error) = &control_plane {
        eprintln!("no Kubernetes to test with, so what needs it is ignored: {error:#}");
    }
    sweep()?;
    let optional = [("kubernetes::", control_plane.is_ok()), ("ztunnel::", Ztunnel::binary().is_some())];
    let all = optional.iter().all(|(_, can_run)| *can_run);
    let mut command = cargo::cargo()?;
    command
        .args(["test", "--workspace", "--no-fail-fast", "--"])
        .args(&args.filters)
        .env("ORLOP_BIN", &binary);
    if all {
        command.arg("--include-ignored");
    }
    let mut tests = cargo::run(&mut command);
    for (module, _) in optional.iter().filter(|(_, can_run)| *can_run && !all) {
        let also = run_ignored(module, &args.filters, &binary);
        tests = tests.and(also);
    }
    let leftovers = orlop_tests::leftovers().context("looking for what the tests left behind")?;
    for leftover in &leftovers {
        eprintln!("left behind: {leftover}");
    }
    tests?;
    if !leftovers.is_empty() {
        bail!("the tests left {} things behind; the next run removes them", leftovers.len());
    }
    println!("nothing left behind: no namespace, cgroup, pin, process or file");
    Ok(())
}

/// Runs the end-to-end tests of a module that are ignored where something is missing, and that the filters name.
fn run_ignored(module: &str, filters: &[String], binary: &Path) -> Result<()> {
    let program = cargo::build_tests()?;
    let listed = Command::new(&program).args(["--list", "--ignored", "--format", "terse", module]).output();
    let listed = listed.with_context(|| format!("running {}", program.display()))?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let wanted: Vec<_> = listed
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .filter(|name| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str())))
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let mut command = Command::new(program);
    command.args(["--ignored", "--exact"]).args(wanted).current_dir(root()?.join("tests"));
    cargo::run(command.env("ORLOP_BIN", binary))
}

/// Removes what runs that are over left behind, and says so.
pub(crate) fn sweep() -> Result<()> {
    setup::require_root("network namespaces and pins are root's", "cargo xtask sweep")?;
    for removed in orlop_tests::sweep().context("removing what earlier runs left behind")? {
        println!("removed, left behind by an earlier run: {removed}");
    }
    Ok(())
}
