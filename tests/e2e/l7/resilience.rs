//! Servers that fail, are slow or are gone.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use orlop_tests::traffic::request;

use super::routes::Versions;
use super::scripted::{Reply, Scripted};
use crate::mesh::{TIMEOUT, await_value};

const GET: &str = "GET / HTTP/1.1\r\nhost: web\r\n\r\n";

#[test]
fn five_errors_in_a_row_eject_an_endpoint_and_it_comes_back() {
    let versions = Versions::new();
    let stage = &versions.stage;
    let bad = Scripted::status(&versions.pods[0], 500);
    let _good = Scripted::status(&versions.pods[1], 200);
    let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web, namespace: shop}\n\
        spec:\n  host: web\n  trafficPolicy:\n    loadBalancer: {simple: ROUND_ROBIN}\n\
        \x20   outlierDetection: {consecutive5xxErrors: 5, interval: 100ms, baseEjectionTime: 2s}\n";
    stage.change(|| stage.mesh.testbed.world().write("subsets.yaml", rule).unwrap());
    let mut stream = stage.connect();
    let mut start = Instant::now();
    while bad.count() < 5 {
        start = Instant::now();
        request(&mut stream, GET).unwrap();
    }
    await_value(1.0, || stage.waypoint.metric("orlop_endpoints_ejected_total", &[]).unwrap());
    let mut served = 0;
    // Once its time is over, it is asked again, and not before: its clock has milliseconds.
    loop {
        let status = request(&mut stream, GET).unwrap().status;
        if bad.count() > 5 {
            break;
        }
        assert_eq!(status, 200);
        served += 1;
        assert!(start.elapsed() < TIMEOUT, "it does not come back; {served} were served");
    }
    assert!(start.elapsed() >= Duration::from_millis(1990), "it is back after {:?}", start.elapsed());
}

#[test]
fn with_too_few_that_are_well_requests_go_to_all() {
    let versions = Versions::new();
    let stage = &versions.stage;
    let bad = Scripted::status(&versions.pods[0], 500);
    let _good = Scripted::status(&versions.pods[1], 200);
    let put = |more: &str| {
        let rule = format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web, namespace: shop}}\n\
             spec:\n  host: web\n  trafficPolicy:\n    loadBalancer: {{simple: ROUND_ROBIN}}\n    \
             outlierDetection: {{consecutive5xxErrors: 1, interval: 100ms, baseEjectionTime: 60s, maxEjectionPercent: 100{more}}}\n"
        );
        stage.change(|| stage.mesh.testbed.world().write("subsets.yaml", &rule).unwrap());
    };
    put("");
    let mut stream = stage.connect();
    while bad.count() == 0 {
        request(&mut stream, GET).unwrap();
    }
    await_value(1.0, || stage.waypoint.metric("orlop_endpoints_ejected_total", &[]).unwrap());
    let mut refused = || (0..40).filter(|_| request(&mut stream, GET).unwrap().status == 500).count();
    assert_eq!(refused(), 0);
    // One of two is half: less than this share, and not less than that.
    put(", minHealthPercent: 60");
    assert_eq!(refused(), 20);
    put(", minHealthPercent: 50");
    assert_eq!(refused(), 0);
}

