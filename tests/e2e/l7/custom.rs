//! AuthorizationPolicies with action CUSTOM, for which the waypoint asks somebody.

use std::io::{Read, Write};
use std::thread;

use orlop_tests::traffic::{Response, request};
use orlop_tests::{Pod, PodSpec, ServiceSpec, TargetPort};
use serde_json::{Value, json};

use super::Stage;
use super::grpc::{self, at, bytes, number, text};
use super::routes::{Versions, routes};
use super::scripted::{Reply, Scripted};
use crate::hbone::identity;
use crate::mesh::{NAMESPACE, await_value};
use crate::pair::assert_refused;

const HOST: &str = "authz.shop.svc.cluster.local";

/// A stage with somebody to ask: a pod of the mesh, which takes nothing in plain, behind `shop/authz:9000`.
pub struct Asked {
    pub stage: Stage,
    pub pod: Pod,
}

impl Asked {
    pub fn new() -> Self {
        let stage = Stage::new();
        let pod = stage.mesh.nodes[0]
            .pod(NAMESPACE, "authz", PodSpec::new().service_account("authz").label("app", "authz"))
            .unwrap();
        stage.mesh.client_agent().wait_enrolled([&stage.mesh.client, &pod]).unwrap();
        let strict = json!({
            "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
            "metadata": {"name": "default", "namespace": NAMESPACE}, "spec": {"mtls": {"mode": "STRICT"}},
        });
        stage.change(|| {
            let world = stage.mesh.testbed.world();
            let service = ServiceSpec::new(NAMESPACE, "authz", 9000, TargetPort::Number(80));
            world.service(&service.cluster_ips(stage.mesh.testbed.vip()).endpoints([&pod])).unwrap();
            world.write("strict.yaml", &strict.to_string()).unwrap();
        });
        Self { stage, pod }
    }

    /// Has it asked about what this rule matches.
    pub fn ask(&self, provider: &Value, rule: &Value) {
        self.stage.change(|| write(&self.stage, provider, rule));
    }
}

fn write(stage: &Stage, provider: &Value, rule: &Value) {
    let provider = json!({
        "apiVersion": "orlop.dev/v1alpha1", "kind": "ExtensionProvider",
        "metadata": {"name": "authz", "namespace": NAMESPACE}, "spec": provider,
    });
    stage.mesh.testbed.world().write("provider.yaml", &provider.to_string()).unwrap();
    policy(stage, "ask", "web", rule);
}

/// A policy that has the provider asked about requests of a service.
fn policy(stage: &Stage, name: &str, service: &str, rule: &Value) {
    let policy = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "targetRefs": [{"kind": "Service", "group": "", "name": service}],
            "action": "CUSTOM", "provider": {"name": "authz"}, "rules": [rule],
        },
    });
    stage.mesh.testbed.world().write(&format!("{name}.yaml"), &policy.to_string()).unwrap();
}

/// With Istio's names.
fn provider(kind: &str, more: Value) -> Value {
    let mut of = json!({"service": HOST, "port": 9000, "timeout": "20s"});
    for (name, value) in more.as_object().unwrap() {
        of[name] = value.clone();
    }
    json!({ kind: of })
}

pub fn http(more: Value) -> Value {
    provider("envoyExtAuthzHttp", more)
}

pub fn grpc(more: Value) -> Value {
    provider("envoyExtAuthzGrpc", more)
}

fn of_admin() -> Value {
    json!({"to": [{"operation": {"paths": ["/admin*"]}}]})
}

pub fn ask(stage: &Stage, line: &str, headers: &[(&str, &str)], body: &str) -> Response {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    let text = format!("{line} HTTP/1.1\r\nhost: web\r\ncontent-length: {length}\r\n{headers}\r\n{body}");
    request(&mut stage.connect(), &text).unwrap()
}

/// `CheckResponse` with this `google.rpc.Status`.
pub fn status(code: u64) -> Vec<u8> {
    bytes(1, number(1, code))
}

/// `HeaderValueOption`
pub fn header(name: &str, value: &str) -> Vec<u8> {
    bytes(1, [bytes(1, name), bytes(2, value)].concat())
}

