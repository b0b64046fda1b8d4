//! RequestAuthentications that the waypoint goes by, and AuthorizationPolicies that ask for what is in tokens.

mod keys;

use std::io::{Read, Write};
use std::process::Command;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use orlop_tests::traffic::{ReadUninterrupted, Response, request};
use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData as _, SigningKey as _};
use serde_json::{Value, json};

use super::Stage;
use super::scripted::{Reply, Scripted};
use crate::mesh::NAMESPACE;
use crate::pair::program;

pub const ISSUER: &str = "https://idp.example";

/// Somebody who signs tokens.
pub struct Issuer {
    id: &'static str,
    key: KeyPair,
}

impl Issuer {
    pub fn new(id: &'static str) -> Self {
        Self { id, key: KeyPair::generate_for(&PKCS_ED25519).unwrap() }
    }

    pub fn jwks(&self) -> String {
        let x = base64url(self.key.der_bytes());
        json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": self.id, "x": x}]}).to_string()
    }

    pub fn token(&self, more: Value) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let mut claims = json!({"iss": ISSUER, "sub": "ann", "exp": now + 600});
        for (name, value) in more.as_object().unwrap() {
            claims[name] = value.clone();
        }
        let header = json!({"alg": "EdDSA", "kid": self.id});
        let message = format!("{}.{}", base64url(header.to_string()), base64url(claims.to_string()));
        format!("{message}.{}", base64url(self.key.sign(message.as_bytes()).unwrap()))
    }
}

fn base64url(bytes: impl AsRef<[u8]>) -> String {
    const SYMBOLS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for group in bytes.as_ref().chunks(3) {
        let bits =
            group.iter().fold(0_u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - group.len()));
        text.extend((0..=group.len()).map(|n| SYMBOLS[(bits >> (18 - 6 * n)) as usize & 63] as char));
    }
    text
}

/// Puts a RequestAuthentication of `shop/web` with this rule in force.
pub fn authentication(stage: &Stage, rule: Value) {
    let object = json!({
        "apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication",
        "metadata": {"name": "tokens", "namespace": NAMESPACE},
        "spec": {"targetRefs": [{"kind": "Service", "group": "", "name": "web"}], "jwtRules": [rule]},
    });
    stage.change(|| stage.mesh.testbed.world().write("tokens.yaml", &object.to_string()).unwrap());
}

fn policy(stage: &Stage, action: &str, rule: Value) {
    let object = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "web", "namespace": NAMESPACE},
        "spec": {
            "targetRefs": [{"kind": "Service", "group": "", "name": "web"}], "action": action, "rules": [rule],
        },
    });
    stage.change(|| stage.mesh.testbed.world().write("policy.yaml", &object.to_string()).unwrap());
}

fn ask(stage: &Stage, path: &str, headers: &[(&str, &str)]) -> Response {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    request(&mut stage.connect(), &format!("GET {path} HTTP/1.1\r\nhost: web\r\n{headers}\r\n")).unwrap()
}

fn status(stage: &Stage, token: &str) -> u16 {
    ask(stage, "/", &[("authorization", &format!("Bearer {token}"))]).status
}

