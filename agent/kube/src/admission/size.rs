use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// How many values a review may have, and how many of them may be objects or lists. What is made of an object that is
/// written in two bytes may be a thousand times as large.
const MAX_VALUES: usize = 200_000;
const MAX_CONTAINERS: usize = 20_000;
/// How many of them may be regular expressions, each of which may become a megabyte: both of an object and of what it
/// was before.
const MAX_EXPRESSIONS: usize = 200;

/// How Istio's kinds name a field that is one, and how the Gateway API says that a value is one.
const EXPRESSIONS: [&str; 3] = ["regex", "uriRegexRewrite", "RegularExpression"];

/// How an expression of a Telemetry tests by one.
const TEST: &str = "matches(";

/// Whether text in JSON has no more than so many values. Makes nothing of them. What is no JSON, or is nested too deeply,
/// is an error.
pub(super) fn is_small(text: &str) -> Result<bool, serde_json::Error> {
    let mut count = Count::default();
    let mut json = serde_json::Deserializer::from_str(text);
    match (&mut count).deserialize(&mut json) {
        Err(_) if count.is_over() => Ok(false),
        counted => counted.and_then(|()| json.end()).map(|()| true),
    }
}

#[derive(Default)]
struct Count {
    values: usize,
    containers: usize,
    expressions: usize,
}

impl Count {
    fn is_over(&self) -> bool {
        self.values > MAX_VALUES || self.containers > MAX_CONTAINERS || self.expressions > MAX_EXPRESSIONS
    }

    fn add<E: Error>(&mut self, containers: usize) -> Result<(), E> {
        self.values += 1;
        self.containers += containers;
        if self.is_over() { Err(E::custom("too many values")) } else { Ok(()) }
    }
}

impl<'de> DeserializeSeed<'de> for &mut Count {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &mut Count {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.add(0)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.add(0)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.add(0)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.add(0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.expressions += usize::from(EXPRESSIONS.contains(&text)) + text.matches(TEST).count();
        self.add(0)
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.add(0)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        self.add(1)?;
        while list.next_element_seed(&mut *self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        self.add(1)?;
        while object.next_key_seed(&mut *self)?.is_some() {
            object.next_value_seed(&mut *self)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_before_anything_is_made_of_them() {
        let list = |of: &str, times: usize| format!("[{}]", vec![of; times].join(","));
        for (text, wanted) in [
            ("{\"a\": [1, -1, 1.5, null, true, \"\"]}".to_owned(), true),
            (list("{}", MAX_CONTAINERS - 1), true),
            (list("{}", MAX_CONTAINERS), false),
            (list("[]", 1_000_000), false),
            (list("1", MAX_VALUES - 1), true),
            (list("\"x\"", MAX_VALUES), false),
            (list("{\"regex\": \"a\"}", MAX_EXPRESSIONS), true),
            (list("{\"regex\": \"a\"}", MAX_EXPRESSIONS + 1), false),
            (list("{\"\\u0072egex\": \"a\"}", MAX_EXPRESSIONS + 1), false),
        ] {
            assert_eq!(is_small(&text).unwrap(), wanted, "{text:.20}");
        }
        let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
        for text in ["", "{", "{} {}", "nothing", &deep] {
            assert!(is_small(text).is_err(), "{text:.20}");
        }
    }
}