#[test]
fn an_http_provider_sees_what_it_is_shown_and_lets_pass_or_answers_itself() {
    let asked = Asked::new();
    let stage = &asked.stage;
    let server = Scripted::status(&stage.mesh.server, 200);
    let authz = Scripted::start(&asked.pod, |asked| match asked.headers.get("x-auth").map(String::as_str) {
        Some("good") => Reply::With(
            200,
            vec![
                ("x-user", "ann"),
                ("x-unasked", "1"),
                ("x-envoy-auth-headers-to-remove", "x-secret, x-auth"),
                ("x-seen", "yes"),
                ("x-forwarded-client-cert", "forged"),
            ],
            String::new(),
        ),
        Some("silent") => Reply::Answer(200, String::new()),
        _ => Reply::With(
            302,
            vec![("location", "/login"), ("set-cookie", "a=1"), ("x-inner", "1")],
            "go\n".into(),
        ),
    });
    asked.ask(
        &http(json!({
            "pathPrefix": "/check", "includeRequestHeadersInCheck": ["X-Auth", "x-forwarded-client-cert"],
            "includeAdditionalHeadersInCheck": {"x-from": "mesh"}, "headersToUpstreamOnAllow": ["x-user", "x-role"],
            "headersToDownstreamOnDeny": ["location", "set-cookie"], "headersToDownstreamOnAllow": ["x-seen"],
        })),
        &of_admin(),
    );
    // What the policy does not match nobody is asked about.
    assert_eq!(stage.get("/").status, 200);
    assert_eq!(authz.count(), 0);
    let forged = [
        ("x-user", "root"),
        ("X_User", "root"),
        ("x.user", "root"),
        ("x-role", "admin"),
        ("x-other", "1"),
        ("x-secret", "1"),
    ];
    let with = |auth: &'static str| [&[("x-auth", auth), ("authorization", "Basic x")][..], &forged].concat();
    let good = ask(stage, "POST //admin/./x?y=1", &with("good"), "body");
    assert_eq!((good.status, good.header("x-seen")), (200, Some("yes")));
    let question = authz.asked().pop().unwrap();
    assert_eq!(question.line, "POST /check/admin/x?y=1 HTTP/1.1");
    let seen = |name: &str| question.headers.get(name).map(String::as_str);
    assert_eq!(
        (seen("host"), seen("content-length"), seen("x-from")),
        (Some("web"), Some("0"), Some("mesh"))
    );
    assert_eq!(
        (seen("authorization"), seen("x-auth"), seen("x-other")),
        (Some("Basic x"), Some("good"), None)
    );
    // Whatever a client says of itself, it is told who asks.
    assert!(seen("x-forwarded-client-cert").unwrap().ends_with(identity("client").as_str()));
    let served = server.asked().pop().unwrap();
    let got = |name: &str| served.headers.get(name).map(String::as_str);
    assert_eq!((got("x-user"), got("x_user"), got("x.user"), got("x-role")), (Some("ann"), None, None, None));
    assert_eq!((got("x-secret"), got("x-auth")), (None, None), "what it wants removed");
    assert_eq!((got("x-unasked"), got("x-other"), served.body), (None, Some("1"), b"body".to_vec()));
    assert!(got("x-forwarded-client-cert").unwrap().ends_with(identity("client").as_str()));
    // Nobody else's word stands where it says nothing.
    assert_eq!(ask(stage, "GET /admin", &with("silent"), "").status, 200);
    assert!(
        !server.asked().pop().unwrap().headers.keys().any(|name| name.ends_with("user") || name == "x-role")
    );
    let count = server.count();
    let denied = ask(stage, "GET /admin", &[], "");
    assert_eq!((denied.status, denied.text().as_str()), (302, "go\n"));
    assert_eq!((denied.header("location"), denied.header("set-cookie")), (Some("/login"), Some("a=1")));
    assert_eq!(denied.header("x-inner"), None);
    assert_eq!(server.count(), count);
    let record = stage.record(|record| record["code"] == 302);
    assert_eq!((&record["reason"], &record["flags"]), (&"policy_denied".into(), &"UAEX".into()));
    assert_eq!(record["policy"], "shop/ask");
    let detail = record["detail"].as_str().unwrap();
    assert!(
        detail.starts_with("ExtensionProvider shop/authz, asked as shop/ask wants: it refuses"),
        "{detail}"
    );
    // Without a request there is nothing to ask about.
    assert_refused(&stage.mesh.client, stage.web());
}

