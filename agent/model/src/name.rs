use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::text::Text;

/// Names an object of a namespaced kind; written `namespace/name`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedName {
    /// The namespace.
    pub namespace: Text,
    /// The name within the namespace.
    pub name: Text,
}

impl NamespacedName {
    /// Makes a name of its two parts.
    pub fn new(namespace: impl Into<Text>, name: impl Into<Text>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The name, if it may be that of an object. For what strangers ask for, so that it is not kept.
    pub(crate) fn known(namespace: &str, name: &str) -> Option<Self> {
        Some(Self { namespace: Text::known(namespace)?, name: Text::known(name)? })
    }
}

impl fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for NamespacedName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self::new(namespace, name))
            }
            _ => Err(NameError(text.to_owned())),
        }
    }
}

impl Serialize for NamespacedName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NamespacedName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Whether Kubernetes would take it for an object's: files and paths of the API are made of it.
pub(crate) fn is_object_name(name: &str) -> bool {
    let is_fit = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    !name.starts_with('.') && (1..=253).contains(&name.len()) && name.bytes().all(is_fit)
}

/// The text is not `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a namespaced name: write NAMESPACE/NAME, such as default/web")]
pub struct NameError(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_parses_back() {
        let name = NamespacedName::new("shop", "web");
        assert_eq!(name.to_string(), "shop/web");
        assert_eq!("shop/web".parse(), Ok(name));
    }

    #[test]
    fn anything_but_two_parts_is_refused() {
        for text in ["", "web", "/web", "shop/", "a/b/c"] {
            assert!(text.parse::<NamespacedName>().is_err(), "{text}");
        }
    }
}
