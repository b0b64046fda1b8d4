//! Tokens: which are believed, and every way to be believed wrongly that others were taken in by.

mod reference;

use std::cell::Cell;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaEncoding};
use aws_lc_rs::{hmac, rsa};
use orlop_identity::jwt::{self, KeySet, Keys, MAX_TOKEN, TokenError};
use orlop_model::Reason;
use orlop_model::http::{Presented, TokenRefused, TokenRules};
use orlop_model::world::{JwtRule, KeySetError, KeySource, MAX_KEYS, TokenLocation};
use serde_json::{Value, json};

const ISSUER: &str = "https://idp.example";
/// When tokens are judged, in seconds since 1970.
const NOW: u64 = 1_700_000_000;

pub fn base64url(bytes: impl AsRef<[u8]>) -> String {
    const SYMBOLS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for group in bytes.as_ref().chunks(3) {
        let bits =
            group.iter().fold(0_u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - group.len()));
        let symbols = (0..=group.len()).map(|n| SYMBOLS[(bits >> (18 - 6 * n)) as usize & 63] as char);
        text.extend(symbols);
    }
    text
}

/// A key pair, with what it may sign by.
enum Pair {
    Rsa(rsa::KeyPair),
    Curve(EcdsaKeyPair, &'static str),
    Edwards(Ed25519KeyPair),
}

impl Pair {
    fn jwk(&self, id: &str) -> Value {
        match self {
            Self::Rsa(pair) => {
                // RSAPublicKey (RFC 8017, appendix A.1.1) of 2048 bits and the exponent 65537.
                let der = pair.public_key().as_ref().to_vec();
                assert_eq!(
                    (der.len(), &der[4..9], &der[265..]),
                    (270, &[2, 130, 1, 1, 0][..], &[2, 3, 1, 0, 1][..])
                );
                json!({"kty": "RSA", "kid": id, "n": base64url(&der[9..265]), "e": base64url([1, 0, 1])})
            }
            Self::Curve(pair, curve) => {
                let point = pair.public_key().as_ref();
                let (x, y) = point[1..].split_at((point.len() - 1) / 2);
                json!({"kty": "EC", "kid": id, "crv": curve, "x": base64url(x), "y": base64url(y)})
            }
            Self::Edwards(pair) => {
                json!({"kty": "OKP", "kid": id, "crv": "Ed25519", "x": base64url(pair.public_key().as_ref())})
            }
        }
    }

    fn algorithms(&self) -> &'static [&'static str] {
        match self {
            Self::Rsa(_) => &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"],
            Self::Curve(_, "P-256") => &["ES256"],
            Self::Curve(_, "P-384") => &["ES384"],
            Self::Curve(..) => &["ES512"],
            Self::Edwards(_) => &["EdDSA"],
        }
    }

