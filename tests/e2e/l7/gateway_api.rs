//! Routes of the Gateway API on real requests.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use bytes::Bytes;
use orlop_tests::traffic::{Response, request};
use orlop_tests::{PodSpec, ServiceSpec, TargetPort, wait_for};

use super::policy::write as write_policy;
use super::routes::Versions;
use super::scripted::{Reply, Scripted};
use super::{Stage, h2c};
use crate::hbone::within;
use crate::mesh::{NAMESPACE, TIMEOUT, await_value};

/// A stage whose versions are a service each, `v1` and `v2`, besides being that which the routes are for.
pub fn versions(args: &[&str]) -> Versions {
    let versions = Versions::with(args);
    let stage = &versions.stage;
    stage.change(|| {
        let world = stage.mesh.testbed.world();
        for pod in &versions.pods {
            let service = ServiceSpec::new(NAMESPACE, pod.name(), 80, TargetPort::Number(80));
            let service = service.cluster_ips(stage.mesh.testbed.vip());
            world.service(&service.endpoints([pod])).unwrap();
        }
    });
    versions
}

/// Puts a route for the service `shop/web` in force, with these rules as YAML of `spec.rules`.
pub fn route(stage: &Stage, kind: &str, namespace: &str, rules: &str) {
    let indented: String = rules.lines().map(|line| format!("  {line}\n")).collect();
    let text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\n\
         metadata: {{name: web, namespace: {namespace}}}\nspec:\n  \
         parentRefs: [{{group: '', kind: Service, name: web, namespace: {NAMESPACE}}}]\n  rules:\n{indented}"
    );
    let file = format!("{kind}-{namespace}.yaml");
    stage.change(|| stage.mesh.testbed.world().write(&file, &text).unwrap());
}

/// A request of the client's on a connection of its own.
fn ask(stage: &Stage, line: &str, headers: &str) -> Response {
    request(&mut stage.connect(), &format!("{line} HTTP/1.1\r\nhost: web\r\n{headers}\r\n")).unwrap()
}

