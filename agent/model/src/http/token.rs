use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::Headers;
use crate::name::NamespacedName;
use crate::reason::Reason;
use crate::world::{JwtRule, TokenLocation};

/// Claims that hold several values, parted by spaces (RFC 8693, section 4.2, and Istio).
const SPACE_DELIMITED: [&str; 2] = ["scope", "permission"];

/// What verifies the tokens of one request.
pub trait Tokens {
    /// What the request's token says by these rules; `None` if there is none where they look for one. What is there and
    /// can't be believed is refused.
    fn verified(&self, rules: &Arc<TokenRules>) -> Result<Option<Arc<Claims>>, TokenRefused>;
}

/// Where there is no request, there are no tokens.
#[derive(Clone, Copy, Debug)]
pub struct NoTokens;

impl Tokens for NoTokens {
    fn verified(&self, _: &Arc<TokenRules>) -> Result<Option<Arc<Claims>>, TokenRefused> {
        Ok(None)
    }
}

/// Why a request is refused for its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRefused {
    /// For logs and metrics.
    pub reason: Reason,
    /// What is wrong with it, without anything of it.
    pub detail: String,
}

/// What the RequestAuthentications that are for the same say together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenRules {
    /// Whose tokens are taken.
    pub rules: Vec<Arc<JwtRule>>,
    /// One of them can't be understood: nothing passes.
    pub unreadable: Option<NamespacedName>,
}

/// The token of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presented {
    /// As it is written.
    pub token: String,
    /// Wherever it was.
    pub at: Vec<TokenLocation>,
}

impl TokenRules {
    /// The token that a request presents. Two that differ are refused: nobody could say whose request it is.
    pub fn presented(
        &self,
        headers: &dyn Headers,
        query: Option<&str>,
    ) -> Result<Option<Presented>, TokenRefused> {
        let mut found: Option<Presented> = None;
        for location in self.locations() {
            for token in self.tokens_at(location, headers, query) {
                match &mut found {
                    None => found = Some(Presented { token, at: vec![location.clone()] }),
                    Some(before) if before.token == token => before.at.push(location.clone()),
                    Some(_) => {
                        let detail = "there are two tokens that differ".to_owned();
                        return Err(TokenRefused { reason: Reason::InvalidToken, detail });
                    }
                }
            }
        }
        Ok(found)
    }

    /// The rules that look for tokens at one of these places.
    pub fn at<'a>(&'a self, places: &'a [TokenLocation]) -> impl Iterator<Item = &'a Arc<JwtRule>> {
        let looks = |rule: &&Arc<JwtRule>| rule.locations.iter().any(|location| places.contains(location));
        self.rules.iter().filter(looks)
    }

    /// The names of all headers that are the rules' to write: what a client has written there counts for nothing.
    pub fn output_headers(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().flat_map(|rule| {
            let claims = rule.claim_headers.iter().map(|of| of.header.as_str());
            rule.payload_header.as_deref().into_iter().chain(claims)
        })
    }

    /// Each place once.
    fn locations(&self) -> Vec<&TokenLocation> {
        let mut all: Vec<_> = self.rules.iter().flat_map(|rule| &rule.locations).collect();
        all.sort();
        all.dedup();
        all
    }

    fn tokens_at(&self, location: &TokenLocation, headers: &dyn Headers, query: Option<&str>) -> Vec<String> {
        let mut found: Vec<String> = match location {
            TokenLocation::Header { name, prefix } => {
                let values = headers.values(name);
                let ours = values.iter().filter(|value| self.longest_prefix(name, value) == Some(prefix));
                ours.map(|value| value[prefix.len()..].trim_matches(' ').to_owned()).collect()
            }
            TokenLocation::Parameter(name) => parameters(query.unwrap_or_default())
                .filter(|(_, of, _)| of == name)
                .map(|(_, _, value)| value.into_owned())
                .collect(),
            TokenLocation::Cookie(name) => headers
                .values("cookie")
                .iter()
                .flat_map(|line| cookies(line))
                .filter(|(_, of, _)| of == name)
                .map(|(_, _, value)| value.to_owned())
                .collect(),
        };
        found.retain(|token| !token.is_empty());
        found
    }

    /// Of the prefixes that some rule has for this header, the longest that the value has.
    fn longest_prefix(&self, name: &str, value: &str) -> Option<&String> {
        let headers =
            self.rules.iter().flat_map(|rule| &rule.locations).filter_map(|location| match location {
                TokenLocation::Header { name: of, prefix } if of == name => Some(prefix),
                _ => None,
            });
        let starts = |prefix: &&String| match value.get(..prefix.len()) {
            // Schemes are the same in either case (RFC 9110, section 11.1).
            Some(start) if name == "authorization" => start.eq_ignore_ascii_case(prefix),
            Some(start) => start == prefix.as_str(),
            None => false,
        };
        headers.filter(starts).max_by_key(|prefix| prefix.len())
    }
}

/// A query without its parameters of this name; `None` where nothing is left.
pub fn without_parameter(query: &str, name: &str) -> Option<String> {
    let kept: Vec<_> = parameters(query).filter(|(_, of, _)| of != name).map(|(text, ..)| text).collect();
    (!kept.is_empty()).then(|| kept.join("&"))
}

