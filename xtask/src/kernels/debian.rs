//! Kernels from Debian's archive, through apt but apart from the machine's own apt: with lists, cache and
//! package state of their own, so that nothing is installed and no source is added.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// How long a downloaded kernel counts as the newest of its suite.
const FRESH: Duration = Duration::from_secs(7 * 24 * 3600);
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const MIRROR: &str = "http://deb.debian.org/debian";

/// A kernel on this machine.
pub(super) struct Image {
    pub(super) release: String,
    pub(super) vmlinuz: PathBuf,
    /// `/lib/modules/RELEASE`
    pub(super) modules: PathBuf,
}

/// The cloud kernel of a suite, unpacked into `dir`.
pub(super) fn kernel(suite: &str, dir: &Path, fresh: bool) -> Result<Image> {
    // Written by each download.
    let age = fs::metadata(dir.join("sources"))
        .and_then(|file| file.modified())
        .ok()
        .and_then(|time| time.elapsed().ok());
    let tree = dir.join("tree");
    if !fresh
        && age.is_some_and(|age| age < FRESH)
        && let Ok(image) = find(&tree)
    {
        return Ok(image);
    }
    // In newer suites, the image's package has none of it, but needs those which do.
    let parts = ["linux-image-", "linux-binary-", "linux-modules-"];
    download(suite, dir, "linux-image-cloud-amd64", |name| {
        parts.iter().any(|part| {
            name.strip_prefix(part).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
    })?;
    find(&tree)
}

/// A statically linked busybox, unpacked into `dir`.
pub(super) fn busybox(dir: &Path) -> Result<PathBuf> {
    let program = dir.join("tree/bin/busybox");
    if !program.is_file() {
        download("bookworm", dir, "busybox-static", |name| name == "busybox-static")?;
    }
    Ok(program)
}

/// Unpacks those packages that `wanted` names, of `package` and what it depends on, into `dir/tree`.
fn download(suite: &str, dir: &Path, package: &str, wanted: impl Fn(&str) -> bool) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("emptying {}", dir.display()))?;
    }
    for part in ["lists/partial", "cache/archives/partial", "debs", "new"] {
        let part = dir.join(part);
        fs::create_dir_all(&part).with_context(|| format!("creating {}", part.display()))?;
    }
    fs::write(dir.join("status"), "")?;
    fs::write(dir.join("sources"), format!("deb [signed-by={KEYRING}] {} {suite} main\n", mirror()))?;
    let apt = |program: &str, args: &[&str]| {
        let dir = dir.display();
        let mut command = Command::new(program);
        command.current_dir(dir.to_string() + "/debs");
        for option in [
            format!("Dir::Etc::SourceList={dir}/sources"),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::State::Lists={dir}/lists"),
            format!("Dir::State::Status={dir}/status"),
            format!("Dir::Cache={dir}/cache"),
            // Root would drop to a user that may not reach these directories.
            "APT::Sandbox::User=".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        output(command.args(args))
    };
    apt("apt-get", &["-qq", "update"])?;
    let only = ["recommends", "suggests", "conflicts", "breaks", "replaces", "enhances"];
    let only = only.map(|kind| format!("--no-{kind}"));
    let mut query = vec!["depends", "--recurse"];
    query.extend(only.iter().map(String::as_str));
    query.push(package);
    let closure = apt("apt-cache", &query)?;
    let names: Vec<&str> = closure.lines().filter(|line| !line.starts_with([' ', '|', '<'])).collect();
    let mut fetch = vec!["-qq", "download"];
    fetch.extend(names.into_iter().filter(|name| wanted(name)));
    apt("apt-get", &fetch)?;
    for deb in fs::read_dir(dir.join("debs"))? {
        output(Command::new("dpkg-deb").arg("-x").arg(deb?.path()).arg(dir.join("new")))?;
    }
    // Only whole trees have the name.
    fs::rename(dir.join("new"), dir.join("tree")).context("keeping the packages")
}

/// Where this machine gets Debian from.
fn mirror() -> String {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(REPO_URI)"]);
    command.args(["Created-By: Packages", "Origin: Debian", "Codename: bookworm"]);
    let configured = output(&mut command).unwrap_or_default();
    configured.lines().next().unwrap_or(MIRROR).trim_end_matches('/').to_owned()
}

/// The kernel in an unpacked tree. Newer suites keep it with its modules, and /lib in /usr.
fn find(tree: &Path) -> Result<Image> {
    for lib in ["lib/modules", "usr/lib/modules"] {
        let Ok(mut entries) = fs::read_dir(tree.join(lib)) else { continue };
        let Some(entry) = entries.next() else { continue };
        let modules = entry?.path();
        let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let places = [tree.join("boot").join(format!("vmlinuz-{release}")), modules.join("vmlinuz")];
        if let Some(vmlinuz) = places.into_iter().find(|path| path.is_file()) {
            return Ok(Image { release, vmlinuz, modules });
        }
    }
    bail!("no kernel in {}", tree.display())
}

fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("running {name}"))?;
    if !output.status.success() {
        bail!("{name} failed ({}):\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
