//! JSON Web Tokens (RFC 7519), signed (RFC 7515) with public keys: what one says of its bearer, if it can be believed.
//!
//! What a token says of how to verify it is believed no further than it must be: `alg` only picks among what a key is
//! for, `kid` only among the issuer's keys, and `jwk`, `jku`, `x5c` and `x5u` are read by nobody.

mod address;
mod fetch;
mod keys;
mod source;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use orlop_model::Reason;
use orlop_model::http::{Claim, Claims, Presented, TokenRefused, TokenRules};
use orlop_model::world::{Algorithm, JwtRule, KeySource};
use orlop_model::{base64, json};

pub use fetch::{FetchError, Resolve, Resolving, read_roots};
pub use keys::KeySet;
pub use source::{KeyFetches, KeySources};

/// A token may be this long.
pub const MAX_TOKEN: usize = 16 << 10;
/// Its header may.
const MAX_HEADER: usize = 4 << 10;
/// Values in its header or its claims.
const MAX_VALUES: usize = 1000;
/// How many keys are tried.
const MAX_TRIES: usize = 16;
/// How far clocks may be apart (Envoy's and gRPC's).
const LEEWAY: Duration = Duration::from_secs(60);

/// Where keys are from.
pub trait Keys {
    /// The keys of this source as they are now; else why there are none.
    fn of(&self, source: &KeySource) -> Result<Arc<KeySet>, String>;

    /// A token names a key that its source is not known to have.
    fn unknown(&self, source: &KeySource);
}

/// A token that can be believed.
#[derive(Clone, Debug)]
pub struct Verified {
    /// What it says.
    pub claims: Arc<Claims>,
    /// The rule by which it is taken.
    pub rule: Arc<JwtRule>,
    /// What it says, as it is written in it.
    pub payload: String,
}

/// Why a token can't be believed. Nothing of it is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Too long.
    #[error("it is longer than {MAX_TOKEN} bytes")]
    TooLong,
    /// Not of the form `HEADER.CLAIMS.SIGNATURE`.
    #[error("it is not three parts of base64url, parted by dots")]
    Form,
    /// A part of it.
    #[error("its {part} {problem}")]
    Json {
        /// Which.
        part: &'static str,
        /// What is the matter.
        problem: String,
    },
    /// `none`, HMAC, or something new.
    #[error("its algorithm is none that is taken")]
    Algorithm,
    /// `crit` or `b64`.
    #[error("its header asks for something that is not understood")]
    Critical,
    /// Of the wrong type.
    #[error("its {0} is not what it should be")]
    Claim(&'static str),
    /// No rule is for it.
    #[error("nobody takes tokens of its issuer there")]
    Issuer,
    /// For somebody else.
    #[error("it is for none of the audiences")]
    Audience,
    /// `exp` is over.
    #[error("it has expired")]
    Expired,
    /// `nbf` is yet to come.
    #[error("it is not valid yet")]
    NotYet,
    /// No key fits.
    #[error("its issuer has no such key")]
    Key,
    /// By whatever key.
    #[error("its signature is wrong")]
    Signature,
    /// There are no keys.
    #[error("the keys of its issuer can't be had: {0}")]
    NoKeys(String),
}

impl From<TokenError> for TokenRefused {
    fn from(error: TokenError) -> Self {
        let reason = match error {
            TokenError::NoKeys(_) => Reason::TokenKeysUnavailable,
            _ => Reason::InvalidToken,
        };
        Self { reason, detail: format!("the token is refused: {error}") }
    }
}

