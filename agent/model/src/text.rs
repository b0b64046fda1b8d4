use std::borrow::Borrow;
use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;
use std::ops::Deref;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};

/// A text that never changes and is in memory once, however many objects have it: most of what pods say of themselves
/// others say as well. Cheap to clone; read like a `str`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Text(Arc<str>);

static KNOWN: LazyLock<Pool<str>> = LazyLock::new(Pool::default);

impl Text {
    /// The text, if anything has it. For what strangers ask for, so that it is not kept.
    pub fn known(text: &str) -> Option<Self> {
        KNOWN.find(text).map(Self)
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
        Self(KNOWN.get(text))
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
pub(crate) struct Pool<T: ?Sized>(Mutex<Known<T>>);

struct Known<T: ?Sized> {
    values: HashSet<Arc<T>>,
    /// With so many it is time for a look.
    look_at: usize,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self(Mutex::new(Known { values: HashSet::new(), look_at: 1024 }))
    }
}

impl<T: ?Sized + Eq + Hash> Pool<T> {
    /// The one that is equal to this, if there is one.
    pub fn find(&self, of: &T) -> Option<Arc<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values.get(of).cloned()
    }

    /// The one that is equal to this, which it is itself if there was none.
    pub fn get(&self, of: impl Borrow<T> + Into<Arc<T>>) -> Arc<T> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = known.values.get(of.borrow()) {
            return Arc::clone(same);
        }
        if known.values.len() >= known.look_at {
            known.values.retain(|value| Arc::strong_count(value) > 1);
            known.look_at = (2 * known.values.len()).max(1024);
        }
        let new = of.into();
        known.values.insert(Arc::clone(&new));
        new
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.lock().unwrap().values.len()
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
        let pool = Pool::<str>::default();
        let kept: Vec<_> = (0..100).map(|number| pool.get(&*format!("kept {number}"))).collect();
        for number in 0..100_000 {
            pool.get(&*format!("dropped {number}"));
            assert!(pool.len() <= 1024);
        }
        for text in &kept {
            assert!(Arc::ptr_eq(text, &pool.get(&**text)));
        }
    }
}
