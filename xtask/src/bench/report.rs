use std::fmt::Write as _;
use std::time::Duration;

use super::loads::{Load, Sample, Unit};

/// The samples of a run, and what they come to.
pub(super) struct Report {
    cases: Vec<&'static str>,
    rows: Vec<Row>,
    memory: Vec<(&'static str, u64)>,
}

struct Row {
    load: &'static str,
    unit: Unit,
    floor: f64,
    case: &'static str,
    samples: Vec<Sample>,
}

impl Report {
    /// The first case is what the others are compared with.
    pub(super) fn new(cases: Vec<&'static str>) -> Self {
        Self { cases, rows: Vec::new(), memory: Vec::new() }
    }

    pub(super) fn add(&mut self, load: &Load, case: &'static str, sample: Sample) {
        match self.rows.iter_mut().find(|row| row.load == load.name && row.case == case) {
            Some(row) => row.samples.push(sample),
            None => self.rows.push(Row {
                load: load.name,
                unit: load.unit,
                floor: load.floor,
                case,
                samples: vec![sample],
            }),
        }
    }

    /// Resident memory of the case's larger proxy after all loads.
    pub(super) fn memory(&mut self, case: &'static str, bytes: u64) {
        self.memory.push((case, bytes));
    }

    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "\n{:27}{:9}{:>14}{:>10}{:>10}{:>19}{:>8}  {}\n",
            "load", "case", "rate", "p50", "p99", "CPU of proxies", "ratio", "target"
        );
        for row in &self.rows {
            let ratio = self.ratio(row);
            let target = match (ratio, row.floor) {
                (Some(ratio), floor) if floor > 0.0 => {
                    format!("{floor:.2} {}", if ratio >= floor { "met" } else { "MISSED" })
                }
                _ => String::new(),
            };
            let (p50, p99) = (row.median_time(|sample| sample.p50), row.median_time(|sample| sample.p99));
            let _ = writeln!(
                text,
                "{:27}{:9}{:>14}{:>10}{:>10}{:>19}{:>8}  {target}",
                row.load,
                row.case,
                unit(row.unit, row.median(|sample| sample.rate)),
                p50,
                p99,
                row.cpu(),
                ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}")),
            );
        }
        for (case, bytes) in &self.memory {
            let _ = writeln!(text, "{:27}{case:9}{:>11} MB", "memory of a proxy (RSS)", bytes / 1_000_000);
        }
        text
    }

    /// One object a row.
    pub(super) fn json(&self) -> String {
        let rows: Vec<String> = self
            .rows
            .iter()
            .map(|row| {
                format!(
                    "  {{\"load\": \"{}\", \"case\": \"{}\", \"rate\": {:.3}, \"p50_us\": {:.1}, \"p99_us\": {:.1}, \
                     \"cpu_us_per_unit\": {:.3}, \"ratio\": {:.3}}}",
                    row.load,
                    row.case,
                    row.median(|sample| sample.rate),
                    row.median(|sample| sample.p50.as_secs_f64() * 1e6),
                    row.median(|sample| sample.p99.as_secs_f64() * 1e6),
                    row.median(|sample| sample.cpu.as_secs_f64() * 1e6 / sample.work),
                    self.ratio(row).unwrap_or(1.0),
                )
            })
            .collect();
        format!("[\n{}\n]\n", rows.join(",\n"))
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

    fn median_time(&self, of: impl Fn(&Sample) -> Duration) -> String {
        match self.median(|sample| of(sample).as_secs_f64()) * 1e6 {
            0.0 => String::new(),
            micros if micros < 1e4 => format!("{micros:.0} µs"),
            micros => format!("{:.1} ms", micros / 1e3),
        }
    }

    fn cpu(&self) -> String {
        let cpu = self.median(|sample| sample.cpu.as_secs_f64() / sample.work);
        match self.unit {
            _ if cpu == 0.0 => String::new(),
            Unit::GigabitsPerSecond => format!("{cpu:.2} s/GB"),
            Unit::RequestsPerSecond => format!("{:.1} µs/request", cpu * 1e6),
        }
    }
}

/// A sample's rate in words.
pub(super) fn rate(load: &Load, sample: &Sample) -> String {
    unit(load.unit, sample.rate)
}

fn unit(unit: Unit, rate: f64) -> String {
    match unit {
        Unit::GigabitsPerSecond => format!("{rate:.2} Gbit/s"),
        Unit::RequestsPerSecond => format!("{:.2} k/s", rate / 1e3),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_pair_the_rounds() {
        let load = &super::super::LOADS[0];
        let mut report = Report::new(vec!["base", "other"]);
        for (base, other) in [(10.0, 5.0), (20.0, 10.0), (10.0, 9.0)] {
            report.add(load, "base", Sample { rate: base, work: 1.0, ..Sample::default() });
            report.add(load, "other", Sample { rate: other, work: 1.0, ..Sample::default() });
        }
        assert_eq!(report.ratio(&report.rows[1]), Some(0.5));
        assert_eq!(report.ratio(&report.rows[0]), None);
        assert!(report.table().contains("0.40 met"));
    }
}
