//! An OCI image of `orlop`, written without any container tool: one static binary and nothing else.

mod binary;
mod sbom;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;
use orlop_tests::{Image, Layout};
use serde_json::{Value, json};

use self::binary::Elsewhere;
use crate::{cargo, root};

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Where to write the OCI layout [default: image in cargo's target directory].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// A static `orlop` that was built before; several are for one architecture each.
    #[arg(long, value_name = "FILE")]
    binary: Vec<PathBuf>,
    /// Build it once more, from a copy of the sources at another path, and see that it is the same bit for bit.
    #[arg(long, conflicts_with = "binary")]
    twice: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let out = match &args.out {
        Some(out) => out.clone(),
        None => cargo::target_dir()?.join("image"),
    };
    let paths = if args.binary.is_empty() { vec![static_binary()?] } else { args.binary.clone() };
    for (architecture, size) in write(&out, &read(&paths)?)? {
        println!(
            "{}: {} of {architecture}, {:.1} MB (at most {} MB)",
            out.display(),
            env!("CARGO_PKG_VERSION"),
            size as f64 / 1e6,
            MOST / 1_000_000
        );
        if size > MOST {
            bail!("the image is too large");
        }
    }
    if args.twice {
        let elsewhere = Elsewhere::copy()?;
        let built = binary::build(&elsewhere.sources(), &elsewhere.target())?;
        let again = elsewhere.0.join("image");
        write(&again, &read(&[built])?)?;
        if contents(&out)? != contents(&again)? {
            bail!("built from a copy of the sources in {}, the image is another one", elsewhere.0.display());
        }
        println!("built once more in {}, it is the same bit for bit", elsewhere.0.display());
        fs::remove_dir_all(&elsewhere.0).with_context(|| format!("removing {}", elsewhere.0.display()))?;
    }
    Ok(())
}

/// Builds `orlop` as it ships, unless nothing has changed since, and says where it is.
pub(crate) fn static_binary() -> Result<PathBuf> {
    binary::build(&root()?, &cargo::target_dir()?.join("static"))
}

/// The binaries, each with the architecture that it is for.
fn read(paths: &[PathBuf]) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let mut binaries: Vec<(&'static str, Vec<u8>)> = Vec::new();
    for path in paths {
        let binary = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let architecture = check_static(&binary).with_context(|| path.display().to_string())?;
        if binaries.iter().any(|(other, _)| *other == architecture) {
            bail!("{}: there is another binary for {architecture}", path.display());
        }
        binaries.push((architecture, binary));
    }
    Ok(binaries)
}

/// The files below a directory.
fn contents(directory: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut below = vec![directory.to_owned()];
    while let Some(next) = below.pop() {
        for entry in fs::read_dir(&next).with_context(|| format!("reading {}", next.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                below.push(path);
            } else {
                let content = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
                found.insert(path.strip_prefix(directory)?.to_owned(), content);
            }
        }
    }
    Ok(found)
}

