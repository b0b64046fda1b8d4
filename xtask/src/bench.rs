//! The same loads over the same nodes with no mesh, with Orlop and with the ztunnel that `$ZTUNNEL` names, in turn, so that a noisy machine is
//! noisy for both. Only the ratios travel to other machines.

mod loads;
mod report;
mod rig;
mod serve;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;
use orlop_tests::Ztunnel;

use crate::{cargo, setup, test};
use loads::{LOADS, Load, Sample};
use report::Report;
use rig::{Rig, ZtunnelPrograms};

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Seconds each measurement takes.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// How often each load meets each case.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only loads whose names hold one of these.
    filters: Vec<String>,
    /// Also write the figures as JSON to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<std::path::PathBuf>,
}

#[derive(ClapArgs)]
pub(crate) struct ServeArgs {
    port: u16,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::require_root("the bench makes network namespaces and loads eBPF", "cargo xtask bench")?;
    setup::ensure(setup::For::Bench)?;
    let binary = cargo::build(&cargo::BuildArgs { release: true })?;
    test::sweep()?;
    let rig = Rig::new(binary, ztunnel()?.as_ref()).context("setting up the bench")?;
    let mut report = Report::new(rig.cases().iter().map(|case| case.name).collect());
    let wanted =
        |load: &&Load| args.filters.is_empty() || args.filters.iter().any(|f| load.name.contains(f.as_str()));
    let time = Duration::from_secs(args.seconds);
    for load in LOADS.iter().filter(wanted) {
        for round in 0..args.rounds {
            for case in rig.cases() {
                let sample =
                    measure(load, case, time).with_context(|| format!("{} with {}", load.name, case.name))?;
                eprintln!(
                    "  {} round {} {:8} {}",
                    load.name,
                    round + 1,
                    case.name,
                    report::rate(load, &sample)
                );
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
    if let Some(path) = &args.json {
        std::fs::write(path, report.json()).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// The third case, if `$ZTUNNEL` names a program.
fn ztunnel() -> Result<Option<ZtunnelPrograms>> {
    let Some(ztunnel) = Ztunnel::binary() else { return Ok(None) };
    if !ztunnel.is_file() {
        bail!("ZTUNNEL={}: there is no such file", ztunnel.display());
    }
    let built = cargo::build(&cargo::BuildArgs::default())?;
    Ok(Some(ZtunnelPrograms { ztunnel, authority: built.with_file_name("examples").join("istio-ca") }))
}

pub(crate) fn serve(args: &ServeArgs) -> Result<()> {
    serve::run(args.port)
}

/// Runs a load once, and adds what the case's proxies used for it.
fn measure(load: &Load, case: &rig::Case, time: Duration) -> Result<Sample> {
    let before = case.cpu()?;
    let mut sample = (load.run)(case, time)?;
    sample.cpu = case.cpu()? - before;
    Ok(sample)
}