#[test]
fn a_grpc_provider_is_asked_in_envoys_words_and_changes_headers() {
    let asked = Asked::new();
    let stage = &asked.stage;
    let server = Scripted::status(&stage.mesh.server, 200);
    let authz = grpc::Server::start(&asked.pod, |question| {
        let headers = at(question, &[1, 4, 2, 3]);
        let auth = headers.iter().find(|of| text(of, &[1]) == "x-auth").map(|of| text(of, &[2]));
        grpc::Reply::Message(match auth.as_deref() {
            Some("good") => {
                let ok = [
                    bytes(2, header("x-user", "ann")),
                    bytes(2, [header("x-groups", "b"), bytes(2, number(1, 1))].concat()),
                    bytes(2, [header("x-known", "mine"), number(3, 1)].concat()),
                    bytes(2, header("host", "evil")),
                    bytes(2, header(":path", "/evil")),
                    bytes(2, header("content-length", "9")),
                    bytes(2, header("x-forwarded-client-cert", "forged")),
                    bytes(5, "x-auth"),
                    bytes(6, header("x-seen", "yes")),
                ];
                [status(0), bytes(3, ok.concat())].concat()
            }
            _ => {
                let denied = [
                    bytes(1, number(1, 401)),
                    bytes(2, header("www-authenticate", "Basic")),
                    bytes(3, "no\n"),
                ];
                [status(16), bytes(2, denied.concat())].concat()
            }
        })
    });
    asked.ask(&grpc(json!({"includeRequestBodyInCheck": {"maxRequestBytes": 16}})), &of_admin());
    let headers = [
        ("x-auth", "good"),
        ("X_User", "root"),
        ("x-user", "root"),
        ("x-groups", "a"),
        ("x-known", "theirs"),
        ("x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/shop/sa/root"),
        ("x-envoy-auth-partial-body", "true"),
    ];
    let good = ask(stage, "POST /admin/x?y=1", &headers, "the body");
    assert_eq!((good.status, good.header("x-seen")), (200, Some("yes")));
    let (path, question) = authz.asked().pop().unwrap();
    assert_eq!(path, "/envoy.service.auth.v3.Authorization/Check");
    // attributes.source, attributes.destination and attributes.request.http of envoy.service.auth.v3.
    assert_eq!(text(&question, &[1, 1, 4]), identity("client").as_str());
    assert_eq!(text(&question, &[1, 1, 1, 1, 2]), stage.mesh.client.ipv4().to_string());
    assert_eq!(text(&question, &[1, 2, 4]), identity("gate").as_str());
    let request = |field: u64| text(&question, &[1, 4, 2, field]);
    assert_eq!(
        (request(2).as_str(), request(4).as_str(), request(5).as_str()),
        ("POST", "/admin/x?y=1", "web")
    );
    assert_eq!(
        (request(6).as_str(), request(10).as_str(), request(11).as_str()),
        ("http", "HTTP/1.1", "the body")
    );
    let http = at(&question, &[1, 4, 2]).remove(0);
    assert!(grpc::fields(&http).contains(&(9, grpc::Value::Number(8))), "its size");
    let shown: Vec<_> = at(&http, &[3]).iter().map(|of| (text(of, &[1]), text(of, &[2]))).collect();
    assert!(shown.contains(&("x-user".into(), "root".into())), "{shown:?}");
    assert!(shown.contains(&("x-envoy-auth-partial-body".into(), "false".into())), "{shown:?}");
    let caller = shown.iter().find(|(name, _)| name == "x-forwarded-client-cert").unwrap();
    assert!(caller.1.ends_with(identity("client").as_str()), "{caller:?}");
    let served = server.asked().pop().unwrap();
    assert_eq!((served.line.as_str(), served.body), ("POST /admin/x?y=1 HTTP/1.1", b"the body".to_vec()));
    let got = |name: &str| served.headers.get(name).map(String::as_str);
    assert_eq!((got("x-user"), got("x_user"), got("x-auth")), (Some("ann"), None, None));
    assert_eq!((got("x-known"), got("host")), (Some("theirs"), Some("web")));
    assert_eq!(got("x-groups"), Some("b"), "the last of two lines");
    assert!(got("x-forwarded-client-cert").unwrap().ends_with(identity("client").as_str()));
    let denied = ask(stage, "GET /admin", &[], "");
    assert_eq!((denied.status, denied.text().as_str()), (401, "no\n"));
    assert_eq!(denied.header("www-authenticate"), Some("Basic"));
    // Bytes are bytes where it wants them so, and text nowhere.
    let packed = json!({"includeRequestBodyInCheck": {"maxRequestBytes": 16, "packAsBytes": true}});
    asked.ask(&grpc(packed), &of_admin());
    assert_eq!(ask(stage, "POST /admin", &headers, "caf\u{e9}").status, 200);
    let http = at(&authz.asked().pop().unwrap().1, &[1, 4, 2]).remove(0);
    assert_eq!((at(&http, &[12]), at(&http, &[11])), (vec!["caf\u{e9}".as_bytes().to_vec()], vec![]));
    asked.ask(&grpc(json!({"includeRequestBodyInCheck": {"maxRequestBytes": 16}})), &of_admin());
    // It sees no more of a body than it asks for, and what is longer goes nowhere.
    let count = server.count();
    assert_eq!(ask(stage, "POST /admin", &headers, "seventeen letters").status, 413);
    assert_eq!(server.count(), count);
    asked.ask(
        &grpc(json!({"includeRequestBodyInCheck": {"maxRequestBytes": 4, "allowPartialMessage": true}})),
        &of_admin(),
    );
    let long = "0123456789".repeat(30_000);
    assert_eq!(ask(stage, "POST /admin", &headers, &long).status, 200);
    assert_eq!(text(&authz.asked().pop().unwrap().1, &[1, 4, 2, 11]), "0123");
    assert_eq!(server.asked().pop().unwrap().body.len(), long.len());
    let checks = |outcome: &str| {
        let labels = [format!("outcome=\"{outcome}\"")];
        stage
            .waypoint
            .metric("orlop_authorizer_checks_total", &labels.each_ref().map(String::as_str))
            .unwrap()
    };
    assert_eq!((checks("allowed"), checks("denied")), (3.0, 1.0));
}

