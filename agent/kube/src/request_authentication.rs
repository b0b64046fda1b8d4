use std::sync::Arc;
use std::time::Duration;

use orlop_model::world::{
    ClaimHeader, JwtRule, KeyPlace, KeySource, RemoteKeys, RequestAuthentication, TokenLocation, keys_of,
};
use serde::Deserialize;

use crate::duration::positive;
use crate::field::{FieldError, FieldPath, NotNull};
use crate::metadata::namespaced;
use crate::selector::{self, Selector};
use crate::target::{TargetObject, targets};
use crate::written::Written;

/// How long fetching keys may take unless `timeout` says otherwise (Istio's default).
const TIMEOUT: Duration = Duration::from_secs(5);
/// What `timeout` may be at most: a token waits for nobody.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);

type Texts = NotNull<Vec<String>>;

/// A `security.istio.io` RequestAuthentication.
pub(crate) type Object = Written<SpecObject>;

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct SpecObject {
    /// Workloads by their labels. Has no effect: waypoints go by targetRefs.
    selector: NotNull<Selector>,
    /// What this is for, if it is one thing; see targetRefs.
    target_ref: NotNull<TargetObject>,
    /// The Services, ServiceEntries, Gateways or GatewayClass whose requests this is for.
    target_refs: NotNull<Vec<TargetObject>>,
    /// Whose tokens are taken, and how they are verified. A token that can not be believed is refused; a
    /// request without one passes.
    jwt_rules: NotNull<Vec<RuleObject>>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct RuleObject {
    /// Who has issued the tokens: their iss, letter by letter.
    issuer: Option<String>,
    /// Whom the tokens must be for: one of these in their aud. Left out, anybody.
    audiences: Texts,
    // Protobuf's own name for it is in Istio's schema too.
    /// Where the issuer's keys are, over HTTP or HTTPS. Left out with jwks, where the issuer's OpenID
    /// configuration says.
    #[serde(alias = "jwks_uri")]
    jwks_uri: NotNull<String>,
    /// The issuer's keys themselves (RFC 7517), as text. Not together with jwksUri.
    jwks: NotNull<String>,
    /// Headers that the token may be in. Without these places: authorization after Bearer, and the parameter
    /// access_token.
    from_headers: NotNull<Vec<HeaderObject>>,
    /// Query parameters that the token may be in.
    from_params: Texts,
    /// Cookies that the token may be in.
    from_cookies: Texts,
    /// The header that the claims are put into, in base64url, for the server.
    output_payload_to_header: NotNull<String>,
    /// Whether the token goes on to the server. False if left out.
    forward_original_token: NotNull<bool>,
    /// Headers that single claims are put into, for the server.
    output_claim_to_headers: NotNull<Vec<ClaimObject>>,
    /// How long fetching keys may take: 5s if left out.
    timeout: NotNull<String>,
    /// Claims that are lists parted by spaces, beside scope and permission.
    space_delimited_claims: Texts,
}

#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct HeaderObject {
    /// Its name, in either case.
    name: Option<String>,
    /// What is before the token in it, such as "Bearer ".
    #[serde(default)]
    prefix: String,
}

#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct ClaimObject {
    /// The name of the header.
    header: Option<String>,
    /// The name of the claim.
    claim: Option<String>,
}

/// Converts a RequestAuthentication.
pub(crate) fn convert(object: Object) -> Result<RequestAuthentication, FieldError> {
    let name = namespaced(&object.metadata)?;
    let spec = object.spec.0.unwrap_or_default();
    let targets = targets(spec.target_refs, spec.target_ref, &name.namespace)?;
    if !targets.is_empty() && spec.selector.0.is_some() {
        let problem = "can't be together with targetRefs; keep one of them";
        return Err(FieldError::new("spec.selector", problem));
    }
    let rules = spec.jwt_rules.0.unwrap_or_default().into_iter().enumerate();
    let rules =
        rules.map(|(index, of)| rule(of, &FieldPath::from("spec.jwtRules").index(index)).map(Arc::new));
    Ok(RequestAuthentication {
        selector: selector::convert(spec.selector.0)?,
        targets,
        rules: rules.collect::<Result<_, _>>()?,
        unreadable: false,
        name,
    })
}