#[test]
fn with_nobody_well_requests_are_refused_unless_they_go_to_all() {
    let versions = Versions::new();
    let stage = &versions.stage;
    let bad = versions.pods.each_ref().map(|pod| Scripted::status(pod, 500));
    let asked = || bad.iter().map(Scripted::count).sum::<usize>();
    let put = |health: u8| {
        let rule = format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web, namespace: shop}}\n\
             spec:\n  host: web\n  trafficPolicy:\n    loadBalancer: {{simple: ROUND_ROBIN}}\n    \
             outlierDetection: {{consecutive5xxErrors: 1, interval: 100ms, baseEjectionTime: 60s, maxEjectionPercent: 100, \
             minHealthPercent: {health}}}\n"
        );
        stage.change(|| stage.mesh.testbed.world().write("subsets.yaml", &rule).unwrap());
    };
    put(0);
    let mut stream = stage.connect();
    let mut status = || request(&mut stream, GET).unwrap().status;
    while bad.iter().any(|bad| bad.count() == 0) {
        assert_eq!(status(), 500);
    }
    await_value(2.0, || stage.waypoint.metric("orlop_endpoints_ejected_total", &[]).unwrap());
    let before = asked();
    (0..10).for_each(|_| assert_eq!(status(), 503));
    assert_eq!(asked(), before);
    let record = stage.record(|record| record["code"] == 503);
    assert_eq!((&record["flags"], &record["reason"]), (&"UH".into(), &"no_healthy_endpoint".into()));
    put(10);
    (0..10).for_each(|_| assert_eq!(status(), 500));
    assert_eq!(asked(), before + 10);
}

#[test]
fn a_mirror_that_is_slow_failing_or_down_is_never_noticed() {
    let versions = Versions::new();
    let stage = &versions.stage;
    let server = Scripted::start(&versions.pods[0], |asked| {
        Reply::Answer(200, String::from_utf8_lossy(&asked.body).into_owned())
    });
    versions.route(
        "- mirrors: [{destination: {host: web, subset: v2}}]\n  route: [{destination: {host: web, subset: v1}}]",
    );
    let mut stream = stage.connect();
    let mut ask = |body: &str| {
        let head = format!("POST / HTTP/1.1\r\nhost: web\r\ncontent-length: {}\r\n\r\n", body.len());
        let answer = request(&mut stream, &(head + body)).unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, body));
    };
    // Down.
    (0..20).for_each(|number| ask(&number.to_string()));
    // It gets every request, body and all, and whatever it answers is discarded.
    let mirror = Scripted::status(&versions.pods[1], 500);
    (0..20).for_each(|number| ask(&format!("copy {number}")));
    // One from before may be late.
    let copies = || {
        let bodies = mirror.asked().into_iter().map(|asked| asked.body);
        bodies.filter(|body| body.starts_with(b"copy ")).collect::<Vec<_>>()
    };
    await_value(20, || copies().len());
    let mut copies = copies();
    let mut wanted: Vec<_> = (0..20).map(|number| format!("copy {number}").into_bytes()).collect();
    copies.sort();
    wanted.sort();
    assert_eq!(copies, wanted);
    drop(mirror);
    // It never answers.
    let silent = Scripted::start(&versions.pods[1], |_| {
        loop {
            thread::park();
        }
    });
    (0..400).for_each(|number| ask(&format!("to nobody {number}")));
    assert!(silent.count() > 0);
    // So many may be under way.
    let dropped = stage.waypoint.metric("orlop_mirrors_dropped_total", &[]).unwrap();
    assert!(dropped > 0.0, "none of 400 was dropped");
    assert_eq!(server.count(), 440);
    stage.await_count(&["response_code=\"200\"", "response_flags=\"-\""], 440.0);
}

#[test]
fn an_endpoint_that_is_gone_costs_a_retry_and_no_request() {
    let versions = Versions::new();
    let _server = Scripted::status(&versions.pods[1], 200);
    let mut stream = versions.stage.connect();
    for _ in 0..50 {
        assert_eq!(request(&mut stream, GET).unwrap().status, 200);
    }
    let retried = versions.stage.record(|record| record["attempts"] == 2);
    assert_eq!(retried["dst_workload"], "shop/v2");
}

