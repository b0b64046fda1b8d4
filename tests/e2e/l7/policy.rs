//! AuthorizationPolicies that the waypoint enforces.

use std::io::{Read, Write};
use std::process::Command;
use std::thread;

use orlop_tests::traffic::request;
use orlop_tests::{PodSpec, ServiceSpec, TargetPort};

use super::routes::{Versions, routes};
use super::scripted::{Reply, Scripted};
use super::{Stage, web};
use crate::hbone::identity;
use crate::mesh::{NAMESPACE, TIMEOUT, await_value};
use crate::pair::{assert_refused, ping, program};

/// Puts a policy in force, of the service `shop/web` unless `spec` says otherwise.
fn policy(stage: &Stage, name: &str, spec: &str) {
    stage.change(|| write(stage, name, "Service, group: '', name: web", spec));
}

pub fn write(stage: &Stage, name: &str, target: &str, spec: &str) {
    let indented: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    let text = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec:\n  targetRefs: [{{kind: {target}}}]\n{indented}"
    );
    stage.mesh.testbed.world().write(&format!("policy-{name}.yaml"), &text).unwrap();
}

#[test]
fn methods_paths_headers_and_callers_are_judged_by_the_request() {
    let stage = Stage::new();
    let server = stage.mesh.server.serve_http(80).unwrap();
    let other = stage.mesh.nodes[0].pod(NAMESPACE, "other", PodSpec::new().service_account("other")).unwrap();
    stage.mesh.client_agent().wait_enrolled([&stage.mesh.client, &other]).unwrap();
    policy(
        &stage,
        "web",
        "rules:\n- from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]\n  \
         to: [{operation: {methods: [GET], paths: [\"/users/{*}\", /health]}}]\n  \
         when: [{key: \"request.headers[x-team]\", values: [blue]}]",
    );
    let mut stream = stage.connect();
    let mut ask = |line: &str, headers: &str| {
        let ask = format!("{line} HTTP/1.1\r\nhost: web\r\ncontent-length: 0\r\n{headers}\r\n");
        request(&mut stream, &ask).unwrap()
    };
    let team = "x-team: blue\r\n";
    assert_eq!(ask("GET /users/7", team).status, 200);
    assert_eq!(ask("GET /health", team).status, 200);
    let seen = server.peers().len();
    let refused = [
        ("POST /users/7", team),
        ("GET /users/7/keys", team),
        ("GET /users/7%2Fkeys", team),
        ("GET /users/7%252Fkeys", team),
        ("GET /users/7;/..;/keys", team),
        ("GET /users/..%2fadmin", team),
        ("GET /", team),
        ("GET /users/7", ""),
        ("GET /users/7", "x-team: red\r\n"),
        ("GET /users/7", "x-team: blue\r\nx-team: red\r\n"),
        // To some servers they are one.
        ("GET /users/7", "x_team: blue\r\n"),
        ("GET /users/7", "x-team: blue\r\nx_team: red\r\n"),
        // It would not reach the server.
        ("GET /users/7", "x-team: blue\r\nconnection: x-team\r\n"),
    ];
    for (line, headers) in refused {
        let answer = ask(line, headers);
        assert_eq!((answer.status, answer.text().as_str()), (403, "policy_denied\n"), "{line} {headers}");
    }
    assert_eq!(server.peers().len(), seen);
    let record = stage.record(|record| record["code"] == 403 && record["method"] == "POST");
    assert_eq!((&record["reason"], &record["flags"]), (&"policy_denied".into(), &"UAEX".into()));
    let nearest = "nearest is shop/web rules[0]: the method is POST, which is not in methods (GET)";
    assert!(record["detail"].as_str().unwrap().ends_with(nearest), "{record}");
    stage.await_count(&["response_code=\"403\"", "response_flags=\"UAEX\""], refused.len() as f64);
    assert_eq!(other.http_get(stage.web(), "/health", TIMEOUT).unwrap().status, 403);
    // The pod's own address is no way around it, and what is not HTTP shows no path.
    let by_address = stage.mesh.client.http_get(stage.mesh.server.addr(80), "/", TIMEOUT).unwrap();
    assert_eq!(by_address.status, 403);
    assert_refused(&stage.mesh.client, stage.web());
}

