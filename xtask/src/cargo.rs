use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::root;

/// This very program, also after cargo has put another build of it in its place.
pub(crate) const OWN_PROGRAM: &str = "/proc/self/exe";

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
    let binary = target_dir()?.join(if args.release { "release" } else { "debug" }).join("orlop");
    if !binary.is_file() {
        bail!("cargo built no {}", binary.display());
    }
    Ok(binary)
}

/// Builds the end-to-end tests, with the features that `cargo xtask test` builds them with, and says where their
/// program is.
pub(crate) fn build_tests() -> Result<PathBuf> {
    let mut command = cargo()?;
    command.args(["test", "--workspace", "--test", "e2e", "--no-run", "--message-format", "json"]);
    let output = command.stderr(Stdio::inherit()).output().context("running cargo test")?;
    let messages = String::from_utf8_lossy(&output.stdout);
    let program = messages.lines().filter(|line| line.contains("\"name\":\"e2e\"")).find_map(|line| {
        let (_, rest) = line.split_once("\"executable\":\"")?;
        Some(PathBuf::from(rest.split('"').next()?))
    });
    program.context("cargo built no end-to-end tests")
}

/// Cargo in the workspace; the build fails if the eBPF programs can't be built.
pub(crate) fn cargo() -> Result<Command> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()?).env("ORLOP_EBPF", "required");
    Ok(command)
}

/// The target directory, which this program is in.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let me = std::env::current_exe().context("finding this program's own path")?;
    me.ancestors().nth(2).map(Path::to_owned).context("this program is not in a target directory")
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