fn rule(rule: RuleObject, path: &FieldPath) -> Result<JwtRule, FieldError> {
    let at = |key: &str| path.clone().key(key);
    let issuer = rule.issuer.filter(|issuer| !issuer.is_empty());
    let issuer =
        issuer.ok_or_else(|| FieldError::new(at("issuer"), "is missing; say whose tokens these are"))?;
    let timeout = match rule.timeout.0 {
        Some(text) => positive(&text, || at("timeout"))?,
        None => TIMEOUT,
    };
    if timeout > MAX_TIMEOUT {
        let problem = format!("is longer than {} s", MAX_TIMEOUT.as_secs());
        return Err(FieldError::new(at("timeout"), problem));
    }
    let claims = rule.output_claim_to_headers.0.unwrap_or_default().into_iter().enumerate();
    Ok(JwtRule {
        audiences: texts(rule.audiences, at("audiences"))?,
        keys: keys(rule.jwks.0, rule.jwks_uri.0, &issuer, timeout, path)?,
        locations: locations(rule.from_headers, rule.from_params, rule.from_cookies, path)?,
        forward: rule.forward_original_token.0.unwrap_or_default(),
        payload_header: rule
            .output_payload_to_header
            .0
            .map(|name| header(&name, at("outputPayloadToHeader")))
            .transpose()?,
        claim_headers: claims
            .map(|(index, of)| claim_header(of, &at("outputClaimToHeaders").index(index)))
            .collect::<Result<_, _>>()?,
        space_delimited: texts(rule.space_delimited_claims, at("spaceDelimitedClaims"))?,
        issuer,
    })
}

fn keys(
    inline: Option<String>,
    uri: Option<String>,
    issuer: &str,
    timeout: Duration,
    path: &FieldPath,
) -> Result<KeySource, FieldError> {
    let at = |key: &str| path.clone().key(key);
    let place = match (inline, uri) {
        (Some(_), Some(_)) => {
            return Err(FieldError::new(at("jwks"), "can't be together with jwksUri; keep one of them"));
        }
        (Some(text), None) if text.trim().is_empty() => {
            return Err(FieldError::new(at("jwks"), "is empty; write a key set, or leave it out"));
        }
        (Some(text), None) => return Ok(inline_keys(text)),
        (None, Some(uri)) => KeyPlace::Uri(http(&uri, at("jwksUri"))?),
        // Whoever writes no place at all means that which the issuer tells.
        (None, None) => KeyPlace::Issuer(http(issuer, at("issuer")).map_err(|_| {
            let problem = "is missing, as is jwks, and the issuer is no URL that would lead to its keys";
            FieldError::new(at("jwksUri"), problem)
        })?),
    };
    Ok(KeySource::Remote(RemoteKeys { place, timeout }))
}

/// What can't be used is no reason not to go by everything else that the object says: it fits no token.
fn inline_keys(text: String) -> KeySource {
    match keys_of(text.as_bytes()) {
        Ok(keys) if keys.is_empty() || keys.iter().any(Option::is_some) => KeySource::Inline(text.into()),
        Ok(_) => KeySource::Unusable(
            "none of its keys can verify a token: of kty RSA those of 2048 to 8192 bits can, of EC those of P-256, P-384 \
             and P-521, of OKP those of Ed25519"
                .to_owned(),
        ),
        Err(error) => KeySource::Unusable(error.to_string()),
    }
}

/// A URL that can be asked for. Whether its host may be is seen when it is dialled.
fn http(text: &str, path: FieldPath) -> Result<String, FieldError> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let authority = rest.map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
    let is_visible = text.bytes().all(|byte| byte.is_ascii_graphic());
    match authority {
        Some(authority) if is_visible && !authority.is_empty() && !authority.contains('@') => {
            Ok(text.to_owned())
        }
        _ => {
            let problem = format!("{text:?} is no URL to ask; write it as https://HOST/PATH, without a user");
            Err(FieldError::new(path, problem))
        }
    }
}

fn locations(
    headers: NotNull<Vec<HeaderObject>>,
    parameters: Texts,
    cookies: Texts,
    path: &FieldPath,
) -> Result<Vec<TokenLocation>, FieldError> {
    let at = |key: &str| path.clone().key(key);
    let mut found = Vec::new();
    for (index, of) in headers.0.unwrap_or_default().into_iter().enumerate() {
        let path = at("fromHeaders").index(index).key("name");
        let name = of.name.ok_or_else(|| FieldError::new(path.clone(), "is missing; name a header"))?;
        found.push(TokenLocation::Header { name: header(&name, path)?, prefix: of.prefix });
    }
    found.extend(texts(parameters, at("fromParams"))?.into_iter().map(TokenLocation::Parameter));
    found.extend(texts(cookies, at("fromCookies"))?.into_iter().map(TokenLocation::Cookie));
    if found.is_empty() {
        let (name, prefix) = ("authorization".to_owned(), "Bearer ".to_owned());
        found.push(TokenLocation::Header { name, prefix });
        found.push(TokenLocation::Parameter("access_token".to_owned()));
    }
    Ok(found)
}

