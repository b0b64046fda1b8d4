//! RateLimits that the waypoint counts requests by.

use std::process::Command;

use orlop_tests::PodSpec;
use orlop_tests::traffic::{Response, request};
use serde_json::{Value, json};

use super::Stage;
use super::routes::{Versions, routes};
use super::scripted::Scripted;
use crate::mesh::{NAMESPACE, TIMEOUT};
use crate::pair::program;

/// Puts a RateLimit of this service in force. Units are days, so that no token comes while a test runs.
fn limits(stage: &Stage, service: &str, limits: Value) {
    stage.change(|| write(stage, service, limits));
}

fn write(stage: &Stage, service: &str, limits: Value) {
    let object = json!({
        "apiVersion": "orlop.dev/v1alpha1", "kind": "RateLimit",
        "metadata": {"name": service, "namespace": NAMESPACE},
        "spec": {"targetRefs": [{"kind": "Service", "group": "", "name": service}], "limits": limits},
    });
    stage.mesh.testbed.world().write(&format!("limits-{service}.yaml"), &object.to_string()).unwrap();
}

fn ask(stage: &Stage, line: &str, headers: &[(&str, &str)]) -> Response {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let text = format!("{line} HTTP/1.1\r\nhost: web\r\ncontent-length: 0\r\n{headers}\r\n");
    request(&mut stage.connect(), &text).unwrap()
}

#[test]
fn a_caller_has_as_many_requests_as_the_limit_says_and_is_told_of_it() {
    let stage = Stage::new();
    let server = Scripted::status(&stage.mesh.server, 200);
    let other = stage.mesh.nodes[0].pod(NAMESPACE, "other", PodSpec::new().service_account("other")).unwrap();
    stage.mesh.client_agent().wait_enrolled([&stage.mesh.client, &other]).unwrap();
    stage.change(|| {
        super::policy::write(
            &stage,
            "web",
            "Service, group: '', name: web",
            "action: DENY\nrules: [{to: [{operation: {paths: [/secret]}}]}]",
        );
    });
    limits(
        &stage,
        "web",
        json!([{"name": "callers", "requests": 3, "unit": "day", "by": ["source.principal"]}]),
    );
    // What is denied takes no token.
    (0..5).for_each(|_| assert_eq!(stage.get("/secret").status, 403));
    (0..3).for_each(|_| assert_eq!(stage.get("/").status, 200));
    let limited = stage.get("/");
    assert_eq!((limited.status, limited.text().as_str()), (429, "rate_limited\n"));
    let wait: u64 = limited.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=8 * 60 * 60).contains(&wait), "{wait}");
    assert_eq!(limited.header("ratelimit-policy"), Some("\"callers\";q=3;w=86400"));
    assert_eq!(limited.header("ratelimit"), Some(&*format!("\"callers\";r=0;t={wait}")));
    assert_eq!(server.count(), 3);
    // The pod's own address is no way around it, and others have tokens of their own.
    assert_eq!(stage.mesh.client.http_get(stage.mesh.server.addr(80), "/", TIMEOUT).unwrap().status, 429);
    assert_eq!(other.http_get(stage.web(), "/", TIMEOUT).unwrap().status, 200);
    let record = stage.record(|record| record["code"] == 429);
    assert_eq!((&record["reason"], &record["flags"]), (&"rate_limited".into(), &"RL".into()));
    assert_eq!(record["detail"], "RateLimit shop/web, limit callers: 3 per day");
    stage.await_count(&["response_code=\"429\"", "response_flags=\"RL\""], 2.0);
    let failed = stage.waypoint.metric("orlop_requests_failed_total", &["reason=\"rate_limited\""]).unwrap();
    assert_eq!(failed, 2.0);
    let grpc = ask(&stage, "POST /a.B/C", &[("content-type", "application/grpc")]);
    assert_eq!((grpc.status, grpc.header("grpc-status")), (200, Some("8")));
    assert!(grpc.header("retry-after").is_some());
}

