//! From the JSON Schema of a type to what an API server takes as one (`openAPIV3Schema`, structural).

use std::borrow::Cow;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::field::{Ignored, NotNull};

/// Of a type, with all that it is made of in its place.
pub(super) fn of<T: JsonSchema>() -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.inline_subschemas = true;
    settings.meta_schema = None;
    let schema = settings.into_generator().into_root_schema_for::<T>();
    structural(schema.into())
}

impl JsonSchema for Ignored {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Ignored".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        Schema::default()
    }
}

impl<T: JsonSchema> JsonSchema for NotNull<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("NotNull_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<T>()
    }
}

/// Keeps what says what a field is, and leaves the rest to whoever reads the object: whatever is wrong in it is told
/// in a condition, with what to change.
fn structural(schema: Value) -> Value {
    let Value::Object(mut schema) = schema else { return anything(Map::new()) };
    let mut made = Map::new();
    if let Some(Value::String(said)) = schema.remove("description") {
        made.insert("description".to_owned(), said.split_whitespace().collect::<Vec<_>>().join(" ").into());
    }
    // An optional one that is no plain type.
    if let Some(Value::Array(either)) = schema.remove("anyOf") {
        let mut of = either.into_iter().filter(|one| one["type"] != "null").map(structural);
        let (Some(Value::Object(one)), None) = (of.next(), of.next()) else { panic!("of several types") };
        let said = made.remove("description");
        made.extend(one);
        made.extend(said.map(|said| ("description".to_owned(), said)));
        made.insert("nullable".to_owned(), true.into());
        return Value::Object(made);
    }
    let (kind, nullable) = match schema.remove("type") {
        Some(Value::String(kind)) => (kind, false),
        Some(Value::Array(kinds)) => {
            let mut named = kinds.iter().filter_map(Value::as_str).filter(|kind| *kind != "null");
            (named.next().unwrap().to_owned(), true)
        }
        _ => return anything(made),
    };
    made.insert("type".to_owned(), kind.as_str().into());
    if nullable {
        made.insert("nullable".to_owned(), true.into());
    }
    match kind.as_str() {
        "object" => match schema.remove("properties") {
            Some(Value::Object(fields)) => {
                let fields: Map<_, _> =
                    fields.into_iter().map(|(name, field)| (name, structural(field))).collect();
                made.insert("properties".to_owned(), fields.into());
                made.insert("x-kubernetes-preserve-unknown-fields".to_owned(), true.into());
            }
            _ => {
                let values = structural(schema.remove("additionalProperties").unwrap_or_default());
                made.insert("additionalProperties".to_owned(), values);
            }
        },
        "array" => {
            made.insert("items".to_owned(), structural(schema.remove("items").unwrap_or_default()));
        }
        _ => {}
    }
    Value::Object(made)
}

fn anything(mut made: Map<String, Value>) -> Value {
    made.insert("x-kubernetes-preserve-unknown-fields".to_owned(), true.into());
    Value::Object(made)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Something.
    #[derive(JsonSchema)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    #[expect(dead_code, reason = "only its schema counts")]
    struct Thing {
        /// A text
        /// of two lines.
        a_text: Option<String>,
        /// A number.
        number: u16,
        inner: Option<Inner>,
        by_name: NotNull<BTreeMap<String, Inner>>,
        ignored: Option<Ignored>,
    }

    /// Inner.
    #[derive(JsonSchema)]
    #[expect(dead_code, reason = "only its schema counts")]
    struct Inner {
        list: Vec<f64>,
    }

    #[test]
    fn a_type_is_described_without_what_would_keep_objects_out() {
        let inner = |nullable: bool| {
            let mut inner = json!({
                "description": "Inner.", "type": "object", "x-kubernetes-preserve-unknown-fields": true,
                "properties": {"list": {"type": "array", "items": {"type": "number"}}},
            });
            if nullable {
                inner["nullable"] = true.into();
            }
            inner
        };
        let wanted = json!({
            "description": "Something.", "type": "object", "x-kubernetes-preserve-unknown-fields": true,
            "properties": {
                "aText": {"description": "A text of two lines.", "type": "string", "nullable": true},
                "number": {"description": "A number.", "type": "integer"},
                "inner": inner(true),
                "byName": {"type": "object", "additionalProperties": inner(false)},
                "ignored": {"x-kubernetes-preserve-unknown-fields": true},
            },
        });
        assert_eq!(of::<Thing>(), wanted);
    }
}