#[test]
fn what_a_provider_sets_counts_for_the_policies_and_rules_that_come_after_it() {
    let asked = Asked::new();
    let stage = &asked.stage;
    let _server = Scripted::status(&stage.mesh.server, 200);
    let _authz = Scripted::start(&asked.pod, |asked| {
        let user = if asked.line.contains("ann") { "ann" } else { "bob" };
        Reply::With(200, vec![("x-user", user)], String::new())
    });
    asked.ask(&http(json!({"headersToUpstreamOnAllow": ["x-user"]})), &json!({}));
    stage.change(|| {
        let rule = "rules: [{when: [{key: \"request.headers[x-user]\", values: [ann]}]}]";
        super::policy::write(stage, "users", "Service, group: '', name: web", rule);
    });
    assert_eq!((stage.get("/ann").status, stage.get("/bob").status), (200, 403));
    // It can let nobody pass whom another policy keeps out.
    stage.change(|| {
        let rule = "action: DENY\nrules: [{to: [{operation: {paths: [/ann]}}]}]";
        super::policy::write(stage, "paths", "Service, group: '', name: web", rule);
    });
    assert_eq!(stage.get("/ann").status, 403);
}

/// A refusal with this status.
pub fn denied(code: u64) -> Vec<u8> {
    [status(7), bytes(2, bytes(1, number(1, code)))].concat()
}

