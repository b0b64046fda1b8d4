//! RateLimits that the waypoint counts requests by.

use std::process::Command;
use std::time::{Duration, Instant};

use orlop_tests::traffic::{Response, request};
use orlop_tests::{PodSpec, ServiceSpec, TargetPort, wait_for};
use serde_json::{Value, json};

use super::Stage;
use super::grpc::{self, at, bytes, number, text};
use super::routes::{Versions, routes};
use super::scripted::Scripted;
use crate::mesh::{NAMESPACE, TIMEOUT};
use crate::pair::program;

/// Puts a RateLimit of this service in force. Units are days, so that no token comes while a test runs.
pub fn limits(stage: &Stage, service: &str, limits: Value) {
    stage.change(|| write(stage, service, limits));
}

pub fn write(stage: &Stage, service: &str, limits: Value) {
    let object = json!({
        "apiVersion": "orlop.dev/v1alpha1", "kind": "RateLimit",
        "metadata": {"name": service, "namespace": NAMESPACE},
        "spec": {"targetRefs": [{"kind": "Service", "group": "", "name": service}], "limits": limits},
    });
    stage.mesh.testbed.world().write(&format!("limits-{service}.yaml"), &object.to_string()).unwrap();
}

pub fn ask(stage: &Stage, line: &str, headers: &[(&str, &str)]) -> Response {
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
    // By this a proxy before the waypoint knows not to try it again.
    assert_eq!(limited.header("x-envoy-ratelimited"), Some("true"));
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
    assert_eq!(grpc.header("x-envoy-ratelimited"), Some("true"));
}

#[test]
fn tokens_come_back_in_their_time_and_a_burst_is_how_many_wait() {
    let stage = Stage::new();
    let _server = Scripted::status(&stage.mesh.server, 200);
    for (requests, burst) in [(1, 3), (5, 2)] {
        limits(&stage, "web", json!([{"requests": requests, "unit": "day", "burst": burst}]));
        (0..burst).for_each(|_| assert_eq!(stage.get("/").status, 200, "{requests} and {burst}"));
        assert_eq!(stage.get("/").status, 429, "{requests} and {burst}");
    }
    // One each 3 s.
    limits(&stage, "web", json!([{"requests": 20, "unit": "minute", "burst": 1}]));
    let start = Instant::now();
    assert_eq!(stage.get("/").status, 200);
    let limited = stage.get("/");
    assert_eq!(limited.status, 429);
    let wait: u64 = limited.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=3).contains(&wait), "{wait}");
    assert!(wait_for(TIMEOUT, || stage.get("/").status == 200), "no token has come back");
    assert!(start.elapsed() >= Duration::from_secs(3), "it is back after {:?}", start.elapsed());
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

/// `RateLimitResponse` with this overall code, the same for its one part, and so many seconds until there is more.
fn verdict(code: u64, seconds: u64) -> Vec<u8> {
    let limit = [number(1, 5), number(2, 2)].concat();
    let status = [number(1, code), bytes(2, limit), number(3, 0), bytes(4, number(1, seconds))].concat();
    let headers = [("x-ratelimit-remaining", "3"), ("content-length", "99")];
    let headers = headers.map(|(name, value)| bytes(3, [bytes(1, name), bytes(2, value)].concat()));
    [number(1, code), bytes(2, status), headers.concat()].concat()
}

