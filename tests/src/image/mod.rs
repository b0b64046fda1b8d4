//! OCI images, written without any container tool.

mod layout;
mod tar;

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

pub use layout::{Descriptor, Layout};
pub use tar::archive;

/// What tests' images are for: the machine that they run on.
const HERE: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

/// When all of it was made.
pub const EPOCH: &str = "1970-01-01T00:00:00Z";

/// An image of one layer.
#[derive(Debug)]
pub struct Image {
    /// What it is for, such as `amd64`.
    pub architecture: &'static str,
    /// Of its manifest.
    pub manifest: Descriptor,
    /// Of its one layer.
    pub layer: Descriptor,
    /// How many bytes whoever pulls it gets.
    pub size: usize,
}

impl Image {
    /// Adds an image of files, each with its name and permission bits, to a layout. `config` says what to run, and
    /// `labels` what it is.
    pub fn write(
        layout: &Layout,
        architecture: &'static str,
        files: &[(&str, u32, &[u8])],
        config: &Value,
        labels: &Value,
    ) -> Result<Self> {
        let layer = layout.blob("application/vnd.oci.image.layer.v1.tar", &archive(files)?)?;
        let config = layout.json(
            "application/vnd.oci.image.config.v1+json",
            &json!({
                "architecture": architecture,
                "os": "linux",
                "created": EPOCH,
                "config": config,
                "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
                "history": [{"created": EPOCH, "created_by": "cargo xtask image"}],
            }),
        )?;
        let size = layer.size + config.size;
        let manifest = layout.json(
            "application/vnd.oci.image.manifest.v1+json",
            &json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": config.json(),
                "layers": [layer.json()],
                "annotations": labels,
            }),
        )?;
        Ok(Self { architecture, manifest, layer, size })
    }

    /// Adds an index of images, one for each architecture, and gives what names it `tag` in the layout.
    pub fn named(images: &[Self], layout: &Layout, tag: &str) -> Result<Value> {
        let platforms = images.iter().map(|image| {
            let mut platform = image.manifest.json();
            platform["platform"] = json!({"architecture": image.architecture, "os": "linux"});
            platform
        });
        let index = layout.json(
            "application/vnd.oci.image.index.v1+json",
            &json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.index.v1+json",
                "manifests": platforms.collect::<Vec<_>>(),
            }),
        )?;
        let mut named = index.json();
        named["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        Ok(named)
    }

    /// Makes a layout with one image in it, which is called `tag` there.
    pub fn write_alone(out: &Path, tag: &str, files: &[(&str, u32, &[u8])], config: &Value) -> Result<()> {
        let layout = Layout::create(out)?;
        let image = Self::write(&layout, HERE, files, config, &json!({}))?;
        layout.finish(&[Self::named(&[image], &layout, tag)?])
    }
}
