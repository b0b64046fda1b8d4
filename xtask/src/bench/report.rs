use std::fmt::Write as _;

use super::figure::{Figure, Unit};
use super::loads::{Load, Sample};

/// The samples of a run, and what they come to.
pub(super) struct Report {
    cases: Vec<&'static str>,
    targets: &'static [Target],
    rows: Vec<Row>,
    memory: Vec<(&'static str, u64)>,
}

/// What a figure of one case is to be, by that of another.
pub(super) struct Target {
    pub(super) case: &'static str,
    pub(super) by: &'static str,
    /// A load's name, or [`MEMORY`].
    pub(super) what: &'static str,
    pub(super) quantity: &'static str,
    pub(super) bound: Bound,
}

pub(super) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

pub(super) const MEMORY: &str = "memory of a proxy";
pub(super) const RATE: &str = "rate";
pub(super) const P50: &str = "p50";
pub(super) const CPU: &str = "CPU";
pub(super) const RSS: &str = "RSS";

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

    /// Medians over the rounds, each with its ratio to the first case's.
    pub(super) fn figures(&self) -> Vec<Figure> {
        let memory = self.memory.iter().map(|&(case, bytes)| {
            let ratio = self.ratio((case, self.cases[0]), MEMORY, RSS);
            figure(MEMORY, case, RSS, bytes as f64, Unit::Bytes, ratio)
        });
        self.rows.iter().flat_map(|row| self.of(row)).chain(memory).collect()
    }

    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "\n{:27}{:14}{:>14}{:>10}{:>10}{:>19}{:>8}\n",
            "load", "case", "rate", "p50", "p99", "CPU of proxies", "ratio"
        );
        for row in &self.rows {
            let figures = self.of(row);
            let told = |quantity: &str| {
                let found = figures.iter().find(|figure| figure.quantity == quantity);
                found.map_or_else(String::new, Figure::to_string)
            };
            let _ = writeln!(
                text,
                "{:27}{:14}{:>14}{:>10}{:>10}{:>19}{:>8}",
                row.load,
                row.case,
                told(RATE),
                told(P50),
                told("p99"),
                told(CPU),
                figures[0].ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}")),
            );
        }
        for (case, bytes) in &self.memory {
            let _ = writeln!(text, "{:27}{case:14}{:>11} MB", format!("{MEMORY} (RSS)"), bytes / 1_000_000);
        }
        for target in self.targets {
            let Some(ratio) = self.ratio((target.case, target.by), target.what, target.quantity) else {
                continue;
            };
            let _ = writeln!(text, "{}", target.verdict(ratio));
        }
        text
    }

    fn of(&self, row: &Row) -> Vec<Figure> {
        let of_cpu = match row.unit {
            Unit::GigabitsPerSecond => Unit::SecondsPerGigabyte,
            _ => Unit::SecondsPerRequest,
        };
        let quantities =
            [(RATE, row.unit), (P50, Unit::Seconds), ("p99", Unit::Seconds), (CPU, of_cpu)].into_iter();
        let figures = quantities.map(|(quantity, unit)| {
            let value = median(row.samples.iter().map(|sample| of_sample(sample, quantity)).collect());
            let ratio = self.ratio((row.case, self.cases[0]), row.load, quantity);
            figure(row.load, row.case, quantity, value, unit, ratio)
        });
        // Bulk has no latency, and no mesh no proxies.
        figures.filter(|figure| figure.quantity == RATE || figure.value > 0.0).collect()
    }

    /// The median over the rounds of what one case has by what the other has in the same round.
    fn ratio(&self, (case, by): (&str, &str), what: &str, quantity: &str) -> Option<f64> {
        if case == by {
            return None;
        }
        if what == MEMORY {
            let of = |case| self.memory.iter().find(|(of, _)| *of == case).map(|(_, bytes)| *bytes as f64);
            return Some(of(case)? / of(by)?);
        }
        let of = |case| self.rows.iter().find(|row| row.load == what && row.case == case);
        let pairs = of(case)?.samples.iter().zip(&of(by)?.samples);
        let of = |sample| of_sample(sample, quantity);
        let ratios: Vec<_> = pairs.filter(|(_, b)| of(b) > 0.0).map(|(a, b)| of(a) / of(b)).collect();
        (!ratios.is_empty()).then(|| median(ratios))
    }
}

impl Target {
    fn verdict(&self, ratio: f64) -> String {
        let (met, bound) = match self.bound {
            Bound::AtLeast(least) => (ratio >= least, format!("at least {least:.2}")),
            Bound::AtMost(most) => (ratio <= most, format!("at most {most:.2}")),
        };
        let Self { case, by, what, quantity, .. } = self;
        let met = if met { "met" } else { "MISSED" };
        format!("target: {what}, {quantity} of {case} by {by}'s: {ratio:.2}, {bound} {met}")
    }
}

fn of_sample(sample: &Sample, quantity: &str) -> f64 {
    match quantity {
        RATE => sample.rate,
        P50 => sample.p50.as_secs_f64(),
        CPU => sample.cpu.as_secs_f64() / sample.work,
        _ => sample.p99.as_secs_f64(),
    }
}

fn figure(what: &str, case: &str, quantity: &str, value: f64, unit: Unit, ratio: Option<f64>) -> Figure {
    let (what, case, quantity) = (what.to_owned(), case.to_owned(), quantity.to_owned());
    Figure { what, case, quantity, value, unit, ratio }
}

/// A sample's rate in words.
pub(super) fn rate(load: &Load, sample: &Sample) -> String {
    figure(load.name, "", RATE, sample.rate, load.unit, None).to_string()
}

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::loads::BULK_1_STREAM;
    use super::*;

    const fn target(quantity: &'static str, bound: Bound) -> Target {
        let what = if matches!(quantity.as_bytes(), b"RSS") { MEMORY } else { BULK_1_STREAM.name };
        Target { case: "other", by: "base", what, quantity, bound }
    }

    const TARGETS: [Target; 4] = [
        target(RATE, Bound::AtLeast(0.4)),
        target(CPU, Bound::AtMost(0.4)),
        target(RSS, Bound::AtMost(0.5)),
        Target { by: "who was not there", ..target(RATE, Bound::AtLeast(1.0)) },
    ];

    #[test]
    fn ratios_pair_the_rounds() {
        let load = &BULK_1_STREAM;
        let mut report = Report::new(vec!["base", "other"], &TARGETS);
        for (base, other) in [(10.0, 5.0), (20.0, 10.0), (10.0, 9.0)] {
            let sample = |rate| Sample { rate, work: rate, cpu: Duration::from_secs(1), ..Sample::default() };
            report.add(load, "base", sample(base));
            report.add(load, "other", sample(other));
        }
        report.memory("base", 10);
        report.memory("other", 5);
        let figures = report.figures();
        let ratios: Vec<_> = figures.iter().map(|figure| figure.ratio).collect();
        assert_eq!(ratios, [None, None, Some(0.5), Some(2.0), None, Some(0.5)]);
        let table = report.table();
        let told: Vec<_> = table.lines().filter_map(|line| line.strip_prefix("target: ")).collect();
        assert_eq!(
            told,
            [
                "bulk, 1 stream, rate of other by base's: 0.50, at least 0.40 met",
                "bulk, 1 stream, CPU of other by base's: 2.00, at most 0.40 MISSED",
                "memory of a proxy, RSS of other by base's: 0.50, at most 0.50 met",
            ]
        );
    }
}
