use std::fmt::Write as _;
use std::time::Duration;

use super::figure::{Figure, Unit};
use super::loads::{Load, Sample};

/// The samples of a run, and what they come to.
pub(super) struct Report {
    cases: Vec<&'static str>,
    targets: &'static [Target],
    rows: Vec<Row>,
    memory: Vec<(&'static str, u64)>,
}

/// At the least this share of the first case.
pub(super) struct Target {
    pub(super) case: &'static str,
    pub(super) load: &'static Load,
    pub(super) ratio: f64,
}

/// What a load with a case gave, a sample for each round.
struct Row {
    load: &'static str,
    unit: Unit,
    case: &'static str,
    samples: Vec<Sample>,
}

impl Report {
    /// The first case is what the others are compared with.
    pub(super) fn new(cases: Vec<&'static str>, targets: &'static [Target]) -> Self {
        Self { cases, targets, rows: Vec::new(), memory: Vec::new() }
    }

    pub(super) fn add(&mut self, load: &Load, case: &'static str, sample: Sample) {
        match self.rows.iter_mut().find(|row| row.load == load.name && row.case == case) {
            Some(row) => row.samples.push(sample),
            None => self.rows.push(Row { load: load.name, unit: load.unit, case, samples: vec![sample] }),
        }
    }

    /// Resident memory of the case's larger proxy after all loads.
    pub(super) fn memory(&mut self, case: &'static str, bytes: u64) {
        self.memory.push((case, bytes));
    }

    /// Medians over the rounds.
    pub(super) fn figures(&self) -> Vec<Figure> {
        let memory = self
            .memory
            .iter()
            .map(|&(case, bytes)| figure("memory of a proxy", case, "RSS", bytes as f64, Unit::Bytes));
        self.rows.iter().flat_map(|row| self.of(row)).chain(memory).collect()
    }

    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "\n{:27}{:14}{:>14}{:>10}{:>10}{:>19}{:>8}  {}\n",
            "load", "case", "rate", "p50", "p99", "CPU of proxies", "ratio", "target"
        );
        for row in &self.rows {
            let figures = self.of(row);
            let told = |quantity: &str| {
                let found = figures.iter().find(|figure| figure.quantity == quantity);
                found.map_or_else(String::new, Figure::to_string)
            };
            let ratio = self.ratio(row);
            let _ = writeln!(
                text,
                "{:27}{:14}{:>14}{:>10}{:>10}{:>19}{:>8}  {}",
                row.load,
                row.case,
                told("rate"),
                told("p50"),
                told("p99"),
                told("CPU"),
                ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}")),
                self.verdict(row, ratio),
            );
        }
        for (case, bytes) in &self.memory {
            let _ = writeln!(text, "{:27}{case:14}{:>11} MB", "memory of a proxy (RSS)", bytes / 1_000_000);
        }
        text
    }

    fn of(&self, row: &Row) -> Vec<Figure> {
        let figure = |quantity, value, unit| figure(row.load, row.case, quantity, value, unit);
        let seconds = |of: fn(&Sample) -> Duration| row.median(|sample| of(sample).as_secs_f64());
        let mut rate = figure("rate", row.median(|sample| sample.rate), row.unit);
        rate.ratio = self.ratio(row);
        let of_cpu = match row.unit {
            Unit::GigabitsPerSecond => Unit::SecondsPerGigabyte,
            _ => Unit::SecondsPerRequest,
        };
        let cpu = row.median(|sample| sample.cpu.as_secs_f64() / sample.work);
        let further = [
            figure("p50", seconds(|sample| sample.p50), Unit::Seconds),
            figure("p99", seconds(|sample| sample.p99), Unit::Seconds),
            figure("CPU", cpu, of_cpu),
        ];
        // Bulk has no latency, and no mesh no proxies.
        std::iter::once(rate).chain(further.into_iter().filter(|figure| figure.value > 0.0)).collect()
    }

    /// The median over the rounds of this case's rate by the first case's in the same round.
    fn ratio(&self, row: &Row) -> Option<f64> {
        let base = self.cases.first().filter(|base| **base != row.case)?;
        let base = self.rows.iter().find(|other| other.load == row.load && other.case == *base)?;
        Some(median(row.samples.iter().zip(&base.samples).map(|(a, b)| a.rate / b.rate).collect()))
    }

    fn verdict(&self, row: &Row, ratio: Option<f64>) -> String {
        let target = self.targets.iter().find(|of| of.case == row.case && of.load.name == row.load);
        match (ratio, target.map(|target| target.ratio)) {
            (Some(ratio), Some(target)) if ratio >= target => format!("{target:.2} met"),
            (Some(_), Some(target)) => format!("{target:.2} MISSED"),
            _ => String::new(),
        }
    }
}

impl Row {
    fn median(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        median(self.samples.iter().map(of).collect())
    }
}

/// A figure without a ratio.
fn figure(what: &str, case: &str, quantity: &str, value: f64, unit: Unit) -> Figure {
    let (what, case, quantity) = (what.to_owned(), case.to_owned(), quantity.to_owned());
    Figure { what, case, quantity, value, unit, ratio: None }
}

/// A sample's rate in words.
pub(super) fn rate(load: &Load, sample: &Sample) -> String {
    figure(load.name, "", "rate", sample.rate, load.unit).to_string()
}

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::loads::BULK_1_STREAM;
    use super::*;

    const TARGETS: [Target; 1] = [Target { case: "other", load: &BULK_1_STREAM, ratio: 0.4 }];

    #[test]
    fn ratios_pair_the_rounds() {
        let load = &BULK_1_STREAM;
        let mut report = Report::new(vec!["base", "other"], &TARGETS);
        for (base, other) in [(10.0, 5.0), (20.0, 10.0), (10.0, 9.0)] {
            report.add(load, "base", Sample { rate: base, work: 1.0, ..Sample::default() });
            report.add(load, "other", Sample { rate: other, work: 1.0, ..Sample::default() });
        }
        let figures = report.figures();
        assert_eq!(figures.iter().map(|figure| figure.ratio).collect::<Vec<_>>(), [None, Some(0.5)]);
        assert!(report.table().contains("0.40 met"));
    }
}