fn claim_header(of: ClaimObject, path: &FieldPath) -> Result<ClaimHeader, FieldError> {
    let missing = |key: &str| FieldError::new(path.clone().key(key), "is missing");
    let name = of.header.ok_or_else(|| missing("header"))?;
    let claim = of.claim.filter(|claim| !claim.is_empty()).ok_or_else(|| missing("claim"))?;
    Ok(ClaimHeader { header: header(&name, path.clone().key("header"))?, claim })
}

/// What a message is made of, or is between two neighbours alone.
const UNFIT: [&str; 13] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "upgrade",
    "cookie",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "x-forwarded-client-cert",
];

/// The name of a header that may hold something of a token, in lower case.
fn header(name: &str, path: FieldPath) -> Result<String, FieldError> {
    let name = name.to_ascii_lowercase();
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(FieldError::new(path, format!("{name:?} is no name of a header")));
    }
    if UNFIT.contains(&name.as_str()) {
        return Err(FieldError::new(path, format!("{name} can't hold a token or what is in it")));
    }
    Ok(name)
}

fn texts(list: Texts, path: FieldPath) -> Result<Vec<String>, FieldError> {
    let list = list.0.unwrap_or_default();
    match list.iter().position(String::is_empty) {
        Some(index) => Err(FieldError::new(path.index(index), "is empty; fill it, or leave it out")),
        None => Ok(list),
    }
}

#[cfg(test)]
mod tests {
    use orlop_model::world::security::Target;
    use serde_json::{Value, json};

    use super::*;
    use crate::object::{Kind, Object, Source};

    fn read(spec: Value) -> Result<RequestAuthentication, FieldError> {
        let object = json!({
            "apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication",
            "metadata": {"name": "tokens", "namespace": "shop"}, "spec": spec,
        });
        match Kind::RequestAuthentication.convert(object, Source::Cluster)? {
            Object::RequestAuthentication(found) => Ok(Arc::unwrap_or_clone(found)),
            other => panic!("{other:?}"),
        }
    }

    fn one(rule: Value) -> Result<JwtRule, FieldError> {
        Ok(Arc::unwrap_or_clone(read(json!({ "jwtRules": [rule] }))?.rules.remove(0)))
    }

    #[test]
    fn every_field_is_carried_over() {
        let found = read(json!({
            "targetRefs": [{"kind": "Service", "group": "", "name": "web"}],
            "jwtRules": [{
                "issuer": "https://a", "audiences": ["x", "y"], "jwksUri": "https://a/keys", "timeout": "2s",
                "fromHeaders": [{"name": "X-Token", "prefix": "JWT "}, {"name": "Authorization"}],
                "fromParams": ["token"], "fromCookies": ["session"], "forwardOriginalToken": true,
                "outputPayloadToHeader": "X-Payload", "spaceDelimitedClaims": ["roles"],
                "outputClaimToHeaders": [{"header": "X-Sub", "claim": "sub"}],
            }],
        }))
        .unwrap();
        assert_eq!(found.targets, [Target::Service("web".into())]);
        let header =
            |name: &str, prefix: &str| TokenLocation::Header { name: name.into(), prefix: prefix.into() };
        let wanted = JwtRule {
            issuer: "https://a".into(),
            audiences: vec!["x".into(), "y".into()],
            keys: KeySource::Remote(RemoteKeys {
                place: KeyPlace::Uri("https://a/keys".into()),
                timeout: Duration::from_secs(2),
            }),
            locations: vec![
                header("x-token", "JWT "),
                header("authorization", ""),
                TokenLocation::Parameter("token".into()),
                TokenLocation::Cookie("session".into()),
            ],
            forward: true,
            payload_header: Some("x-payload".into()),
            claim_headers: vec![ClaimHeader { header: "x-sub".into(), claim: "sub".into() }],
            space_delimited: vec!["roles".into()],
        };
        assert_eq!(*found.rules[0], wanted);
    }

    #[test]
    fn without_places_tokens_are_where_rfc_6750_has_them_and_keys_where_the_issuer_says() {
        let found = one(json!({"issuer": "https://a"})).unwrap();
        let bearer = TokenLocation::Header { name: "authorization".into(), prefix: "Bearer ".into() };
        assert_eq!(found.locations, [bearer, TokenLocation::Parameter("access_token".into())]);
        let place = KeyPlace::Issuer("https://a".into());
        assert_eq!(found.keys, KeySource::Remote(RemoteKeys { place, timeout: TIMEOUT }));
        let inline = one(json!({"issuer": "a@b", "jwks": "{\"keys\": []}"})).unwrap();
        assert_eq!(inline.keys, KeySource::Inline("{\"keys\": []}".into()));
        assert!(!inline.forward);
    }