#[test]
fn a_service_counts_for_all_that_ask_it_in_envoys_words() {
    let stage = Stage::new();
    let server = Scripted::status(&stage.mesh.server, 200);
    let pod = stage.mesh.nodes[0].pod(NAMESPACE, "counts", PodSpec::new()).unwrap();
    stage.mesh.client_agent().wait_enrolled([&stage.mesh.client, &pod]).unwrap();
    let shared = |more: Value| {
        let mut of = json!({
            "service": "counts.shop.svc.cluster.local", "port": 8081, "domain": "shop", "timeout": "20s",
        });
        for (name, value) in more.as_object().unwrap() {
            of[name] = value.clone();
        }
        of
    };
    let by = json!(["request.headers[x-tenant]", "source.namespace"]);
    let theirs = json!({"name": "tenants", "shared": shared(json!({})), "by": by});
    let own = json!({"name": "own", "requests": 3, "unit": "day"});
    stage.change(|| {
        let service = ServiceSpec::new(NAMESPACE, "counts", 8081, TargetPort::Number(80));
        let service = service.cluster_ips(stage.mesh.testbed.vip()).endpoints([&pod]);
        stage.mesh.testbed.world().service(&service).unwrap();
        write(&stage, "web", json!([own, theirs]));
    });
    // Nobody is there, and takes no token of ours.
    for _ in 0..4 {
        let refused = stage.get("/");
        assert_eq!((refused.status, refused.text().as_str()), (503, "rate_limit_unavailable\n"));
    }
    let counts = grpc::Server::start(&pod, |asked| {
        let over = at(asked, &[2, 1, 2]).contains(&b"greedy".to_vec());
        grpc::Reply::Message(if over { verdict(2, 7) } else { verdict(1, 0) })
    });
    let tenant = |name: &str| ask(&stage, "GET /", &[("x-tenant", name)]);
    let over = tenant("greedy");
    assert_eq!((over.status, over.header("retry-after")), (429, Some("7")));
    assert_eq!(over.header("ratelimit-policy"), Some("\"tenants\";q=5;w=60"));
    assert_eq!(over.header("ratelimit"), Some("\"tenants\";r=0;t=7"));
    assert_eq!(over.header("x-envoy-ratelimited"), Some("true"));
    // What the service has the client told, as far as that can be.
    assert_eq!(over.header("x-ratelimit-remaining"), Some("3"));
    assert_eq!(over.text(), "rate_limited\n");
    let (path, message) = counts.asked().pop().unwrap();
    assert_eq!(path, "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit");
    assert_eq!(text(&message, &[1]), "shop");
    let entries: Vec<_> = at(&message, &[2, 1]).iter().map(|of| (text(of, &[1]), text(of, &[2]))).collect();
    let wanted = [("request.headers[x-tenant]", "greedy"), ("source.namespace", NAMESPACE)];
    assert_eq!(entries, wanted.map(|(key, value)| (key.to_owned(), value.to_owned())));
    assert!(at(&message, &[2, 2]).is_empty(), "a limit of our own");
    let passed = tenant("a");
    assert_eq!((passed.status, passed.header("x-ratelimit-remaining")), (200, Some("3")));
    assert_eq!((tenant("b").status, tenant("c").status), (200, 200));
    assert_eq!(tenant("d").status, 429, "our own");
    // With a limit, that is sent along, and without keys the limit's name.
    limits(
        &stage,
        "web",
        json!([{"name": "all", "shared": shared(json!({})), "requests": 9, "unit": "hour"}]),
    );
    assert_eq!(tenant("a").status, 200);
    let (_, message) = counts.asked().pop().unwrap();
    assert_eq!(
        (text(&message, &[2, 1, 1]), text(&message, &[2, 1, 2])),
        ("generic_key".into(), "all".into())
    );
    assert_eq!(at(&message, &[2, 2]), [[number(1, 9), number(2, 3)].concat()]);
    // It may call things otherwise.
    let named = shared(json!({"keys": ["tenant", "namespace"]}));
    limits(&stage, "web", json!([{"name": "named", "shared": named, "by": by}]));
    assert_eq!(tenant("a").status, 200);
    let (_, message) = counts.asked().pop().unwrap();
    let keys: Vec<_> = at(&message, &[2, 1]).iter().map(|of| text(of, &[1])).collect();
    assert_eq!(keys, ["tenant", "namespace"]);
    let served = server.count();
    drop(counts);
    for nonsense in [Vec::new(), number(1, 3), vec![0xff; 9]] {
        let _counts = grpc::Server::start(&pod, move |_| grpc::Reply::Message(nonsense.clone()));
        assert_eq!(tenant("a").status, 503);
    }
    for reply in [grpc::Reply::Status(14), grpc::Reply::Garbage(b"garbage".to_vec()), grpc::Reply::Reset] {
        let _counts = grpc::Server::start(&pod, move |_| reply.clone());
        assert_eq!(tenant("a").status, 503);
    }
    limits(&stage, "web", json!([{"shared": shared(json!({"timeout": "100ms"}))}]));
    let hung = grpc::Server::start(&pod, |_| grpc::Reply::Nothing);
    assert_eq!(tenant("a").status, 503);
    drop(hung);
    assert_eq!(server.count(), served);
    limits(&stage, "web", json!([{"shared": shared(json!({"failOpen": true}))}]));
    assert_eq!(tenant("a").status, 200);
    // What fails open passes while nobody answers, or says that it can't tell now: UNAVAILABLE and INTERNAL.
    for away in [grpc::Reply::Status(14), grpc::Reply::Status(13), grpc::Reply::Reset] {
        let _counts = grpc::Server::start(&pod, move |_| away.clone());
        assert_eq!(tenant("a").status, 200);
    }
    limits(&stage, "web", json!([{"shared": shared(json!({"failOpen": true, "timeout": "100ms"}))}]));
    let hung = grpc::Server::start(&pod, |_| grpc::Reply::Nothing);
    assert_eq!(tenant("a").status, 200);
    drop(hung);
    limits(&stage, "web", json!([{"shared": shared(json!({"failOpen": true}))}]));
    // And not for what is no answer, or nobody to ask.
    for nonsense in [
        grpc::Reply::Message(number(1, 3)),
        grpc::Reply::Garbage(b"garbage".to_vec()),
        grpc::Reply::Status(12),
    ] {
        let _counts = grpc::Server::start(&pod, move |_| nonsense.clone());
        assert_eq!(tenant("a").status, 503);
    }
    let nobody = json!({"failOpen": true, "service": "nobody.shop.svc.cluster.local"});
    limits(&stage, "web", json!([{"shared": shared(nobody)}]));
    assert_eq!(tenant("a").status, 503);
    assert_eq!(stage.waypoint.metric("orlop_rate_limit_failed_open_total", &[]).unwrap(), 5.0);
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
