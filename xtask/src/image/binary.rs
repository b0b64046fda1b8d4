//! The static binary of the image, the same wherever it is built.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{cargo, root};

pub(super) const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the sources at `root` apart from all other builds, with no path of this machine in the binary.
pub(super) fn build(root: &Path, target: &Path) -> Result<PathBuf> {
    let home = cargo_home()?;
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned(), "-Cstrip=symbols".to_owned()];
    flags.push("-Clink-arg=-Wl,--build-id=none".to_owned());
    let mut c_flags = String::new();
    for (path, name) in [(root, "/orlop"), (&home, "/cargo"), (target, "/target")] {
        flags.push(format!("--remap-path-prefix={}={name}", path.display()));
        c_flags.push_str(&format!("-ffile-prefix-map={}={name} ", path.display()));
    }
    let mut command = cargo::cargo()?;
    command.args(["build", "--package", "orlop", "--release", "--locked", "--target", TARGET]);
    command.arg("--target-dir").arg(target).current_dir(root);
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    // It would be stripped.
    command.env("CARGO_PROFILE_RELEASE_DEBUG", "false");
    command.env("CFLAGS", c_flags.trim()).env("SOURCE_DATE_EPOCH", "0");
    cargo::run(&mut command)?;
    let built = target.join(TARGET).join("release/orlop");
    let binary = fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
    for (within, path) in [(root, "agent/"), (root, "ebpf/"), (&home, "registry/"), (target, TARGET)] {
        let path = within.join(path);
        let path = path.to_string_lossy();
        if binary.windows(path.len()).any(|at| at == path.as_bytes()) {
            bail!("{} names {path}, so that it is another one elsewhere", built.display());
        }
    }
    Ok(built)
}

/// A directory for another build, with a copy of the sources in it. It is left there if that build fails.
pub(super) struct Elsewhere(pub(super) PathBuf);

impl Elsewhere {
    /// Of what git tracks or would.
    pub(super) fn copy() -> Result<Elsewhere> {
        let (from, elsewhere) = (root()?, Elsewhere(PathBuf::from("/var/tmp/orlop-elsewhere")));
        if elsewhere.0.exists() {
            fs::remove_dir_all(&elsewhere.0)
                .with_context(|| format!("removing {}", elsewhere.0.display()))?;
        }
        let mut git = Command::new("git");
        git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(&from);
        let listed = git.output().context("running git, which knows what the sources are")?;
        if !listed.status.success() {
            bail!("git ls-files: {}", String::from_utf8_lossy(&listed.stderr).trim());
        }
        for path in listed.stdout.split(|byte| *byte == 0) {
            let path = Path::new(std::ffi::OsStr::from_bytes(path));
            let (source, copy) = (from.join(path), elsewhere.sources().join(path));
            if !source.is_file() {
                continue;
            }
            let parent = copy.parent().context("a file has a directory")?;
            fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
            fs::copy(&source, &copy).with_context(|| format!("copying {}", source.display()))?;
        }
        Ok(elsewhere)
    }

    pub(super) fn sources(&self) -> PathBuf {
        self.0.join("sources")
    }

    pub(super) fn target(&self) -> PathBuf {
        self.0.join("target")
    }
}

fn cargo_home() -> Result<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    home.context("neither CARGO_HOME nor HOME is set")
}
