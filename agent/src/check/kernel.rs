//! Whether this kernel and this machine have what `orlop node` needs.

use std::{fs, path::Path};

use orlop_datapath::{DatapathError, Feature, capabilities, features};

use super::{Report, Row, State};
use crate::cli::CheckArguments;

pub(super) fn check(arguments: &CheckArguments) -> Report {
    let features = features(&arguments.bpffs, arguments.cgroup.as_deref());
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let of = format!("Linux {}", release.trim());
    let mut rows: Vec<_> = features.iter().map(row).collect();
    let no_pods = no_pods_cgroup(arguments.cgroup.as_deref(), arguments.pods_cgroup.as_deref());
    let verdict = missing(&features).unwrap_or_else(|| {
        let count = features.len();
        for (name, note) in [("cgroup of all pods", no_pods), ("closing connections", cannot_close())] {
            let row = |detail| Row { name: name.to_owned(), state: State::Note, detail };
            rows.extend(note.map(row));
        }
        format!("orlop node runs here: nothing of {count} features is missing")
    });
    Report { of, rows, verdict }
}

/// Fails as `orlop check` would for want of a capability.
pub fn require_capabilities(boot_gate: bool) -> anyhow::Result<()> {
    match missing(&capabilities(boot_gate)) {
        Some(missing) => Err(anyhow::anyhow!(missing)),
        None => Ok(()),
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

/// What it means that this kernel can't close connections, if so it is: policy could not be enforced on those that go
/// from socket to socket.
pub fn cannot_close() -> Option<String> {
    let error = orlop_datapath::can_close().err()?;
    Some(format!(
        "this kernel can't find and close connections (CONFIG_INET_TCP_DIAG or its module tcp_diag, and \
         CONFIG_INET_DIAG_DESTROY): {error}; pods of this node talk through the proxy"
    ))
}

fn row(Feature { name, since, found }: &Feature) -> Row {
    let state = if found.is_ok() { State::Ok } else { State::Missing };
    let detail = since.map(|since| format!("since Linux {since}")).unwrap_or_default();
    Row { name: name.clone(), state, detail }
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
    fn what_is_missing_is_told_with_what_to_do() {
        let told = missing(&features()).unwrap();
        assert!(
            told.ends_with("map type sockhash (since Linux 4.18): Invalid argument: run Linux 5.15 or newer")
        );
        assert_eq!(missing(&features()[..1]), None);
    }
}
