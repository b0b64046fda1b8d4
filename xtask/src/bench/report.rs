use std::fmt::Write as _;
use std::time::Duration;

use super::loads::{Load, Sample, Unit};

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

struct Row {
    load: &'static str,
    unit: Unit,
    case: &'static str,
    samples: Vec<Sample>,
}

/// What a load with a case came to: medians over the rounds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Figures {
    pub(super) load: &'static str,
    pub(super) case: &'static str,
    /// What the rate counts.
    pub(super) unit: Unit,
    pub(super) rate: f64,
    /// Zero for bulk.
    pub(super) p50: Duration,
    pub(super) p99: Duration,
    /// Seconds for a GB or a request, of the proxies together.
    pub(super) cpu: f64,
    /// Of the rate to the first case's in the same round; `None` for that one itself.
    pub(super) ratio: Option<f64>,
    pub(super) target: Option<f64>,
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

    pub(super) fn figures(&self) -> Vec<Figures> {
        self.rows.iter().map(|row| self.of(row)).collect()
    }

    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "\n{:27}{:14}{:>14}{:>10}{:>10}{:>19}{:>8}  {}\n",
            "load", "case", "rate", "p50", "p99", "CPU of proxies", "ratio", "target"
        );
        for figures in self.figures() {
            let _ = writeln!(
                text,
                "{:27}{:14}{:>14}{:>10}{:>10}{:>19}{:>8}  {}",
                figures.load,
                figures.case,
                words(figures.unit, figures.rate),
                time(figures.p50),
                time(figures.p99),
                figures.cpu(),
                figures.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}")),
                figures.verdict(),
            );
        }
        for (case, bytes) in &self.memory {
            let _ = writeln!(text, "{:27}{case:14}{:>11} MB", "memory of a proxy (RSS)", bytes / 1_000_000);
        }
        text
    }

    /// One object a row.
    pub(super) fn json(&self) -> String {
        let rows: Vec<String> = self.figures().iter().map(Figures::json).collect();
        format!("[\n{}\n]\n", rows.join(",\n"))
    }

    fn of(&self, row: &Row) -> Figures {
        let Row { load, unit, case, .. } = *row;
        let target = self.targets.iter().find(|target| target.case == case && target.load.name == load);
        let time = |of: fn(&Sample) -> Duration| {
            Duration::from_secs_f64(row.median(|sample| of(sample).as_secs_f64()))
        };
        Figures {
            load,
            case,
            unit,
            rate: row.median(|sample| sample.rate),
            p50: time(|sample| sample.p50),
            p99: time(|sample| sample.p99),
            cpu: row.median(|sample| sample.cpu.as_secs_f64() / sample.work),
            ratio: self.ratio(row),
            target: target.map(|target| target.ratio),
        }
    }

    /// The median over the rounds of this case's rate by the first case's in the same round.
    fn ratio(&self, row: &Row) -> Option<f64> {
        let base = self.cases.first().filter(|base| **base != row.case)?;
        let base = self.rows.iter().find(|other| other.load == row.load && other.case == *base)?;
        Some(median(row.samples.iter().zip(&base.samples).map(|(a, b)| a.rate / b.rate).collect()))
    }
}

impl Row {
    fn median(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        median(self.samples.iter().map(of).collect())
    }
}

impl Figures {
    fn cpu(&self) -> String {
        match self.unit {
            _ if self.cpu == 0.0 => String::new(),
            Unit::GigabitsPerSecond => format!("{:.2} s/GB", self.cpu),
            Unit::RequestsPerSecond => format!("{:.1} µs/request", self.cpu * 1e6),
        }
    }

    fn verdict(&self) -> String {
        match (self.ratio, self.target) {
            (Some(ratio), Some(target)) if ratio >= target => format!("{target:.2} met"),
            (Some(_), Some(target)) => format!("{target:.2} MISSED"),
            _ => String::new(),
        }
    }

    fn json(&self) -> String {
        format!(
            "  {{\"load\": \"{}\", \"case\": \"{}\", \"rate\": {:.3}, \"p50_us\": {:.1}, \"p99_us\": {:.1}, \
             \"cpu_us_per_unit\": {:.3}, \"ratio\": {:.3}}}",
            self.load,
            self.case,
            self.rate,
            self.p50.as_secs_f64() * 1e6,
            self.p99.as_secs_f64() * 1e6,
            self.cpu * 1e6,
            self.ratio.unwrap_or(1.0),
        )
    }
}

/// A sample's rate in words.
pub(super) fn rate(load: &Load, sample: &Sample) -> String {
    words(load.unit, sample.rate)
}

fn words(unit: Unit, rate: f64) -> String {
    match unit {
        Unit::GigabitsPerSecond => format!("{rate:.2} Gbit/s"),
        Unit::RequestsPerSecond => format!("{:.2} k/s", rate / 1e3),
    }
}

fn time(time: Duration) -> String {
    match time.as_secs_f64() * 1e6 {
        0.0 => String::new(),
        micros if micros < 1e4 => format!("{micros:.0} µs"),
        micros => format!("{:.1} ms", micros / 1e3),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
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
        assert_eq!(figures.iter().map(|figures| figures.ratio).collect::<Vec<_>>(), [None, Some(0.5)]);
        assert!(report.table().contains("0.40 met"));
    }
}
