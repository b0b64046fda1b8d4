//! Tokens of all kinds, and a plain statement of which are good.

use orlop_identity::jwt::KeySet;
use orlop_model::world::JwtRule;
use proptest::prelude::*;
use serde_json::json;

use super::{ISSUER, NOW, PAIRS, TRUSTED, believed, judge, jwks, known, rule, token};

/// A token, described, and what was done to it.
#[derive(Clone, Debug)]
struct Described {
    pair: usize,
    says: &'static str,
    kid: Option<usize>,
    issuer: bool,
    audience: Option<bool>,
    expires: Option<i64>,
    starts: Option<i64>,
    /// A bit of the text that is another one.
    flipped: Option<usize>,
}

const SAID: [&str; 13] = [
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "none",
    "HS256", "RS256",
];

fn described() -> impl Strategy<Value = Described> {
    let time = || prop::option::weighted(0.7, prop_oneof![4 => 61..1000_i64, 1 => -1000..1000_i64]);
    // Mostly as it should be, so that what is wrong is often one thing alone.
    let says = (0..6_usize, prop::option::weighted(0.2, prop::sample::select(&SAID[..])), any::<usize>());
    let kid = prop_oneof![3 => Just(None), 2 => (0..7_usize).prop_map(Some), 5 => Just(Some(usize::MAX))];
    let flipped = prop::option::weighted(0.1, any::<usize>());
    let whose = (prop::bool::weighted(0.9), prop::option::weighted(0.9, prop::bool::weighted(0.9)));
    (says, kid, whose, time(), time(), flipped).prop_map(
        |((pair, says, any), kid, (issuer, audience), expires, starts, flipped)| {
            let own = PAIRS[pair].algorithms();
            Described {
                pair,
                says: says.unwrap_or(own[any % own.len()]),
                kid: kid.map(|kid| if kid == usize::MAX { pair } else { kid }),
                issuer,
                audience,
                expires,
                starts: starts.map(|start| -start),
                flipped,
            }
        },
    )
}

impl Described {
    fn token(&self) -> String {
        let mut header = json!({ "alg": self.says });
        if let Some(kid) = self.kid {
            header["kid"] = kid.to_string().into();
        }
        let mut claims =
            json!({"iss": if self.issuer { ISSUER } else { "https://evil.example" }, "sub": "ann"});
        if let Some(ours) = self.audience {
            claims["aud"] = json!(["x", if ours { "ours" } else { "theirs" }]);
        }
        for (name, of) in [("exp", self.expires), ("nbf", self.starts)] {
            if let Some(of) = of {
                claims[name] = (NOW as i64 + of).into();
            }
        }
        let mut token = token(self.pair, &header, &claims).into_bytes();
        if let Some(bit) = self.flipped {
            let bit = bit % (token.len() * 7);
            token[bit / 7] ^= 1 << (bit % 7);
        }
        String::from_utf8(token).unwrap()
    }

    /// What must be said of it, plainly.
    fn is_good(&self) -> bool {
        let trusted = self.pair < TRUSTED;
        let its_algorithm = PAIRS[self.pair].algorithms().contains(&self.says);
        let its_key = self.kid.is_none_or(|kid| kid == self.pair);
        let in_time =
            self.expires.is_none_or(|after| after > -60) && self.starts.is_none_or(|after| after <= 60);
        trusted
            && its_algorithm
            && its_key
            && self.issuer
            && self.audience == Some(true)
            && in_time
            && self.flipped.is_none()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_token_is_believed_if_and_only_if_nothing_is_wrong_with_it(of in described()) {
        let keys = known(&jwks());
        let rule = JwtRule { audiences: vec!["ours".into()], ..rule() };
        let judged = judge(&of.token(), rule, &keys);
        prop_assert_eq!(judged.is_ok(), of.is_good(), "{:?}", judged);
    }

    /// Whatever comes, it is judged.
    #[test]
    fn nothing_that_comes_is_believed(text in "[A-Za-z0-9_.=-]{0,200}|\\PC{0,60}") {
        prop_assert!(believed(&text).is_err());
        let _ = KeySet::read(text.as_bytes());
    }
}
