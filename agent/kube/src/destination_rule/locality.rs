//! `localityLbSetting`

use std::collections::BTreeMap;

use orlop_model::world::routing::{Distribute, LocalityBalancing, LocalityPattern};
use serde::Deserialize;

use crate::field::{FieldError, FieldPath};

/// How many entries a list may have, and labels `failoverPriority`: all endpoints are compared with each.
const MAX_ENTRIES: usize = 64;
const MAX_LABELS: usize = 16;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct LocalityObject {
    /// Whether it has any effect: true if left out.
    enabled: Option<bool>,
    /// What share of the requests goes where. Not together with failover or failoverPriority.
    distribute: Vec<DistributeObject>,
    /// Which region comes next after one's own. It needs outlierDetection.
    failover: Vec<FailoverObject>,
    /// Labels, each of which counts before the next: servers with the waypoint's own value of them come first, or with
    /// the value after a =. It needs outlierDetection.
    failover_priority: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DistributeObject {
    /// Where the waypoint is, as REGION/ZONE/SUBZONE; a * is any, and so is what is left out at the end.
    from: String,
    /// Where requests go, written as that, with percentages that are 100 together.
    to: BTreeMap<String, u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FailoverObject {
    /// The region that the waypoint is in.
    from: String,
    /// The one that comes after it.
    to: String,
}

impl LocalityObject {
    pub(super) fn convert(self, path: &FieldPath) -> Result<LocalityBalancing, FieldError> {
        let at = |key: &str| path.clone().key(key);
        let fails_over = !self.failover.is_empty() || !self.failover_priority.is_empty();
        if fails_over && !self.distribute.is_empty() {
            let problem = "has distribute, and failover or failoverPriority; keep one";
            return Err(FieldError::new(path.clone(), problem));
        }
        let bounded = |key: &str, length: usize, most: usize| {
            let problem = || FieldError::new(at(key), format!("has {length} entries; there may be {most}"));
            if length <= most { Ok(()) } else { Err(problem()) }
        };
        bounded("distribute", self.distribute.len(), MAX_ENTRIES)?;
        bounded("failover", self.failover.len(), MAX_ENTRIES)?;
        bounded("failoverPriority", self.failover_priority.len(), MAX_LABELS)?;
        let distribute = self.distribute.into_iter().enumerate();
        let distribute = distribute.map(|(n, of)| of.convert(&at("distribute").index(n)));
        let failover = self.failover.into_iter().enumerate();
        let failover = failover.map(|(n, of)| of.convert(&at("failover").index(n)));
        let priority = self.failover_priority.into_iter().enumerate();
        let priority = priority.map(|(n, text)| label(&text, at("failoverPriority").index(n)));
        Ok(LocalityBalancing {
            enabled: self.enabled != Some(false),
            distribute: distribute.collect::<Result<_, _>>()?,
            failover: failover.collect::<Result<_, _>>()?,
            priority: priority.collect::<Result<_, _>>()?,
        })
    }
}

impl DistributeObject {
    fn convert(self, path: &FieldPath) -> Result<Distribute, FieldError> {
        let to_path = path.clone().key("to");
        if self.to.len() > MAX_ENTRIES {
            let problem = format!("has {} entries; there may be {MAX_ENTRIES}", self.to.len());
            return Err(FieldError::new(to_path, problem));
        }
        let sum: u64 = self.to.values().map(|weight| u64::from(*weight)).sum();
        if sum != 100 || self.to.values().any(|weight| *weight == 0) {
            let problem = format!("has percentages that are {sum} together; want 100, and no 0");
            return Err(FieldError::new(to_path, problem));
        }
        let mut to = Vec::new();
        for (text, weight) in self.to {
            let place = pattern(&text, to_path.clone().key(&text))?;
            if let Some((other, _)) = to.iter().find(|(other, _)| overlap(other, &place)) {
                let problem = format!("{text:?} and {other:?} have places in common", other = written(other));
                return Err(FieldError::new(to_path, problem));
            }
            to.push((place, weight));
        }
        Ok(Distribute { from: pattern(&self.from, path.clone().key("from"))?, to })
    }
}

impl FailoverObject {
    fn convert(self, path: &FieldPath) -> Result<(String, String), FieldError> {
        for (key, region) in [("from", &self.from), ("to", &self.to)] {
            if region.is_empty() || region.contains(['/', '*']) {
                let problem = format!("{region:?} is not the name of a region");
                return Err(FieldError::new(path.clone().key(key), problem));
            }
        }
        if self.from == self.to {
            return Err(FieldError::new(path.clone(), "leads from a region to itself"));
        }
        Ok((self.from, self.to))
    }
}

fn pattern(text: &str, path: FieldPath) -> Result<LocalityPattern, FieldError> {
    let parts: Vec<_> = text.split('/').collect();
    let is_any = |part: &&str| part.is_empty() || *part == "*";
    let narrows = parts.iter().skip_while(|part| !is_any(part)).any(|part| !is_any(part));
    if text.is_empty() || parts.len() > 3 || parts[0].is_empty() || narrows {
        let problem =
            format!("{text:?} is not REGION/ZONE/SUBZONE, of which the last ones may be * or left out");
        return Err(FieldError::new(path, problem));
    }
    let part = |at: usize| parts.get(at).filter(|part| !is_any(part)).map(|part| (*part).into());
    Ok(LocalityPattern([part(0), part(1), part(2)]))
}

fn overlap(one: &LocalityPattern, other: &LocalityPattern) -> bool {
    one.0.iter().zip(&other.0).all(|(one, other)| one.is_none() || other.is_none() || one == other)
}

fn written(pattern: &LocalityPattern) -> String {
    pattern.0.each_ref().map(|part| part.as_ref().map_or("*", |part| part.as_str())).join("/")
}

/// `KEY` or `KEY=VALUE`
fn label(text: &str, path: FieldPath) -> Result<(String, Option<String>), FieldError> {
    let (key, value) = text.split_once('=').map_or((text, None), |(key, value)| (key, Some(value)));
    if key.is_empty() {
        return Err(FieldError::new(path, format!("{text:?} is not a label, or LABEL=VALUE")));
    }
    Ok((key.to_owned(), value.map(str::to_owned)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn converted(setting: Value) -> Result<LocalityBalancing, FieldError> {
        serde_json::from_value::<LocalityObject>(setting).unwrap().convert(&"l".into())
    }

    #[test]
    fn what_is_written_is_carried_over() {
        let found =
            converted(json!({"distribute": [{"from": "eu/*", "to": {"eu/a/*": 80, "us": 20}}]})).unwrap();
        let pattern = |region: &str, zone: Option<&str>| {
            LocalityPattern([Some(region.into()), zone.map(Into::into), None])
        };
        let to = vec![(pattern("eu", Some("a")), 80), (pattern("us", None), 20)];
        assert_eq!(found.distribute, [Distribute { from: pattern("eu", None), to }]);
        let found = converted(json!({
            "enabled": false, "failover": [{"from": "eu", "to": "us"}], "failoverPriority": ["a", "b=1", "c="],
        }))
        .unwrap();
        assert_eq!(found.failover, [("eu".to_owned(), "us".to_owned())]);
        let labels = [("a", None), ("b", Some("1")), ("c", Some(""))];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.map(str::to_owned)));
        assert_eq!((found.enabled, &found.priority[..]), (false, &labels[..]));
        assert_eq!(converted(json!({})).unwrap(), LocalityBalancing::DEFAULT);
    }

    #[test]
    fn what_says_two_things_is_refused() {
        for wrong in [
            json!({"distribute": [{"from": "eu", "to": {"eu": 50, "us": 49}}]}),
            json!({"distribute": [{"from": "eu", "to": {"eu": 100, "us": 0}}]}),
            json!({"distribute": [{"from": "eu", "to": {"eu/*": 50, "eu/a": 50}}]}),
            json!({"distribute": [{"from": "eu/*/x", "to": {"eu": 100}}]}),
            json!({"distribute": [{"from": "", "to": {"eu": 100}}]}),
            json!({"distribute": [{"from": "eu", "to": {"a/b/c/d": 100}}]}),
            json!({"distribute": [{"from": "eu", "to": {"eu": 100}}], "failoverPriority": ["a"]}),
            json!({"failover": [{"from": "eu", "to": "eu"}]}),
            json!({"failover": [{"from": "eu/a", "to": "us"}]}),
            json!({"failoverPriority": ["=a"]}),
        ] {
            assert!(converted(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