/// Writes an image for each architecture, each with its SBOM, and says how many bytes whoever pulls it gets.
fn write(out: &Path, binaries: &[(&'static str, Vec<u8>)]) -> Result<Vec<(&'static str, usize)>> {
    let layout = Layout::create(out)?;
    let version = env!("CARGO_PKG_VERSION");
    let labels = json!({
        "org.opencontainers.image.title": "orlop",
        "org.opencontainers.image.version": version,
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.source": env!("CARGO_PKG_REPOSITORY"),
    });
    let config =
        json!({"Entrypoint": ["/orlop"], "User": "65532:65532", "WorkingDir": "/", "Labels": labels});
    let (mut images, mut named, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
    for (architecture, binary) in binaries {
        let files = [("orlop", 0o755, &binary[..])];
        let image = Image::write(&layout, architecture, &files, &config, &labels)?;
        named.push(sbom_of(&layout, &image)?);
        sizes.push((*architecture, image.size));
        images.push(image);
    }
    named.insert(0, Image::named(&images, &layout, version)?);
    layout.finish(&named)?;
    Ok(sizes)
}

/// What the image is made of, as registries find it.
fn sbom_of(layout: &Layout, image: &Image) -> Result<Value> {
    let sbom = layout.blob(sbom::MEDIA_TYPE, &sbom::spdx(&image.layer.digest, image.architecture)?)?;
    let empty = layout.blob("application/vnd.oci.empty.v1+json", b"{}")?;
    let sbom = layout.json(
        "application/vnd.oci.image.manifest.v1+json",
        &json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": sbom::MEDIA_TYPE,
            "config": empty.json(),
            "layers": [sbom.json()],
            "subject": image.manifest.json(),
        }),
    )?;
    let mut sbom = sbom.json();
    sbom["artifactType"] = json!(sbom::MEDIA_TYPE);
    Ok(sbom)
}

/// In an image with nothing else in it there is nobody to load it. Gives what it is for.
fn check_static(binary: &[u8]) -> Result<&'static str> {
    // ELF-64: program headers begin at `e_phoff`, of `e_phentsize` bytes each; type 3 names an interpreter.
    let number = |at: usize, bytes: usize| -> Option<usize> {
        let found = binary.get(at..at + bytes)?;
        Some(found.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
    };
    let headers = || Some((number(32, 8)?, number(54, 2)?, number(56, 2)?));
    let Some((first, size, count)) = headers().filter(|_| binary.starts_with(b"\x7fELF\x02\x01")) else {
        bail!("this is no 64-bit ELF binary");
    };
    if (0..count).any(|n| number(first + n * size, 4) == Some(3)) {
        bail!("the binary asks for a dynamic loader: build it with `-C target-feature=+crt-static`");
    }
    // `e_machine`
    match number(18, 2) {
        Some(62) => Ok("amd64"),
        Some(183) => Ok("arm64"),
        _ => bail!("this is neither for x86-64 nor for arm64"),
    }
}

/// Of an image, in bytes.
const MOST: usize = 30_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_a_loader_is_refused() {
        let me = fs::read("/proc/self/exe").unwrap();
        assert!(check_static(&me).unwrap_err().to_string().contains("dynamic loader"));
        assert!(check_static(b"#!/bin/sh\n").is_err());
        assert!(check_static(b"\x7fELF\x02\x01").is_err());
    }

    #[test]
    fn the_same_binary_makes_the_same_image() {
        let dir = std::env::temp_dir().join(format!("orlop-image-{}", std::process::id()));
        let index = || {
            write(&dir, &[("amd64", b"binary".to_vec()), ("arm64", b"another".to_vec())]).unwrap();
            let index = fs::read_to_string(dir.join("index.json")).unwrap();
            fs::remove_dir_all(&dir).unwrap();
            index
        };
        let first = index();
        assert_eq!(first, index());
        assert!(first.contains("org.opencontainers.image.ref.name"), "{first}");
    }

    #[test]
    fn each_image_has_what_it_is_made_of_beside_it() {
        let dir = std::env::temp_dir().join(format!("orlop-sbom-{}", std::process::id()));
        write(&dir, &[("amd64", b"binary".to_vec()), ("arm64", b"another".to_vec())]).unwrap();
        let read =
            |path: &str| -> Value { serde_json::from_slice(&fs::read(dir.join(path)).unwrap()).unwrap() };
        let blob = |of: &Value| {
            read(&format!("blobs/sha256/{}", of["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap()))
        };
        let index = read("index.json");
        let named = index["manifests"].as_array().unwrap();
        let images = blob(&named[0])["manifests"].as_array().unwrap().clone();
        let sboms: Vec<_> =
            named.iter().filter(|one| one["artifactType"] == sbom::MEDIA_TYPE).map(blob).collect();
        assert_eq!((images.len(), sboms.len()), (2, 2));
        for (image, manifest) in images.iter().zip(&sboms) {
            // It refers to the image, by which registries find it.
            assert_eq!(manifest["subject"]["digest"], image["digest"]);
            let sbom = blob(&manifest["layers"][0]);
            let layer = &blob(image)["layers"][0];
            assert!(sbom["documentNamespace"].as_str().unwrap().ends_with(layer["digest"].as_str().unwrap()));
            let packages = sbom["packages"].as_array().unwrap();
            let names: Vec<_> = packages.iter().map(|package| package["name"].as_str().unwrap()).collect();
            for name in ["orlop", "rustls", "aws-lc-sys", "orlop-ebpf", "aya-ebpf", "rust-std", "glibc"] {
                assert!(names.contains(&name), "{name} is not in {names:?}");
            }
            assert!(!names.contains(&"orlop-tests"), "{names:?}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}
