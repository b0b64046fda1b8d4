//! What all benches do with their figures: write them, compare them with those on record, and keep and draw them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::Value;

use super::chart;
use super::figure::Figure;
use super::report::RATE;
use crate::root;

/// A ratio that moves by less is not told of: two runs of one build differ by as much.
const NOISE: f64 = 0.1;

#[derive(Args)]
pub(super) struct Output {
    /// Also write the figures as JSON to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Keep the figures in docs/performance/recorded.json, which later runs compare themselves with, and draw them.
    #[arg(long)]
    record: bool,
}

/// The figures of each bench.
type Recorded = BTreeMap<String, Vec<Figure>>;

impl Output {
    /// Of a run of this bench, which may have left some out.
    pub(super) fn finish(&self, bench: &str, figures: &[Figure]) -> Result<()> {
        let path = recorded_json()?;
        let mut recorded = read(&path)?;
        let before = recorded.entry(bench.to_owned()).or_default();
        println!("{}", moved(before, figures));
        if let Some(path) = &self.json {
            fs::write(path, list(figures, "") + "\n")
                .with_context(|| format!("writing {}", path.display()))?;
        }
        if self.record {
            before.retain(|old| !figures.iter().any(|new| new.is_of(old)));
            before.extend(figures.iter().cloned());
            fs::write(&path, text(&recorded)).with_context(|| format!("writing {}", path.display()))?;
            draw(&path, &recorded)?;
        }
        Ok(())
    }
}

/// Draws what is on record.
pub(super) fn draw_all() -> Result<()> {
    let path = recorded_json()?;
    draw(&path, &read(&path)?)
}

fn recorded_json() -> Result<PathBuf> {
    Ok(root()?.join("docs/performance/recorded.json"))
}

/// A chart for each bench, beside the record.
fn draw(recorded_json: &Path, recorded: &Recorded) -> Result<()> {
    for (bench, figures) in recorded {
        let rate = Some(RATE);
        let (title, shown) = match bench.as_str() {
            "nodes" => ("Two pods of two nodes: rate, by that with no mesh", rate),
            "samenode" => ("Two pods of one node: rate, by that with no mesh", rate),
            "fairness" => ("p99 of a call beside a greedy pod, by that without", None),
            "scale" => ("What a world of more workloads costs, by the world before", None),
            "changes" => ("What a change before a waypoint costs, by the world before", None),
            other => (other, rate),
        };
        let figures: Vec<_> = (figures.iter())
            .filter(|figure| shown.is_none_or(|shown| figure.quantity == shown))
            .cloned()
            .collect();
        let path = recorded_json.with_file_name(format!("{bench}.svg"));
        fs::write(&path, chart::bars(title, &figures))
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Recorded> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Recorded::new()),
        text => text.with_context(|| format!("reading {}", path.display()))?,
    };
    parse(&text).with_context(|| format!("reading {}", path.display()))
}

fn parse(text: &str) -> Result<Recorded> {
    let benches: BTreeMap<String, Vec<Value>> = serde_json::from_str(text)?;
    let figures = |(bench, rows): (String, Vec<Value>)| {
        Ok((bench, rows.iter().map(Figure::from_json).collect::<Result<_>>()?))
    };
    benches.into_iter().map(figures).collect()
}

/// A line for each figure, so that a change of few is seen as one.
fn text(recorded: &Recorded) -> String {
    let benches = recorded.iter().filter(|(_, figures)| !figures.is_empty());
    let benches: Vec<_> =
        benches.map(|(bench, figures)| format!("  \"{bench}\": {}", list(figures, "  "))).collect();
    format!("{{\n{}\n}}\n", benches.join(",\n"))
}

fn list(figures: &[Figure], indent: &str) -> String {
    let rows: Vec<_> = figures.iter().map(|figure| format!("{indent}  {}", figure.to_json())).collect();
    format!("[\n{}\n{indent}]", rows.join(",\n"))
}

/// Which ratios are not what they were.
fn moved(before: &[Figure], now: &[Figure]) -> String {
    let mut text = String::new();
    let (mut same, mut new) = (0, 0);
    for figure in now {
        let Some(ratio) = figure.ratio else { continue };
        let Some(was) = before.iter().find(|old| old.is_of(figure)).and_then(|old| old.ratio) else {
            new += 1;
            continue;
        };
        let by = ratio / was - 1.0;
        if by.abs() <= NOISE {
            same += 1;
            continue;
        }
        let Figure { what, case, quantity, .. } = figure;
        let _ = writeln!(
            text,
            "moved: {what}, {quantity}, {case}: ratio {was:.2} on record, now {ratio:.2} ({:+.0} %)",
            by * 100.0
        );
    }
    let _ = write!(
        text,
        "compared with docs/performance/recorded.json: {same} ratios within {} %",
        NOISE * 100.0
    );
    if new > 0 {
        let _ = write!(text, ", {new} not on record (--record keeps them)");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::figure::Unit;
    use super::*;

    fn figure(case: &str, ratio: Option<f64>) -> Figure {
        let (what, quantity) = ("bulk".to_owned(), "rate".to_owned());
        Figure { what, case: case.to_owned(), quantity, value: 1e9, unit: Unit::RequestsPerSecond, ratio }
    }

    #[test]
    fn a_record_reads_back() {
        let figures = vec![figure("no mesh", None), figure("orlop", Some(0.5))];
        let recorded = Recorded::from([("nodes".to_owned(), figures), ("samenode".to_owned(), Vec::new())]);
        let read = parse(&text(&recorded)).unwrap();
        assert_eq!(read, Recorded::from([("nodes".to_owned(), recorded["nodes"].clone())]));
        assert!(parse("{\"nodes\": [{}]}").is_err());
    }

    #[test]
    fn what_moved_is_told_and_what_is_as_noisy_as_ever_is_not() {
        let before = [figure("no mesh", None), figure("a", Some(0.50)), figure("b", Some(0.50))];
        let now = [
            figure("no mesh", None),
            figure("a", Some(0.54)),
            figure("b", Some(0.40)),
            figure("c", Some(1.0)),
        ];
        assert_eq!(
            moved(&before, &now),
            "moved: bulk, rate, b: ratio 0.50 on record, now 0.40 (-20 %)\n\
             compared with docs/performance/recorded.json: 1 ratios within 10 %, 1 not on record (--record keeps them)"
        );
    }
}