#[test]
fn a_request_can_be_asked_about_before_it_is_made() {
    let stage = Stage::new();
    policy(
        &stage,
        "web",
        "rules:\n- to: [{operation: {methods: [GET], paths: [\"/users/{*}\"], hosts: [web]}}]\n  \
         when: [{key: \"request.headers[x-team]\", values: [blue]}]",
    );
    stage.change(|| {
        let world = stage.mesh.testbed.world();
        world.write("routes.yaml", &routes("- name: all\n  route: [{destination: {host: web}}]")).unwrap();
    });
    let ask = |request: &str, more: &[&str]| {
        let output = Command::new(program(stage.mesh.client_agent()))
            .args(["explain", "--from", "shop/client", "--to", "shop/web", "--port", "80", "--world"])
            .arg(stage.mesh.testbed.world().dir())
            .args(["--request", request])
            .args(more)
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    };
    let blue = ["--header", "X-Team: blue"];
    let (code, text) = ask("GET /users//7?x=1", &blue);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("allowed by AuthorizationPolicy shop/web"), "{text}");
    assert!(text.contains("follows   VirtualService shop/web, rule all"), "{text}");
    for (request, more, why) in [
        ("PUT /users/7", &blue[..], "the method is PUT, which is not in methods (GET)"),
        ("GET /", &blue, "the path is /, which is not in paths (/users/{*})"),
        ("GET /users/7", &[], "there is no header x-team, which is not in request.headers (blue)"),
        (
            "GET /users/7",
            &["--header", "x-team: blue", "--host", "other"],
            "the host is other, which is not in",
        ),
        ("GET /..", &blue, "refused (bad_request): leads above the root"),
    ] {
        let (code, text) = ask(request, more);
        assert!(code == Some(2) && text.contains(why), "{request}: {code:?} {text}");
    }
}

#[test]
fn what_is_audited_and_what_is_in_dry_run_is_told_of_a_request() {
    let stage = Stage::new();
    let _server = stage.mesh.server.serve_http(80).unwrap();
    let dry_run = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
        metadata: {name: maybe, namespace: shop, annotations: {istio.io/dry-run: 'true'}}\n\
        spec:\n  targetRefs: [{kind: Service, group: '', name: web}]\n  action: DENY\n  \
        rules: [{to: [{operation: {paths: [/maybe]}}]}]\n";
    stage.mesh.testbed.world().write("maybe.yaml", dry_run).unwrap();
    policy(
        &stage,
        "watch",
        "action: AUDIT\nrules: [{to: [{operation: {methods: [GET], paths: [/watched]}}]}]",
    );
    for path in ["/watched", "/maybe", "/else"] {
        assert_eq!(stage.get(path).status, 200, "neither refuses anything");
    }
    let told = |path: &str| stage.record(|record| record["path"] == path);
    assert_eq!(told("/watched")["audit"], true);
    assert_eq!(told("/maybe")["dry_run"], "shop/maybe: deny");
    for path in ["/maybe", "/else"] {
        assert_ne!(told(path)["audit"], true, "{path}");
    }
    assert_ne!(told("/else")["dry_run"], "shop/maybe: deny");
}

#[test]
fn a_denied_path_is_denied_however_it_is_written() {
    let stage = Stage::new();
    let server = Scripted::start(&stage.mesh.server, |_| Reply::Answer(200, "ok\n".to_owned()));
    policy(&stage, "web", "action: DENY\nrules:\n- to: [{operation: {paths: [\"/admin*\"]}}]");
    for path in [
        "/admin",
        "//admin",
        "/./admin",
        "/x/../admin",
        "/%61dmin",
        "/x%2F..%2Fadmin",
        "/x%5c..%5cadmin",
        "/x/..%3B/admin",
        "/x/..;/admin",
        "/admin;x",
        "/%2561dmin",
        "/x/%252e%252e/admin",
        "/%2Fadmin",
        "/..%2Fadmin",
        "/%C0%AFadmin",
        "/admin#x",
        "/admin?x=/public",
    ] {
        assert_eq!(stage.get(path).status, 403, "{path}");
    }
    assert_eq!(server.count(), 0, "{:?}", server.asked());
    for path in ["/", "/public", "/x/admin", "/a%20b", "/100%25", "/?x=/admin"] {
        assert_eq!(stage.get(path).status, 200, "{path}");
    }
}

#[test]
fn a_policy_of_the_waypoint_is_for_all_that_is_behind_it_and_changes_live() {
    let stage = Stage::new();
    let _server = stage.mesh.server.serve_http(80).unwrap();
    let mut stream = stage.connect();
    let mut status = || request(&mut stream, "GET / HTTP/1.1\r\nhost: web\r\n\r\n").unwrap().status;
    assert_eq!(status(), 200);
    let gate = "Gateway, group: gateway.networking.k8s.io, name: gate";
    stage.change(|| write(&stage, "gate", gate, "action: DENY\nrules: [{}]"));
    assert_eq!(status(), 403);
    stage.change(|| {
        write(&stage, "gate", gate, "action: DENY\nrules: [{to: [{operation: {methods: [PUT]}}]}]")
    });
    assert_eq!(status(), 200);
}

