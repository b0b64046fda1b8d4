use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// A number that a bench came to.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Figure {
    /// What was done, such as a load.
    pub(super) what: String,
    /// With what, such as `no mesh`, or in which world.
    pub(super) case: String,
    /// What was measured of it.
    pub(super) quantity: &'static str,
    pub(super) value: f64,
    pub(super) unit: Unit,
    /// To what it is to be compared with, which each bench says; it alone travels to other machines.
    pub(super) ratio: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Seconds,
    Bytes,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Seconds => "s",
            Self::Bytes => "B",
        }
    }
}

impl Figure {
    fn json(&self) -> Value {
        json!({
            "what": self.what,
            "case": self.case,
            "quantity": self.quantity,
            "value": self.value,
            "unit": self.unit.name(),
            "ratio": self.ratio,
        })
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scaled, unit) = match (self.unit, self.value) {
            (Unit::Seconds, value) if value < 1e-6 => (value * 1e9, "ns"),
            (Unit::Seconds, value) if value < 1e-3 => (value * 1e6, "µs"),
            (Unit::Seconds, value) if value < 1.0 => (value * 1e3, "ms"),
            (Unit::Seconds, value) => (value, "s"),
            (Unit::Bytes, value) => (value / 1e6, "MB"),
        };
        let digits = if scaled < 9.95 { 1 } else { 0 };
        write!(f, "{scaled:.digits$} {unit}")
    }
}

/// Writes figures as JSON, an object each.
pub(super) fn write(path: &Path, figures: &[Figure]) -> Result<()> {
    let rows: Vec<String> = figures.iter().map(|figure| format!("  {}", figure.json())).collect();
    let text = format!("[\n{}\n]\n", rows.join(",\n"));
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
