use orlop_model::NamespacedName;

use crate::field::FieldError;
use crate::read::Metadata;

const DEFAULT_NAMESPACE: &str = "default";

/// The name of an object of a namespaced kind.
///
/// Both parts are checked as Kubernetes does: they go into identities, host names and metrics.
pub(crate) fn namespaced(metadata: &Metadata) -> Result<NamespacedName, FieldError> {
    let namespace = metadata.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or(DEFAULT_NAMESPACE);
    label(namespace, "metadata.namespace")?;
    let name = name(metadata)?;
    subdomain(name, "metadata.name")?;
    Ok(NamespacedName::new(namespace, name))
}

/// The name of an object of any kind, unchecked.
pub(crate) fn name(metadata: &Metadata) -> Result<&str, FieldError> {
    match metadata.name.as_deref() {
        None | Some("") => Err(FieldError::new("metadata.name", "is missing; give the object a name")),
        Some(name) => Ok(name),
    }
}

/// Checks an RFC 1123 label.
pub(crate) fn label(text: &str, path: &str) -> Result<(), FieldError> {
    if text.len() <= 63 && is_label(text) {
        return Ok(());
    }
    let rule = "lower-case letters, digits and '-', at most 63";
    Err(FieldError::new(path, format!("{text:?} is not a valid name: use {rule}")))
}

/// Checks an RFC 1123 subdomain.
pub(crate) fn subdomain(text: &str, path: &str) -> Result<(), FieldError> {
    if text.len() <= 253 && text.split('.').all(is_label) {
        return Ok(());
    }
    let rule = "lower-case letters, digits, '-' and '.', at most 253";
    Err(FieldError::new(path, format!("{text:?} is not a valid name: use {rule}")))
}

fn is_label(text: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b != b'-');
    edge(text.bytes().next())
        && edge(text.bytes().next_back())
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_break_an_identity_are_refused() {
        for bad in ["", "a/b", "A", "a b", "-a", "a-", ".", "..", "a..b", "a%2fb", "é", &"a".repeat(254)] {
            assert!(subdomain(bad, "x").is_err(), "{bad:?}");
        }
        assert!(subdomain("web-0.v1", "x").is_ok());
        assert!(label("web.v1", "x").is_err());
        assert!(label(&"a".repeat(64), "x").is_err());
    }

    #[test]
    fn the_namespace_is_default_where_absent() {
        let metadata = Metadata { name: Some("web".into()), ..Metadata::default() };
        assert_eq!(namespaced(&metadata).unwrap().to_string(), "default/web");
        assert!(namespaced(&Metadata::default()).is_err());
    }
}
