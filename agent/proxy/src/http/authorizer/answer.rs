use http::{HeaderMap, HeaderName, HeaderValue};

use super::super::{
    HttpLimits,
    failure::Extra,
    headers::{is_unfit, remove},
};

/// What a provider says.
pub(super) enum Answer {
    Allowed {
        to_server: Changes,
        to_client: Changes,
    },
    Denied {
        extra: Extra,
        /// For the log.
        why: String,
    },
    /// It would let the request pass, but not as it is, and otherwise it can't be. Nobody who fails open means that.
    Unfit(String),
}

/// What becomes of headers. Of what nobody may change there is nothing in it.
#[derive(Clone, Default)]
pub(super) struct Changes {
    remove: Vec<HeaderName>,
    set: Vec<(HeaderName, HeaderValue, How)>,
}

/// As Envoy's `HeaderAppendAction` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Append,
    IfAbsent,
    Overwrite,
    IfPresent,
}

impl Changes {
    /// Takes a header out, if that can be.
    pub(super) fn remove(&mut self, name: HeaderName) {
        if !is_unfit(&name) {
            self.remove.push(name);
        }
    }

    /// Sets a header, if that can be.
    pub(super) fn set(&mut self, name: HeaderName, value: HeaderValue, how: How) {
        if !is_unfit(&name) {
            self.set.push((name, value, how));
        }
    }

    /// Whether there is room for what it adds to these headers.
    pub(super) fn fits(&self, headers: &HeaderMap, limits: &HttpLimits) -> bool {
        let size = |name: &HeaderName, value: &HeaderValue| name.as_str().len() + value.len();
        let own: usize = self.set.iter().map(|(name, value, _)| size(name, value)).sum();
        let before: usize = headers.iter().map(|(name, value)| size(name, value)).sum();
        headers.len() + self.set.len() <= limits.max_headers && before + own <= limits.max_header_size
    }

    pub(super) fn apply(&self, headers: &mut HeaderMap) {
        self.remove.iter().for_each(|name| remove(headers, name.as_str()));
        for (name, value, how) in &self.set {
            let is_there = headers.contains_key(name);
            match how {
                How::Append => drop(headers.append(name, value.clone())),
                How::IfAbsent if is_there => {}
                How::IfPresent if !is_there => {}
                How::Overwrite | How::IfAbsent | How::IfPresent => {
                    // Also where the client has written it in a way that some servers take for the same.
                    remove(headers, name.as_str());
                    headers.insert(name, value.clone());
                }
            }
        }
    }
}
