use std::fmt;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// A number that a bench came to.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Figure {
    /// What was done, such as a load.
    pub(super) what: String,
    /// With what, such as `no mesh`, or in which world.
    pub(super) case: String,
    /// What was measured of it, such as `p50`.
    pub(super) quantity: String,
    pub(super) value: f64,
    pub(super) unit: Unit,
    /// To what it is to be compared with, which each bench says; it alone travels to other machines.
    pub(super) ratio: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Seconds,
    Bytes,
    GigabitsPerSecond,
    RequestsPerSecond,
    /// CPU time of the proxies together for a gigabyte.
    SecondsPerGigabyte,
    /// The same for a request.
    SecondsPerRequest,
}

impl Unit {
    const ALL: [Self; 6] = [
        Self::Seconds,
        Self::Bytes,
        Self::GigabitsPerSecond,
        Self::RequestsPerSecond,
        Self::SecondsPerGigabyte,
        Self::SecondsPerRequest,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Seconds => "s",
            Self::Bytes => "B",
            Self::GigabitsPerSecond => "Gbit/s",
            Self::RequestsPerSecond => "1/s",
            Self::SecondsPerGigabyte => "s/GB",
            Self::SecondsPerRequest => "s/request",
        }
    }
}

impl Figure {
    /// Whether it tells the same of another run.
    pub(super) fn is_of(&self, other: &Self) -> bool {
        (&self.what, &self.case, &self.quantity) == (&other.what, &other.case, &other.quantity)
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "what": self.what,
            "case": self.case,
            "quantity": self.quantity,
            "value": self.value,
            "unit": self.unit.name(),
            "ratio": self.ratio,
        })
    }

    pub(super) fn from_json(value: &Value) -> Result<Self> {
        let text =
            |key| value.get(key).and_then(Value::as_str).with_context(|| format!("no {key} in {value}"));
        let unit = text("unit")?;
        Ok(Self {
            what: text("what")?.to_owned(),
            case: text("case")?.to_owned(),
            quantity: text("quantity")?.to_owned(),
            value: value
                .get("value")
                .and_then(Value::as_f64)
                .with_context(|| format!("no value in {value}"))?,
            unit: Unit::ALL
                .into_iter()
                .find(|of| of.name() == unit)
                .with_context(|| format!("unknown unit {unit}"))?,
            ratio: value.get("ratio").and_then(Value::as_f64),
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
            (Unit::GigabitsPerSecond, value) => return write!(f, "{value:.2} Gbit/s"),
            (Unit::RequestsPerSecond, value) => return write!(f, "{:.2} k/s", value / 1e3),
            (Unit::SecondsPerGigabyte, value) => return write!(f, "{value:.2} s/GB"),
            (Unit::SecondsPerRequest, value) => return write!(f, "{:.1} µs/request", value * 1e6),
        };
        let digits = if scaled < 9.95 { 1 } else { 0 };
        write!(f, "{scaled:.digits$} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        for unit in Unit::ALL {
            for ratio in [None, Some(0.5)] {
                let (what, case, quantity) = ("bulk".to_owned(), "orlop".to_owned(), "rate".to_owned());
                let figure = Figure { what, case, quantity, value: 1.25, unit, ratio };
                assert_eq!(Figure::from_json(&figure.to_json()).unwrap(), figure);
            }
        }
        assert!(Figure::from_json(&json!({"what": "bulk"})).is_err());
    }

    #[test]
    fn values_are_told_in_units_that_people_read() {
        let told = |value, unit| {
            let (what, case, quantity) = (String::new(), String::new(), String::new());
            Figure { what, case, quantity, value, unit, ratio: None }.to_string()
        };
        assert_eq!(told(0.0234, Unit::Seconds), "23 ms");
        assert_eq!(told(3.68e-7, Unit::Seconds), "368 ns");
        assert_eq!(told(1.6, Unit::Seconds), "1.6 s");
        assert_eq!(told(145e6, Unit::Bytes), "145 MB");
        assert_eq!(told(33_000.0, Unit::RequestsPerSecond), "33.00 k/s");
    }
}
