use super::{Problem, Tree};

/// Who may import whom inside the workspace; `None` is anyone. Dev-dependencies are free.
const ALLOWED: &[(&str, Option<&[&str]>)] = &[
    ("orlop-common", Some(&[])),
    ("orlop-ebpf", Some(&["orlop-common"])),
    ("orlop-model", Some(&[])),
    ("orlop-kube", Some(&["orlop-model"])),
    ("orlop-identity", Some(&["orlop-model"])),
    ("orlop-datapath", Some(&["orlop-common", "orlop-model"])),
    ("orlop-proxy", Some(&["orlop-identity", "orlop-model"])),
    ("orlop", None),
    ("orlop-tests", None),
    ("orlop-fuzz", None),
    ("xtask", Some(&["orlop-tests"])),
];

/// Crates import only what the house allows.
pub(super) fn imports(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, text) in packages(tree) {
        let name = value(text, "package", "name").unwrap_or_default();
        let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| *known == name) else {
            let what = format!("crate {name} has no place in the house: add it to ALLOWED in xtask's tidy");
            problems.push(Problem::new(path, 1, what));
            continue;
        };
        let Some(allowed) = allowed else { continue };
        for (line, dependency) in dependencies(text) {
            let own = ALLOWED.iter().any(|(known, _)| *known == dependency);
            if own && !allowed.contains(&dependency) {
                let what =
                    format!("{name} may not import {dependency}: move the code, or pass a value instead");
                problems.push(Problem::new(path, line, what));
            }
        }
    }
    problems
}

/// What the eBPF programs are built of is below them: cargo names a crate from elsewhere by its whole path, and the
/// object would be another one in each checkout.
pub(super) fn below(tree: &Tree) -> Vec<Problem> {
    let own = packages(tree).filter(|(path, _)| path.starts_with("ebpf/"));
    let lines = own.flat_map(|(path, text)| entries(text).map(move |entry| (path, entry)));
    let out = lines.filter(|(_, (_, _, line))| line.contains("path = \"..") || line.contains("path = \"/"));
    out.map(|(path, (line, ..))| Problem::new(path, line, "move the crate below `ebpf/`")).collect()
}

/// Every crate of the workspace has the workspace's lints.
pub(super) fn lints(tree: &Tree) -> Vec<Problem> {
    // Outside the workspace, it can't inherit.
    let members = packages(tree).filter(|(path, _)| !["ebpf/Cargo.toml", "fuzz/Cargo.toml"].contains(path));
    let without = members.filter(|(_, text)| value(text, "lints", "workspace") != Some("true"));
    without.map(|(path, _)| Problem::new(path, 1, "add `[lints]` with `workspace = true`")).collect()
}

/// Every crate says its licence.
pub(super) fn licences(tree: &Tree) -> Vec<Problem> {
    let has =
        |text| value(text, "package", "license").or(value(text, "package", "license.workspace")).is_some();
    let without = packages(tree).filter(|(_, text)| !has(text));
    without.map(|(path, _)| Problem::new(path, 1, "add `license.workspace = true` to `[package]`")).collect()
}

fn packages(tree: &Tree) -> impl Iterator<Item = (&str, &str)> {
    tree.ending_in("Cargo.toml").filter(|(_, text)| text.lines().any(|line| line.trim() == "[package]"))
}

/// The lines of a manifest with the table each is in. Enough TOML for manifests formatted as ours are.
fn entries(text: &str) -> impl Iterator<Item = (usize, &str, &str)> {
    let mut table = "";
    text.lines().enumerate().filter_map(move |(index, line)| {
        let line = line.trim();
        match line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            Some(name) => {
                table = name;
                Some((index + 1, table, ""))
            }
            None if line.is_empty() || line.starts_with('#') => None,
            None => Some((index + 1, table, line)),
        }
    })
}

fn value<'a>(text: &'a str, table: &str, key: &str) -> Option<&'a str> {
    entries(text).filter(|(_, found, _)| *found == table).find_map(|(_, _, line)| {
        let (found, value) = line.split_once('=')?;
        (found.trim() == key).then(|| value.trim().trim_matches('"'))
    })
}

/// Names in `[dependencies]`, `[build-dependencies]` and their kind under `[target.…]`.
fn dependencies(text: &str) -> impl Iterator<Item = (usize, &str)> {
    entries(text).filter_map(|(number, table, line)| {
        let kind = table.rsplit('.').find(|part| part.ends_with("dependencies"))?;
        if kind == "dev-dependencies" {
            return None;
        }
        let (_, under) = table.split_once(kind)?;
        match under.strip_prefix('.') {
            // `[dependencies.name]`, counted at its head.
            Some(name) => line.is_empty().then_some((number, name)),
            None => {
                Some((number, line.split(['=', '.']).next()?.trim())).filter(|(_, name)| !name.is_empty())
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::tree;
    use super::*;

    const MODEL: &str =
        "[package]\nname = \"orlop-model\"\nlicense.workspace = true\n[lints]\nworkspace = true\n";

    #[test]
    fn a_forbidden_import_is_found_however_it_is_written() {
        for dependency in [
            "[dependencies]\norlop-kube = { workspace = true }",
            "[dependencies]\norlop-kube.workspace = true",
            "[dependencies.orlop-kube]\npath = \"../kube\"",
            "[build-dependencies]\norlop-kube = \"1\"",
            "[target.'cfg(unix)'.dependencies]\norlop-kube = \"1\"",
        ] {
            let problems = imports(&tree(&[("agent/model/Cargo.toml", &format!("{MODEL}{dependency}\n"))]));
            assert_eq!(problems.len(), 1, "{dependency}: {problems:?}");
            assert!(problems[0].line >= 6);
        }
    }

    #[test]
    fn the_ebpf_programs_have_nothing_from_elsewhere() {
        for (dependency, problems) in [("../common", 1), ("/usr/src/common", 1), ("common", 0)] {
            let text = format!("{MODEL}[dependencies]\norlop-common = {{ path = \"{dependency}\" }}\n");
            assert_eq!(below(&tree(&[("ebpf/Cargo.toml", &text)])).len(), problems, "{dependency}");
            assert_eq!(below(&tree(&[("agent/Cargo.toml", &text)])), []);
        }
    }

    #[test]
    fn others_and_dev_dependencies_are_free() {
        let text = format!("{MODEL}[dependencies]\nserde = \"1\"\n[dev-dependencies]\norlop-kube = \"1\"\n");
        assert_eq!(imports(&tree(&[("agent/model/Cargo.toml", &text)])), []);
    }

    #[test]
    fn an_unknown_crate_needs_a_place() {
        let problems = imports(&tree(&[("new/Cargo.toml", "[package]\nname = \"orlop-new\"\n")]));
        assert_eq!(problems.len(), 1);
    }

    #[test]
    fn the_workspaces_lints_are_wanted() {
        let without = MODEL.replace("[lints]\nworkspace = true\n", "");
        assert_eq!(lints(&tree(&[("agent/model/Cargo.toml", &without)])).len(), 1);
        assert_eq!(lints(&tree(&[("agent/model/Cargo.toml", MODEL), ("ebpf/Cargo.toml", &without)])), []);
    }

    #[test]
    fn a_licence_is_wanted() {
        let without = MODEL.replace("license.workspace = true\n", "");
        assert_eq!(licences(&tree(&[("ebpf/Cargo.toml", &without)])).len(), 1);
        assert_eq!(licences(&tree(&[("ebpf/Cargo.toml", MODEL)])), []);
    }
}