#[test]
fn a_token_says_whose_request_it_is_and_a_bad_one_is_answered_with_401() {
    let stage = Stage::new();
    let server = Scripted::start(&stage.mesh.server, |_| Reply::Answer(200, "ok\n".to_owned()));
    let (issuer, stranger) = (Issuer::new("1"), Issuer::new("1"));
    let rule = json!({"issuer": ISSUER, "jwks": issuer.jwks(), "audiences": ["web"], "spaceDelimitedClaims": ["roles"]});
    authentication(&stage, rule);
    let claims =
        json!({"aud": ["web"], "scope": "read write", "roles": "buyer seller", "team": {"name": "blue"}});
    let good = issuer.token(claims);
    assert_eq!(ask(&stage, "/", &[]).status, 200);
    assert_eq!(status(&stage, &good), 200);
    policy(
        &stage,
        "ALLOW",
        json!({
            "from": [{"source": {"requestPrincipals": [format!("{ISSUER}/ann")]}}],
            "when": [
                {"key": "request.auth.claims[scope]", "values": ["write"]},
                {"key": "request.auth.claims[roles]", "values": ["seller"]},
                {"key": "request.auth.claims[team][name]", "values": ["blue"]},
                {"key": "request.auth.audiences", "values": ["web"]},
            ],
        }),
    );
    assert_eq!(status(&stage, &good), 200);
    let served = server.count();
    assert_eq!(ask(&stage, "/", &[]).status, 403);
    for lacking in [
        json!({"aud": "web", "scope": "read", "roles": "seller", "team": {"name": "blue"}}),
        json!({"aud": "web", "scope": "write", "roles": "buyer sellers", "team": {"name": "blue"}}),
        json!({"aud": "web", "scope": "write", "roles": "seller", "team": "blue"}),
        json!({"aud": "web", "scope": "write", "roles": "seller", "team": {"name": "blue"}, "sub": "bob"}),
    ] {
        assert_eq!(status(&stage, &issuer.token(lacking.clone())), 403, "{lacking}");
    }
    let [header, claims, _] = good.split('.').collect::<Vec<_>>()[..] else { panic!("{good}") };
    let bad = [
        stranger.token(json!({"aud": "web"})),
        issuer.token(json!({"aud": "other"})),
        issuer.token(json!({"aud": "web", "iss": "https://evil.example"})),
        issuer.token(json!({"aud": "web", "exp": 1})),
        format!("{}.{claims}.", base64url(r#"{"alg":"none"}"#)),
        format!("{header}.{claims}."),
        format!("{good}="),
        "x".to_owned(),
    ];
    for token in &bad {
        let answer = ask(&stage, "/", &[("authorization", &format!("Bearer {token}"))]);
        assert_eq!((answer.status, answer.text().as_str()), (401, "invalid_token\n"), "{token}");
        assert_eq!(answer.header("www-authenticate"), Some(r#"Bearer error="invalid_token""#));
    }
    // Two are nobody's, wherever they are; and what is not HTTP shows none.
    let twice =
        ask(&stage, &format!("/?access_token={good}"), &[("authorization", &format!("Bearer {}", bad[0]))]);
    assert_eq!(twice.status, 401);
    crate::pair::assert_refused(&stage.mesh.client, stage.web());
    assert_eq!(server.count(), served);
    stage.await_count(&["response_code=\"401\"", "response_flags=\"UAEX\""], bad.len() as f64 + 1.0);
    let record = stage.record(|record| record["detail"] == "the token is refused: it has expired");
    assert_eq!((&record["reason"], &record["flags"]), (&"invalid_token".into(), &"UAEX".into()));
    let log = stage.waypoint.log().unwrap();
    assert!(bad.iter().chain([&good]).all(|token| token.len() < 9 || !log.contains(token)), "{log}");
}

#[test]
fn what_goes_on_is_what_was_verified_and_not_what_the_client_writes() {
    let stage = Stage::new();
    let server = Scripted::start(&stage.mesh.server, |_| Reply::Answer(200, "ok\n".to_owned()));
    let issuer = Issuer::new("1");
    let rule = json!({
        "issuer": ISSUER, "jwks": issuer.jwks(), "outputPayloadToHeader": "x-payload",
        "fromHeaders": [{"name": "authorization", "prefix": "Bearer "}], "fromParams": ["token"],
        "fromCookies": ["session"],
        "outputClaimToHeaders": [
            {"header": "x-sub", "claim": "sub"}, {"header": "x-level", "claim": "a.level"},
            {"header": "x-absent", "claim": "absent"}, {"header": "x-list", "claim": "list"},
        ],
    });
    authentication(&stage, rule.clone());
    // What policies and routes ask of a header is what the server will see.
    policy(
        &stage,
        "DENY",
        json!({"when": [{"key": "request.headers[x-sub]", "values": ["root", "mallory"]}]}),
    );
    let token = issuer.token(json!({"a": {"level": 7}, "list": [1]}));
    let payload = token.split('.').nth(1).unwrap().to_owned();
    let bearer = format!("Bearer {token}");
    let smuggled = [
        ("x-sub", "root"),
        ("X_Sub", "root"),
        ("x-payload", "e30"),
        ("x-level", "9"),
        ("x-absent", "yes"),
        ("x-list", "2"),
        ("cookie", "a=1"),
    ];
    let seen = || server.asked().pop().unwrap();
    // Also without a token nobody else is believed.
    assert_eq!(ask(&stage, "/plain?a=1", &smuggled).status, 200);
    let plain = seen();
    assert_eq!(plain.line, "GET /plain?a=1 HTTP/1.1");
    assert_eq!(
        plain
            .headers
            .keys()
            .filter(|name| name.starts_with("x-") && *name != "x-forwarded-client-cert")
            .count(),
        0
    );
    assert!(!plain.headers.contains_key("x_sub"));
    let with_bearer: Vec<_> = smuggled.iter().copied().chain([("authorization", &*bearer)]).collect();
    let query = format!("/?token={token}&a=1&%74oken={token}");
    let cookie = format!("session={token}; a=1; session={token}");
    for (path, headers) in [
        ("/?a=1", with_bearer),
        (&*query, smuggled.to_vec()),
        ("/?a=1", vec![("cookie", &*cookie), ("x-sub", "root")]),
    ] {
        assert_eq!(ask(&stage, path, &headers).status, 200, "{path}");
        let seen = seen();
        assert_eq!(seen.line, "GET /?a=1 HTTP/1.1");
        let header = |name: &str| seen.headers.get(name).map(String::as_str);
        assert_eq!((header("x-sub"), header("x-level")), (Some("ann"), Some("7")));
        assert_eq!(header("x-payload"), Some(&*payload));
        assert_eq!((header("x-absent"), header("x-list"), header("x_sub")), (None, None, None));
        assert_eq!((header("authorization"), header("cookie").unwrap_or("a=1")), (None, "a=1"));
    }
    // What a token says counts for policies that ask of headers.
    let mallory = format!("Bearer {}", issuer.token(json!({"sub": "mallory"})));
    assert_eq!(ask(&stage, "/", &[("authorization", &mallory), ("x-sub", "ann")]).status, 403);
    let mut forwards = rule;
    forwards["forwardOriginalToken"] = true.into();
    authentication(&stage, forwards);
    assert_eq!(ask(&stage, "/", &[("authorization", &bearer)]).status, 200);
    assert_eq!(seen().headers.get("authorization"), Some(&bearer));
}

#[test]
fn no_log_tells_a_token() {
    let issuer = Issuer::new("1");
    let own = "LOG %REQ(:PATH)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %REQ(X-TOKEN)% %REQ(X-OTHER)%";
    for (args, told) in
        [(&[][..], &["/param", "/cookie"][..]), (&["--access-log-format", own], &["/param?a=1&b=2", "seen"])]
    {
        let stage = Stage::with(args);
        let _server = Scripted::status(&stage.mesh.server, 200);
        authentication(
            &stage,
            json!({
                "issuer": ISSUER, "jwks": issuer.jwks(), "fromHeaders": [{"name": "x-token"}],
                "fromParams": ["token"], "fromCookies": ["session"],
            }),
        );
        let tokens = [issuer.token(json!({})), issuer.token(json!({"exp": 1}))];
        for (token, wanted) in tokens.iter().zip([200, 401]) {
            for (path, header) in [
                (&*format!("/param?a=1&token={token}&b=2"), ("x-other", "seen")),
                ("/header", ("x-token", token)),
                ("/cookie", ("cookie", &*format!("a=1; session={token}"))),
            ] {
                assert_eq!(ask(&stage, path, &[header]).status, wanted, "{path}");
            }
        }
        stage.await_count(&[], 6.0);
        let log = stage.waypoint.log().unwrap();
        assert!(told.iter().all(|text| log.contains(text)), "{log}");
        assert!(!tokens.iter().any(|token| log.contains(token)), "{log}");
    }
}

#[test]
fn a_rule_of_a_route_leads_past_nobody_who_asks_for_tokens() {
    let versions = super::routes::Versions::new();
    let stage = &versions.stage;
    let server = Scripted::start(&versions.pods[0], |_| Reply::Answer(200, "ok\n".to_owned()));
    let vip = stage.mesh.testbed.vip();
    let mut other = super::web(&vip).endpoints([&versions.pods[0]]);
    other.name = "other".to_owned();
    let issuer = Issuer::new("1");
    let of_other = json!({
        "apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication",
        "metadata": {"name": "other", "namespace": NAMESPACE},
        "spec": {
            "targetRefs": [{"kind": "Service", "group": "", "name": "other"}],
            "jwtRules": [{"issuer": ISSUER, "jwks": issuer.jwks(), "outputPayloadToHeader": "x-payload"}],
        },
    });
    stage.change(|| {
        let world = stage.mesh.testbed.world();
        world.service(&other).unwrap();
        world.write("other.yaml", &of_other.to_string()).unwrap();
        let http = "- route: [{destination: {host: other}}]";
        world.write("routes.yaml", &super::routes::routes(http)).unwrap();
    });
    assert_eq!(status(stage, "x"), 401);
    assert_eq!(server.count(), 0);
    let token = issuer.token(json!({}));
    let answer = ask(stage, "/", &[("authorization", &format!("Bearer {token}")), ("x-payload", "forged")]);
    assert_eq!(answer.status, 200);
    let seen = server.asked().pop().unwrap();
    assert_eq!(seen.headers.get("x-payload").map(String::as_str), token.split('.').nth(1));
    assert!(!seen.headers.contains_key("authorization"));
}

#[test]
fn one_that_can_not_be_understood_refuses_and_a_token_can_be_asked_about() {
    let stage = Stage::new();
    let _server = stage.mesh.server.serve_http(80).unwrap();
    let issuer = Issuer::new("1");
    authentication(&stage, json!({"issuer": ISSUER, "jwks": issuer.jwks()}));
    policy(&stage, "ALLOW", json!({"from": [{"source": {"requestPrincipals": ["*"]}}]}));
    let explain = |args: &[&str]| {
        let output = Command::new(program(stage.mesh.client_agent()))
            .args(["explain", "--from", "shop/client", "--to", "shop/web", "--port", "80", "--world"])
            .arg(stage.mesh.testbed.world().dir())
            .args(["--request", "GET /"])
            .args(args)
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    };
    let (code, text) = explain(&["--header", &format!("Authorization: Bearer {}", issuer.token(json!({})))]);
    assert!(code == Some(0) && text.contains("allowed by AuthorizationPolicy shop/web"), "{code:?} {text}");
    let (code, text) =
        explain(&["--header", &format!("Authorization: Bearer {}", issuer.token(json!({"exp": 1})))]);
    assert!(
        code == Some(2) && text.contains("refused (invalid_token): the token is refused: it has expired"),
        "{text}"
    );
    // Or what one would say, whoever has the keys.
    let (code, text) = explain(&["--claims", "sub=ann", "--claims", &format!("iss={ISSUER}")]);
    assert!(code == Some(0) && text.contains("allowed by AuthorizationPolicy shop/web"), "{code:?} {text}");
    let (code, text) = explain(&["--claims", "sub=ann", "--claims", "iss=https://other.example"]);
    assert!(code == Some(2) && text.contains("takes tokens of this issuer"), "{text}");
    let (code, text) = explain(&["--header", "x: y"]);
    assert!(
        code == Some(2) && text.contains("there is no token, which is not in requestPrincipals (*)"),
        "{text}"
    );
    assert_eq!(status(&stage, &issuer.token(json!({}))), 200);
    // One that never was good stands for one that lets nothing pass.
    let broken = "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\n\
                  metadata: {name: broken, namespace: shop}\n\
                  spec: {targetRefs: [{kind: Service, group: '', name: web}], jwtRules: [{isuer: x}]}\n";
    stage.change(|| stage.mesh.testbed.world().write("broken.yaml", broken).unwrap());
    assert_eq!(status(&stage, &issuer.token(json!({}))), 403);
    let record = stage.record(|record| record["code"] == 403);
    assert!(
        record["detail"].as_str().unwrap().contains("RequestAuthentication shop/broken can't be understood")
    );
}

#[test]
fn a_websocket_goes_on_with_the_token_that_it_began_with_until_rules_change() {
    let stage = Stage::new();
    let issuer = Issuer::new("1");
    authentication(&stage, json!({"issuer": ISSUER, "jwks": issuer.jwks()}));
    policy(&stage, "ALLOW", json!({"from": [{"source": {"requestPrincipals": [format!("{ISSUER}/*")]}}]}));
    let listener = stage.mesh.server.listen(false, 80).unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        stream.write_all(answer.as_bytes()).unwrap();
        // An echo, until it is cut.
        let mut buffer = [0; 64];
        while let Ok(length @ 1..) = stream.read_uninterrupted(&mut buffer) {
            if stream.write_all(&buffer[..length]).is_err() {
                return;
            }
        }
    });
    let mut stream = stage.connect();
    let ask = format!(
        "GET /chat HTTP/1.1\r\nhost: web\r\nauthorization: Bearer {}\r\nconnection: upgrade\r\n\
         upgrade: websocket\r\n\r\n",
        issuer.token(json!({}))
    );
    stream.get_mut().write_all(ask.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    // Another world with the same rules.
    stage.change(|| stage.mesh.testbed.world().write("other.yaml", "").unwrap());
    stream.get_mut().write_all(b"ping").unwrap();
    let mut echo = [0; 4];
    stream.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"ping");
    authentication(&stage, json!({"issuer": ISSUER, "jwks": Issuer::new("1").jwks()}));
    let _ = stream.read_to_end(&mut Vec::new());
    server.join().unwrap();
    let record = stage.record(|record| record["code"] == 101);
    assert_eq!((&record["reason"], &record["path"]), (&"invalid_token".into(), &"/chat".into()));
}

#[test]
fn rules_go_by_claims_of_tokens_and_by_no_header() {
    let stage = Stage::new();
    let _server = Scripted::start(&stage.mesh.server, |_| Reply::Answer(200, "ok\n".to_owned()));
    let (issuer, stranger) = (Issuer::new("1"), Issuer::new("1"));
    authentication(&stage, json!({"issuer": ISSUER, "jwks": issuer.jwks()}));
    let to = |status: u16, field: &str, name: &str, wanted: &str| {
        format!(
            "- match: [{{{field}: {{\"@request.auth.claims{name}\": {wanted}}}}}]\n  directResponse: {{status: {status}}}\n"
        )
    };
    let rules = [
        to(201, "headers", ".sub", "{exact: bob}"),
        to(202, "headers", ".team.name", "{prefix: bl}"),
        to(203, "headers", "[groups.of][mine]", "{regex: \"a.*\"}"),
        to(205, "headers", ".scope", "{exact: write}"),
        to(206, "headers", ".admin", "{}"),
        to(210, "withoutHeaders", ".sub", "{}"),
        "- route: [{destination: {host: web}}]".to_owned(),
    ];
    let routes = super::routes::routes(&rules.concat());
    stage.change(|| stage.mesh.testbed.world().write("routes.yaml", &routes).unwrap());
    for (claims, wanted) in [
        (json!({"sub": "bob"}), 201),
        (json!({"sub": "bobby"}), 200),
        (json!({"team": {"name": "blue"}}), 202),
        (json!({"team.name": "blue"}), 200),
        (json!({"groups.of": {"mine": ["b", "ab"]}}), 203),
        (json!({"groups": {"of": {"mine": "ab"}}}), 200),
        (json!({"scope": "read write"}), 205),
        (json!({"scope": "read writer"}), 200),
        (json!({"admin": true}), 206),
        (json!({"admin": null}), 200),
    ] {
        assert_eq!(status(&stage, &issuer.token(claims.clone())), wanted, "{claims}");
    }
    // Without a token nothing is claimed, whatever a client writes.
    assert_eq!(ask(&stage, "/", &[]).status, 210);
    let named = ask(&stage, "/", &[("request.auth.claims.sub", "bob"), ("request-auth-claims-sub", "bob")]);
    assert_eq!(named.status, 210);
    assert_eq!(ask(&stage, "/", &[("@request.auth.claims.sub", "bob")]).status, 400);
    assert_eq!(status(&stage, &stranger.token(json!({"sub": "bob"}))), 401);
}
