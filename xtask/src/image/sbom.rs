//! What is in the binary, its crates and what else is linked, and their licences, as SPDX 2.3.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use orlop_tests::EPOCH;
use serde_json::{Value, json};

use crate::cargo;
use crate::image::binary::TARGET;

pub(super) const MEDIA_TYPE: &str = "application/spdx+json";

/// Of a version or licence that nobody here knows.
const UNKNOWN: &str = "NOASSERTION";

/// The document of the image for an architecture whose layer has this digest.
pub(super) fn spdx(digest: &str, architecture: &str) -> Result<Vec<u8>> {
    let agent = Crates::of(&metadata("Cargo.toml", TARGET)?, "orlop")?;
    let hooks = Crates::of(&metadata("ebpf/Cargo.toml", "bpfel-unknown-none")?, "orlop-ebpf")?;
    let linked = [
        describe(
            "rust-std",
            &std_version()?,
            "MIT OR Apache-2.0",
            "https://github.com/rust-lang/rust",
            "generic",
        ),
        describe(
            "glibc",
            &glibc_version(architecture)?,
            "LGPL-2.1-or-later",
            "https://www.gnu.org/software/libc/",
            "generic",
        ),
    ];
    Ok(serde_json::to_vec(&document(agent, hooks, &linked, digest))?)
}

fn metadata(manifest: &str, target: &str) -> Result<Value> {
    let output = cargo::cargo()?
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", target])
        .args(["--manifest-path", manifest])
        .output()
        .context("running cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata of {manifest}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("reading what cargo metadata says")
}

/// Of the compiler, with which its libraries come.
fn std_version() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("--version").output().context("running rustc")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let version = said.split_whitespace().nth(1).context("rustc does not say its version")?;
    Ok(version.to_owned())
}

/// Of the library that the linker of this architecture takes; not known where there is none, as the binary comes from
/// elsewhere then.
fn glibc_version(architecture: &str) -> Result<String> {
    let native = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let compiler = match architecture {
        own if own == native => "cc",
        "arm64" => "aarch64-linux-gnu-gcc",
        _ => "x86_64-linux-gnu-gcc",
    };
    let Ok(output) = Command::new(compiler).arg("-print-file-name=libc.a").output() else {
        return Ok(UNKNOWN.to_owned());
    };
    let path = String::from_utf8(output.stdout).context("the path of libc.a")?;
    let path = path.trim();
    // A compiler that has none repeats the name.
    if path == "libc.a" {
        return Ok(UNKNOWN.to_owned());
    }
    let library = fs::read(path).with_context(|| format!("reading {path}"))?;
    banner_version(&library).with_context(|| format!("{path} does not say its version"))
}

/// As in `GNU C Library (Debian GLIBC 2.36-9+deb12u14) stable release version 2.36.`
fn banner_version(library: &[u8]) -> Option<String> {
    let banner = b"GNU C Library (";
    let at = library.windows(banner.len()).position(|bytes| bytes == banner)?;
    let line = library[at + banner.len()..].split(|byte| *byte == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?;
    let (of, release) = line.split_once(')')?;
    match of.split_once("GLIBC ") {
        Some((_, packaged)) => Some(packaged.to_owned()),
        None => Some(release.split("version ").nth(1)?.trim_end_matches('.').to_owned()),
    }
}

/// A package and what is linked into it, each by its name in the document.
struct Crates {
    root: String,
    packages: BTreeMap<String, Value>,
    links: BTreeSet<(String, String)>,
}

impl Crates {
    fn of(metadata: &Value, root: &str) -> Result<Self> {
        let packages: BTreeMap<&str, &Value> = list(metadata, "packages")
            .filter_map(|package| Some((package["id"].as_str()?, package)))
            .collect();
        let nodes: BTreeMap<&str, &Value> = list(&metadata["resolve"], "nodes")
            .filter_map(|node| Some((node["id"].as_str()?, node)))
            .collect();
        let found = packages.values().find(|package| package["name"] == root);
        let first = *found.with_context(|| format!("cargo metadata knows no package {root}"))?;

        let mut crates = Self { root: spdx_id(first), packages: BTreeMap::new(), links: BTreeSet::new() };
        let mut open = vec![first];
        while let Some(package) = open.pop() {
            let id = spdx_id(package);
            if crates.packages.insert(id.clone(), describe_crate(package)).is_some() {
                continue;
            }
            let Some(node) = nodes.get(text(package, "id")) else { continue };
            for dependency in list(node, "deps").filter(|dependency| is_linked(dependency)) {
                let Some(on) = packages.get(text(dependency, "pkg")) else { continue };
                crates.links.insert((id.clone(), spdx_id(on)));
                open.push(on);
            }
        }
        Ok(crates)
    }
}

/// `hooks` is what the agent has in it as an object of its own, and `linked` what is in it besides its crates.
fn document(agent: Crates, hooks: Crates, linked: &[Value], digest: &str) -> Value {
    let mut relations = vec![
        relation("SPDXRef-DOCUMENT", "DESCRIBES", &agent.root),
        relation(&agent.root, "CONTAINS", &hooks.root),
    ];
    for package in linked {
        relations.push(relation(&agent.root, "STATIC_LINK", text(package, "SPDXID")));
    }
    let links: BTreeSet<_> = agent.links.union(&hooks.links).collect();
    relations.extend(links.iter().map(|(from, on)| relation(from, "DEPENDS_ON", on)));
    // Both have some crates, which are described alike.
    let mut packages = agent.packages;
    packages.extend(hooks.packages);
    let packages: Vec<_> = packages.into_values().chain(linked.iter().cloned()).collect();
    json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": "orlop",
        "documentNamespace": format!("{}/sbom/{digest}", env!("CARGO_PKG_REPOSITORY")),
        "creationInfo": {"created": EPOCH, "creators": ["Tool: cargo xtask image"]},
        "packages": packages,
        "relationships": relations,
    })
}

