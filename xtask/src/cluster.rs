use std::io;
use std::path::{self, Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args as ClapArgs, Subcommand};
use orlop_tests::{ControlPlane, KubeNode, Testbed};

use crate::{cargo, root, setup};

#[derive(ClapArgs)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a control plane on this machine's loopback, and print its kubeconfig.
    Up {
        /// With a node, of containerd and kubelet, that has the image of `cargo xtask image`. Ends with this program.
        #[arg(long, conflicts_with = "dir")]
        node: bool,
        /// Where its files are put: `cluster` in the target directory.
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// End it and remove what it stored.
    Down {
        /// Where its files are.
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Build it from its Go modules: some minutes, the first time.
    Build,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.command {
        Command::Build => println!("{}", build()?.display()),
        Command::Up { node: true, .. } => with_node()?,
        Command::Up { node: false, dir } => {
            build()?;
            let (started, dir) = (Instant::now(), place(dir.as_deref())?);
            let kubeconfig = orlop_tests::start_detached(&dir)?.kubeconfig;
            eprintln!(
                "ready after {:.1} s; `cargo xtask cluster down` ends it",
                started.elapsed().as_secs_f32()
            );
            println!("export KUBECONFIG={}", kubeconfig.display());
        }
        Command::Down { dir } => {
            let dir = place(dir.as_deref())?;
            if !orlop_tests::stop_detached(&dir)? {
                bail!("there is no cluster in {}", dir.display());
            }
            println!("ended");
        }
    }
    Ok(())
}

/// Where a cluster's files are. Its programs run there, and are told of it by its whole name.
fn place(dir: Option<&Path>) -> Result<PathBuf> {
    match dir {
        Some(dir) => path::absolute(dir).with_context(|| format!("finding {}", dir.display())),
        None => Ok(cargo::target_dir()?.join("cluster")),
    }
}

/// Runs a control plane and a node until somebody is done with them.
fn with_node() -> Result<()> {
    setup::require_root("a node has namespaces and cgroups of its own", "cargo xtask cluster up --node")?;
    setup::ensure(setup::For::Test)?;
    build()?;
    let started = Instant::now();
    let testbed = Testbed::new()?;
    let node = testbed.node("node")?;
    let plane = ControlPlane::start_on(&node)?;
    let node = KubeNode::start(&node, &plane)?;
    let image = cargo::target_dir()?.join("image");
    if image.is_dir() {
        node.load(&image, REPOSITORY)?;
        eprintln!(
            "helm install … --set image.repository={REPOSITORY} finds the image of `cargo xtask image`"
        );
    }
    eprintln!("ready after {:.1} s; Enter ends it", started.elapsed().as_secs_f32());
    println!("export KUBECONFIG={}", plane.kubeconfig().display());
    io::stdin().read_line(&mut String::new()).context("waiting for Enter")?;
    Ok(())
}

/// What Orlop's image is called on the node.
const REPOSITORY: &str = "orlop.test/orlop";

/// Builds the control plane, unless that was done before.
pub(crate) fn build() -> Result<PathBuf> {
    orlop_tests::build_control_plane(&root()?.join("tests/cluster"), &cargo::target_dir()?)
}
