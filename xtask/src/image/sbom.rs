//! What is in the binary: its crates and their licences, as SPDX 2.3.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use orlop_tests::EPOCH;
use serde_json::{Value, json};

use crate::cargo;
use crate::image::binary::TARGET;

pub(super) const MEDIA_TYPE: &str = "application/spdx+json";

/// The document of the image whose layer has this digest.
pub(super) fn spdx(digest: &str) -> Result<Vec<u8>> {
    let output = cargo::cargo()?
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", TARGET])
        .output()
        .context("running cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata = serde_json::from_slice(&output.stdout).context("reading what cargo metadata says")?;
    Ok(serde_json::to_vec(&document(&metadata, digest)?)?)
}

fn document(metadata: &Value, digest: &str) -> Result<Value> {
    let packages: BTreeMap<&str, &Value> =
        list(metadata, "packages").filter_map(|package| Some((package["id"].as_str()?, package))).collect();
    let nodes: BTreeMap<&str, &Value> =
        list(&metadata["resolve"], "nodes").filter_map(|node| Some((node["id"].as_str()?, node))).collect();
    let orlop = packages.iter().find(|(_, package)| package["name"] == "orlop");
    let orlop = *orlop.context("cargo metadata knows no package orlop")?.0;

    let (mut found, mut links) = (BTreeSet::from([orlop]), BTreeSet::new());
    let mut open = vec![orlop];
    while let Some(id) = open.pop() {
        let Some(node) = nodes.get(id) else { continue };
        for dependency in list(node, "deps").filter(|dependency| is_linked(dependency)) {
            let Some(on) = dependency["pkg"].as_str() else { continue };
            links.insert((id, on));
            if found.insert(on) {
                open.push(on);
            }
        }
    }

    let listed: Vec<Value> =
        found.iter().filter_map(|id| packages.get(id)).map(|package| describe(package)).collect();
    let reference = |id: &str| packages.get(id).map(|package| spdx_id(package));
    let mut relations =
        vec![relation("SPDXRef-DOCUMENT", "DESCRIBES", &reference(orlop).unwrap_or_default())];
    for (from, on) in links {
        if let (Some(from), Some(on)) = (reference(from), reference(on)) {
            relations.push(relation(&from, "DEPENDS_ON", &on));
        }
    }
    Ok(json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": "orlop",
        "documentNamespace": format!("{}/sbom/{digest}", env!("CARGO_PKG_REPOSITORY")),
        "creationInfo": {"created": EPOCH, "creators": ["Tool: cargo xtask image"]},
        "packages": listed,
        "relationships": relations,
    }))
}

/// Neither for tests nor for build scripts.
fn is_linked(dependency: &Value) -> bool {
    list(dependency, "dep_kinds").any(|kind| kind["kind"].is_null())
}

fn describe(package: &Value) -> Value {
    let (name, version) = (text(package, "name"), text(package, "version"));
    let licence = match package["license"].as_str() {
        Some(licence) => licence.replace('/', " OR "),
        None => "NOASSERTION".to_owned(),
    };
    let from = match package["source"].as_str() {
        Some(source) if source.starts_with("registry+") => format!("pkg:cargo/{name}@{version}"),
        _ => format!("pkg:generic/{name}@{version}"),
    };
    json!({
        "SPDXID": spdx_id(package),
        "name": name,
        "versionInfo": version,
        "licenseDeclared": licence,
        "licenseConcluded": "NOASSERTION",
        "copyrightText": "NOASSERTION",
        "downloadLocation": package["repository"].as_str().unwrap_or("NOASSERTION"),
        "filesAnalyzed": false,
        "externalRefs": [{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": from,
        }],
    })
}

fn relation(from: &str, kind: &str, on: &str) -> Value {
    json!({"spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": on})
}

fn spdx_id(package: &Value) -> String {
    let id = format!("SPDXRef-{}-{}", text(package, "name"), text(package, "version"));
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
        let document = document(&metadata, "sha256:0").unwrap();
        let names: Vec<&str> = list(&document, "packages").map(|package| text(package, "name")).collect();
        assert_eq!(names, ["deeper", "linked", "orlop"]);
        assert_eq!(document["packages"][0]["licenseDeclared"], "MIT OR Apache-2.0");
        assert_eq!(document["relationships"].as_array().unwrap().len(), 3);
    }
}
