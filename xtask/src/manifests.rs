use std::fs;

use anyhow::{Context, Result};
use orlop_tests::DeployTools;

use crate::{cargo, root};

/// Writes `deploy/manifests` anew from the Helm chart.
pub(crate) fn run() -> Result<()> {
    let deploy = root()?.join("deploy");
    let manifests = tools()?.manifests(&deploy.join("helm/orlop"))?;
    let path = deploy.join("manifests/orlop.yaml");
    let before = fs::read_to_string(&path).unwrap_or_default();
    if before == manifests {
        println!("{} is what the chart makes", path.display());
        return Ok(());
    }
    fs::write(&path, manifests).with_context(|| format!("writing {}", path.display()))?;
    println!("written: {}", path.display());
    Ok(())
}

/// Helm and kubectl, fetched unless that was done before.
pub(crate) fn tools() -> Result<DeployTools> {
    DeployTools::install(&cargo::target_dir()?)
}