#[test]
fn requests_are_counted_by_their_headers_and_only_those_that_match() {
    let stage = Stage::new();
    let server = Scripted::status(&stage.mesh.server, 200);
    let by_tenant = json!({
        "name": "tenants", "requests": 2, "unit": "day", "by": ["request.headers[x-tenant]"],
        "match": [{"to": [{"operation": {"methods": ["POST"], "paths": ["/login"]}}]}],
    });
    // A request that one of two limits refuses takes no token of the other.
    limits(&stage, "web", json!([{"name": "all", "requests": 7, "unit": "day"}, by_tenant]));
    let post = |tenant: &[(&str, &str)]| ask(&stage, "POST /login", tenant).status;
    for tenant in [&[("x-tenant", "a")][..], &[("x-tenant", "b")], &[]] {
        let statuses: Vec<_> = (0..4).map(|_| post(tenant)).collect();
        assert_eq!(statuses, [200, 200, 429, 429], "{tenant:?}");
    }
    // However the path is written.
    assert_eq!(ask(&stage, "POST //x/../%6cogin", &[("x-tenant", "a")]).status, 429);
    // What the server does not see is not counted by either.
    let hidden = [("x-tenant", "new"), ("connection", "x-tenant")];
    assert_eq!(post(&hidden), 429);
    assert_eq!(server.count(), 6);
    assert_eq!((stage.get("/").status, stage.get("/").status), (200, 429));
    let record = stage.record(|record| record["code"] == 429 && record["path"] == "/");
    assert_eq!(record["detail"], "RateLimit shop/web, limit all: 7 per day");
}

#[test]
fn a_rule_leads_past_no_limit_of_the_service_that_it_leads_to() {
    let versions = Versions::new();
    let stage = &versions.stage;
    let servers = versions.pods.each_ref().map(|pod| Scripted::status(pod, 200));
    let vip = stage.mesh.testbed.vip();
    let mut other = super::web(&vip).endpoints([&versions.pods[0]]);
    other.name = "other".to_owned();
    stage.change(|| {
        let world = stage.mesh.testbed.world();
        world.service(&other).unwrap();
        world.write("routes.yaml", &routes("- route: [{destination: {host: other}}]")).unwrap();
        write(stage, "other", json!([{"requests": 2, "unit": "day"}]));
    });
    let statuses: Vec<_> = (0..3).map(|_| stage.get("/").status).collect();
    assert_eq!(statuses, [200, 200, 429]);
    assert_eq!(servers.iter().map(Scripted::count).sum::<usize>(), 2);
}

#[test]
fn limits_change_live_and_go_on_counting_while_something_else_changes() {
    let stage = Stage::new();
    let server = Scripted::status(&stage.mesh.server, 200);
    let path = "limits-web.yaml";
    let two = json!([{"requests": 2, "unit": "day"}]);
    limits(&stage, "web", two.clone());
    assert_eq!((stage.get("/").status, stage.get("/").status, stage.get("/").status), (200, 200, 429));
    limits(&stage, "other", json!([{"requests": 9, "unit": "day"}]));
    assert_eq!(stage.get("/").status, 429);
    // One that is broken stays as it was.
    stage.change(|| stage.mesh.testbed.world().write(path, "kind: RateLimit\nspec: [").unwrap());
    assert_eq!(stage.get("/").status, 429);
    limits(&stage, "web", json!([{"requests": 3, "unit": "day"}]));
    assert_eq!(stage.get("/").status, 200);
    stage.change(|| stage.mesh.testbed.world().remove(path).unwrap());
    (0..5).for_each(|_| assert_eq!(stage.get("/").status, 200));
    let served = server.count();
    // One that never was good lets nothing pass: nobody knows how much it would.
    limits(&stage, "web", json!([{"requests": "many", "unit": "day"}]));
    let refused = stage.get("/");
    assert_eq!((refused.status, refused.text().as_str()), (503, "rate_limit_unavailable\n"));
    assert_eq!(server.count(), served);
    let record = stage.record(|record| record["reason"] == "rate_limit_unavailable");
    assert_eq!(record["flags"], "RLSE");
    limits(&stage, "web", two);
    assert_eq!(stage.get("/").status, 200);
}

#[test]
fn a_limit_can_be_asked_about() {
    let stage = Stage::new();
    limits(&stage, "web", json!([{"name": "all", "requests": 2, "unit": "minute"}]));
    let output = Command::new(program(stage.mesh.client_agent()))
        .args(["explain", "--from", "shop/client", "--to", "shop/web", "--port", "80", "--world"])
        .arg(stage.mesh.testbed.world().dir())
        .args(["--request", "GET /"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("counted by RateLimit shop/web, limit all: 2 per minute"), "{text}");
}
