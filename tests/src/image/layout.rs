//! The directory of an OCI image layout (image-spec 1.1).

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// A directory that an image, and what belongs to it, is written to.
#[derive(Debug)]
pub struct Layout {
    dir: PathBuf,
}

/// What is in the layout, as others refer to it.
#[derive(Debug)]
pub struct Descriptor {
    media_type: &'static str,
    /// `sha256:` and 64 hex digits.
    pub digest: String,
    /// In bytes.
    pub size: usize,
}

impl Layout {
    /// An empty one, in place of what was there.
    pub fn create(dir: &Path) -> Result<Self> {
        if dir.exists() {
            if !dir.join("oci-layout").is_file() {
                bail!("{} is there and is no OCI layout: name another directory", dir.display());
            }
            fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
        }
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).with_context(|| format!("creating {}", blobs.display()))?;
        let layout = Self { dir: dir.to_owned() };
        layout.write("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(layout)
    }

    /// Adds bytes of this type.
    pub fn blob(&self, media_type: &'static str, content: &[u8]) -> Result<Descriptor> {
        let digest = sha256(content)?;
        self.write(&format!("blobs/sha256/{digest}"), content)?;
        Ok(Descriptor { media_type, digest: format!("sha256:{digest}"), size: content.len() })
    }

    /// Adds an object of this type.
    pub fn json(&self, media_type: &'static str, value: &Value) -> Result<Descriptor> {
        self.blob(media_type, &serde_json::to_vec(value)?)
    }

    /// Writes the index, with which the layout is complete.
    pub fn finish(&self, manifests: &[Value]) -> Result<()> {
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": manifests,
        });
        self.write("index.json", &serde_json::to_vec(&index)?)
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.dir.join(name);
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))
    }
}

impl Descriptor {
    /// As images and indices refer to it.
    pub fn json(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.size})
    }
}

fn sha256(content: &[u8]) -> Result<String> {
    let mut command = Command::new("sha256sum");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("running sha256sum, of coreutils")?;
    child.stdin.take().context("sha256sum takes no input")?.write_all(content).context("hashing")?;
    let output = child.wait_with_output().context("hashing")?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.split_whitespace().next() {
        Some(digest) if output.status.success() && digest.len() == 64 => Ok(digest.to_owned()),
        _ => bail!("sha256sum: {}", output.status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_sha_256() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sha256(b"").unwrap(), empty);
    }

    #[test]
    fn a_directory_of_something_else_is_kept() {
        let dir = std::env::temp_dir().join(format!("orlop-layout-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let refused = Layout::create(&dir).is_err();
        fs::remove_dir(&dir).unwrap();
        assert!(refused);
    }
}
