//! Builds the control plane from its Go modules.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};

use super::definitions;

/// Of Kubernetes, as in the module's go.mod.
const VERSION: (u32, u32, u32) = (1, 36, 3);

const PLACE: &str = "control-plane/cluster";
const DEFINITIONS: &str = "control-plane/definitions";

/// Where [`build`] puts it, or what `$ORLOP_CONTROL_PLANE` names.
pub fn control_plane_binary() -> Result<PathBuf> {
    if let Some(binary) = std::env::var_os("ORLOP_CONTROL_PLANE") {
        return Ok(PathBuf::from(binary));
    }
    built(PLACE)
}

/// Files of YAML with the CustomResourceDefinitions of the Gateway API's and Istio's own projects, each of their
/// newest version that this Go toolchain can have.
pub fn published_definitions() -> Result<Vec<PathBuf>> {
    Ok(definitions::files(&built(DEFINITIONS)?))
}

/// What [`build`] has put there in the target directory.
fn built(place: &str) -> Result<PathBuf> {
    let me = std::env::current_exe().context("finding this program's own path")?;
    // Tests are in target/PROFILE/deps, programs in target/PROFILE.
    let found = me.ancestors().skip(2).take(2).map(|dir| dir.join(place)).find(|path| path.exists());
    found.context("there is no control plane here: run `cargo xtask cluster build`")
}

/// Builds the control plane, the Go module in `source`, into the target directory, and fetches what
/// [`published_definitions`] has, unless all that is there already.
///
/// Needs Go as new as the module's go.mod says, or one that may fetch such a toolchain.
pub fn build(source: &Path, target: &Path) -> Result<PathBuf> {
    let binary = target.join(PLACE);
    let (is_built, definitions) = (is_newer(&binary, source)?, target.join(DEFINITIONS));
    if is_built && definitions::files(&definitions).iter().all(|file| file.is_file()) {
        return Ok(binary);
    }
    let go = go().context("there is no Go toolchain: install one, or put `go` into PATH")?;
    definitions::fetch(&go, &definitions)?;
    if is_built {
        return Ok(binary);
    }
    // Two jobs: each of the larger packages takes a gigabyte. Without what only a debugger reads it is half the
    // size, and compiled in six sevenths of the time. The version is what charts ask for, and what kubelet says.
    let mut flags = "-s -w".to_owned();
    let (major, minor) = (VERSION.0, VERSION.1);
    let version = format!("v{major}.{minor}.{}", VERSION.2);
    for (name, value) in
        [("gitVersion", version), ("gitMajor", major.to_string()), ("gitMinor", minor.to_string())]
    {
        flags += &format!(" -X k8s.io/component-base/version.{name}={value}");
    }
    let mut command = Command::new(&go);
    command.args(["build", "-p", "2", "-trimpath", "-gcflags=all=-dwarf=false", "-ldflags", &flags]);
    command.arg("-o").arg(&binary).arg(".");
    let status = command.current_dir(source).env("CGO_ENABLED", "0").stdin(Stdio::null()).status();
    let status = status.with_context(|| format!("running {}", go.display()))?;
    if !status.success() {
        bail!("`go build` in {}: {status}", source.display());
    }
    Ok(binary)
}

fn go() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain([PathBuf::from("/usr/local/go/bin")]);
    places.map(|dir| dir.join("go")).find(|go| go.is_file())
}

/// Whether the binary was made after the last change of its source.
fn is_newer(binary: &Path, source: &Path) -> Result<bool> {
    let modified = |path: &Path| -> std::io::Result<SystemTime> { fs::metadata(path)?.modified() };
    let Ok(built) = modified(binary) else { return Ok(false) };
    let entries = fs::read_dir(source).with_context(|| format!("reading {}", source.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("reading {}", source.display()))?.path();
        if modified(&path).is_ok_and(|changed| changed > built) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_the_module() {
        let (major, minor, patch) = VERSION;
        let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/go.mod");
        let module = fs::read_to_string(module).unwrap();
        assert!(module.contains(&format!("k8s.io/kubernetes v{major}.{minor}.{patch}\n")), "{module}");
    }
}