#[test]
fn an_http_route_splits_matches_redirects_rewrites_mirrors_and_limits() {
    let versions = versions(&[]);
    let stage = &versions.stage;
    let tries = AtomicUsize::new(0);
    let v1 = Scripted::start(&versions.pods[0], move |asked| match asked.line.split(' ').nth(1) {
        Some("/slow") => loop {
            thread::park();
        },
        Some("/retry") if tries.fetch_add(1, Ordering::SeqCst) < 2 => Reply::Answer(502, String::new()),
        _ => Reply::Answer(200, "v1".to_owned()),
    });
    let v2 = Scripted::start(&versions.pods[1], |_| Reply::Answer(200, "v2".to_owned()));
    route(
        stage,
        "HTTPRoute",
        NAMESPACE,
        "- name: canary\n  matches: [{path: {value: /canary}}]\n  \
           backendRefs: [{name: v1, port: 80, weight: 90}, {name: v2, port: 80, weight: 10}, {name: none, port: 80, weight: 0}]\n\
         - matches: [{path: {value: /canary}, headers: [{name: Beta, value: \"true\"}]}]\n  \
           backendRefs: [{name: v2, port: 80}]\n\
         - matches: [{path: {value: /old}}]\n  filters:\n  - type: RequestRedirect\n    \
           requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}\n\
         - matches: [{path: {value: /away}}]\n  filters:\n  - type: RequestRedirect\n    \
           requestRedirect: {scheme: https, hostname: example.com, statusCode: 308}\n\
         - matches: [{path: {value: /api/}, method: GET}]\n  filters:\n  - type: URLRewrite\n    \
           urlRewrite: {hostname: inner, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}\n  \
           - type: RequestHeaderModifier\n    requestHeaderModifier: {set: [{name: x-set, value: new}], remove: [x-gone]}\n  \
           - type: RequestMirror\n    requestMirror: {backendRef: {name: v2, port: 80}}\n  \
           backendRefs:\n  - name: v1\n    port: 80\n    filters:\n    - type: ResponseHeaderModifier\n      \
           responseHeaderModifier: {add: [{name: x-added, value: added}]}\n\
         - matches: [{path: {value: /half}}]\n  backendRefs: [{name: v1, port: 80}, {name: none, port: 80}]\n\
         - matches: [{path: {value: /filter}}]\n  backendRefs: [{name: v1, port: 80}]\n  \
           filters: [{type: ExtensionRef, extensionRef: {group: a.b, kind: C, name: d}}]\n\
         - matches: [{path: {value: /slow}}]\n  backendRefs: [{name: v1, port: 80}]\n  timeouts: {request: 200ms}\n\
         - matches: [{path: {value: /retry}}]\n  backendRefs: [{name: v1, port: 80}]\n  retry: {codes: [502], attempts: 2}",
    );
    let mut stream = stage.connect();
    let mut ask = |path: &str, headers: &str| {
        request(&mut stream, &format!("GET {path} HTTP/1.1\r\nhost: web\r\n{headers}\r\n")).unwrap()
    };
    let to_v2 = (0..400).filter(|_| ask("/canary/x", "").text() == "v2").count();
    assert!(to_v2.abs_diff(40) <= 3, "{to_v2} of 400 went to v2, not a tenth");
    assert!((0..20).all(|_| ask("/canary", "beta: true\r\n").text() == "v2"));
    stage.record(|record| record["rule"] == "shop/web" && record["rule_name"] == "canary");
    for (path, code, location) in
        [("/old/x?y=1", 302, "http://web/new/x?y=1"), ("/away/x", 308, "https://example.com/away/x")]
    {
        let answer = ask(path, "");
        assert_eq!((answer.status, answer.header("location")), (code, Some(location)));
    }
    let mirrored = v2.count();
    let answer = ask("/api/users?id=7", "x-set: old\r\nx-gone: 1\r\n");
    assert_eq!((answer.text().as_str(), answer.header("x-added")), ("v1", Some("added")));
    let asked = v1.asked().pop().unwrap();
    assert_eq!(asked.line, "GET /users?id=7 HTTP/1.1");
    assert_eq!((&*asked.headers["host"], &*asked.headers["x-set"]), ("inner", "new"));
    assert!(!asked.headers.contains_key("x-gone"));
    await_value(mirrored + 1, || v2.count());
    assert_eq!(v2.asked().pop().unwrap().line, "GET /users?id=7 HTTP/1.1");
    let failed = (0..100).filter(|_| ask("/half", "").status == 500).count();
    assert!(failed.abs_diff(50) <= 2, "{failed} of 100 were refused, not half");
    stage.record(|record| record["path"] == "/half" && record["reason"] == "invalid_route");
    let before = v1.count();
    assert_eq!(ask("/filter", "").status, 500);
    // A prefix is of segments, and what no rule is for goes nowhere.
    assert_eq!((ask("/canaryx", "").status, ask("/", "").status), (404, 404));
    assert_eq!(v1.count(), before);
    assert_eq!(ask("/retry", "").status, 200);
    assert_eq!(v1.count(), before + 3);
    assert_eq!(ask("/slow", "").status, 504);
}

