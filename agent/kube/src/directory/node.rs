use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::{Error, Spanned};

use crate::field::{FieldPath, Step};

/// A YAML value that knows its line, so that errors found long after parsing can still point at it.
#[derive(Debug)]
pub(super) struct Node {
    line: u64,
    data: Data,
}

#[derive(Debug)]
enum Data {
    Scalar(Value),
    Sequence(Vec<Node>),
    Mapping(Vec<(String, Node)>),
}

/// Parses every document of a YAML or JSON text; documents that hold nothing are skipped.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, Error> {
    let options = serde_saphyr::options! {
        // Far above the largest cluster listed into one file, far below what would exhaust memory.
        budget: serde_saphyr::budget! {
            max_events: 8_000_000,
            max_nodes: 4_000_000,
            max_documents: 100_000,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 100_000 },
        with_snippet: false,
    };
    serde_saphyr::from_multiple_with_options(text, options)
}

impl Node {
    pub fn line(&self) -> u64 {
        self.line
    }

    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.data {
            Data::Mapping(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, node)| node),
            _ => None,
        }
    }

    pub fn is_mapping(&self) -> bool {
        matches!(self.data, Data::Mapping(_))
    }

    pub fn string(&self) -> Option<&str> {
        match &self.data {
            Data::Scalar(value) => value.as_str(),
            _ => None,
        }
    }

    pub fn items(&self) -> Option<&[Node]> {
        match &self.data {
            Data::Sequence(items) => Some(items),
            _ => None,
        }
    }

    /// The line of a field, or of the innermost value around it that there is.
    pub fn line_of(&self, path: &FieldPath) -> u64 {
        let mut node = self;
        for step in &path.0 {
            let next = match (step, &node.data) {
                (Step::Key(key), _) => node.get(key),
                (Step::Index(index), Data::Sequence(items)) => items.get(*index),
                _ => None,
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        node.line
    }

    pub fn to_value(&self) -> Value {
        match &self.data {
            Data::Scalar(value) => value.clone(),
            Data::Sequence(items) => items.iter().map(Node::to_value).collect(),
            Data::Mapping(entries) => {
                let entries = entries.iter().map(|(key, node)| (key.clone(), node.to_value()));
                Value::Object(entries.collect::<Map<_, _>>())
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Data>::deserialize(deserializer)?;
        Ok(Self { line: spanned.referenced.line(), data: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DataVisitor)
    }
}

struct DataVisitor;

impl<'de> Visitor<'de> for DataVisitor {
    type Value = Data;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Data, E> {
        Ok(Data::Scalar(Value::Null))
    }

    fn visit_none<E: de::Error>(self) -> Result<Data, E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Data, D::Error> {
        Data::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Data, E> {
        Ok(Data::Scalar(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Data, E> {
        Ok(Data::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Data, E> {
        Ok(Data::Scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Data, E> {
        Ok(Data::Scalar(Number::from_f64(value).map_or(Value::Null, Value::Number)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Data, E> {
        Ok(Data::Scalar(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Data, E> {
        Ok(Data::Scalar(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Data, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element()? {
            items.push(item);
        }
        Ok(Data::Sequence(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut mapping: A) -> Result<Data, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = mapping.next_entry()? {
            entries.push(entry);
        }
        Ok(Data::Mapping(entries))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_value_knows_its_line() {
        let documents = parse("a: 1\n---\n# note\nb:\n- c: x\n- d: text\n").unwrap();
        assert_eq!(documents.len(), 2);
        let line = |path: FieldPath| documents[1].line_of(&path);
        assert_eq!(line("b".into()), 5);
        assert_eq!(line(FieldPath::from("b").index(1).key("d")), 6);
        assert_eq!(line(FieldPath::from("b").index(1).key("absent").key("deeper")), 6);
        assert_eq!(documents[1].to_value(), json!({"b": [{"c": "x"}, {"d": "text"}]}));
    }

    #[test]
    fn json_is_read_as_well() {
        let documents = parse("{\n\t\"a\": [1, true, null, \"x\"],\n\t\"b\": {}\n}\n").unwrap();
        assert_eq!(documents[0].to_value(), json!({"a": [1, true, null, "x"], "b": {}}));
        assert_eq!(documents[0].line_of(&"b".into()), 3);
    }

    #[test]
    fn empty_documents_are_skipped() {
        assert_eq!(parse("").unwrap().len(), 0);
        assert_eq!(parse("---\n---\n# nothing\n---\na: 1\n---\n").unwrap().len(), 1);
    }

    #[test]
    fn aliases_and_merge_keys_work() {
        let documents = parse("base: &b {x: 1}\nuse:\n  <<: *b\n  y: 2\n").unwrap();
        assert_eq!(documents[0].get("use").unwrap().to_value(), json!({"x": 1, "y": 2}));
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..10 {
            let below = format!("*a{},", level - 1).repeat(10);
            bomb.push_str(&format!("a{level}: &a{level} [{below}]\n"));
        }
        assert!(parse(&bomb).is_err());
    }

    #[test]
    fn deep_nesting_and_repeated_keys_are_refused() {
        assert!(parse(&"[".repeat(100_000)).is_err());
        assert!(parse(&"- ".repeat(100_000)).is_err());
        assert!(parse("a: 1\na: 2\n").is_err());
    }
}
