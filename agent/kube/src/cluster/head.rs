use orlop_model::world::gateway_api::GROUP as GATEWAY_API;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::field::FieldError;

/// What an object of a cluster says of itself, beside what it is to the world.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Head {
    /// Group and version that it was read in.
    pub api_version: &'static str,
    /// `metadata.uid`
    pub uid: String,
    /// `metadata.resourceVersion`
    pub resource_version: String,
    /// `metadata.generation`
    pub generation: Option<i64>,
    /// `status.conditions`
    pub conditions: Vec<Value>,
    /// Whether the API server knows who owns each condition, and not only who owns the whole list. That is up to
    /// the kind's definition (`x-kubernetes-list-type`).
    pub each_owned: bool,
    /// Of a route or BackendTLSPolicy, what it is for, and what is said of it there.
    pub parents: Parents,
    /// Why the object can't be understood.
    pub refused: Option<FieldError>,
}

/// Of a route or BackendTLSPolicy (`gateway.networking.k8s.io`).
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Parents {
    /// `spec.parentRefs`, or `spec.targetRefs`
    pub refs: Vec<Value>,
    /// `status.parents`, or `status.ancestors`, of all controllers.
    pub told: Vec<Value>,
}

impl Head {
    /// Reads as much as can be read.
    pub fn read(text: &str, api_version: &'static str, refused: Option<FieldError>) -> Self {
        let Object { metadata, spec, status } = serde_json::from_str(text).unwrap_or_default();
        let has_parents = api_version.starts_with(GATEWAY_API);
        let spec = spec.filter(|_| has_parents).and_then(|of| serde_json::from_str(of.get()).ok());
        let Spec { parent_refs, target_refs } = spec.unwrap_or_default();
        let status: Status = status.and_then(|of| serde_json::from_str(of.get()).ok()).unwrap_or_default();
        let owned = |field: &Managed| {
            let fields = field.fields.as_ref().map_or("", |fields| fields.get());
            let fields = Some(fields).filter(|fields| fields.contains(CONDITIONS));
            let fields = fields.and_then(|fields| serde_json::from_str::<Value>(fields).ok());
            let of_list = fields.as_ref().and_then(|fields| fields.pointer("/f:status/f:conditions"));
            let of_list = of_list.and_then(Value::as_object);
            of_list.is_some_and(|of_list| of_list.keys().any(|key| key.starts_with("k:")))
        };
        let conditions = status.conditions.unwrap_or_default();
        Self {
            api_version,
            uid: metadata.uid,
            resource_version: metadata.resource_version,
            generation: metadata.generation,
            // Where there is none nobody's can be lost.
            each_owned: conditions.is_empty() || metadata.managed_fields.iter().any(owned),
            conditions,
            parents: Parents {
                refs: parent_refs.or(target_refs).unwrap_or_default(),
                told: status.parents.or(status.ancestors).filter(|_| has_parents).unwrap_or_default(),
            },
            refused,
        }
    }

    /// Whether it is a later state of the object than the other.
    pub fn is_after(&self, other: &Self) -> bool {
        let number = |of: &Self| of.resource_version.parse::<u128>().ok();
        number(self).zip(number(other)).is_some_and(|(this, other)| this > other)
    }
}

const CONDITIONS: &str = "f:conditions";

#[derive(Default, Deserialize)]
#[serde(default)]
struct Object {
    metadata: Metadata,
    spec: Option<Box<RawValue>>,
    /// Read by itself, since it may be anything where a definition has no schema.
    status: Option<Box<RawValue>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    uid: String,
    resource_version: String,
    generation: Option<i64>,
    managed_fields: Vec<Managed>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Managed {
    #[serde(rename = "fieldsV1")]
    fields: Option<Box<RawValue>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    parent_refs: Option<Vec<Value>>,
    target_refs: Option<Vec<Value>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    conditions: Option<Vec<Value>>,
    parents: Option<Vec<Value>>,
    ancestors: Option<Vec<Value>>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn head(object: &Value) -> Head {
        Head::read(&object.to_string(), "security.istio.io/v1", None)
    }

    #[test]
    fn what_counts_is_read_and_nothing_else_matters() {
        let read = head(&json!({
            "metadata": {"uid": "u", "resourceVersion": "7", "generation": 3, "name": "web"},
            "spec": [1], "status": {"conditions": [{"type": "a"}], "observedGeneration": "3"},
        }));
        let (uid, version) = ("u".to_owned(), "7".to_owned());
        let conditions = vec![json!({"type": "a"})];
        let wanted = Head {
            api_version: "security.istio.io/v1",
            uid,
            resource_version: version,
            generation: Some(3),
            conditions,
            ..Head::default()
        };
        assert_eq!(read, wanted);
    }

    #[test]
    fn of_a_route_its_parents_are_read_and_of_nothing_else() {
        let object = json!({
            "spec": {"parentRefs": [{"name": "web"}], "rules": 7},
            "status": {"parents": [{"controllerName": "example.com/other"}]},
        });
        let route = Head::read(&object.to_string(), "gateway.networking.k8s.io/v1", None).parents;
        assert_eq!(route.refs, [json!({"name": "web"})]);
        assert_eq!(route.told, [json!({"controllerName": "example.com/other"})]);
        assert_eq!(head(&object).parents, Parents::default());
        let object = json!({
            "spec": {"targetRefs": [{"name": "web"}]}, "status": {"ancestors": [{"controllerName": "o"}]},
        });
        let policy = Head::read(&object.to_string(), "gateway.networking.k8s.io/v1", None).parents;
        assert_eq!((policy.refs.len(), policy.told), (1, vec![json!({"controllerName": "o"})]));
    }

    #[test]
    fn who_owns_what_is_told_by_the_managed_fields() {
        let owned = |conditions: Value| {
            let fields = json!({"f:status": {"f:conditions": conditions}});
            head(&json!({
                "metadata": {"managedFields": [{"manager": "a"}, {"manager": "b", "fieldsV1": fields}]},
                "status": {"conditions": [{"type": "a"}]},
            }))
            .each_owned
        };
        assert!(owned(json!({"k:{\"type\":\"a\"}": {".": {}, "f:type": {}}})));
        assert!(!owned(json!({})));
        assert!(!owned(json!(7)));
        assert!(head(&json!({"metadata": {}})).each_owned);
    }

    #[test]
    fn a_status_that_is_none_is_read_as_empty() {
        let deep = format!("{}{}", "[".repeat(2000), "]".repeat(2000));
        for status in ["7", "{\"conditions\": 7}", "{\"conditions\": {}}", "null", &deep] {
            let text = format!("{{\"metadata\": {{\"resourceVersion\": \"7\"}}, \"status\": {status}}}");
            let read = Head::read(&text, "v1", None);
            assert_eq!((read.conditions.len(), read.resource_version.as_str()), (0, "7"), "{status:.20}");
        }
        assert_eq!(Head::read("not JSON", "", None), Head { each_owned: true, ..Head::default() });
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        let at = |version: &str| Head { resource_version: version.to_owned(), ..Head::default() };
        assert!(at("10").is_after(&at("9")) && !at("9").is_after(&at("10")) && !at("9").is_after(&at("9")));
        assert!(!at("x").is_after(&at("1")));
    }
}
