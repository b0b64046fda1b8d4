//! Where requests show tokens, which no log, span or metric tells.

use std::borrow::Cow;

use http::{Uri, header::COOKIE};
use orlop_model::{Behind, Snapshot, http::without_parameter, world::TokenLocation};

/// Where the rules look for tokens that there are for a request when it comes.
#[derive(Debug, Default)]
pub(super) struct TokenPlaces(Vec<TokenLocation>);

impl TokenPlaces {
    pub(super) fn of(snapshot: &Snapshot, target: &Behind) -> Self {
        if !snapshot.routes().has_token_rules() {
            return Self::default();
        }
        let all = snapshot.routes().token_rules(target);
        let rules = all.iter().flat_map(|rules| &rules.rules);
        Self(rules.flat_map(|rule| rule.locations.iter().cloned()).collect())
    }

    /// Whether a header of this name may have one. Of cookies, all are in one.
    pub(super) fn has_header(&self, name: &str) -> bool {
        self.0.iter().any(|place| match place {
            TokenLocation::Header { name: of, .. } => name.eq_ignore_ascii_case(of),
            TokenLocation::Cookie(_) => name.eq_ignore_ascii_case(COOKIE.as_str()),
            TokenLocation::Parameter(_) => false,
        })
    }

    /// A path's query without them; `None` where nothing is left of it.
    pub(super) fn query<'a>(&self, uri: &'a Uri) -> Option<Cow<'a, str>> {
        let mut query = uri.query().map(Cow::Borrowed);
        for place in &self.0 {
            if let TokenLocation::Parameter(name) = place {
                query = query.and_then(|query| without_parameter(&query, name).map(Cow::Owned));
            }
        }
        query
    }

    /// A path with that.
    pub(super) fn path<'a>(&self, uri: &'a Uri) -> Cow<'a, str> {
        let path = uri.path();
        self.query(uri).map_or(Cow::Borrowed(path), |query| Cow::Owned(format!("{path}?{query}")))
    }
}

#[cfg(test)]
impl From<Vec<TokenLocation>> for TokenPlaces {
    fn from(places: Vec<TokenLocation>) -> Self {
        Self(places)
    }
}
