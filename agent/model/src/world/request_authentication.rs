use std::sync::Arc;
use std::time::Duration;

use super::Labels;
use super::security::Target;
use crate::name::NamespacedName;

/// A `security.istio.io` RequestAuthentication.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestAuthentication {
    /// Namespace and name.
    pub name: NamespacedName,
    /// `spec.selector.matchLabels`: of workloads, by which no waypoint goes.
    pub selector: Labels,
    /// `spec.targetRefs`
    pub targets: Vec<Target>,
    /// `spec.jwtRules`
    pub rules: Vec<Arc<JwtRule>>,
    /// It is not known what it says: nothing may pass where it is for, which is its scope if there are no targets.
    pub unreadable: bool,
}

/// An entry of `spec.jwtRules`: whose tokens are taken, from where, and what becomes of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtRule {
    /// `issuer`, which a token's `iss` must be, never empty.
    pub issuer: String,
    /// `audiences`, one of which must be in a token's `aud`; empty for any.
    pub audiences: Vec<String>,
    /// Where the keys are from.
    pub keys: KeySource,
    /// Where a token may be: `fromHeaders`, `fromParams`, `fromCookies`; where there are none of these, as RFC 6750
    /// has it.
    pub locations: Vec<TokenLocation>,
    /// `forwardOriginalToken`: whether it goes on to the server.
    pub forward: bool,
    /// `outputPayloadToHeader`, in lower case.
    pub payload_header: Option<String>,
    /// `outputClaimToHeaders`
    pub claim_headers: Vec<ClaimHeader>,
    /// `spaceDelimitedClaims`, beside `scope` and `permission`.
    pub space_delimited: Vec<String>,
}

/// Where an issuer's keys are from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeySource {
    /// `jwks`: a JSON Web Key Set (RFC 7517).
    /// At the same place for as long as nobody changes it, so that it is read once.
    Inline(Arc<str>),
    /// `jwks` that is none, and why: it fits no token.
    Unusable(String),
    /// Asked for over HTTP.
    Remote(RemoteKeys),
}

/// A JSON Web Key Set somewhere else.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RemoteKeys {
    /// `jwksUri`; else the issuer, whose OpenID configuration says where they are.
    pub place: KeyPlace,
    /// `timeout`: how long it may take.
    pub timeout: Duration,
}

/// What to ask for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyPlace {
    /// The keys.
    Uri(String),
    /// What leads to them: `ISSUER/.well-known/openid-configuration` (OpenID Connect Discovery 1.0, section 4).
    Issuer(String),
}

/// Where a token may be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TokenLocation {
    /// In a header, whose name is in lower case, after this prefix.
    Header {
        /// Its name.
        name: String,
        /// Such as `Bearer `.
        prefix: String,
    },
    /// In a parameter of the query.
    Parameter(String),
    /// In a cookie.
    Cookie(String),
}

/// An entry of `outputClaimToHeaders`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimHeader {
    /// `header`, in lower case.
    pub header: String,
    /// `claim`; names of nested claims are parted by dots.
    pub claim: String,
}
