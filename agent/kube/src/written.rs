//! Objects as they are written.

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::field::NotNull;
use crate::read::Metadata;

/// An object that says who may do what, with this `spec`. A field that nobody reads could be the one that keeps somebody
/// out, so none is let pass.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, bound(deserialize = "Spec: Deserialize<'de>"))]
pub(crate) struct Written<Spec> {
    #[serde(rename = "apiVersion")]
    _api_version: IgnoredAny,
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    pub metadata: Metadata,
    #[serde(default)]
    pub spec: NotNull<Spec>,
    #[serde(rename = "status")]
    _status: Option<IgnoredAny>,
}