/// Decides whether a token can be believed, by the rules that look for one where it was.
pub fn verify(
    presented: &Presented,
    rules: &TokenRules,
    keys: &dyn Keys,
    now: SystemTime,
) -> Result<Verified, TokenError> {
    let token = Token::read(&presented.token)?;
    let of_issuer = rules.at(&presented.at).filter(|rule| rule.issuer == token.issuer);
    let mut failed = TokenError::Issuer;
    for rule in of_issuer {
        match token.check(rule, keys, now) {
            Ok(()) => {
                let claims = Claims::new(token.claims, rule, rules);
                let payload = token.payload.to_owned();
                return Ok(Verified { claims: Arc::new(claims), rule: Arc::clone(rule), payload });
            }
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// What a token says, as JSON, if it is of `issuer`, for `audience` and signed by one of these keys. It must end some
/// day.
pub fn verify_with(
    token: &str,
    issuer: &str,
    audience: &str,
    keys: &KeySet,
    now: SystemTime,
) -> Result<Vec<u8>, TokenError> {
    let token = Token::read(token)?;
    if token.issuer != issuer {
        return Err(TokenError::Issuer);
    }
    token.check_signature(keys)?;
    if !token.audiences.iter().any(|of| of == audience) {
        return Err(TokenError::Audience);
    }
    if token.time("exp")?.is_none() {
        return Err(TokenError::Claim("exp"));
    }
    token.check_time(now)?;
    base64::decode(token.payload.as_bytes()).ok_or(TokenError::Form)
}

/// A token that is well-formed, of which nothing is believed.
struct Token<'t> {
    algorithm: Algorithm,
    key_id: Option<String>,
    /// What is signed.
    message: &'t str,
    payload: &'t str,
    signature: Vec<u8>,
    issuer: String,
    audiences: Vec<String>,
    claims: BTreeMap<String, Claim>,
}

impl<'t> Token<'t> {
    fn read(token: &'t str) -> Result<Self, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::TooLong);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Form)?;
        let (header, payload) = message.split_once('.').ok_or(TokenError::Form)?;
        if header.len() > MAX_HEADER {
            return Err(TokenError::TooLong);
        }
        let part = |name: &'static str, text: &str| {
            let bytes = base64::decode(text.as_bytes()).ok_or(TokenError::Form)?;
            json::object(&bytes, MAX_VALUES).map_err(|problem| TokenError::Json { part: name, problem })
        };
        let header = part("header", header)?;
        // RFC 7515, section 4.1.11: what is not understood must not be passed over.
        if header.contains_key("crit") || header.contains_key("b64") {
            return Err(TokenError::Critical);
        }
        let algorithm = match header.get("alg") {
            Some(Claim::Text(name)) => Algorithm::named(name).ok_or(TokenError::Algorithm)?,
            _ => return Err(TokenError::Algorithm),
        };
        let key_id = match header.get("kid") {
            None => None,
            Some(Claim::Text(id)) => Some(id.clone()),
            Some(_) => return Err(TokenError::Claim("kid")),
        };
        let claims = part("claims", payload)?;
        let issuer = match claims.get("iss") {
            Some(Claim::Text(issuer)) => issuer.clone(),
            _ => return Err(TokenError::Claim("iss")),
        };
        if !matches!(claims.get("sub"), None | Some(Claim::Text(_))) {
            return Err(TokenError::Claim("sub"));
        }
        let signature = base64::decode(signature.as_bytes()).ok_or(TokenError::Form)?;
        let audiences = audiences(claims.get("aud"))?;
        Ok(Self { algorithm, key_id, message, payload, signature, issuer, audiences, claims })
    }

    fn check(&self, rule: &JwtRule, keys: &dyn Keys, now: SystemTime) -> Result<(), TokenError> {
        let set = keys.of(&rule.keys).map_err(TokenError::NoKeys)?;
        self.check_signature(&set).inspect_err(|error| {
            if *error == TokenError::Key {
                keys.unknown(&rule.keys);
            }
        })?;
        if !rule.audiences.is_empty() && !self.audiences.iter().any(|of| rule.audiences.contains(of)) {
            return Err(TokenError::Audience);
        }
        self.check_time(now)
    }

    fn check_time(&self, now: SystemTime) -> Result<(), TokenError> {
        let now = now.duration_since(UNIX_EPOCH).map_err(|_| TokenError::NotYet)?;
        // As Istio has it, one without a time is for ever.
        if self.time("exp")?.is_some_and(|expiry| now.as_secs_f64() >= expiry + LEEWAY.as_secs_f64()) {
            return Err(TokenError::Expired);
        }
        if self.time("nbf")?.is_some_and(|start| now.as_secs_f64() + LEEWAY.as_secs_f64() < start) {
            return Err(TokenError::NotYet);
        }
        Ok(())
    }

    fn check_signature(&self, set: &KeySet) -> Result<(), TokenError> {
        let mut candidates =
            set.candidates(self.key_id.as_deref(), self.algorithm).take(MAX_TRIES).peekable();
        if candidates.peek().is_none() {
            return Err(TokenError::Key);
        }
        let message = self.message.as_bytes();
        if candidates.any(|key| key.verifies(self.algorithm, message, &self.signature)) {
            return Ok(());
        }
        Err(TokenError::Signature)
    }

    /// A NumericDate: seconds since 1970.
    fn time(&self, name: &'static str) -> Result<Option<f64>, TokenError> {
        match self.claims.get(name) {
            None => Ok(None),
            Some(Claim::Number(number)) => match number.parse::<f64>() {
                Ok(seconds) if seconds.is_finite() => Ok(Some(seconds)),
                _ => Err(TokenError::Claim(name)),
            },
            Some(_) => Err(TokenError::Claim(name)),
        }
    }
}

fn audiences(claim: Option<&Claim>) -> Result<Vec<String>, TokenError> {
    let wrong = || TokenError::Claim("aud");
    match claim {
        None => Ok(Vec::new()),
        Some(Claim::Text(audience)) => Ok(vec![audience.clone()]),
        Some(Claim::List(list)) => {
            let texts = list.iter().map(|of| match of {
                Claim::Text(audience) => Ok(audience.clone()),
                _ => Err(wrong()),
            });
            texts.collect()
        }
        Some(_) => Err(wrong()),
    }
}
