use std::collections::BTreeMap;

use crate::http::Claim;
use crate::json;

/// A key set may be this long, in bytes.
pub const MAX_KEY_SET: usize = 256 << 10;
/// A set of more keys is refused.
pub const MAX_KEYS: usize = 100;
/// Values in one.
const MAX_VALUES: usize = 10_000;

/// A text is no key set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// Too long.
    #[error("it is longer than {MAX_KEY_SET} bytes")]
    TooLong,
    /// Not JSON, or not such as can be read in one way only.
    #[error("it {0}")]
    Json(String),
    /// Something else.
    #[error("it has no list of keys, written {{\"keys\": […]}}")]
    NoKeys,
    /// Too many.
    #[error("it has more than {MAX_KEYS} keys")]
    TooMany,
}

/// What a JSON Web Key Set (RFC 7517, section 5) has as keys, of whatever type. What is no key at all is passed over, as
/// are later those that nobody knows.
pub fn keys_of(text: &[u8]) -> Result<Vec<BTreeMap<String, Claim>>, KeySetError> {
    if text.len() > MAX_KEY_SET {
        return Err(KeySetError::TooLong);
    }
    let mut set = json::object(text, MAX_VALUES).map_err(KeySetError::Json)?;
    let Some(Claim::List(keys)) = set.remove("keys") else { return Err(KeySetError::NoKeys) };
    if keys.len() > MAX_KEYS {
        return Err(KeySetError::TooMany);
    }
    let keys = keys.into_iter().filter_map(|key| match key {
        Claim::Object(key) => Some(key),
        _ => None,
    });
    Ok(keys.collect())
}
