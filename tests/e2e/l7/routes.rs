//! VirtualServices and DestinationRules on real requests.

use orlop_tests::traffic::request;
use orlop_tests::{Pod, PodSpec};

use super::scripted::{Reply, Scripted};
use super::{Stage, web};
use crate::mesh::{NAMESPACE, TIMEOUT};

const SUBSETS: &str = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web, namespace: shop}\n\
    spec:\n  host: web\n  subsets:\n  - {name: v1, labels: {version: v1}}\n  - {name: v2, labels: {version: v2}}\n";

/// A stage with two versions of the service, `v1` and `v2`, each a pod of its own.
pub struct Versions {
    pub stage: Stage,
    pub pods: [Pod; 2],
}

impl Versions {
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// More arguments for the waypoint.
    pub fn with(args: &[&str]) -> Self {
        let stage = Stage::with(args);
        let pods = ["v1", "v2"].map(|version| {
            let spec = PodSpec::new().service_account(version).label("version", version);
            stage.mesh.nodes[1].pod(NAMESPACE, version, spec).unwrap()
        });
        let all = [&stage.mesh.server, &pods[0], &pods[1]];
        stage.mesh.server_agent().wait_enrolled(all).unwrap();
        stage.change(|| {
            let world = stage.mesh.testbed.world();
            world.service(&web(&stage.vip).endpoints([&pods[0], &pods[1]])).unwrap();
            world.write("subsets.yaml", SUBSETS).unwrap();
        });
        Self { stage, pods }
    }

    /// Puts these rules in force, as YAML of `spec.http`.
    pub fn route(&self, http: &str) {
        self.stage.change(|| self.stage.mesh.testbed.world().write("routes.yaml", &routes(http)).unwrap());
    }
}

/// A VirtualService of the service with these rules.
pub fn routes(http: &str) -> String {
    let indented: String = http.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web, namespace: shop}}\n\
         spec:\n  hosts: [web]\n  http:\n{indented}"
    )
}

#[test]
fn no_rule_says_where_a_body_ends() {
    let versions = Versions::new();
    let server = Scripted::start(&versions.pods[0], |_| Reply::Answer(200, "all of it\n".to_owned()));
    let lengths = "{set: {content-length: \"1\", x-set: \"1\"}, add: {transfer-encoding: chunked}}";
    versions.route(&format!(
        "- headers: {{request: {lengths}, response: {lengths}}}\n  route: [{{destination: {{host: web, subset: v1}}}}]"
    ));
    let mut stream = versions.stage.connect();
    for _ in 0..2 {
        let head = "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 5\r\n\r\nhello";
        let answer = request(&mut stream, head).unwrap();
        assert_eq!(
            (answer.status, answer.text().as_str(), answer.header("x-set")),
            (200, "all of it\n", Some("1"))
        );
    }
    for asked in server.asked() {
        assert_eq!(
            (&*asked.body, asked.headers.get("x-set").map(String::as_str)),
            (&b"hello"[..], Some("1"))
        );
        assert_eq!(asked.headers.get("content-length").map(String::as_str), Some("5"));
    }
}

