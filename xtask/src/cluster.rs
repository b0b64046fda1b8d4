use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::{Args as ClapArgs, Subcommand};

use crate::{cargo, root};

#[derive(ClapArgs)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a control plane on this machine's loopback, and print its kubeconfig.
    Up,
    /// End it and remove what it stored.
    Down,
    /// Build it from its Go modules: some minutes, the first time.
    Build,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let dir = cargo::target_dir()?.join("cluster");
    match args.command {
        Command::Build => println!("{}", build()?.display()),
        Command::Up => {
            build()?;
            let started = Instant::now();
            let kubeconfig = orlop_tests::start_detached(&dir)?.kubeconfig;
            eprintln!(
                "ready after {:.1} s; `cargo xtask cluster down` ends it",
                started.elapsed().as_secs_f32()
            );
            println!("export KUBECONFIG={}", kubeconfig.display());
        }
        Command::Down if orlop_tests::stop_detached(&dir)? => println!("ended"),
        Command::Down => bail!("there is no cluster in {}", dir.display()),
    }
    Ok(())
}

/// Builds the control plane, unless that was done before.
pub(crate) fn build() -> Result<PathBuf> {
    orlop_tests::build_control_plane(&root()?.join("tests/cluster"), &cargo::target_dir()?)
}