#[test]
fn an_http_route_lets_origins_ask_copies_a_share_matches_by_expressions_and_limits_attempts() {
    let versions = versions(&[]);
    let stage = &versions.stage;
    let v1 = Scripted::start(&versions.pods[0], |asked| {
        if asked.line.contains("/slow") {
            loop {
                thread::park();
            }
        }
        Reply::Answer(200, "v1".to_owned())
    });
    let v2 = Scripted::start(&versions.pods[1], |_| Reply::Answer(200, "v2".to_owned()));
    let mirror = |path: &str, share: &str| {
        format!(
            "- matches: [{{path: {{value: {path}}}}}]\n  backendRefs: [{{name: v1, port: 80}}]\n  \
             filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: v2, port: 80}}, {share}}}}}]\n"
        )
    };
    let rules = mirror("/half", "percent: 50")
        + &mirror("/quarter", "fraction: {numerator: 1, denominator: 4}")
        + "- matches: [{path: {value: /cors}}]\n  backendRefs: [{name: v1, port: 80}]\n  filters:\n  - type: CORS\n    \
             cors: {allowOrigins: ['https://*.example'], allowMethods: [PUT], allowHeaders: [x-a], exposeHeaders: [x-c], \
             allowCredentials: true, maxAge: 90}\n\
           - matches:\n  - headers: [{type: RegularExpression, name: x-v, value: 'v[0-9]+'}]\n    \
             queryParams: [{type: RegularExpression, name: q, value: 'a+'}]\n  backendRefs: [{name: v2, port: 80}]\n\
           - matches: [{path: {value: /slow}}]\n  backendRefs: [{name: v1, port: 80}]\n  timeouts: {backendRequest: 200ms}\n\
           - matches: [{path: {value: /own}}]\n  filters: [{type: CORS, cors: {allowOrigins: ['https://a.other']}}]\n  \
             backendRefs:\n  - name: v1\n    port: 80\n    \
             filters: [{type: CORS, cors: {allowOrigins: ['https://a.example'], exposeHeaders: [x-own]}}]";
    route(stage, "HTTPRoute", NAMESPACE, &rules);
    let mut stream = stage.connect();
    let mut again = |path: &str| {
        let answer = request(&mut stream, &format!("GET {path} HTTP/1.1\r\nhost: web\r\n\r\n"));
        assert_eq!(answer.unwrap().text(), "v1", "{path}");
    };
    for path in ["/half", "/quarter"] {
        (0..40).for_each(|_| again(path));
    }
    for (path, share) in [("/half", 20_usize), ("/quarter", 10)] {
        let line = format!("GET {path} HTTP/1.1");
        let copies = || v2.asked().iter().filter(|asked| asked.line == line).count();
        assert!(wait_for(TIMEOUT, || copies() + 2 >= share), "{path}: {}", copies());
        assert!(copies() <= share + 2, "{path}: {}", copies());
    }
    let before = v1.count();
    let preflight = "access-control-request-method: PUT\r\nconnection: close\r\n";
    let answer = ask(stage, "OPTIONS /cors", &format!("origin: https://a.example\r\n{preflight}"));
    for (name, wanted) in [
        ("access-control-allow-origin", "https://a.example"),
        ("access-control-allow-methods", "PUT"),
        ("access-control-allow-headers", "x-a"),
        ("access-control-allow-credentials", "true"),
        ("access-control-max-age", "90"),
    ] {
        assert_eq!(answer.header(name), Some(wanted), "{name}");
    }
    let answer = ask(stage, "OPTIONS /cors", &format!("origin: https://a.other\r\n{preflight}"));
    assert_eq!((answer.header("access-control-allow-origin"), v1.count()), (None, before));
    let answer = ask(stage, "PUT /cors", "origin: https://a.example\r\ncontent-length: 0\r\n");
    assert_eq!(
        (answer.header("access-control-expose-headers"), answer.text()),
        (Some("x-c"), "v1".to_owned())
    );
    // A backend's own counts instead of the rule's.
    for (origin, allowed) in [("https://a.example", true), ("https://a.other", false)] {
        let answer = ask(stage, "OPTIONS /own", &format!("origin: {origin}\r\n{preflight}"));
        assert_eq!(answer.header("access-control-allow-origin"), allowed.then_some(origin), "{origin}");
        let answer = ask(stage, "GET /own", &format!("origin: {origin}\r\n"));
        assert_eq!(
            (answer.text().as_str(), answer.header("access-control-expose-headers")),
            ("v1", allowed.then_some("x-own"))
        );
    }
    for (line, header, status) in [
        ("GET /?q=aa", "x-v: v12\r\n", 200),
        // All of it must match.
        ("GET /?q=aab", "x-v: v12\r\n", 404),
        ("GET /?q=aa", "x-v: v12x\r\n", 404),
        ("GET /", "x-v: v12\r\n", 404),
        ("GET /?q=aa", "", 404),
    ] {
        assert_eq!(ask(stage, line, header).status, status, "{line} {header}");
    }
    assert_eq!(ask(stage, "GET /slow", "").status, 504);
}