#[test]
fn connections_and_websockets_that_are_no_longer_allowed_are_cut() {
    let stage = Stage::new();
    let plain = stage.mesh.server.serve_echo(80).unwrap();
    let stream = stage.mesh.client.connect(stage.web(), TIMEOUT).unwrap();
    ping(&stream, "opaque\n").unwrap();
    drop(plain);
    policy(&stage, "web", "action: DENY\nrules:\n- from: [{source: {principals: [\"*/sa/client\"]}}]");
    await_value(true, || ping(&stream, "still?\n").is_err());
    let record = stage.record(|record| record["reason"] == "policy_denied");
    assert_eq!(
        (&record["result"], &record["src_identity"]),
        (&"cut".into(), &identity("client").as_str().into())
    );
    policy(&stage, "web", "action: DENY\nrules:\n- to: [{operation: {paths: [/other]}}]");
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
        // Until it is cut.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let mut stream = stage.connect();
    let ask = "GET /chat HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    stream.get_mut().write_all(ask.as_bytes()).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101");
    policy(&stage, "web", "action: DENY\nrules:\n- to: [{operation: {paths: [/chat]}}]");
    let _ = stream.read_to_end(&mut Vec::new());
    server.join().unwrap();
    let record = stage.record(|record| record["code"] == 101);
    assert_eq!((&record["reason"], &record["path"]), (&"policy_denied".into(), &"/chat".into()));
}

#[test]
fn a_rule_that_leads_to_another_service_leads_past_none_of_its_policies() {
    let versions = Versions::new();
    let stage = &versions.stage;
    let _servers = versions.pods.each_ref().map(|pod| pod.serve_http(80).unwrap());
    let vip = stage.mesh.testbed.vip();
    let mut other = web(&vip).endpoints([&versions.pods[0]]);
    other.name = "other".to_owned();
    stage.change(|| {
        let world = stage.mesh.testbed.world();
        world.service(&other).unwrap();
        let http = "- route: [{destination: {host: other}}]\n  rewrite: {uri: /inner}";
        world.write("routes.yaml", &routes(http)).unwrap();
    });
    assert_eq!(stage.get("/").status, 200);
    let target = "Service, group: '', name: other";
    stage.change(|| {
        write(stage, "other", target, "action: DENY\nrules: [{to: [{operation: {paths: [/inner]}}]}]")
    });
    assert_eq!(stage.get("/").status, 403);
    stage
        .change(|| write(stage, "other", target, "action: DENY\nrules: [{to: [{operation: {paths: [/]}}]}]"));
    assert_eq!(stage.get("/").status, 200);
}

/// Whose pod it is has never heard of the waypoint, and would take it for the client.
#[test]
fn a_rule_leads_to_no_pod_that_is_not_for_the_client() {
    let stage = Stage::new();
    let _server = stage.mesh.server.serve_http(80).unwrap();
    let spec = PodSpec::new().service_account("db").label("app", "db");
    let pod = stage.mesh.nodes[1].pod(NAMESPACE, "db", spec).unwrap();
    stage.mesh.server_agent().wait_enrolled([&stage.mesh.server, &pod]).unwrap();
    let server = pod.serve_http(80).unwrap();
    stage.change(|| {
        let world = stage.mesh.testbed.world();
        let db = ServiceSpec::new(NAMESPACE, "db", 80, TargetPort::Number(80));
        world.service(&db.cluster_ips(stage.mesh.testbed.vip()).endpoints([&pod])).unwrap();
        world.write("routes.yaml", &routes("- route: [{destination: {host: db}}]")).unwrap();
    });
    assert_eq!(stage.get("/").status, 200);
    let served = server.peers().len();
    let of_pod = |rules: &str| {
        let text = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: db, namespace: shop}}\n\
             spec:\n  selector: {{matchLabels: {{app: db}}}}\n  {rules}"
        );
        stage.change(|| stage.mesh.testbed.world().write("policy-db.yaml", &text).unwrap());
    };
    of_pod("action: DENY\n  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]");
    assert_eq!(stage.get("/").status, 403);
    of_pod("action: ALLOW\n  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/gate]}}]}]");
    assert_eq!(stage.get("/").status, 403);
    assert_eq!(server.peers().len(), served, "nothing has come through");
}
