use std::fmt;
use std::ops::Index;
use std::sync::{Arc, LazyLock};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, Serializer};

use crate::text::{Pool, Text};

/// Labels or annotations, sorted by key. In memory once, as the pods of one template have the same; read like a
/// [`BTreeMap`](std::collections::BTreeMap).
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Labels(Option<Arc<Entries>>);

/// Sorted by key, of which each is there once.
type Entries = Vec<(Text, Text)>;

impl Labels {
    /// None.
    pub const fn new() -> Self {
        Self(None)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries().is_empty()
    }

    /// The value of the key.
    pub fn get(&self, key: &str) -> Option<&Text> {
        let entries = self.entries();
        let at = entries.binary_search_by(|(found, _)| found.as_str().cmp(key)).ok()?;
        entries.get(at).map(|(_, value)| value)
    }

    /// Whether the key has a value.
    pub fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// All of them.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&Text, &Text)> + ExactSizeIterator + Clone {
        self.entries().iter().map(|(key, value)| (key, value))
    }

    /// All keys.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &Text> + ExactSizeIterator + Clone {
        self.iter().map(|(key, _)| key)
    }

    /// Gives the key a value.
    pub fn insert(&mut self, key: impl Into<Text>, value: impl Into<Text>) {
        self.extend([(key, value)]);
    }

    fn entries(&self) -> &[(Text, Text)] {
        self.0.as_ref().map_or(&[], |entries| entries)
    }
}

/// Of several values of one key the last counts.
impl<K: Into<Text>, V: Into<Text>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(labels: I) -> Self {
        static KNOWN: LazyLock<Pool<Arc<Entries>>> = LazyLock::new(Pool::of_shared);
        let mut entries: Entries =
            labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        entries.reverse();
        entries.sort_by(|(one, _), (other, _)| one.cmp(other));
        entries.dedup_by(|(one, _), (other, _)| one == other);
        entries.shrink_to_fit();
        Self((!entries.is_empty()).then(|| KNOWN.get::<Entries, _>(entries, Arc::new)))
    }
}

impl<K: Into<Text>, V: Into<Text>> Extend<(K, V)> for Labels {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, labels: I) {
        let own = self.entries().iter().cloned();
        *self = own.chain(labels.into_iter().map(|(key, value)| (key.into(), value.into()))).collect();
    }
}

impl<K: Into<Text>, V: Into<Text>, const N: usize> From<[(K, V); N]> for Labels {
    fn from(labels: [(K, V); N]) -> Self {
        labels.into_iter().collect()
    }
}

impl<'a> IntoIterator for &'a Labels {
    type Item = &'a (Text, Text);
    type IntoIter = std::slice::Iter<'a, (Text, Text)>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries().iter()
    }
}

impl Index<&str> for Labels {
    type Output = Text;

    /// Panics where the key has no value.
    fn index(&self, key: &str) -> &Text {
        match self.get(key) {
            Some(value) => value,
            None => panic!("no label {key}"),
        }
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl Serialize for Labels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfMap;
        impl<'de> Visitor<'de> for OfMap {
            type Value = Labels;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Labels, A::Error> {
                let mut entries = Vec::<(Text, Text)>::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(entries.into_iter().collect())
            }
        }
        deserializer.deserialize_map(OfMap)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn they_are_what_a_btree_map_of_them_is(
            given in prop::collection::vec(("[a-d]", "[a-c]"), 0..8), key in "[a-e]", value in "[a-c]",
        ) {
            let mut reference: BTreeMap<_, _> = given.iter().cloned().collect();
            let mut labels: Labels = given.into_iter().collect();
            let shown = |labels: &Labels| serde_json::to_value(labels).unwrap();
            prop_assert_eq!(shown(&labels), serde_json::to_value(&reference).unwrap());
            prop_assert_eq!(labels.get(&key).map(Text::as_str), reference.get(&key).map(String::as_str));
            let before = labels.clone();
            let then = shown(&before);
            labels.insert(key.as_str(), value.as_str());
            reference.insert(key, value);
            prop_assert_eq!(shown(&labels), serde_json::to_value(&reference).unwrap());
            prop_assert_eq!(&serde_json::from_value::<Labels>(shown(&labels)).unwrap(), &labels);
            prop_assert_eq!(shown(&before), then);
            prop_assert_eq!((labels.len(), labels.is_empty()), (reference.len(), false));
        }
    }

    #[test]
    fn equal_ones_are_kept_once() {
        let labels = || Labels::from([("app", "web"), ("version", "v1")]);
        let (one, mut other) = (labels(), labels());
        assert!(std::ptr::eq(one.entries(), other.entries()));
        other.insert("app", "shop");
        assert_eq!((&*one["app"], &*other["app"]), ("web", "shop"));
    }
}
