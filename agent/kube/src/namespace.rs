use orlop_model::Text;
use orlop_model::world::Namespace;

use crate::field::FieldError;
use crate::metadata::{label, name};
use crate::read;

/// Converts a `v1` Namespace, with its name.
pub(crate) fn convert(namespace: read::Namespace) -> Result<(Text, Namespace), FieldError> {
    let name = Text::from(name(&namespace.metadata)?);
    label(&name, "metadata.name")?;
    Ok((name, Namespace { labels: namespace.metadata.labels.unwrap_or_default() }))
}