/// Neither for tests nor for build scripts.
fn is_linked(dependency: &Value) -> bool {
    list(dependency, "dep_kinds").any(|kind| kind["kind"].is_null())
}

fn describe_crate(package: &Value) -> Value {
    let licence = match package["license"].as_str() {
        Some(licence) => licence.replace('/', " OR "),
        None => UNKNOWN.to_owned(),
    };
    let kind = match package["source"].as_str() {
        Some(source) if source.starts_with("registry+") => "cargo",
        _ => "generic",
    };
    let from = package["repository"].as_str().unwrap_or(UNKNOWN);
    describe(text(package, "name"), text(package, "version"), &licence, from, kind)
}

/// `kind` is the type of its package URL.
fn describe(name: &str, version: &str, licence: &str, from: &str, kind: &str) -> Value {
    let locator = match version {
        UNKNOWN => format!("pkg:{kind}/{name}"),
        version => format!("pkg:{kind}/{name}@{}", version.replace('+', "%2B")),
    };
    json!({
        "SPDXID": id(name, version),
        "name": name,
        "versionInfo": version,
        "licenseDeclared": licence,
        "licenseConcluded": UNKNOWN,
        "copyrightText": UNKNOWN,
        "downloadLocation": from,
        "filesAnalyzed": false,
        "externalRefs": [{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": locator,
        }],
    })
}

fn relation(from: &str, kind: &str, on: &str) -> Value {
    json!({"spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": on})
}

fn spdx_id(package: &Value) -> String {
    id(text(package, "name"), text(package, "version"))
}

fn id(name: &str, version: &str) -> String {
    let id = format!("SPDXRef-{name}-{version}");
    id.replace(|c: char| !c.is_ascii_alphanumeric() && !".-".contains(c), "-")
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_tests_and_build_scripts_use_is_left_out() {
        let package =
            |name: &str| json!({"id": name, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0"});
        let on = |name: &str, kind: Value| json!({"pkg": name, "dep_kinds": [{"kind": kind}]});
        let packages = ["orlop", "linked", "deeper", "tested", "built"].map(package);
        let metadata = json!({
            "packages": packages,
            "resolve": {"nodes": [
                {"id": "orlop", "deps": [on("linked", Value::Null), on("tested", json!("dev")), on("built", json!("build"))]},
                {"id": "linked", "deps": [on("deeper", Value::Null)]},
            ]},
        });
        let packages = ["orlop-ebpf", "deeper"].map(package);
        let hooks = json!({
            "packages": packages,
            "resolve": {"nodes": [{"id": "orlop-ebpf", "deps": [on("deeper", Value::Null)]}]},
        });
        let linked = [describe("glibc", "2.36-9+deb12u1", "LGPL-2.1-or-later", UNKNOWN, "generic")];
        let [agent, hooks] =
            [(&metadata, "orlop"), (&hooks, "orlop-ebpf")].map(|(of, root)| Crates::of(of, root).unwrap());
        let document = document(agent, hooks, &linked, "sha256:0");
        let names: Vec<&str> = list(&document, "packages").map(|package| text(package, "name")).collect();
        assert_eq!(names, ["deeper", "linked", "orlop", "orlop-ebpf", "glibc"]);
        assert_eq!(document["packages"][0]["licenseDeclared"], "MIT OR Apache-2.0");
        let kinds: Vec<&str> =
            list(&document, "relationships").map(|relation| text(relation, "relationshipType")).collect();
        let crates = ["DEPENDS_ON"; 3];
        assert_eq!(kinds, [&["DESCRIBES", "CONTAINS", "STATIC_LINK"][..], &crates].concat());
    }

    #[test]
    fn a_library_says_its_version_as_whoever_packed_it_counts() {
        let of = |line: &str| banner_version(format!("\0{line}\nCopyright").as_bytes());
        let debian = of("GNU C Library (Debian GLIBC 2.36-9+deb12u14) stable release version 2.36.");
        assert_eq!(debian.as_deref(), Some("2.36-9+deb12u14"));
        let plain = of("GNU C Library (GNU libc) stable release version 2.40.");
        assert_eq!(plain.as_deref(), Some("2.40"));
        assert_eq!(of("musl"), None);
    }
}
