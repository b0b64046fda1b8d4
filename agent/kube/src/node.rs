use orlop_model::Text;
use orlop_model::world::Node;

use crate::field::FieldError;
use crate::metadata::{name, subdomain};
use crate::read;

/// Converts a `v1` Node, with its name.
pub(crate) fn convert(node: read::Node) -> Result<(Text, Node), FieldError> {
    let name = Text::from(name(&node.metadata)?);
    subdomain(&name, "metadata.name")?;
    // Of the kinds of address, host names are none.
    let addresses = node.status.and_then(|status| status.addresses).unwrap_or_default();
    let addresses = addresses.iter().filter_map(|entry| entry.address.parse().ok()).collect();
    Ok((name, Node { labels: node.metadata.labels.unwrap_or_default(), addresses }))
}