#[test]
fn a_backend_is_asked_as_its_app_protocol_says() {
    let versions = versions(&[]);
    let stage = &versions.stage;
    let [one, two] = &versions.pods;
    stage.change(|| {
        for (name, pod, port, protocol) in
            [("chat", one, 81, "kubernetes.io/ws"), ("h2", two, 82, "kubernetes.io/h2c")]
        {
            let service = ServiceSpec::new(NAMESPACE, name, 80, TargetPort::Number(port));
            let service = service.cluster_ips(stage.mesh.testbed.vip()).app_protocol(protocol);
            stage.mesh.testbed.world().service(&service.endpoints([pod])).unwrap();
        }
    });
    let _h2 = h2c::Server::start(two, 82);
    let listener = one.listen(false, 81).unwrap();
    let chat = thread::spawn(move || {
        let mut reader = BufReader::new(listener.accept().unwrap().0);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
        }
        let answer =
            "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\nhello";
        reader.get_mut().write_all(answer.as_bytes()).unwrap();
        head.to_ascii_lowercase()
    });
    route(
        stage,
        "HTTPRoute",
        NAMESPACE,
        "- matches: [{path: {value: /chat}}]\n  backendRefs: [{name: chat, port: 80}]\n\
         - backendRefs: [{name: h2, port: 80}]",
    );
    // What only HTTP/2 understands is asked in that, whatever the client speaks.
    let answer = ask(stage, "GET /inner", "connection: close\r\n");
    assert_eq!((answer.status, answer.header("seen-path")), (200, Some("/inner")));
    assert_eq!(hello(stage), "hello");
    assert!(chat.join().unwrap().contains("upgrade: websocket\r\n"));
}

/// What a WebSocket says first at `/chat`.
pub fn hello(stage: &Stage) -> String {
    let mut stream = stage.connect();
    let upgrade = "GET /chat HTTP/1.1\r\nhost: web\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\n\r\n";
    stream.get_mut().write_all(upgrade.as_bytes()).unwrap();
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(stream.read_line(&mut head).unwrap() > 0, "{head}");
    }
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let mut hello = [0; 5];
    stream.read_exact(&mut hello).unwrap();
    String::from_utf8_lossy(&hello).into_owned()
}

#[test]
fn a_client_follows_its_own_namespaces_route_and_others_the_services() {
    let versions = versions(&["--require-reference-grants"]);
    let stage = &versions.stage;
    let _servers = versions.pods.each_ref().map(|pod| pod.serve_http(80).unwrap());
    stage.mesh.testbed.world().enrolled_namespace("far").unwrap();
    let far = stage.mesh.nodes[0].pod("far", "client", PodSpec::new().service_account("client")).unwrap();
    stage.mesh.client_agent().wait_enrolled([&stage.mesh.client, &far]).unwrap();
    route(stage, "HTTPRoute", NAMESPACE, "- backendRefs: [{name: v1, port: 80}]");
    route(stage, "HTTPRoute", "far", "- backendRefs: [{name: v2, namespace: shop, port: 80}]");
    let own = || ask(stage, "GET /", "");
    let consumer = || far.http_get(stage.web(), "/", TIMEOUT).unwrap();
    assert_eq!(own().field("pod").as_deref(), Some("shop/v1"));
    // Nobody has granted it, where grants are required.
    assert_eq!(consumer().status, 500);
    let grant = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\n\
        metadata: {name: far, namespace: shop}\nspec:\n  \
        from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: far}]\n  to: [{group: '', kind: Service, name: v2}]\n";
    stage.change(|| stage.mesh.testbed.world().write("grant.yaml", grant).unwrap());
    assert_eq!(consumer().field("pod").as_deref(), Some("shop/v2"));
    assert_eq!(own().field("pod").as_deref(), Some("shop/v1"));
    stage.change(|| stage.mesh.testbed.world().remove("grant.yaml").unwrap());
    assert_eq!(consumer().status, 500);
    // Without its own route it follows the service's.
    stage.change(|| stage.mesh.testbed.world().remove("HTTPRoute-far.yaml").unwrap());
    assert_eq!(consumer().field("pod").as_deref(), Some("shop/v1"));
}

