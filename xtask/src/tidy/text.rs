use super::{Problem, Tree};

/// Written in pieces, or this file would be the first to break the rule.
const MACHINE_PATHS: &[&str] = &[concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];

/// Nothing depends on where one machine keeps its files.
pub(super) fn machine_paths(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, text) in &tree.files {
        for (index, line) in text.lines().enumerate() {
            for machine_path in MACHINE_PATHS {
                if begins_a_path(line, machine_path) {
                    let what =
                        format!("{machine_path}… is a path of one machine: make it relative, or a variable");
                    problems.push(Problem::new(path, index + 1, what));
                }
            }
        }
    }
    problems
}

/// Commands of the README that are for people, and that `.ci/run` need not run.
const FOR_PEOPLE: &[&str] = &[
    "cargo xtask demo --keep",
    "cargo xtask bench",
    "cargo xtask build",
    "cargo xtask build --release",
    "cargo build",
    "cargo test -p orlop-model",
];

/// What the README tells people to run is run by `.ci/run`, so that it keeps working.
pub(super) fn readme_commands(tree: &Tree) -> Vec<Problem> {
    let Some(readme) = tree.files.get("README.md") else { return Vec::new() };
    let ci = tree.files.get(".ci/run").map_or("", String::as_str);
    let mut problems = Vec::new();
    let mut in_shell = false;
    for (index, line) in readme.lines().enumerate() {
        if let Some(language) = line.trim().strip_prefix("```") {
            in_shell = language == "sh";
            continue;
        }
        let command = line.split(" #").next().unwrap_or(line).trim().trim_start_matches("$ ");
        let known = FOR_PEOPLE.contains(&command) || ci.lines().any(|line| runs(line, command));
        if in_shell && command.starts_with("cargo ") && !known {
            let what =
                format!("`{command}` is not in .ci/run: add it there, or to FOR_PEOPLE in xtask's tidy");
            problems.push(Problem::new("README.md", index + 1, what));
        }
    }
    problems
}

/// `https://host/home/page` and `src/work/mod.rs` begin with something else.
fn begins_a_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "._-}/*".contains(c))
    })
}

/// Whether a line of the script ends in this very command.
fn runs(line: &str, command: &str) -> bool {
    let line = line.trim();
    !line.starts_with('#') && (line == command || line.ends_with(&format!(" {command}")))
}

#[cfg(test)]
mod tests {
    use super::super::tree;
    use super::*;

    #[test]
    fn paths_of_one_machine_are_found() {
        for path in MACHINE_PATHS {
            assert_eq!(machine_paths(&tree(&[("a.md", &format!("see `{path}x`"))])).len(), 1);
            assert_eq!(machine_paths(&tree(&[("a.md", &format!("https://example.org{path}x"))])), []);
        }
    }

    #[test]
    fn a_command_of_the_readme_is_run() {
        let readme = ("README.md", "```sh\ncargo xtask test   # all of them\n```\n");
        assert_eq!(readme_commands(&tree(&[readme, (".ci/run", "phase test cargo xtask test\n")])), []);
        assert_eq!(readme_commands(&tree(&[readme, (".ci/run", "# cargo xtask test\n")])).len(), 1);
        assert_eq!(readme_commands(&tree(&[readme, (".ci/run", "cargo xtask test-more\n")])).len(), 1);
        assert_eq!(readme_commands(&tree(&[readme])).len(), 1);
    }

    #[test]
    fn commands_for_people_and_other_blocks_are_free() {
        let text = "```sh\ncargo xtask bench\n```\n```text\ncargo anything\n```\ncargo in prose\n";
        assert_eq!(readme_commands(&tree(&[("README.md", text)])), []);
    }
}
