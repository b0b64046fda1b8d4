//! What a request shows as its token, and what an issuer answers with as its keys: anybody's text, each as a token, as
//! the claims of one that is well signed, and as a key set.
#![no_main]

use std::sync::{Arc, LazyLock};
use std::time::{Duration, UNIX_EPOCH};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use libfuzzer_sys::fuzz_target;
use orlop_identity::jwt::{self, KeySet, Keys, TokenError, Verified};
use orlop_model::http::{Presented, TokenRules};
use orlop_model::world::{JwtRule, KeySource, TokenLocation};
use serde_json::Value;

const ISSUER: &str = "https://idp.example";
const NOW: f64 = 1_700_000_000.0;

static KEY: LazyLock<Ed25519KeyPair> =
    LazyLock::new(|| Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("it is a seed"));
static KEYS: LazyLock<Arc<KeySet>> = LazyLock::new(|| {
    let x = base64url(KEY.public_key().as_ref());
    let set = format!(r#"{{"keys": [{{"kty": "OKP", "crv": "Ed25519", "x": "{x}"}}]}}"#);
    Arc::new(KeySet::read(set.as_bytes()).expect("it is a key set"))
});

fuzz_target!(|input: &[u8]| {
    let _ = KeySet::read(input);
    if let Ok(text) = std::str::from_utf8(input) {
        // Nobody but us has the key.
        assert!(verify(text.to_owned()).is_err());
    }
    let message = format!("{}.{}", base64url(br#"{"alg":"EdDSA"}"#), base64url(input));
    let signature = base64url(KEY.sign(message.as_bytes()).as_ref());
    if let Ok(verified) = verify(format!("{message}.{signature}")) {
        // Whoever reads it otherwise reads the same.
        let claims: Value = serde_json::from_slice(input).expect("it was read as JSON");
        assert_eq!(claims["iss"], ISSUER);
        assert!(claims.get("exp").is_none_or(|exp| exp.as_f64().is_some_and(|exp| exp > NOW - 60.0)));
        let subject = claims["sub"].as_str().unwrap_or_default();
        let principal = verified.claims.principal().expect("there is one issuer");
        let wanted = if subject.is_empty() { String::new() } else { format!("{ISSUER}/{subject}") };
        assert_eq!(principal, wanted);
    }
});

fn verify(token: String) -> Result<Verified, TokenError> {
    let place = TokenLocation::Parameter("token".into());
    let rule = JwtRule {
        issuer: ISSUER.into(),
        audiences: Vec::new(),
        keys: KeySource::Inline("".into()),
        locations: vec![place.clone()],
        forward: false,
        payload_header: None,
        claim_headers: Vec::new(),
        space_delimited: Vec::new(),
    };
    let rules = TokenRules { rules: vec![Arc::new(rule)], unreadable: None };
    let now = UNIX_EPOCH + Duration::from_secs_f64(NOW);
    jwt::verify(&Presented { token, at: vec![place] }, &rules, &Known, now)
}

struct Known;

impl Keys for Known {
    fn of(&self, _: &KeySource) -> Result<Arc<KeySet>, String> {
        Ok(Arc::clone(&KEYS))
    }

    fn unknown(&self, _: &KeySource) {}
}

fn base64url(bytes: &[u8]) -> String {
    const SYMBOLS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits =
            group.iter().fold(0_u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - group.len()));
        text.extend((0..=group.len()).map(|n| SYMBOLS[(bits >> (18 - 6 * n)) as usize & 63] as char));
    }
    text
}
