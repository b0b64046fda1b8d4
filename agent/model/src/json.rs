//! JSON of strangers: within limits, and without a name that is there twice, of which one reader takes the first and
//! another the last.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::http::Claim;

/// How deep objects and arrays may be in each other.
const MAX_DEPTH: usize = 16;

/// Reads an object of at most this many values, all in all. What is said of another quotes nothing of it.
pub fn object(text: &[u8], max_values: usize) -> Result<BTreeMap<String, Claim>, String> {
    let left = Cell::new(max_values);
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = Value { depth: 0, left: &left }.deserialize(&mut reader);
    let value = value.and_then(|value| reader.end().map(|()| value));
    match value.map_err(|error| without_text(&error))? {
        Claim::Object(object) => Ok(object),
        _ => Err("is no JSON object".to_owned()),
    }
}

/// serde's messages quote what they have read, which nobody must find in a log.
fn without_text(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let known = [TWICE, DEEP, MANY].into_iter().find(|known| text.starts_with(known));
    known.unwrap_or("is no JSON").to_owned()
}

const TWICE: &str = "has a name twice";
const DEEP: &str = "is nested too deep";
const MANY: &str = "has too many values";

#[derive(Clone, Copy)]
struct Value<'a> {
    depth: usize,
    left: &'a Cell<usize>,
}

impl Value<'_> {
    fn inner<E: Error>(self) -> Result<Self, E> {
        if self.depth >= MAX_DEPTH {
            return Err(E::custom(DEEP));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = Claim;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Claim, D::Error> {
        let left = self.left.get().checked_sub(1).ok_or_else(|| D::Error::custom(MANY))?;
        self.left.set(left);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = Claim;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Claim, E> {
        Ok(Claim::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Claim, E> {
        Ok(Claim::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Claim, E> {
        Ok(Claim::Number(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Claim, E> {
        Ok(Claim::Number(value.to_string()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Claim, E> {
        let number = serde_json::Number::from_f64(value).ok_or_else(|| E::custom("is no number"))?;
        Ok(Claim::Number(number.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Claim, E> {
        Ok(Claim::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Claim, E> {
        Ok(Claim::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Claim, A::Error> {
        let inner = self.inner()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(inner)? {
            list.push(item);
        }
        Ok(Claim::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Claim, A::Error> {
        let inner = self.inner()?;
        let mut object = BTreeMap::new();
        while let Some(name) = entries.next_key::<String>()? {
            if object.contains_key(&name) {
                return Err(A::Error::custom(TWICE));
            }
            object.insert(name, entries.next_value_seed(inner)?);
        }
        Ok(Claim::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_readers_could_take_otherwise_is_refused() {
        let deep = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        let fits = deep(MAX_DEPTH - 1);
        for (text, want) in [
            ("{}", Ok(())),
            (r#"{"a": 1, "A": 2}"#, Ok(())),
            (fits.as_str(), Ok(())),
            (&deep(MAX_DEPTH), Err(DEEP)),
            (&deep(100_000), Err(DEEP)),
            (r#"{"a": 1, "a": 1}"#, Err(TWICE)),
            (r#"{"a": 1, "\u0061": 1}"#, Err(TWICE)),
            (r#"{"b": {"a": 1, "a": 2}}"#, Err(TWICE)),
            (r#"{"b": [{"a": 1, "a": 2}]}"#, Err(TWICE)),
            ("{} {}", Err("is no JSON")),
            ("{}x", Err("is no JSON")),
            ("{\"a\": 1,}", Err("is no JSON")),
            ("{\"secret\": tru", Err("is no JSON")),
            ("{\"a\": NaN}", Err("is no JSON")),
            ("{\"a\": 1e999}", Err("is no JSON")),
            ("", Err("is no JSON")),
            ("[]", Err("is no JSON object")),
            ("7", Err("is no JSON object")),
        ] {
            let read = object(text.as_bytes(), 1000).map(drop);
            assert_eq!(read, want.map_err(str::to_owned), "{}", &text[..text.len().min(60)]);
        }
        assert_eq!(object(br#"{"a": [1, 2, 3]}"#, 5).map(drop), Ok(()));
        assert_eq!(object(br#"{"a": [1, 2, 3]}"#, 4).map(drop), Err(MANY.to_owned()));
        assert_eq!(object(b"{\"a\": \"\xff\"}", 9).map(drop), Err("is no JSON".to_owned()));
    }
}