    /// By its own algorithm where `algorithm` is none of its.
    fn sign(&self, algorithm: &str, message: &str) -> Vec<u8> {
        let (random, message) = (SystemRandom::new(), message.as_bytes());
        match self {
            Self::Rsa(pair) => {
                let encoding: &'static dyn RsaEncoding = match algorithm {
                    "RS384" => &signature::RSA_PKCS1_SHA384,
                    "RS512" => &signature::RSA_PKCS1_SHA512,
                    "PS256" => &signature::RSA_PSS_SHA256,
                    "PS384" => &signature::RSA_PSS_SHA384,
                    "PS512" => &signature::RSA_PSS_SHA512,
                    _ => &signature::RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(encoding, &random, message, &mut signature).unwrap();
                signature
            }
            Self::Curve(pair, ..) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Edwards(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }
}

/// One key of each kind, and one of RSA that nobody trusts.
static PAIRS: LazyLock<[Pair; 6]> = LazyLock::new(|| {
    let rsa = || Pair::Rsa(rsa::KeyPair::generate(rsa::KeySize::Rsa2048).unwrap());
    let curve = |algorithm, name| Pair::Curve(EcdsaKeyPair::generate(algorithm).unwrap(), name);
    [
        rsa(),
        curve(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, "P-256"),
        curve(&signature::ECDSA_P384_SHA384_FIXED_SIGNING, "P-384"),
        curve(&signature::ECDSA_P521_SHA512_FIXED_SIGNING, "P-521"),
        Pair::Edwards(Ed25519KeyPair::generate().unwrap()),
        rsa(),
    ]
});
/// Those that are trusted, by their numbers.
const TRUSTED: usize = 5;

fn jwks() -> Value {
    let keys: Vec<_> = (0..TRUSTED).map(|number| PAIRS[number].jwk(&number.to_string())).collect();
    json!({ "keys": keys })
}

#[derive(Default)]
struct Known {
    keys: Option<Arc<KeySet>>,
    unknown: Cell<u32>,
}

impl Keys for Known {
    fn of(&self, _: &KeySource) -> Result<Arc<KeySet>, String> {
        self.keys.clone().ok_or_else(|| "nobody is there".to_owned())
    }

    fn unknown(&self, _: &KeySource) {
        self.unknown.set(self.unknown.get() + 1);
    }
}

fn known(jwks: &Value) -> Known {
    Known {
        keys: Some(Arc::new(KeySet::read(jwks.to_string().as_bytes()).unwrap())),
        unknown: Cell::default(),
    }
}

fn place() -> TokenLocation {
    TokenLocation::Header { name: "authorization".into(), prefix: "Bearer ".into() }
}

fn rule() -> JwtRule {
    JwtRule {
        issuer: ISSUER.into(),
        audiences: Vec::new(),
        keys: KeySource::Inline("".into()),
        locations: vec![place()],
        forward: false,
        payload_header: None,
        claim_headers: Vec::new(),
        space_delimited: Vec::new(),
    }
}

fn judge(token: &str, rule: JwtRule, keys: &Known) -> Result<String, TokenError> {
    let presented = Presented { token: token.to_owned(), at: vec![place()] };
    let rules = TokenRules { rules: vec![Arc::new(rule)], unreadable: None };
    let now = UNIX_EPOCH + Duration::from_secs(NOW);
    let verified = jwt::verify(&presented, &rules, keys, now)?;
    Ok(verified.claims.principal().unwrap_or_default().to_owned())
}

fn believed(token: &str) -> Result<String, TokenError> {
    judge(token, rule(), &known(&jwks()))
}

fn claims() -> Value {
    json!({"iss": ISSUER, "sub": "ann", "exp": NOW + 300})
}

/// Signed by one of the pairs, as these texts say.
fn signed(pair: usize, header: &str, claims: &str) -> String {
    let algorithm: Value = serde_json::from_str(header).unwrap_or_default();
    let message = format!("{}.{}", base64url(header), base64url(claims));
    let signature = PAIRS[pair].sign(algorithm["alg"].as_str().unwrap_or_default(), &message);
    format!("{message}.{}", base64url(signature))
}

fn token(pair: usize, header: &Value, claims: &Value) -> String {
    signed(pair, &header.to_string(), &claims.to_string())
}

#[test]
fn every_algorithm_with_a_public_key_is_taken() {
    for (number, pair) in PAIRS.iter().enumerate().take(TRUSTED) {
        for algorithm in pair.algorithms() {
            for header in [
                json!({"alg": algorithm, "kid": number.to_string(), "typ": "JWT"}),
                // Without one any key will do that is for it.
                json!({ "alg": algorithm }),
            ] {
                let principal = believed(&token(number, &header, &claims()));
                assert_eq!(principal.as_deref(), Ok("https://idp.example/ann"), "{header}");
            }
        }
    }
}

#[test]
fn no_token_says_how_it_is_to_be_verified() {
    let payload = base64url(claims().to_string());
    for name in
        ["none", "None", "NONE", "nOnE", "", "HS256", "HS384", "HS512", "RS1", "rs256", "ES256K", "dir"]
    {
        let message = format!("{}.{payload}", base64url(json!({"alg": name, "kid": "0"}).to_string()));
        assert_eq!(believed(&format!("{message}.")), Err(TokenError::Algorithm), "{name}");
    }
    // HMAC by whatever form of the public key somebody might have at hand.
    let jwk = PAIRS[0].jwk("0");
    let Pair::Rsa(pair) = &PAIRS[0] else { panic!("not RSA") };
    let message = format!("{}.{payload}", base64url(r#"{"alg":"HS256","kid":"0"}"#));
    for secret in
        [pair.public_key().as_ref(), jwk["n"].as_str().unwrap().as_bytes(), jwk.to_string().as_bytes(), b""]
    {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes());
        assert_eq!(believed(&format!("{message}.{}", base64url(tag))), Err(TokenError::Algorithm));
    }
    // By a key of another kind than it says, whose signature is good.
    for (pair, algorithm, kid) in
        [(0, "ES256", "0"), (1, "RS256", "1"), (1, "EdDSA", "1"), (2, "ES256", "2"), (4, "ES512", "4")]
    {
        let message = format!("{}.{payload}", base64url(json!({"alg": algorithm, "kid": kid}).to_string()));
        let signature = PAIRS[pair].sign("", &message);
        let refused = believed(&format!("{message}.{}", base64url(signature)));
        assert_eq!(refused, Err(TokenError::Key), "{algorithm} {kid}");
    }
    for header in ["{}", r#"{"alg":7}"#, r#"{"alg":["RS256"]}"#, r#"{"alg":null}"#] {
        assert_eq!(
            believed(&signed(0, header, &claims().to_string())),
            Err(TokenError::Algorithm),
            "{header}"
        );
    }
}

#[test]
fn a_key_is_for_what_it_says_alone() {
    let with = |number: usize, more: Value| {
        let mut jwk = PAIRS[number].jwk("k");
        for (name, value) in more.as_object().unwrap() {
            jwk[name] = value.clone();
        }
        known(&json!({ "keys": [jwk] }))
    };
    let by = |algorithm: &str| token(0, &json!({"alg": algorithm, "kid": "k"}), &claims());
    for (more, algorithm, good) in [
        (json!({"alg": "RS256"}), "RS256", true),
        (json!({"alg": "RS256"}), "PS256", false),
        (json!({"alg": "RS256"}), "RS512", false),
        (json!({"alg": "HS256"}), "RS256", false),
        (json!({"alg": "ES256"}), "RS256", false),
        (json!({"alg": "RSA-OAEP"}), "RS256", false),
        (json!({"alg": 7}), "RS256", false),
        (json!({"use": "sig"}), "RS256", true),
        (json!({"use": "enc"}), "RS256", false),
        (json!({"key_ops": ["verify"]}), "RS256", true),
        (json!({"key_ops": ["encrypt"]}), "RS256", false),
        (json!({"key_ops": []}), "RS256", false),
        (json!({"kid": "other"}), "RS256", false),
        (json!({"kty": "oct", "k": "c2VjcmV0"}), "RS256", false),
        (json!({"kty": "EC"}), "RS256", false),
        // Whatever is written would be its own signature; and too small a key.
        (json!({"e": "AQ"}), "RS256", false),
        (json!({"e": ""}), "RS256", false),
        (json!({"e": "AA"}), "RS256", false),
        (json!({"n": "AQAB"}), "RS256", false),
        (json!({"n": base64url([0xff; 128])}), "RS256", false),
        (json!({"n": base64url(vec![0xff; 1100])}), "RS256", false),
        (json!({"n": "!"}), "RS256", false),
    ] {
        let judged = judge(&by(algorithm), rule(), &with(0, more.clone()));
        assert_eq!(judged.is_ok(), good, "{more} {algorithm}: {judged:?}");
    }
    // A point that is on no curve, of another, or none.
    let es256 = token(1, &json!({"alg": "ES256", "kid": "k"}), &claims());
    assert!(judge(&es256, rule(), &with(1, json!({}))).is_ok());
    for more in [
        json!({"x": base64url([0; 32])}),
        json!({"x": base64url([1; 31])}),
        json!({"crv": "P-384"}),
        json!({"crv": "secp256k1"}),
        json!({"crv": "Ed25519"}),
    ] {
        assert_eq!(judge(&es256, rule(), &with(1, more.clone())), Err(TokenError::Key), "{more}");
    }
}

#[test]
fn what_a_token_brings_itself_is_no_key() {
    // Signed by a stranger, with his key in every place where somebody might look for it.
    let jwk = PAIRS[5].jwk("0");
    let chain = json!(["MIIB"]);
    for more in [
        json!({ "jwk": jwk }),
        json!({"jwk": jwk, "kid": "0"}),
        json!({"jku": "https://evil.example/keys"}),
        json!({"x5u": "https://evil.example/chain"}),
        json!({ "x5c": chain }),
        json!({"kid": "0"}),
        json!({"kid": "../../../../dev/null"}),
        json!({"kid": "0' OR '1'='1"}),
        json!({"kid": "http://169.254.169.254/"}),
        json!({"kid": ""}),
    ] {
        let mut header = json!({"alg": "RS256"});
        for (name, value) in more.as_object().unwrap() {
            header[name] = value.clone();
        }
        let refused = believed(&token(5, &header, &claims()));
        assert!(matches!(refused, Err(TokenError::Signature | TokenError::Key)), "{header} {refused:?}");
    }
    for header in [r#"{"alg":"RS256","kid":7}"#, r#"{"alg":"RS256","kid":null}"#] {
        assert_eq!(believed(&signed(0, header, &claims().to_string())), Err(TokenError::Claim("kid")));
    }
    for header in [
        r#"{"alg":"RS256","crit":["exp"],"exp":1}"#,
        r#"{"alg":"RS256","crit":[]}"#,
        r#"{"alg":"RS256","b64":false,"crit":["b64"]}"#,
        r#"{"alg":"RS256","b64":false}"#,
    ] {
        assert_eq!(
            believed(&signed(0, header, &claims().to_string())),
            Err(TokenError::Critical),
            "{header}"
        );
    }
}

#[test]
fn a_token_has_one_spelling() {
    let good = token(1, &json!({"alg": "ES256", "kid": "1"}), &claims());
    assert!(believed(&good).is_ok());
    let [header, payload, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!("{good}") };
    for text in [
        String::new(),
        ".".into(),
        "..".into(),
        "...".into(),
        header.into(),
        format!("{header}.{payload}"),
        format!("{header}.{payload}."),
        format!("{good}."),
        format!(".{good}"),
        format!("{good}.x"),
        format!("{header}.{payload}.{signature}.{signature}"),
        format!("{good}="),
        format!("{header}=.{payload}.{signature}"),
        format!("{header}.{payload}==.{signature}"),
        format!("{good} "),
        format!(" {good}"),
        format!("{good}\n"),
        good.replace('.', "%2E"),
        format!("{header}.{payload}.{}", &signature[..signature.len() - 1]),
        format!("{header}.{payload}.{}", &signature[..signature.len() - 4]),
        format!("{header}.{payload}.{signature}AAAA"),
        format!("{header}.{}.{signature}", base64url(claims().to_string().replace("ann", "bob"))),
        // A signature of zeros (CVE-2022-21449), and in another encoding.
        format!("{header}.{payload}.{}", base64url([0; 64])),
        format!("{header}.{payload}.{}", base64url([0x30, 6, 2, 1, 1, 2, 1, 1])),
    ] {
        assert!(believed(&text).is_err(), "{text}");
    }
}

#[test]
fn nothing_is_there_twice_and_nothing_is_too_much() {
    let header = r#"{"alg":"ES256"}"#;
    let of = |claims: &str| believed(&signed(1, header, claims));
    let json = |part, problem: &str| Err(TokenError::Json { part, problem: problem.to_owned() });
    let twice = format!(r#"{{"iss":"{ISSUER}","sub":"bob","sub":"ann"}}"#);
    assert_eq!(of(&twice), json("claims", "has a name twice"));
    let escaped = format!(r#"{{"iss":"evil","i\u0073s":"{ISSUER}","sub":"ann"}}"#);
    assert_eq!(of(&escaped), json("claims", "has a name twice"));
    let algorithm = r#"{"alg":"none","alg":"ES256"}"#;
    assert_eq!(believed(&signed(1, algorithm, &claims().to_string())), json("header", "has a name twice"));
    let deep = format!(r#"{{"iss":"{ISSUER}","x":{}{}}}"#, "[".repeat(3000), "]".repeat(3000));
    assert_eq!(of(&deep), json("claims", "is nested too deep"));
    let many = format!(r#"{{"iss":"{ISSUER}","x":[{}0]}}"#, "0,".repeat(1000));
    assert_eq!(of(&many), json("claims", "has too many values"));
    let long = format!(r#"{{"iss":"{ISSUER}","x":"{}"}}"#, "x".repeat(MAX_TOKEN));
    assert_eq!(of(&long), Err(TokenError::TooLong));
    let header = json!({"alg": "ES256", "x": "x".repeat(5000)});
    assert_eq!(believed(&token(1, &header, &claims())), Err(TokenError::TooLong));
    assert_eq!(of("[]"), json("claims", "is no JSON object"));
    assert_eq!(of("{\"iss\": tru"), json("claims", "is no JSON"));
    assert_eq!(of("{}"), Err(TokenError::Claim("iss")));
    for (claims, name) in [
        (json!({"iss": 7}), "iss"),
        (json!({"iss": ISSUER, "sub": 7}), "sub"),
        (json!({"iss": ISSUER, "sub": null}), "sub"),
        (json!({"iss": ISSUER, "aud": 7}), "aud"),
        (json!({"iss": ISSUER, "aud": ["a", 7]}), "aud"),
        (json!({"iss": ISSUER, "exp": "tomorrow"}), "exp"),
        (json!({"iss": ISSUER, "exp": null}), "exp"),
        (json!({"iss": ISSUER, "nbf": true}), "nbf"),
    ] {
        assert_eq!(of(&claims.to_string()), Err(TokenError::Claim(name)), "{claims}");
    }
}

#[test]
fn times_count_within_a_minute() {
    let of = |name: &str, value: Value| {
        let mut claims = json!({"iss": ISSUER, "sub": "ann"});
        claims[name] = value;
        believed(&token(1, &json!({"alg": "ES256"}), &claims)).map(drop)
    };
    for (exp, want) in [
        (json!(NOW + 1), Ok(())),
        (json!(NOW - 59), Ok(())),
        (json!(NOW - 60), Err(TokenError::Expired)),
        (json!(0), Err(TokenError::Expired)),
        (json!(-1), Err(TokenError::Expired)),
        (json!(-1e300), Err(TokenError::Expired)),
        (json!(1e300), Ok(())),
        (json!(u64::MAX), Ok(())),
        (json!(NOW as f64 - 59.5), Ok(())),
        (json!(NOW as f64 - 60.5), Err(TokenError::Expired)),
    ] {
        assert_eq!(of("exp", exp.clone()), want, "{exp}");
    }
    for (nbf, want) in [
        (json!(NOW + 60), Ok(())),
        (json!(NOW + 61), Err(TokenError::NotYet)),
        (json!(1e300), Err(TokenError::NotYet)),
        (json!(0), Ok(())),
    ] {
        assert_eq!(of("nbf", nbf.clone()), want, "{nbf}");
    }
    assert_eq!(
        believed(&token(1, &json!({"alg": "ES256"}), &json!({"iss": ISSUER, "sub": "ann"}))).map(drop),
        Ok(())
    );
}

#[test]
fn issuers_and_audiences_are_taken_literally() {
    let keys = known(&jwks());
    let ask = |claims: Value, audiences: &[&str]| {
        let audiences = audiences.iter().map(|&of| of.to_owned()).collect();
        let token = token(1, &json!({"alg": "ES256"}), &claims);
        judge(&token, JwtRule { audiences, ..rule() }, &keys).map(drop)
    };
    for issuer in [
        "https://idp.example/",
        "HTTPS://IDP.EXAMPLE",
        "https://idp.example.evil",
        "",
        " https://idp.example",
    ] {
        assert_eq!(ask(json!({"iss": issuer, "sub": "ann"}), &[]), Err(TokenError::Issuer), "{issuer}");
    }
    for (aud, wanted, want) in [
        (json!("a"), &["a"][..], Ok(())),
        (json!(["x", "a"]), &["b", "a"], Ok(())),
        (json!("a"), &["b"], Err(TokenError::Audience)),
        (json!("a/"), &["a"], Err(TokenError::Audience)),
        (json!("A"), &["a"], Err(TokenError::Audience)),
        (json!([]), &["a"], Err(TokenError::Audience)),
        (json!(["a b"]), &["a"], Err(TokenError::Audience)),
        (json!("whatever"), &[], Ok(())),
    ] {
        assert_eq!(ask(json!({"iss": ISSUER, "sub": "ann", "aud": aud}), wanted), want, "{aud} {wanted:?}");
    }
    assert_eq!(ask(json!({"iss": ISSUER, "sub": "ann"}), &["a"]), Err(TokenError::Audience));
}

#[test]
fn a_rule_takes_no_token_from_where_another_one_looks() {
    let elsewhere = TokenLocation::Header { name: "x-token".into(), prefix: String::new() };
    let rules = [
        JwtRule { issuer: "other".into(), ..rule() },
        JwtRule { locations: vec![elsewhere.clone()], ..rule() },
    ];
    let rules = TokenRules { rules: rules.into_iter().map(Arc::new).collect(), unreadable: None };
    let token = token(1, &json!({"alg": "ES256"}), &claims());
    let at = |location| {
        let presented = Presented { token: token.clone(), at: vec![location] };
        let now = UNIX_EPOCH + Duration::from_secs(NOW);
        jwt::verify(&presented, &rules, &known(&jwks()), now).map(drop)
    };
    assert_eq!(at(place()), Err(TokenError::Issuer));
    assert_eq!(at(elsewhere), Ok(()));
}

#[test]
fn without_keys_nothing_is_believed_and_a_key_that_is_missing_is_told() {
    let none = Known::default();
    let token_of = |kid: &str| token(1, &json!({"alg": "ES256", "kid": kid}), &claims());
    let error = judge(&token_of("1"), rule(), &none).unwrap_err();
    assert_eq!(error, TokenError::NoKeys("nobody is there".into()));
    assert_eq!(TokenRefused::from(error).reason, Reason::TokenKeysUnavailable);
    let keys = known(&jwks());
    assert_eq!(judge(&token_of("9"), rule(), &keys), Err(TokenError::Key));
    assert_eq!(keys.unknown.get(), 1);
    assert!(judge(&token_of("1"), rule(), &keys).is_ok());
    assert_eq!(keys.unknown.get(), 1);
    let refused = TokenRefused::from(TokenError::Key);
    assert_eq!(refused.reason, Reason::InvalidToken);
    assert_eq!(refused.detail, "the token is refused: its issuer has no such key");
}

#[test]
fn a_key_set_is_one_or_none() {
    let read = |text: &str| KeySet::read(text.as_bytes()).map(|set| set.len());
    assert_eq!(read(&jwks().to_string()), Ok(TRUSTED));
    assert_eq!(read(r#"{"keys": []}"#), Ok(0));
    assert_eq!(read(r#"{"keys": [7, {"kty": "oct", "k": "AA"}, {"kty": "new"}, {}]}"#), Ok(0));
    assert_eq!(read("{}"), Err(KeySetError::NoKeys));
    assert_eq!(read(r#"{"keys": {}}"#), Err(KeySetError::NoKeys));
    assert_eq!(read(r#"{"keys": [], "keys": []}"#), Err(KeySetError::Json("has a name twice".into())));
    assert_eq!(read("<html>"), Err(KeySetError::Json("is no JSON".into())));
    let many = vec![json!({}); MAX_KEYS + 1];
    assert_eq!(read(&json!({ "keys": many }).to_string()), Err(KeySetError::TooMany));
    assert_eq!(read(&" ".repeat(300 << 10)), Err(KeySetError::TooLong));
}

#[test]
fn a_clock_before_1970_believes_nothing() {
    let presented = Presented { token: token(1, &json!({"alg": "ES256"}), &claims()), at: vec![place()] };
    let rules = TokenRules { rules: vec![Arc::new(rule())], unreadable: None };
    let now: SystemTime = UNIX_EPOCH - Duration::from_secs(1);
    assert_eq!(jwt::verify(&presented, &rules, &known(&jwks()), now).map(drop), Err(TokenError::NotYet));
}