#[test]
fn a_grpc_route_chooses_by_service_and_method() {
    let versions = versions(&[]);
    let stage = &versions.stage;
    let _servers = versions.pods.each_ref().map(|pod| h2c::Server::start(pod, 80));
    let to = |name: &str| {
        format!(
            "backendRefs:\n  - name: {name}\n    port: 80\n    filters:\n    - type: ResponseHeaderModifier\n      \
             responseHeaderModifier: {{set: [{{name: seen-by, value: {name}}}]}}\n"
        )
    };
    let rules = format!(
        "- matches: [{{method: {{service: shop.Web}}}}]\n  {}- matches: [{{method: {{service: shop.Web, method: Buy}}}}]\n  {}\
         - matches: [{{method: {{service: shop.None}}}}]\n  backendRefs: [{{name: none, port: 80}}]",
        to("v1"),
        to("v2"),
    );
    route(stage, "GRPCRoute", NAMESPACE, &rules);
    let web = stage.web();
    within(&stage.mesh.client, async move || {
        let client = h2c::connect(web).await;
        for (path, by, status) in [
            ("/shop.Web/Look", Some("v1"), None),
            ("/shop.Web/Buy", Some("v2"), None),
            // UNAVAILABLE, and UNIMPLEMENTED.
            ("/shop.None/Buy", None, Some("14")),
            ("/shop.Other/Buy", None, Some("12")),
        ] {
            let (answer, mut send) = h2c::ask(&client, path).await;
            send.send_data(Bytes::new(), true).unwrap();
            let answer = answer.await.unwrap();
            let header = |name| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
            assert_eq!(header("seen-by").as_deref(), by, "{path}");
            assert_eq!(header("grpc-status").as_deref(), status, "{path}");
        }
    });
    // What is no gRPC follows no GRPCRoute.
    assert_eq!(stage.get("/shop.Web/Buy").status, 404);
}

#[test]
fn a_route_that_leads_to_another_service_leads_past_none_of_its_policies() {
    let versions = versions(&[]);
    let stage = &versions.stage;
    let _v1 = Scripted::status(&versions.pods[0], 200);
    let v2 = Scripted::status(&versions.pods[1], 200);
    let to_v2 = "- backendRefs: [{name: v2, port: 80}]\n  filters:\n  - type: URLRewrite\n    \
        urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /inner}}";
    route(stage, "HTTPRoute", NAMESPACE, to_v2);
    assert_eq!(stage.get("/").status, 200);
    let policy = |path: &str| {
        let spec = format!("action: DENY\nrules: [{{to: [{{operation: {{paths: [{path}]}}}}]}}]");
        stage.change(|| write_policy(stage, "v2", "Service, group: '', name: v2", &spec));
    };
    policy("/");
    assert_eq!(stage.get("/").status, 200);
    policy("/inner");
    assert_eq!((stage.get("/").status, v2.count()), (403, 2));
    // Nor does a copy get past them, of which the caller never notices.
    let mirrored = "- backendRefs: [{name: v1, port: 80}]\n  filters:\n  - type: RequestMirror\n    \
        requestMirror: {backendRef: {name: v2, port: 80}}";
    route(stage, "HTTPRoute", NAMESPACE, mirrored);
    assert_eq!(stage.get("/inner").status, 200);
    assert_eq!(stage.get("/outer").status, 200);
    await_value(3, || v2.count());
    let copies: Vec<_> = v2.asked().into_iter().skip(2).map(|asked| asked.line).collect();
    assert_eq!(copies, ["GET /outer HTTP/1.1"]);
}

