//! What the benches that compare cases have in common.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use orlop_tests::Ztunnel;

use super::loads::{Load, Sample};
use super::record::Output;
use super::report::{self, Report};
use super::rig::{Case, Programs, Rig, ZtunnelPrograms};
use crate::{cargo, setup, test};

#[derive(Args)]
pub(super) struct Options {
    /// Seconds each measurement takes.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// How often each load meets each case.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only loads whose names hold one of these.
    filters: Vec<String>,
    #[command(flatten)]
    output: Output,
}

/// Builds what the cases run, and removes what earlier runs left.
pub(super) fn prepare() -> Result<Programs> {
    setup::require_root("the bench makes network namespaces and loads eBPF", "cargo xtask bench")?;
    setup::ensure(setup::For::Bench)?;
    let orlop = cargo::build(&cargo::BuildArgs { release: true })?;
    let ztunnel = ztunnel()?;
    test::sweep()?;
    Ok(Programs { orlop, ztunnel })
}

/// Meets every case with every load that is wanted, in turn, and tells of it.
pub(super) fn compare(
    bench: &str,
    options: &Options,
    rig: &Rig,
    loads: &[Load],
    mut report: Report,
) -> Result<()> {
    let filters = &options.filters;
    let wanted = |load: &&Load| filters.is_empty() || filters.iter().any(|f| load.name.contains(f.as_str()));
    let time = Duration::from_secs(options.seconds);
    for load in loads.iter().filter(wanted) {
        for round in 1..=options.rounds {
            for case in rig.cases() {
                let sample =
                    measure(load, case, time).with_context(|| format!("{} with {}", load.name, case.name))?;
                let rate = report::rate(load, &sample);
                eprintln!("  {} round {round} {:13} {rate}", load.name, case.name);
                report.add(load, case.name, sample);
            }
        }
    }
    for case in rig.cases() {
        if let Some(rss) = case.rss()? {
            report.memory(case.name, rss);
        }
    }
    println!("{}", report.table());
    options.output.finish(bench, &report.figures())
}

/// Runs a load once, and adds what the case's proxies used for it.
fn measure(load: &Load, case: &Case, time: Duration) -> Result<Sample> {
    let before = case.cpu()?;
    let mut sample = (load.run)(case, time)?;
    sample.cpu = case.cpu()? - before;
    Ok(sample)
}

/// One more case, if `$ZTUNNEL` names a program.
fn ztunnel() -> Result<Option<ZtunnelPrograms>> {
    let Some(ztunnel) = Ztunnel::binary() else { return Ok(None) };
    if !ztunnel.is_file() {
        bail!("ZTUNNEL={}: there is no such file", ztunnel.display());
    }
    let built = cargo::build(&cargo::BuildArgs::default())?;
    Ok(Some(ZtunnelPrograms { ztunnel, authority: built.with_file_name("examples").join("istio-ca") }))
}
