//! The rules of the house that neither rustc nor clippy checks.

mod layout;
mod manifest;
mod source;
mod text;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::root;

pub(crate) fn run() -> Result<()> {
    let tree = Tree::read(&root()?)?;
    let problems = check(&tree);
    for problem in &problems {
        eprintln!("{problem}");
    }
    if !problems.is_empty() {
        bail!("{} things to tidy", problems.len());
    }
    println!("tidy: {} files, {} rules", tree.files.len(), RULES.len());
    Ok(())
}

type Rule = fn(&Tree) -> Vec<Problem>;

const RULES: &[Rule] = &[
    layout::versions,
    manifest::imports,
    manifest::below,
    manifest::lints,
    manifest::licences,
    source::length,
    source::unsafe_code,
    source::unfinished,
    text::machine_paths,
    text::readme_commands,
];

fn check(tree: &Tree) -> Vec<Problem> {
    RULES.iter().flat_map(|rule| rule(tree)).collect()
}

/// The project's text files by their path from the root.
#[derive(Default)]
struct Tree {
    files: BTreeMap<String, String>,
}

impl Tree {
    fn read(root: &Path) -> Result<Self> {
        let git = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(root)
            .output();
        let mut tree = Self::default();
        match git {
            Ok(output) if output.status.success() => {
                let names = String::from_utf8_lossy(&output.stdout).into_owned();
                names.split_terminator('\0').for_each(|name| tree.add(root, name));
            }
            // No git, or the source came without its history.
            _ => tree.walk(root, "")?,
        }
        Ok(tree)
    }

    fn walk(&mut self, root: &Path, dir: &str) -> Result<()> {
        for entry in fs::read_dir(root.join(dir)).with_context(|| format!("reading {dir}"))? {
            let entry = entry.with_context(|| format!("reading {dir}"))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if dir.is_empty() { name.clone() } else { format!("{dir}/{name}") };
            if !entry.path().is_dir() {
                self.add(root, &path);
            } else if name != "target" && name != ".git" {
                self.walk(root, &path)?;
            }
        }
        Ok(())
    }

    /// Leaves out what is not text, or was deleted but is still in git's index.
    fn add(&mut self, root: &Path, name: &str) {
        if let Ok(text) = fs::read_to_string(root.join(name)) {
            self.files.insert(name.to_owned(), text);
        }
    }

    fn ending_in<'a>(&'a self, ending: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let found = self.files.iter().filter(move |(path, _)| path.ends_with(ending));
        found.map(|(path, text)| (path.as_str(), text.as_str()))
    }
}

/// Something to tidy, and how.
#[derive(Debug, PartialEq)]
struct Problem {
    file: String,
    line: usize,
    what: String,
}

impl Problem {
    /// Lines count from 1.
    fn new(file: &str, line: usize, what: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line, what: what.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

#[cfg(test)]
fn tree(files: &[(&str, &str)]) -> Tree {
    let files = files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned()));
    Tree { files: files.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_says_where_and_what() {
        let problem = Problem::new("a/b.rs", 3, "do this");
        assert_eq!(problem.to_string(), "a/b.rs:3: do this");
    }

    #[test]
    fn an_empty_tree_is_tidy() {
        assert_eq!(check(&Tree::default()), []);
    }
}
