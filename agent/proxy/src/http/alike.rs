//! What is alike of requests, and so goes to one endpoint.

use std::hash::{DefaultHasher, Hash, Hasher};

use http::{HeaderMap, header::COOKIE};
use orlop_model::world::routing::HashOn;

use super::session::Session;

/// What is alike of a request, as its destination's policy says; a cookie that is to be made, where there is none.
pub(super) fn hash_on(
    on: &HashOn,
    session: &Session,
    headers: &HeaderMap,
    query: Option<&str>,
) -> (Option<u64>, Option<String>) {
    match on {
        HashOn::Header(name) => (headers.get(name).map(|value| hash_of(&value.as_bytes())), None),
        HashOn::Source => (Some(hash_of(&session.client.ip())), None),
        HashOn::Query(name) => {
            let pairs = query.into_iter().flat_map(|query| query.split('&'));
            let mut pairs = pairs.filter_map(|pair| pair.split_once('='));
            (pairs.find(|(key, _)| key == name).map(|(_, value)| hash_of(&value)), None)
        }
        HashOn::Cookie { name, path, ttl, attributes } => {
            let lines = headers.get_all(COOKIE).into_iter().filter_map(|value| value.to_str().ok());
            let mut cookies =
                lines.flat_map(|line| line.split(';')).filter_map(|one| one.trim().split_once('='));
            if let Some((_, value)) = cookies.find(|(key, _)| key == name) {
                return (Some(hash_of(&value)), None);
            }
            let Some(ttl) = ttl else { return (None, None) };
            let value = format!("{:016x}", fastrand::u64(..));
            let mut cookie = format!("{name}={value}");
            // A time of 0 means until the browser is closed.
            if !ttl.is_zero() {
                cookie += &format!("; Max-Age={}", ttl.as_secs());
            }
            if let Some(path) = path {
                cookie += &format!("; Path={path}");
            }
            for (name, value) in attributes {
                cookie += &match value {
                    Some(value) => format!("; {name}={value}"),
                    None => format!("; {name}"),
                };
            }
            (Some(hash_of(&value.as_str())), Some(cookie + "; HttpOnly"))
        }
    }
}

/// The same in every process of one version.
fn hash_of(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}
