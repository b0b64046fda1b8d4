//! The definitions of kinds that are not ours, as their projects publish them and as users have them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// A Go module that has definitions in it.
struct Module {
    name: &'static str,
    version: &'static str,
    /// As go.sum files have it (golang.org/ref/mod#go-sum-files).
    sum: &'static str,
    directory: &'static str,
}

const MODULES: [Module; 2] = [
    Module {
        name: "sigs.k8s.io/gateway-api",
        version: "v1.6.3",
        sum: "h1:lKpJa5bGlraC/QeACvCpsHLdmO6y0iKfzVl6gzaFEYc=",
        directory: "config/crd/experimental",
    },
    Module {
        name: "istio.io/api",
        version: "v1.32.0",
        sum: "h1:37mJvg9I0biYZAEQF+MATs4FNeCpXEIVO3LFpVb6iNM=",
        directory: "kubernetes",
    },
];

/// Puts them into `into`, a file of YAML for each module, unless they are there.
pub(super) fn fetch(go: &Path, into: &Path) -> Result<()> {
    for module in &MODULES {
        let file = module.file(into);
        if !file.is_file() {
            let text = module.download(go)?;
            fs::create_dir_all(into).with_context(|| format!("creating {}", into.display()))?;
            let new = file.with_extension("new");
            fs::write(&new, text).with_context(|| format!("writing {}", new.display()))?;
            fs::rename(&new, &file).with_context(|| format!("writing {}", file.display()))?;
        }
    }
    Ok(())
}

/// The files in a directory that [`fetch`] has filled.
pub(super) fn files(directory: &Path) -> Vec<PathBuf> {
    MODULES.iter().map(|module| module.file(directory)).collect()
}

impl Module {
    fn file(&self, directory: &Path) -> PathBuf {
        directory.join(format!("{}-{}.yaml", self.name.replace('/', "-"), self.version))
    }

    /// All its definitions, as one file of YAML.
    fn download(&self, go: &Path) -> Result<String> {
        let what = format!("{}@{}", self.name, self.version);
        let mut command = Command::new(go);
        command.args(["mod", "download", "-json", &what]).current_dir(std::env::temp_dir());
        // It is held against the sum above.
        command.env("GONOSUMDB", self.name).env("GOFLAGS", "").stdin(Stdio::null());
        let output = command.output().with_context(|| format!("running {}", go.display()))?;
        let told: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("downloading {what}: {}", String::from_utf8_lossy(&output.stderr)))?;
        let Some(place) = told["Dir"].as_str() else { bail!("downloading {what}: {}", told["Error"]) };
        if told["Sum"] != self.sum {
            bail!("{what} is not what it was: its sum is {}, not {}", told["Sum"], self.sum);
        }
        let directory = Path::new(place).join(self.directory);
        let entries = fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))?;
        let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
        paths.sort();
        let mut all = String::new();
        for path in paths {
            all += "---\n";
            all += &fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            all.push('\n');
        }
        Ok(all)
    }
}
