use std::borrow::Borrow;
use std::collections::HashSet;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};

/// A text that never changes and is in memory once, however many objects have it: most of what pods say of themselves
/// others say as well. Cheap to clone; read like a `str`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Text(
    /// One word, where an `Arc<str>` has two: there are more that have a text than there are texts.
    Arc<Box<str>>,
);

static KNOWN: LazyLock<Pool<Text>> =
    LazyLock::new(|| Pool::new(|text: &Text| Arc::strong_count(&text.0) > 1));

impl Text {
    /// The text, if anything has it. For what strangers ask for, so that it is not kept.
    pub fn known(text: &str) -> Option<Self> {
        KNOWN.find(text)
    }

    /// The text itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Text {
    fn default() -> Self {
        Self::from("")
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        KNOWN.get::<str, _>(text, |text| Self(Arc::new(text.into())))
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<&String> for Text {
    fn from(text: &String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<&Text> for Text {
    fn from(text: &Text) -> Self {
        text.clone()
    }
}

impl From<Text> for String {
    fn from(text: Text) -> Self {
        text.as_str().to_owned()
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// As that of the `str`.
impl Hash for Text {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl Borrow<str> for Text {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Text {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for Text {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for Text {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl PartialEq<String> for Text {
    fn eq(&self, other: &String) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<Text> for str {
    fn eq(&self, other: &Text) -> bool {
        self == other.as_str()
    }
}

impl PartialEq<Text> for &str {
    fn eq(&self, other: &Text) -> bool {
        *self == other.as_str()
    }
}

impl PartialEq<Text> for String {
    fn eq(&self, other: &Text) -> bool {
        self == other.as_str()
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfText;
        impl Visitor<'_> for OfText {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
                Ok(text.into())
            }
        }
        deserializer.deserialize_str(OfText)
    }
}

/// Values that are kept once. What nobody else has any more is let go when there are twice as many as at the last look.
pub(crate) struct Pool<T> {
    known: Mutex<Known<T>>,
    is_shared: fn(&T) -> bool,
}

struct Known<T> {
    values: HashSet<T>,
    /// With so many it is time for a look.
    look_at: usize,
}

impl<T: Clone + Eq + Hash> Pool<T> {
    /// Of values of which `is_shared` says whether anybody has a clone.
    pub fn new(is_shared: fn(&T) -> bool) -> Self {
        Self { known: Mutex::new(Known { values: HashSet::new(), look_at: 1024 }), is_shared }
    }

    /// The one that is equal to this, if there is one.
    pub fn find<Q: Eq + Hash + ?Sized>(&self, of: &Q) -> Option<T>
    where
        T: Borrow<Q>,
    {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).values.get(of).cloned()
    }

    /// The one that is equal to this, made of it if there was none.
    pub fn get<Q: Eq + Hash + ?Sized, S: Borrow<Q>>(&self, of: S, make: impl FnOnce(S) -> T) -> T
    where
        T: Borrow<Q>,
    {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = known.values.get(of.borrow()) {
            return same.clone();
        }
        if known.values.len() >= known.look_at {
            known.values.retain(self.is_shared);
            known.look_at = (2 * known.values.len()).max(1024);
        }
        let new = make(of);
        known.values.insert(new.clone());
        new
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.known.lock().unwrap().values.len()
    }
}

impl<T: Eq + Hash> Pool<Arc<T>> {
    /// Of shared values.
    pub fn of_shared() -> Self {
        Self::new(|value| Arc::strong_count(value) > 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_are_one() {
        let (one, other) = (Text::from("a text of this test"), Text::from("a text of this test".to_owned()));
        assert!(std::ptr::eq(one.as_str(), other.as_str()));
        assert_ne!(one, Text::from("another text of this test"));
    }

    #[test]
    fn to_ask_for_a_text_does_not_keep_it() {
        assert_eq!(Text::known("a text that nothing has"), None);
        assert_eq!(Text::known("a text that nothing has"), None);
        let text = Text::from("a text that this test has");
        assert_eq!(Text::known("a text that this test has"), Some(text));
    }

    #[test]
    fn what_nobody_has_is_let_go() {
        let pool = Pool::<Arc<String>>::of_shared();
        let get = |text: String| pool.get::<String, _>(text, Arc::new);
        let kept: Vec<_> = (0..100).map(|number| get(format!("kept {number}"))).collect();
        for number in 0..100_000 {
            get(format!("dropped {number}"));
            assert!(pool.len() <= 1024);
        }
        for text in &kept {
            assert!(Arc::ptr_eq(text, &get(text.to_string())));
        }
    }
}
