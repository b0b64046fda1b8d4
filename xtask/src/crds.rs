use anyhow::Result;

use crate::cargo;

/// Writes `deploy/crds` anew. The test that compares them makes them: the types of tests alone have schemas.
pub(crate) fn run() -> Result<()> {
    let mut command = cargo::cargo()?;
    // Of one package alone dependencies have other features, and were all built anew.
    command.args(["test", "--quiet", "--workspace", "--lib", "definitions::"]);
    cargo::run(command.env("ORLOP_WRITE_CRDS", "1"))
}
