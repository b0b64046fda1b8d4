//! `orlop check`: whether this kernel and this machine have what `orlop node` needs.

use std::{fmt::Write as _, fs, path::Path, process::ExitCode};

use orlop_datapath::{DatapathError, Feature, features};

use crate::cli::CheckArguments;

/// Prints a table of everything that is needed; fails with 2 if anything is missing.
pub fn run(arguments: &CheckArguments) -> ExitCode {
    let features = features(&arguments.bpffs, arguments.cgroup.as_deref());
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!("Linux {}", release.trim());
    print!("{}", table(&features));
    match missing(&features) {
        None => {
            println!("orlop node runs here: nothing of {} features is missing", features.len());
            if let Some(note) = no_pods_cgroup(arguments.cgroup.as_deref(), arguments.pods_cgroup.as_deref())
            {
                println!("note: {note}");
            }
            ExitCode::SUCCESS
        }
        Some(missing) => {
            println!("{missing}");
            ExitCode::from(2)
        }
    }
}

/// What `orlop check` would say is missing, or `error` as it is if that is not the reason.
pub fn explain(error: DatapathError, bpffs: &Path, cgroup: Option<&Path>) -> anyhow::Error {
    match missing(&features(bpffs, cgroup)) {
        Some(missing) => anyhow::anyhow!(missing),
        None => error.into(),
    }
}

/// What it means that nobody can tell pods on the node's network from the node, if so it is.
pub fn no_pods_cgroup(cgroup: Option<&Path>, pods_cgroup: Option<&Path>) -> Option<String> {
    let root = cgroup.map(Path::to_owned).or_else(|| orlop_datapath::cgroup2_mount().ok())?;
    if orlop_datapath::pods_cgroup(&root, pods_cgroup).is_some() {
        return None;
    }
    Some(format!(
        "{} has no kubepods.slice or kubepods, so pods on the node's network pass for the node: they reach the ports \
         of pods' probes whatever policy says; name the cgroup of all pods with --pods-cgroup",
        root.display()
    ))
}

fn table(features: &[Feature]) -> String {
    let width = features.iter().map(|feature| feature.name.len()).max().unwrap_or_default();
    let mut table = String::new();
    for Feature { name, since, found } in features {
        let mark = if found.is_ok() { "ok     " } else { "MISSING" };
        let since = since.map(|since| format!("since Linux {since}")).unwrap_or_default();
        let _ = writeln!(table, "{}", format!("  {mark}  {name:width$}  {since}").trim_end());
    }
    table
}

/// A line for each missing feature, with what to do.
fn missing(features: &[Feature]) -> Option<String> {
    let line = |feature: &Feature| {
        let Feature { name, since, found } = feature;
        let since = since.map(|since| format!(" (since Linux {since})")).unwrap_or_default();
        found.as_ref().err().map(|said| format!("  {name}{since}: {said}"))
    };
    let lines: Vec<_> = features.iter().filter_map(line).collect();
    if lines.is_empty() {
        return None;
    }
    Some(format!("orlop node can't run here, for want of:\n{}", lines.join("\n")))
}

#[cfg(test)]
mod tests {
    use orlop_datapath::Version;

    use super::*;

    fn features() -> [Feature; 2] {
        [
            Feature { name: "bpf(2)".into(), since: None, found: Ok(()) },
            Feature {
                name: "map type sockhash".into(),
                since: Some(Version(4, 18)),
                found: Err("Invalid argument: run Linux 5.15 or newer".into()),
            },
        ]
    }

    #[test]
    fn the_table_has_a_row_for_each_feature() {
        let wanted = "  ok       bpf(2)\n  MISSING  map type sockhash  since Linux 4.18\n";
        assert_eq!(table(&features()), wanted);
    }

    #[test]
    fn what_is_missing_is_told_with_what_to_do() {
        let told = missing(&features()).unwrap();
        assert!(
            told.ends_with("map type sockhash (since Linux 4.18): Invalid argument: run Linux 5.15 or newer")
        );
        assert_eq!(missing(&features()[..1]), None);
    }
}