/// What comes of a request while the provider does this.
fn failing(
    asked: &Asked,
    timeout: &str,
    script: impl Fn(&[u8]) -> grpc::Reply + Send + Sync + 'static,
) -> u16 {
    let _authz = grpc::Server::start(&asked.pod, script);
    asked.ask(&grpc(json!({"timeout": timeout, "statusOnError": "503"})), &json!({}));
    asked.stage.get("/").status
}

#[test]
fn nothing_passes_while_the_provider_does_not_say_so() {
    let asked = Asked::new();
    let stage = &asked.stage;
    let server = Scripted::status(&stage.mesh.server, 200);
    // Nobody is there.
    asked.ask(&grpc(json!({})), &json!({}));
    let refused = stage.get("/");
    assert_eq!((refused.status, refused.text().as_str()), (403, "authorizer_unavailable\n"));
    let record = stage.record(|record| record["reason"] == "authorizer_unavailable");
    assert_eq!((&record["flags"], &record["policy"]), (&"UAEX".into(), &"shop/ask".into()));
    assert_eq!(failing(&asked, "100ms", |_| grpc::Reply::Nothing), 503);
    assert_eq!(failing(&asked, "20s", |_| grpc::Reply::Status(14)), 503);
    assert_eq!(failing(&asked, "20s", |_| grpc::Reply::Garbage(b"HTTP/1.1 200 OK\r\n\r\n".to_vec())), 503);
    let huge = || [status(0), bytes(3, bytes(2, header("x", &"y".repeat(1 << 20))))].concat();
    assert_eq!(failing(&asked, "20s", move |_| grpc::Reply::Message(huge())), 503);
    // An answer without a status is none, and says yes by no means.
    assert_eq!(failing(&asked, "20s", |_| grpc::Reply::Message(Vec::new())), 503);
    assert_eq!(failing(&asked, "20s", |_| grpc::Reply::Message([status(0), bytes(2, "")].concat())), 503);
    // One that could not tell.
    assert_eq!(failing(&asked, "20s", |_| grpc::Reply::Message([status(13), bytes(5, "")].concat())), 503);
    assert_eq!(failing(&asked, "20s", |_| grpc::Reply::Reset), 503);
    // What can't be done, or be understood, is not left out.
    for odd in
        [bytes(8, "token"), bytes(7, bytes(1, "a")), bytes(2, [header("x", "1"), number(3, 9)].concat())]
    {
        let ok = move || [status(0), bytes(3, odd.clone())].concat();
        assert_eq!(failing(&asked, "20s", move |_| grpc::Reply::Message(ok())), 503);
    }
    // A refusal is one, whatever else it says.
    for code in [200, 100, 0x1_0000, 999] {
        assert_eq!(failing(&asked, "20s", move |_| grpc::Reply::Message(denied(code))), 403, "{code}");
    }
    assert_eq!(failing(&asked, "20s", move |_| grpc::Reply::Message(status(7))), 403);
    for (name, value) in [("a b", "1"), ("x", "a\r\nx-smuggled: 1"), ("x", "\0")] {
        let ok = move || [status(0), bytes(3, bytes(2, header(name, value)))].concat();
        assert_eq!(failing(&asked, "20s", move |_| grpc::Reply::Message(ok())), 503, "{name} {value:?}");
    }
    let many = || (0..200).flat_map(|n| bytes(2, header(&format!("x-{n}"), "1"))).collect::<Vec<_>>();
    assert_eq!(
        failing(&asked, "20s", move |_| grpc::Reply::Message([status(0), bytes(3, many())].concat())),
        503
    );
    // One that answers like a web server.
    let web = Scripted::status(&asked.pod, 500);
    asked.ask(&http(json!({})), &json!({}));
    assert_eq!(stage.get("/").status, 403);
    assert!(web.count() > 0);
    drop(web);
    for other in [201, 204, 404] {
        let _web = Scripted::status(&asked.pod, other);
        assert_ne!(stage.get("/").status / 100, 2, "{other}");
    }
    // A provider that nobody has written down.
    stage.change(|| stage.mesh.testbed.world().remove("provider.yaml").unwrap());
    assert_eq!((stage.get("/").status, server.count()), (403, 0));
    let findings = stage.waypoint.config_dump().unwrap();
    assert!(findings.contains("there is no ExtensionProvider authz"), "{findings}");
}

