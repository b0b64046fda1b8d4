use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::root;

#[derive(Args, Default)]
pub(crate) struct BuildArgs {
    /// Optimise fully.
    #[arg(long)]
    pub(crate) release: bool,
}

/// Builds `orlop` and says where it is.
pub(crate) fn build(args: &BuildArgs) -> Result<PathBuf> {
    let mut command = cargo()?;
    if args.release {
        command.args(["build", "--package", "orlop", "--release"]);
    } else {
        // Tests need further features of some dependencies: built apart from them, those were built twice.
        command.args(["build", "--workspace", "--all-targets"]);
    }
    run(&mut command)?;
    let me = std::env::current_exe().context("finding this program's own path")?;
    let target = me.ancestors().nth(2).context("this program is not in a target directory")?;
    let binary = target.join(if args.release { "release" } else { "debug" }).join("orlop");
    if !binary.is_file() {
        bail!("cargo built no {}", binary.display());
    }
    Ok(binary)
}

/// Cargo in the workspace; the build fails if the eBPF programs can't be built.
pub(crate) fn cargo() -> Result<Command> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()?).env("ORLOP_EBPF", "required");
    Ok(command)
}

/// Runs a command with this program's own input and output; fails if it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let status = command.status().with_context(|| format!("running {name}"))?;
    if !status.success() {
        bail!("`{} {}`: {status}", name.rsplit('/').next().unwrap_or(&name), args.join(" "));
    }
    Ok(())
}
