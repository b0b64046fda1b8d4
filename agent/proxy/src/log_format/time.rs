//! `START_TIME(FORMAT)`: a time in UTC, by those of strftime's conversions that are the same in every language.

use std::{
    ops::Range,
    str::FromStr,
    time::{SystemTime, UNIX_EPOCH},
};

use super::LogFormatError;

/// How a time is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TimeFormat(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    /// Of `2018-02-14T00:28:07.133333333Z`.
    Slice(Range<usize>),
    /// Since 1970.
    Seconds,
}

/// Where the parts of a second are.
const FRACTION: usize = 20;
const NANOSECONDS: usize = 9;

impl FromStr for TimeFormat {
    type Err = LogFormatError;

    fn from_str(text: &str) -> Result<Self, LogFormatError> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((literal, after)) = rest.split_once('%') {
            parts.extend((!literal.is_empty()).then(|| Part::Literal(literal.to_owned())));
            let conversion = after.trim_start_matches(|c: char| matches!(c, '1'..='9'));
            let digits = &after[..after.len() - conversion.len()];
            let mut conversion = conversion.chars();
            let part = part(digits, conversion.next());
            let part = part.ok_or_else(|| {
                let known = "%Y %m %d %H %M %S %F %T %s %f %1f to %9f %z %Z %%";
                LogFormatError(format!("{text:?} has a conversion that is none of {known}"))
            })?;
            parts.push(part);
            rest = conversion.as_str();
        }
        parts.extend((!rest.is_empty()).then(|| Part::Literal(rest.to_owned())));
        Ok(Self(parts))
    }
}

fn part(digits: &str, conversion: Option<char>) -> Option<Part> {
    if conversion == Some('f') {
        let length = if digits.is_empty() { NANOSECONDS } else { digits.parse().ok()? };
        return (length <= NANOSECONDS).then_some(Part::Slice(FRACTION..FRACTION + length));
    }
    if !digits.is_empty() {
        return None;
    }
    Some(match conversion? {
        'Y' => Part::Slice(0..4),
        'm' => Part::Slice(5..7),
        'd' => Part::Slice(8..10),
        'H' => Part::Slice(11..13),
        'M' => Part::Slice(14..16),
        'S' => Part::Slice(17..19),
        'F' => Part::Slice(0..10),
        'T' => Part::Slice(11..19),
        's' => Part::Seconds,
        'z' => Part::Literal("+0000".to_owned()),
        'Z' => Part::Literal("UTC".to_owned()),
        '%' => Part::Literal("%".to_owned()),
        _ => return None,
    })
}

impl TimeFormat {
    pub(crate) fn of(&self, time: SystemTime) -> String {
        let whole = humantime::format_rfc3339_nanos(time).to_string();
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Literal(literal) => text.push_str(literal),
                Part::Slice(range) => text.push_str(whole.get(range.clone()).unwrap_or_default()),
                Part::Seconds => {
                    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
                    text.push_str(&since.as_secs().to_string());
                }
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_time_is_written_as_is_wanted() {
        let time = UNIX_EPOCH + Duration::new(1_518_568_087, 13_456_789);
        for (format, wanted) in [
            ("%Y/%m/%d %H:%M:%S", "2018/02/14 00:28:07"),
            ("%FT%T.%3f%z", "2018-02-14T00:28:07.013+0000"),
            ("%s.%f", "1518568087.013456789"),
            ("%s%6f", "1518568087013456"),
            ("%%%Z", "%UTC"),
            ("plain", "plain"),
        ] {
            assert_eq!(format.parse::<TimeFormat>().unwrap().of(time), wanted, "{format}");
        }
        for format in ["%A", "%", "%3S", "%12f", "%0f", "%-d"] {
            assert!(format.parse::<TimeFormat>().is_err(), "{format}");
        }
    }
}