/// The value of a `Cookie` without cookies of this name; `None` where nothing is left.
pub fn without_cookie(line: &str, name: &str) -> Option<String> {
    let kept: Vec<_> = cookies(line).filter(|(_, of, _)| *of != name).map(|(text, ..)| text.trim()).collect();
    (!kept.is_empty()).then(|| kept.join("; "))
}

/// The parameters of a query as they are written, and their names and values decoded.
fn parameters(query: &str) -> impl Iterator<Item = (&str, Cow<'_, str>, Cow<'_, str>)> {
    query.split('&').filter(|text| !text.is_empty()).map(|text| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        (text, decoded(name), decoded(value))
    })
}

/// The cookies of a line as they are written, with their names and values.
fn cookies(line: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    line.split(';').filter(|text| !text.trim().is_empty()).map(|text| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let value = value.trim();
        let unquoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        (text, name.trim(), unquoted.unwrap_or(value))
    })
}

/// Percent-decoded; what is no escape stays.
fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let [first, after @ ..] = rest {
        let escape = after.get(..2).filter(|hex| *first == b'%' && hex.iter().all(u8::is_ascii_hexdigit));
        let byte = escape.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(byte.unwrap_or(if *first == b'+' { b' ' } else { *first }));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned().into()
}

/// A JSON value in a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// A string.
    Text(String),
    /// A number, as it was written or one that is equal.
    Number(String),
    /// `true` or `false`
    Bool(bool),
    /// An array.
    List(Vec<Claim>),
    /// An object.
    Object(BTreeMap<String, Claim>),
    /// `null`
    Null,
}

/// What a verified token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    all: BTreeMap<String, Claim>,
    principal: String,
    ambiguous: bool,
    space_delimited: Vec<String>,
}

/// What there is of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Values<'a> {
    Missing,
    /// The text, or each of several.
    Texts(Vec<&'a str>),
    /// Something that is no text.
    Other,
}

impl Claims {
    /// Of a token whose issuer this rule is for, one of `rules`.
    pub fn new(all: BTreeMap<String, Claim>, rule: &JwtRule, rules: &TokenRules) -> Self {
        let principal = match all.get("sub") {
            Some(Claim::Text(subject)) if !subject.is_empty() => format!("{}/{subject}", rule.issuer),
            _ => String::new(),
        };
        // `a` with the subject `b/c` must not be taken for `a/b` with the subject `c`.
        let is_other = |of: &Arc<JwtRule>| {
            let rest = principal.strip_prefix(of.issuer.as_str());
            of.issuer != rule.issuer && rest.is_some_and(|rest| rest.starts_with('/'))
        };
        let ambiguous = rules.rules.iter().any(is_other);
        let space_delimited = SPACE_DELIMITED.iter().map(|&name| name.to_owned());
        let space_delimited = space_delimited.chain(rule.space_delimited.iter().cloned()).collect();
        Self { all, principal, ambiguous, space_delimited }
    }

    /// `ISSUER/SUBJECT`; empty without a subject. `None` where it could be read as that of another issuer.
    pub fn principal(&self) -> Option<&str> {
        (!self.ambiguous).then_some(self.principal.as_str())
    }

    /// A claim, or one within claims, whose names are parted by dots. A name that has dots itself comes first.
    pub fn at_dotted(&self, path: &str) -> Option<&Claim> {
        fn find<'c>(of: &'c BTreeMap<String, Claim>, path: &str) -> Option<&'c Claim> {
            if let Some(claim) = of.get(path) {
                return Some(claim);
            }
            path.match_indices('.').find_map(|(dot, _)| match of.get(&path[..dot]) {
                Some(Claim::Object(inner)) => find(inner, &path[dot + 1..]),
                _ => None,
            })
        }
        find(&self.all, path)
    }

    /// What the claim of these names has, in one text, if it is something that can be written in one.
    pub(crate) fn text(&self, names: &[String]) -> Option<String> {
        fn text(claim: &Claim) -> Option<String> {
            match claim {
                Claim::Text(text) | Claim::Number(text) => Some(text.clone()),
                Claim::Bool(is) => Some(is.to_string()),
                Claim::List(list) => Some(list.iter().map(text).collect::<Option<Vec<_>>>()?.join(",")),
                Claim::Object(_) | Claim::Null => None,
            }
        }
        text(self.at(names)?)
    }

    fn at(&self, names: &[String]) -> Option<&Claim> {
        let [first, nested @ ..] = names else { return None };
        nested.iter().try_fold(self.all.get(first)?, |claim, name| match claim {
            Claim::Object(inner) => inner.get(name),
            _ => None,
        })
    }

    /// What the claim of these names has.
    pub(crate) fn values(&self, names: &[String]) -> Values<'_> {
        let [first, nested @ ..] = names else { return Values::Missing };
        match self.at(names) {
            None | Some(Claim::Null) => Values::Missing,
            Some(Claim::Text(text)) if nested.is_empty() && self.space_delimited.contains(first) => {
                Values::Texts(text.split(' ').filter(|part| !part.is_empty()).collect())
            }
            Some(Claim::Text(text)) => Values::Texts(vec![text]),
            Some(Claim::List(list)) => {
                let texts = list.iter().map(|of| match of {
                    Claim::Text(text) => Some(text.as_str()),
                    _ => None,
                });
                texts.collect::<Option<_>>().map_or(Values::Other, Values::Texts)
            }
            Some(Claim::Number(_) | Claim::Bool(_) | Claim::Object(_)) => Values::Other,
        }
    }
}
