use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;

use crate::{cargo, cluster, manifests, setup};

/// What the names of all end-to-end tests begin with that need a control plane of Kubernetes, and of no others.
const WITH_KUBERNETES: &str = "kubernetes::";
/// What the names of all begin with that need containerd as well, and of no others.
const WITH_CONTAINERD: &str = "kubernetes::node::";
/// What the names of all hold that need helm and kubectl, and of no others.
const WITH_HELM: &str = "chart::";

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Run only tests whose full name holds one of these.
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
            let list = ["test", "--package", "orlop-tests", "--test", "e2e", "--", tests, "--list"];
            cargo::run(cargo::cargo()?.args(list))?;
            skipped.extend(["--skip", tests]);
        }
    }
    sweep()?;
    let mut command = cargo::cargo()?;
    command
        .args(["test", "--workspace", "--no-fail-fast", "--"])
        .args(&args.filters)
        .args(skipped)
        .env("ORLOP_BIN", binary);
    let tests = cargo::run(&mut command);
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

/// Removes what runs that are over left behind, and says so.
pub(crate) fn sweep() -> Result<()> {
    setup::require_root("network namespaces and pins are root's", "cargo xtask sweep")?;
    for removed in orlop_tests::sweep().context("removing what earlier runs left behind")? {
        println!("removed, left behind by an earlier run: {removed}");
    }
    Ok(())
}