    #[test]
    fn what_is_no_key_set_fits_no_token_and_the_rule_stays() {
        const NONE: &str = "none of its keys can verify a token";
        let rsa = |n: &str| json!({"keys": [{"kty": "RSA", "n": n, "e": "AQAB"}]}).to_string();
        let keys = |text: &str| one(json!({"issuer": "a", "audiences": ["x"], "jwks": text})).unwrap().keys;
        for (text, why) in [
            ("garbage", "is no JSON"),
            ("[]", "is no JSON object"),
            ("{}", "has no list of keys"),
            (r#"{"keys": {}}"#, "has no list of keys"),
            (r#"{"keys": [], "keys": []}"#, "has a name twice"),
            (&format!("{{\"keys\": {}", "[".repeat(100_000)), "is nested too deep"),
            (&"x".repeat(300 << 10), "is longer than"),
            (&json!({"keys": vec![json!({}); 101]}).to_string(), "more than 100 keys"),
            (r#"{"keys": [{"kty": "oct", "k": "AAAA"}]}"#, NONE),
            (r#"{"keys": ["abc", 7]}"#, NONE),
            (r#"{"keys": [{"kty": "EC"}, {"kty": "new"}]}"#, NONE),
            // All bits are ones, but for the last digit's that stand for nothing: 1024 of them.
            (&rsa(&("_".repeat(170) + "8")), NONE),
        ] {
            let KeySource::Unusable(said) = keys(text) else { panic!("{text:.60}") };
            assert!(said.contains(why), "{text:.60}: {said}");
        }
        // RFC 7517, section 5: what is unknown is passed over.
        let known = r#"{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
        let passed_over =
            format!(r#"{{"keys": [{{"kty": "new"}}, {{"kty": "EC"}}, 7, {known}], "more": 1}}"#);
        for text in [passed_over, r#"{"keys": []}"#.to_owned(), rsa(&("_".repeat(341) + "w"))] {
            assert_eq!(keys(&text), KeySource::Inline(text.into()));
        }
    }

    #[test]
    fn what_would_change_who_is_let_in_is_an_error() {
        for (rule, path) in [
            (json!({}), "issuer"),
            (json!({"issuer": ""}), "issuer"),
            (json!({"issuer": "a"}), "jwksUri"),
            (json!({"issuer": "a", "jwks": " "}), "jwks"),
            (json!({"issuer": "a", "jwks": null}), "jwks"),
            (json!({"issuer": "a", "jwks": "{}", "jwksUri": "https://a"}), "jwks"),
            (json!({"issuer": "a", "jwksUri": "file:///etc/passwd"}), "jwksUri"),
            (json!({"issuer": "a", "jwksUri": "https://user@a/"}), "jwksUri"),
            (json!({"issuer": "a", "jwksUri": "https://a/ b"}), "jwksUri"),
            (json!({"issuer": "a", "jwksUri": "https:///x"}), "jwksUri"),
            (json!({"issuer": "a", "jwks": "{}", "timeout": "1h"}), "timeout"),
            (json!({"issuer": "a", "jwks": "{}", "audiences": [""]}), "audiences[0]"),
            (json!({"issuer": "a", "jwks": "{}", "audience": ["x"]}), "audience"),
            (json!({"issuer": "a", "jwks": "{}", "fromHeaders": [{"name": "host"}]}), "fromHeaders[0].name"),
            (json!({"issuer": "a", "jwks": "{}", "fromHeaders": [{"name": "a b"}]}), "fromHeaders[0].name"),
            (json!({"issuer": "a", "jwks": "{}", "outputPayloadToHeader": ":path"}), "outputPayloadToHeader"),
            (
                json!({"issuer": "a", "jwks": "{}", "outputClaimToHeaders": [{"header": "x"}]}),
                "outputClaimToHeaders[0].claim",
            ),
        ] {
            let error = one(rule.clone()).unwrap_err();
            let wanted = format!("spec.jwtRules[0].{path}");
            assert_eq!(error.path.to_string(), wanted, "{rule}: {error}");
        }
        let both = json!({"selector": {}, "targetRef": {"kind": "Service", "name": "web"}});
        assert_eq!(read(both).unwrap_err().path.to_string(), "spec.selector");
    }
}
