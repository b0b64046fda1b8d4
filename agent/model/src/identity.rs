use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::text::Text;

/// A SPIFFE ID is at most this long in bytes (SPIFFE-ID 2.3).
const MAX_URI: usize = 2048;

/// A SPIFFE trust domain such as `cluster.local`: lower-case letters, digits, `.`, `-` and `_`, 1 to 255 bytes
/// (SPIFFE-ID 2.1). Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        if is_trust_domain(text) {
            Ok(Self(text.into()))
        } else {
            Err(IdentityError::TrustDomain(excerpt(text)))
        }
    }
}

impl Serialize for TrustDomain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Who a workload is: `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`. Cheap to clone.
///
/// Parsing is strict, so that two identities are the same exactly when their texts are.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity(Text);

impl Identity {
    /// The identity of a service account. Both names must be what Kubernetes accepts as such; `orlop-kube` has
    /// checked that of every object it lets in.
    pub fn new(trust_domain: &TrustDomain, namespace: &str, service_account: &str) -> Self {
        debug_assert!(is_segment(namespace), "{namespace:?} is not a namespace");
        debug_assert!(is_segment(service_account), "{service_account:?} is not a service account");
        Self(format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}").into())
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The trust domain's name.
    pub fn trust_domain(&self) -> &str {
        self.part(2)
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        self.part(4)
    }

    /// The service account.
    pub fn service_account(&self) -> &str {
        self.part(6)
    }

    fn part(&self, index: usize) -> &str {
        self.0.split('/').nth(index).unwrap_or_default()
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let malformed = || IdentityError::Malformed(excerpt(text));
        if text.len() > MAX_URI {
            return Err(malformed());
        }
        let rest = text.strip_prefix("spiffe://").ok_or_else(malformed)?;
        let mut parts = rest.split('/');
        let mut next = || parts.next().ok_or_else(malformed);
        let trust_domain = next()?;
        if !is_trust_domain(trust_domain) {
            return Err(IdentityError::TrustDomain(excerpt(trust_domain)));
        }
        let shape = (next()?, next()?, next()?, next()?);
        let (("ns", namespace, "sa", service_account), None) = (shape, parts.next()) else {
            return Err(malformed());
        };
        if !is_segment(namespace) || !is_segment(service_account) {
            return Err(malformed());
        }
        Ok(Self(text.into()))
    }
}

impl Serialize for Identity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Why a text is not an identity or a trust domain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not the one shape of SPIFFE ID that a mesh workload has.
    #[error("{0:?} is not a workload identity: want spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT")]
    Malformed(String),
    /// Holds what a trust domain may not.
    #[error(
        "{0:?} is not a trust domain: want 1 to 255 lower-case letters, digits, '.', '-' or '_', \
         such as cluster.local"
    )]
    TrustDomain(String),
}

fn is_trust_domain(text: &str) -> bool {
    (1..=255).contains(&text.len())
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'))
}

/// A path segment (SPIFFE-ID 2.2).
fn is_segment(text: &str) -> bool {
    !matches!(text, "" | "." | "..")
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

/// The text comes from a peer's certificate, so it is cut before it reaches a log.
fn excerpt(text: &str) -> String {
    text.chars().take(256).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parts_are_told_apart() {
        let identity: Identity = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        assert_eq!(identity.trust_domain(), "cluster.local");
        assert_eq!(identity.namespace(), "shop");
        assert_eq!(identity.service_account(), "web");
        assert_eq!(identity, Identity::new(&"cluster.local".parse().unwrap(), "shop", "web"));
    }

    #[test]
    fn anything_but_the_exact_shape_is_refused() {
        for attack in [
            "",
            "spiffe://",
            "cluster.local/ns/a/sa/b",
            "SPIFFE://cluster.local/ns/a/sa/b",
            "Spiffe://cluster.local/ns/a/sa/b",
            "https://cluster.local/ns/a/sa/b",
            "spiffe:/cluster.local/ns/a/sa/b",
            "spiffe:///ns/a/sa/b",
            "spiffe://cluster.local",
            "spiffe://cluster.local/",
            "spiffe://cluster.local/ns/a/sa",
            "spiffe://cluster.local/ns/a/sa/",
            "spiffe://cluster.local/ns//sa/b",
            "spiffe://cluster.local//ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/b/",
            "spiffe://cluster.local/ns/a/sa/b/c",
            "spiffe://cluster.local/ns/./sa/b",
            "spiffe://cluster.local/ns/../sa/b",
            "spiffe://cluster.local/ns/a/sa/..",
            "spiffe://cluster.local/NS/a/sa/b",
            "spiffe://cluster.local/sa/b/ns/a",
            "spiffe://cluster.local/ns/a/sa/b?x=y",
            "spiffe://cluster.local/ns/a/sa/b#x",
            "spiffe://cluster.local/ns/a%2Fsa/sa/b",
            "spiffe://cluster.local/ns/a/sa/%62",
            "spiffe://cluster.local/ns/a/sa/b;x",
            "spiffe://cluster.local/ns/a/sa/b\0",
            "spiffe://cluster.local/ns/a/sa/b\n",
            "spiffe://cluster.local/ns/a/sa/é",
            "spiffe://cluster.local\\ns\\a\\sa\\b",
            "spiffe://user@cluster.local/ns/a/sa/b",
            "spiffe://user:pass@cluster.local/ns/a/sa/b",
            "spiffe://cluster.local:443/ns/a/sa/b",
            "spiffe://Cluster.local/ns/a/sa/b",
            "spiffe://[::1]/ns/a/sa/b",
            " spiffe://cluster.local/ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/b ",
        ] {
            assert!(attack.parse::<Identity>().is_err(), "{attack:?}");
        }
    }

    #[test]
    fn lengths_are_bounded() {
        assert!("a".repeat(255).parse::<TrustDomain>().is_ok());
        assert!("a".repeat(256).parse::<TrustDomain>().is_err());
        assert!(format!("spiffe://td/ns/a/sa/{}", "b".repeat(MAX_URI)).parse::<Identity>().is_err());
    }

    proptest! {
        #[test]
        fn what_is_made_parses_back(
            td in "[a-z0-9._-]{1,40}",
            namespace in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?",
            account in "[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?",
        ) {
            let made = Identity::new(&td.parse().unwrap(), &namespace, &account);
            let parsed: Identity = made.to_string().parse().unwrap();
            prop_assert_eq!(parsed.trust_domain(), &td);
            prop_assert_eq!(parsed.namespace(), &namespace);
            prop_assert_eq!(parsed.service_account(), &account);
            prop_assert_eq!(parsed, made);
        }

        #[test]
        fn what_parses_is_shown_unchanged(text in "(spiffe://)?[a-z./%@:?#-]{0,12}/ns/[a-z./%-]{0,6}/sa/[a-z./%-]{0,6}") {
            if let Ok(identity) = text.parse::<Identity>() {
                prop_assert_eq!(identity.to_string(), text);
            }
        }
    }
}