#[test]
fn retries_follow_their_conditions() {
    let versions = Versions::new();
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let server = Scripted::start(&versions.pods[0], |asked| {
        let fails = ASKED.fetch_add(1, Ordering::SeqCst) % 3 < 2;
        match asked.line.split(' ').nth(1) {
            Some("/close") if fails => Reply::Close,
            _ if fails => Reply::Answer(503, String::new()),
            _ => Reply::Answer(200, String::from_utf8_lossy(&asked.body).into_owned()),
        }
    });
    let to = "route: [{destination: {host: web, subset: v1}}]";
    versions.route(&format!(
        "- match: [{{uri: {{exact: /never}}}}]\n  retries: {{attempts: 0}}\n  {to}\n\
         - match: [{{uri: {{exact: /codes}}}}]\n  retries: {{attempts: 2, retryOn: \"503\"}}\n  {to}\n\
         - match: [{{uri: {{exact: /once}}}}]\n  retries: {{attempts: 1, retryOn: \"5xx\"}}\n  {to}\n\
         - match: [{{uri: {{exact: /close}}}}]\n  retries: {{attempts: 2, retryOn: reset}}\n  {to}\n\
         - {to}"
    ));
    let mut stream = versions.stage.connect();
    let mut ask = |path: &str, body: &str| {
        ASKED.store(0, Ordering::SeqCst);
        let before = server.count();
        let head = format!("POST {path} HTTP/1.1\r\nhost: web\r\ncontent-length: {}\r\n\r\n", body.len());
        let answer = request(&mut stream, &(head + body)).unwrap();
        (answer.status, answer.text(), server.count() - before)
    };
    assert_eq!(ask("/never", "x").0, 503);
    assert_eq!(ask("/codes", "the same again"), (200, "the same again".to_owned(), 3));
    assert_eq!(ask("/once", "x"), (503, String::new(), 2));
    assert_eq!(ask("/close", "the same again"), (200, "the same again".to_owned(), 3));
    // By default, what a server has answered stays as it is.
    assert_eq!(ask("/default", "x"), (503, String::new(), 1));
    // Too long to be remembered.
    assert_eq!(ask("/codes", &"y".repeat(100_000)).0, 503);
}

#[test]
fn an_answer_that_takes_too_long_is_504() {
    let versions = Versions::new();
    let _server = Scripted::start(&versions.pods[0], |asked| {
        if asked.line.contains("/slow") {
            loop {
                thread::park();
            }
        }
        Reply::Answer(200, String::new())
    });
    let to = "route: [{destination: {host: web, subset: v1}}]";
    versions.route(&format!(
        "- match: [{{uri: {{exact: /slow}}}}]\n  timeout: 200ms\n  {to}\n\
         - match: [{{uri: {{exact: /slowtry}}}}]\n  retries: {{attempts: 1, perTryTimeout: 100ms, retryOn: 5xx}}\n  {to}\n\
         - timeout: 10s\n  {to}"
    ));
    assert_eq!(versions.stage.get("/slow").status, 504);
    versions.stage.record(|record| record["path"] == "/slow" && record["flags"] == "UT");
    assert_eq!(versions.stage.get("/slowtry").status, 504);
    versions.stage.record(|record| record["path"] == "/slowtry" && record["attempts"] == 2);
    assert_eq!(versions.stage.get("/fast").status, 200);
}

#[test]
fn what_is_alike_goes_to_one_endpoint_and_limits_hold() {
    let versions = Versions::new();
    let stage = &versions.stage;
    let _servers = versions.pods.each_ref().map(|pod| pod.serve_http(80).unwrap());
    let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web, namespace: shop}\n\
        spec:\n  host: web\n  trafficPolicy:\n    loadBalancer: {consistentHash: {httpHeaderName: X-User}}\n";
    stage.change(|| stage.mesh.testbed.world().write("subsets.yaml", rule).unwrap());
    let mut pods = std::collections::BTreeSet::new();
    for user in 0..16 {
        let ask = format!("GET / HTTP/1.1\r\nhost: web\r\nx-user: {user}\r\n\r\n");
        let of_user: std::collections::BTreeSet<_> =
            (0..5).map(|_| request(&mut stage.connect(), &ask).unwrap().field("pod").unwrap()).collect();
        assert_eq!(of_user.len(), 1, "user {user} was at {of_user:?}");
        pods.extend(of_user);
    }
    assert_eq!(pods.len(), 2);
}
