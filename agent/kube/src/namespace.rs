use orlop_model::world::Namespace;

use crate::field::FieldError;
use crate::metadata::{label, name};
use crate::read;

/// Converts a `v1` Namespace, with its name.
pub(crate) fn convert(namespace: read::Namespace) -> Result<(String, Namespace), FieldError> {
    let name = name(&namespace.metadata)?.to_owned();
    label(&name, "metadata.name")?;
    Ok((name, Namespace { labels: namespace.metadata.labels.unwrap_or_default() }))
}