#[test]
fn rules_redirect_answer_rewrite_and_change_headers() {
    let versions = Versions::new();
    let server = Scripted::start(&versions.pods[0], |_| Reply::Answer(200, "here\n".to_owned()));
    versions.route(
        "- match: [{uri: {exact: /old}}]\n  redirect: {uri: /new, redirectCode: 302}\n\
         - match: [{uri: {exact: /teapot}}]\n  directResponse: {status: 418, body: {string: short and stout}}\n\
         \x20 headers: {response: {set: {x-pot: tea}}}\n\
         - match: [{uri: {exact: /bytes}}]\n  directResponse: {status: 200, body: {bytes: aGVsbG8=}}\n\
         - match: [{uri: {prefix: /api/}}]\n  rewrite: {uri: /, authority: inner}\n\
         \x20 headers: {request: {set: {x-set: new}, remove: [x-gone]}, response: {add: {x-added: added}}}\n\
         \x20 route: [{destination: {host: web, subset: v1}}]\n\
         - match: [{queryParams: {v: {exact: \"2\"}}}]\n  rewrite: {uri: /v2}\n\
         \x20 route: [{destination: {host: web, subset: v1}}]\n\
         - match: [{uri: {prefix: /missing}}]\n  route: [{destination: {host: web, subset: v9}}]\n\
         - match: [{uri: {prefix: /nobody}}]\n  route: [{destination: {host: nobody}}]",
    );
    let mut stream = versions.stage.connect();
    let mut ask = |path: &str| {
        let ask = format!("GET {path} HTTP/1.1\r\nhost: web\r\nx-set: old\r\nx-gone: 1\r\n\r\n");
        request(&mut stream, &ask).unwrap()
    };
    let answer = ask("/old?x=1");
    assert_eq!((answer.status, answer.header("location")), (302, Some("http://web/new?x=1")));
    let answer = ask("/teapot");
    assert_eq!((answer.status, answer.text().as_str()), (418, "short and stout"));
    assert_eq!((answer.header("content-type"), answer.header("x-pot")), (Some("text/plain"), Some("tea")));
    assert_eq!(ask("/bytes").text(), "hello");
    let answer = ask("/api/users?id=7");
    assert_eq!((answer.status, answer.header("x-added")), (200, Some("added")));
    let asked = server.asked().pop().unwrap();
    assert_eq!(asked.line, "GET /users?id=7 HTTP/1.1");
    assert_eq!((&*asked.headers["host"], &*asked.headers["x-set"]), ("inner", "new"));
    assert!(!asked.headers.contains_key("x-gone"));
    // Where no path is asked for, it is for all that begin with a slash.
    for (path, wanted) in [("/?v=2", "/v2?v=2"), ("/a/b?v=2", "/v2a/b?v=2")] {
        assert_eq!(ask(path).status, 200);
        assert_eq!(server.asked().pop().unwrap().line, format!("GET {wanted} HTTP/1.1"));
    }
    for (path, status, flags) in [("/missing", 503, "NC"), ("/nobody", 503, "NC"), ("/none", 404, "NR")] {
        assert_eq!(ask(path).status, status, "{path}");
        versions.stage.record(|record| record["path"] == path && record["flags"] == flags);
    }
}

#[test]
fn faults_delays_and_cors() {
    let versions = Versions::new();
    let server = Scripted::status(&versions.pods[0], 200);
    versions.route(
        "- match: [{uri: {exact: /abort}}]\n  fault: {abort: {httpStatus: 555, percentage: {value: 50}}}\n\
         \x20 route: [{destination: {host: web, subset: v1}}]\n\
         - match: [{uri: {exact: /slow}}]\n  fault: {delay: {fixedDelay: 300ms}}\n\
         \x20 route: [{destination: {host: web, subset: v1}}]\n\
         - corsPolicy: {allowOrigins: [{regex: \"https://.*[.]example[.]com\"}], allowMethods: [GET, PUT], maxAge: 1h}\n\
         \x20 route: [{destination: {host: web, subset: v1}}]",
    );
    let mut stream = versions.stage.connect();
    let mut ask = |line: &str, headers: &str| {
        request(&mut stream, &format!("{line} HTTP/1.1\r\nhost: web\r\n{headers}\r\n")).unwrap()
    };
    let aborted = (0..200).filter(|_| ask("GET /abort", "").status == 555).count();
    assert!(aborted.abs_diff(100) <= 2, "{aborted} of 200 were aborted, not half");
    assert_eq!(server.count(), 200 - aborted);
    versions.stage.record(|record| record["code"] == 555 && record["flags"] == "FI");
    assert_eq!(ask("GET /slow", "").status, 200);
    let record = versions.stage.record(|record| record["path"] == "/slow");
    assert!(record["duration_us"].as_u64().unwrap() >= 300_000, "{record}");
    let before = server.count();
    let origin = "origin: https://a.example.com\r\n";
    let answer = ask("OPTIONS /x", &format!("{origin}access-control-request-method: PUT\r\n"));
    assert_eq!((answer.status, server.count()), (200, before));
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://a.example.com"));
    assert_eq!(answer.header("access-control-allow-methods"), Some("GET,PUT"));
    assert_eq!(answer.header("access-control-max-age"), Some("3600"));
    assert_eq!(ask("GET /x", origin).header("access-control-allow-origin"), Some("https://a.example.com"));
    assert_eq!(ask("GET /x", "origin: https://evil.com\r\n").header("access-control-allow-origin"), None);
}

#[test]
fn a_world_with_a_bad_rule_keeps_the_last_good_one() {
    let versions = Versions::new();
    let _servers = versions.pods.each_ref().map(|pod| pod.serve_http(80).unwrap());
    versions.route("- route: [{destination: {host: web, subset: v1}}]");
    versions.route("- match: [{uri: {regex: \"(\"}}]\n  route: [{destination: {host: web, subset: v2}}]");
    assert_eq!(versions.stage.get("/").field("pod").as_deref(), Some("shop/v1"));
    let log = versions.stage.waypoint.log().unwrap();
    assert!(log.contains("spec.http[0].match[0].uri.regex"), "{log}");
    assert!(versions.stage.mesh.client.http_get(versions.stage.web(), "/", TIMEOUT).is_ok());
}
