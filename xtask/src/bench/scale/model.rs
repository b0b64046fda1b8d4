use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::super::figure::{Figure, Unit};
use super::figure;
use crate::cargo;

/// What is timed inside one process, without IO: `agent/model/benches/scale.rs`.
pub(super) fn figures(services: usize, release: bool) -> Result<Vec<Figure>> {
    let mut command = cargo::cargo()?;
    command.args(["bench", "--quiet", "--package", "orlop-model", "--bench", "scale"]);
    if !release {
        command.args(["--profile", "dev"]);
    }
    command.args(["--", &services.to_string()]);
    let output = command.stderr(Stdio::inherit()).output().context("running cargo bench")?;
    if !output.status.success() {
        bail!("the bench of orlop-model: {}", output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let found: Value = serde_json::from_str(&text).with_context(|| format!("the bench said {text:?}"))?;
    let seconds = |what: &str, quantity: &str, key: &str| -> Result<Figure> {
        let value =
            found.get(key).and_then(Value::as_f64).with_context(|| format!("no {key} in {text:?}"))?;
        Ok(figure(services, what, quantity, value, Unit::Seconds))
    };
    Ok(vec![
        seconds("compile all", "p50", "compile")?,
        seconds("compile one endpoint", "p50", "change")?,
        seconds("compile one policy", "p50", "policy_change")?,
        seconds("decision", "p50", "decision")?,
    ])
}
