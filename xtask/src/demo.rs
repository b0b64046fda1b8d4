//! The main job on one machine: two nodes, four pods, real traffic, and what must hold of it.

mod checks;
mod stage;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;

use crate::{cargo, setup, test};
use checks::CHECKS;
use stage::Stage;

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Leave everything up afterwards, and print commands to look around with.
    #[arg(long)]
    keep: bool,
}

#[derive(ClapArgs)]
pub(crate) struct ServeArgs {
    /// What the server calls itself.
    name: String,
    port: u16,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::require_root("the demo makes network namespaces and loads eBPF", "cargo xtask demo")?;
    setup::ensure(setup::For::Test)?;
    let binary = cargo::build(&cargo::BuildArgs::default())?;
    test::sweep()?;
    let start = Instant::now();
    let mut stage = Stage::new(binary).context("setting up the demo")?;
    println!("\nOrlop demo: two nodes, four pods, mutual TLS between the nodes\n\n{}", stage.describe());
    let failed = check_all(&mut stage);
    let time = start.elapsed();
    if args.keep {
        println!("{}", stage.keep());
    } else {
        drop(stage);
    }
    match failed {
        0 => println!("{} checks passed in {:.1} s\n", CHECKS.len(), time.as_secs_f32()),
        failed => bail!("{failed} of {} checks failed", CHECKS.len()),
    }
    Ok(())
}

pub(crate) fn serve(args: &ServeArgs) -> Result<()> {
    orlop_tests::traffic::serve_http(&args.name, args.port).context("serving HTTP")
}

/// Runs every check, prints a row of the table for each, and counts the failed ones.
fn check_all(stage: &mut Stage) -> usize {
    let width = CHECKS.iter().map(|(name, _)| name.chars().count()).max().unwrap_or_default();
    let mut failed = 0;
    for (name, check) in CHECKS {
        let (mark, detail) = match check(stage) {
            Ok(detail) => ("ok  ", detail),
            Err(error) => {
                failed += 1;
                ("FAIL", format!("{error:#}"))
            }
        };
        // A detail of several lines stays in its column.
        let detail = detail.trim_end().replace('\n', &format!("\n{}", " ".repeat(width + 10)));
        println!("  {mark}  {name:width$}  {detail}");
    }
    println!();
    failed
}

/// In the unit that reads best.
fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}
