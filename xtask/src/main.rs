//! The project's own commands: `cargo xtask help`.

#![forbid(unsafe_code)]

mod bench;
mod cargo;
mod cluster;
mod crds;
mod demo;
mod fuzz;
mod image;
mod integrity;
mod kernels;
mod manifests;
mod setup;
mod test;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Orlop's own commands", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the main job on two nodes and four pods on this machine, and check it.
    Demo(demo::Args),
    /// Run all tests, or those whose names hold one of the filters.
    Test(test::Args),
    /// Measure the same load with no mesh, with Orlop and, if `$ZTUNNEL` names one, with ztunnel.
    Bench(bench::Args),
    /// Send many bytes each way between pods, and compare every one.
    Integrity(integrity::Args),
    /// Boot Debian's kernels in an emulator, and check Orlop on each.
    Kernels(kernels::Args),
    /// Feed the parsers of foreign input with what nobody would write.
    Fuzz(fuzz::Args),
    /// Run a Kubernetes control plane on this machine: no node, only the API and its controllers.
    Cluster(cluster::Args),
    /// Build `orlop` with its eBPF programs.
    Build(cargo::BuildArgs),
    /// Write an OCI image with one static `orlop` in it, and what that is made of (SPDX).
    Image(image::Args),
    /// Write the CustomResourceDefinitions of `deploy/` from the types that read their objects.
    Crds,
    /// Write the plain manifests of `deploy/` from its Helm chart.
    Manifests,
    /// Install what the commands above need and this machine lacks.
    Setup(setup::Args),
    /// Check the rules of the house that the compiler does not.
    Tidy,
    /// Remove what kept demos and killed runs left on this machine.
    Sweep,
    /// Serve HTTP in a pod of the demo.
    #[command(hide = true)]
    Serve(demo::ServeArgs),
    /// Serve HTTP in a pod of the bench.
    #[command(hide = true)]
    ServeBench(bench::ServeArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Integrity(args) => integrity::run(&args),
        Command::Kernels(args) => kernels::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Cluster(args) => cluster::run(&args),
        Command::Build(args) => setup::ensure(setup::For::Build).and_then(|()| cargo::build(&args).map(drop)),
        Command::Image(args) => setup::ensure(setup::For::Build).and_then(|()| image::run(&args)),
        Command::Crds => crds::run(),
        Command::Manifests => manifests::run(),
        Command::Setup(args) => setup::run(&args),
        Command::Tidy => tidy::run(),
        Command::Sweep => test::sweep(),
        Command::Serve(args) => demo::serve(&args),
        Command::ServeBench(args) => bench::serve(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's directory.
fn root() -> Result<PathBuf> {
    let manifest_dir = std::env::var_os("CARGO_MANIFEST_DIR").context("run this as `cargo xtask`")?;
    let root = PathBuf::from(manifest_dir).parent().map(PathBuf::from);
    root.context("the xtask package has no parent directory")
}
