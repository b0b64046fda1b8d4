//! What the README tells people to run, and that it is run.

use std::fs;
use std::path::{Path, PathBuf};

/// The repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The commands of the README's section with this title, as they are written but for comments.
pub fn commands(title: &str) -> Vec<String> {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let section =
        readme.split_once(&format!("\n## {title}\n")).unwrap_or_else(|| panic!("no section {title}")).1;
    let section = section.split("\n## ").next().unwrap();
    let block = section.split("```").nth(1).unwrap();
    let lines = block.lines().skip(1).map(|line| line.split(" #").next().unwrap().trim().to_owned());
    lines.filter(|line| !line.is_empty()).collect()
}

/// Those that install Orlop where its image is: `helm install` and the label of a namespace.
pub fn install_commands() -> [String; 2] {
    let commands = commands("Install it on a cluster");
    let [image, helm, label] = commands.try_into().unwrap();
    assert_eq!(image, "cargo xtask image");
    [helm, label]
}

#[test]
fn its_commands_are_run_by_ci() {
    let ci = fs::read_to_string(Path::new(&root()).join(".ci/run")).unwrap();
    let phases: Vec<_> = ci.lines().filter_map(|line| line.strip_prefix("phase ")).collect();
    let mut looked_at = 0;
    for title in ["Try it", "Install it on a cluster"] {
        for command in commands(title).iter().filter(|command| command.starts_with("cargo ")) {
            assert!(
                phases.iter().any(|phase| phase.contains(&**command)),
                "{command} is in no phase of .ci/run"
            );
            looked_at += 1;
        }
    }
    assert_eq!(looked_at, 3);
}