#[test]
fn what_a_rule_of_another_namespace_makes_of_a_request_is_judged_too() {
    let versions = versions(&[]);
    let stage = &versions.stage;
    let _servers = versions.pods.each_ref().map(|pod| pod.serve_http(80).unwrap());
    stage.mesh.testbed.world().enrolled_namespace("far").unwrap();
    let far = stage.mesh.nodes[0].pod("far", "client", PodSpec::new().service_account("client")).unwrap();
    stage.mesh.client_agent().wait_enrolled([&stage.mesh.client, &far]).unwrap();
    let public = "rules: [{to: [{operation: {paths: [/public/*]}}]}]";
    stage.change(|| write_policy(stage, "web", "Service, group: '', name: web", public));
    let ask = |path: &str| far.http_get(stage.web(), path, TIMEOUT).unwrap().status;
    assert_eq!((ask("/public/x"), ask("/admin")), (200, 403));
    let rewritten = |to: &str| {
        let rule = format!(
            "- backendRefs: [{{name: web, namespace: shop, port: 80}}]\n  filters:\n  - type: URLRewrite\n    \
             urlRewrite: {{path: {{type: ReplaceFullPath, replaceFullPath: {to}}}}}"
        );
        route(stage, "HTTPRoute", "far", &rule);
    };
    rewritten("/public/y");
    assert_eq!(ask("/public/x"), 200);
    rewritten("/admin");
    assert_eq!(ask("/public/x"), 403);
    // What the service's own namespace does is its own affair.
    stage.change(|| stage.mesh.testbed.world().remove("HTTPRoute-far.yaml").unwrap());
    let own = "- backendRefs: [{name: web, port: 80}]\n  filters:\n  - type: URLRewrite\n    \
        urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /admin}}";
    route(stage, "HTTPRoute", NAMESPACE, own);
    assert_eq!(ask("/public/x"), 200);
}

#[test]
fn what_a_rule_of_another_namespace_makes_of_a_request_is_judged_too_where_it_delegates_to_the_services() {
    let versions = versions(&[]);
    let stage = &versions.stage;
    let _servers = versions.pods.each_ref().map(|pod| pod.serve_http(80).unwrap());
    let public = "rules: [{to: [{operation: {paths: [/public/*]}}]}]";
    stage.change(|| write_policy(stage, "web", "Service, group: '', name: web", public));
    let world = stage.mesh.testbed.world();
    let inner = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: inner, namespace: shop}\n\
        spec: {http: [{route: [{destination: {host: web}}]}]}\n";
    stage.change(|| world.write("inner.yaml", inner).unwrap());
    let rewritten = |namespace: &str, to: &str| {
        let root = format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: root, namespace: {namespace}}}\n\
             spec:\n  hosts: [web.shop.svc.cluster.local]\n  http:\n  - match: [{{uri: {{exact: /public/x}}}}]\n    \
             rewrite: {{uri: {to}}}\n    delegate: {{name: inner, namespace: shop}}\n"
        );
        stage.change(|| world.write("root.yaml", &root).unwrap());
        stage.get("/public/x").status
    };
    assert_eq!(rewritten("far", "/public/y"), 200);
    assert_eq!(rewritten("far", "/admin"), 403);
    // What the service's own namespace does is its own affair.
    assert_eq!(rewritten(NAMESPACE, "/admin"), 200);
}
