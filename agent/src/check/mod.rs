//! `orlop check`: whether this machine has what `orlop node` needs, or how a cluster stands before Orlop is installed
//! there and after.

mod cluster;
mod kernel;

use std::{fmt::Write as _, process::ExitCode};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::cli::{CheckArguments, Output};
pub use kernel::{cannot_close, explain, no_pods_cgroup, require_capabilities};

/// Something is missing.
const MISSING: u8 = 2;

/// Fails with 2 if anything is missing.
pub fn run(arguments: &CheckArguments) -> anyhow::Result<ExitCode> {
    let report = if arguments.of_cluster() { cluster::check(arguments)? } else { kernel::check(arguments) };
    match arguments.output {
        Output::Table | Output::Wide => print!("{}", report.text()),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report.data())?),
        Output::Yaml => {
            print!("{}", serde_saphyr::to_string(&report.data()).context("cannot write YAML")?);
        }
    }
    let is_missing = report.rows.iter().any(|row| row.state == State::Missing);
    Ok(if is_missing { ExitCode::from(MISSING) } else { ExitCode::SUCCESS })
}

/// What was looked into.
struct Report {
    /// Such as `Linux 6.12`.
    of: String,
    rows: Vec<Row>,
    /// What it comes to, in lines for people.
    verdict: String,
}

struct Row {
    name: String,
    state: State,
    /// What was found, and what to do about it.
    detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ok,
    /// Worth knowing.
    Note,
    Missing,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Missing => "MISSING",
        }
    }
}

impl Report {
    fn text(&self) -> String {
        let width = self.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or_default();
        let mut text = format!("{}\n", self.of);
        for Row { name, state, detail } in &self.rows {
            let line = format!("  {:7}  {name:width$}  {detail}", state.as_str());
            // It comes from elsewhere, and a terminal obeys what it is told.
            let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text + &self.verdict + "\n"
    }

    fn data(&self) -> Value {
        let rows = self.rows.iter().map(
            |row| json!({"name": row.name, "state": row.state.as_str().to_lowercase(), "detail": row.detail}),
        );
        json!({"of": self.of, "checks": rows.collect::<Vec<_>>(), "verdict": self.verdict})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_how_it_stands_and_obeys_nobody() {
        let row = |name: &str, state, detail: &str| Row { name: name.into(), state, detail: detail.into() };
        let rows = vec![
            row("bpf(2)", State::Ok, ""),
            row("map type sockhash", State::Missing, "run\u{1b}[2J a newer one"),
        ];
        let report = Report { of: "Linux 5.4".into(), rows, verdict: "no".into() };
        assert_eq!(
            report.text(),
            "Linux 5.4\n  ok       bpf(2)\n  MISSING  map type sockhash  run [2J a newer one\nno\n"
        );
        assert_eq!(report.data()["checks"][1]["state"], "missing");
    }
}
