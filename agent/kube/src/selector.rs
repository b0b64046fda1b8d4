use std::collections::BTreeMap;

use orlop_model::world::Labels;
use serde::Deserialize;

use crate::field::{FieldError, FieldPath, NotNull};

/// Istio's WorkloadSelector.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Selector {
    /// Labels that a workload must have, all of them. Without any, every workload of the namespace.
    match_labels: NotNull<BTreeMap<String, String>>,
}

/// The labels of `spec.selector`.
pub(crate) fn convert(selector: Option<Selector>) -> Result<Labels, FieldError> {
    convert_at(selector, &"spec.selector".into())
}

/// The same of another field.
pub(crate) fn convert_at(selector: Option<Selector>, field: &FieldPath) -> Result<Labels, FieldError> {
    let labels = selector.and_then(|selector| selector.match_labels.0).unwrap_or_default();
    for (key, value) in &labels {
        let path = || field.clone().key("matchLabels").key(key);
        if key.is_empty() {
            return Err(FieldError::new(path(), "has no key; write KEY: VALUE"));
        }
        if key.contains('*') || value.contains('*') {
            let problem = "holds a '*', which no label has; write the label in full, or no selector at all";
            return Err(FieldError::new(path(), problem));
        }
    }
    Ok(labels.into_iter().collect())
}