#[test]
fn what_a_rule_makes_of_a_request_is_asked_about_anew() {
    let asked = Asked::new();
    let stage = &asked.stage;
    let server = Scripted::status(&stage.mesh.server, 200);
    let authz = Scripted::start(&asked.pod, |asked| {
        Reply::Answer(if asked.line.contains("/admin") { 403 } else { 200 }, String::new())
    });
    let mut other = super::web(&stage.mesh.testbed.vip()).endpoints([&stage.mesh.server]);
    other.name = "other".to_owned();
    stage.change(|| {
        write(stage, &http(json!({})), &json!({}));
        policy(stage, "other", "other", &json!({}));
        let world = stage.mesh.testbed.world();
        world.service(&other).unwrap();
        let rewritten = "- match: [{uri: {prefix: /public}}]\n  rewrite: {uri: /admin}\n  \
                         route: [{destination: {host: other}}]";
        world.write("routes.yaml", &routes(rewritten)).unwrap();
    });
    assert_eq!(stage.get("/public").status, 403);
    let lines: Vec<_> = authz.asked().into_iter().map(|asked| asked.line).collect();
    assert_eq!(lines, ["GET /public HTTP/1.1", "GET /admin HTTP/1.1"]);
    assert_eq!(server.count(), 0);
}

#[test]
fn a_rule_leads_past_nobody_who_is_to_be_asked() {
    let versions = Versions::new();
    let stage = &versions.stage;
    let servers = versions.pods.each_ref().map(|pod| Scripted::status(pod, 200));
    let mut other = super::web(&stage.mesh.testbed.vip()).endpoints([&versions.pods[0]]);
    other.name = "other".to_owned();
    let provider = http(json!({"service": "nobody.shop.svc.cluster.local"}));
    stage.change(|| {
        let world = stage.mesh.testbed.world();
        world.service(&other).unwrap();
        world.write("routes.yaml", &routes("- route: [{destination: {host: other}}]")).unwrap();
    });
    assert_eq!(stage.get("/").status, 200);
    stage.change(|| {
        write(stage, &provider, &json!({}));
        policy(stage, "ask", "other", &json!({}));
    });
    assert_eq!(stage.get("/").status, 403);
    // Nor does a mirror.
    let mirrored =
        "- route: [{destination: {host: web, subset: v2}}]\n  mirrors: [{destination: {host: other}}]";
    stage.change(|| stage.mesh.testbed.world().write("routes.yaml", &routes(mirrored)).unwrap());
    let before = servers[0].count();
    assert_eq!(stage.get("/").status, 200);
    await_value(before, || servers[0].count());
    stage.record(|record| record["code"] == 200 && record["reason"].is_null());
    assert_eq!(servers[0].count(), before);
}

#[test]
fn a_websocket_is_cut_once_somebody_new_would_have_to_be_asked() {
    let asked = Asked::new();
    let stage = &asked.stage;
    let _authz = Scripted::status(&asked.pod, 200);
    asked.ask(&http(json!({})), &json!({}));
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
        let mut echoed = [0; 4];
        stream.read_exact(&mut echoed).unwrap();
        stream.write_all(&echoed).unwrap();
        // Until it is cut.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let mut stream = stage.connect();
    let hello = "GET /chat HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    stream.get_mut().write_all(hello.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101"));
    // Whatever else changes, it goes on.
    stage.change(|| {
        super::policy::write(
            stage,
            "x",
            "Service, group: '', name: web",
            "action: DENY\nrules: [{to: [{operation: {paths: [/x]}}]}]",
        )
    });
    stream.get_mut().write_all(b"ping").unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
    asked.ask(&http(json!({"pathPrefix": "/other"})), &json!({}));
    let _ = stream.read_to_end(&mut Vec::new());
    server.join().unwrap();
    let record = stage.record(|record| record["code"] == 101);
    assert_eq!((&record["reason"], &record["policy"]), (&"policy_denied".into(), &"shop/ask".into()));
}
