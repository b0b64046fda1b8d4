use orlop_model::world::gateway_api::{GrantFrom, GrantTo, ReferenceGrant};
use serde::Deserialize;

use crate::field::FieldError;
use crate::metadata::namespaced;
use crate::read::Metadata;

/// A ReferenceGrant as it is written. A misspelt field would grant more, so none is let pass.
#[derive(Debug, Deserialize)]
pub(crate) struct Object {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Spec {
    from: Vec<FromObject>,
    to: Vec<ToObject>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FromObject {
    group: String,
    kind: String,
    namespace: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ToObject {
    group: String,
    kind: String,
    name: Option<String>,
}

/// Converts a ReferenceGrant.
pub(crate) fn convert(object: Object) -> Result<ReferenceGrant, FieldError> {
    let from = object.spec.from.into_iter();
    let to = object.spec.to.into_iter();
    Ok(ReferenceGrant {
        name: namespaced(&object.metadata)?,
        from: from
            .map(|FromObject { group, kind, namespace }| GrantFrom { group, kind, namespace })
            .collect(),
        to: to
            .map(|ToObject { group, kind, name }| GrantTo {
                group,
                kind,
                name: name.filter(|name| !name.is_empty()),
            })
            .collect(),
    })
}
