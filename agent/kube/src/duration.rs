use std::time::Duration;

use crate::field::{FieldError, FieldPath};

/// The longest, 10,000 years: protobuf's, and one that can be added to any time.
const LONGEST: Duration = Duration::from_secs(315_576_000_000);

/// A duration as protobuf's JSON and Go write it: numbers with units, such as `1h`, `1m30s`, `0.5s` or `25ms`.
pub(crate) fn duration(text: &str, path: impl FnOnce() -> FieldPath) -> Result<Duration, FieldError> {
    read(text).ok_or_else(|| {
        FieldError::new(path(), format!("{text:?} is no duration; write 5s, 1m30s, 0.5s or 25ms"))
    })
}

/// The same, and longer than nothing.
pub(crate) fn positive(text: &str, path: impl Fn() -> FieldPath) -> Result<Duration, FieldError> {
    let found = duration(text, &path)?;
    if found.is_zero() {
        return Err(FieldError::new(path(), "is no time at all; write at least 1ms, or leave it out"));
    }
    Ok(found)
}

fn read(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let unit =
            rest[number..].find(|c: char| c.is_ascii_digit() || c == '.').map_or(rest.len(), |n| number + n);
        let seconds = match &rest[number..unit] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let value: f64 = rest[..number].parse().ok()?;
        total = total.checked_add(Duration::try_from_secs_f64(value * seconds).ok()?)?;
        rest = &rest[unit..];
    }
    (!text.is_empty() && total <= LONGEST).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, wanted) in [
            ("5s", Some(5_000)),
            ("1m30s", Some(90_000)),
            ("1h", Some(3_600_000)),
            ("0.5s", Some(500)),
            ("25ms", Some(25)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("", None),
            ("5", None),
            ("s", None),
            ("5 s", None),
            ("-1s", None),
            ("1.2.3s", None),
            ("5d", None),
            ("315576000001s", None),
            ("18446744073709551615s", None),
        ] {
            assert_eq!(read(text), wanted.map(Duration::from_millis), "{text:?}");
        }
    }
}
