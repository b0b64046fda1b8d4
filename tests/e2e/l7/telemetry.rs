//! What a Telemetry has the waypoint tell of requests.

use orlop_tests::traffic::request;

use super::Stage;
use super::scripted::Scripted;
use crate::mesh::{TIMEOUT, await_value};
use crate::pair::ping;

/// Puts the Telemetry `shop/web` in force.
pub fn put(stage: &Stage, spec: &str) {
    let text = format!(
        "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: web, namespace: shop}}\nspec:\n{spec}"
    );
    stage.change(|| stage.mesh.testbed.world().write("telemetry.yaml", &text).unwrap());
}

#[test]
fn metrics_have_the_tags_that_are_asked_for_and_the_log_what_its_filter_lets_in() {
    let stage = Stage::new();
    let _server = Scripted::status(&stage.mesh.server, 200);
    put(
        &stage,
        "  targetRefs: [{kind: Service, group: '', name: web}]\n  metrics:\n  - overrides:\n    \
           - {match: {metric: REQUEST_SIZE}, disabled: true}\n    \
           - match: {metric: REQUEST_COUNT}\n      tagOverrides:\n        path: {value: request.url_path}\n        \
             user: {value: \"request.headers['x-user']\"}\n        source_app: {operation: REMOVE}\n  \
           accessLogging:\n  - filter: {expression: \"request.url_path == '/b' && response.code == 200\"}\n",
    );
    for path in ["/a", "/a", "/b"] {
        assert_eq!(stage.get(path).status, 200);
    }
    stage.await_count(&["path=\"/a\"", "user=\"unknown\"", "response_code=\"200\""], 2.0);
    stage.await_count(&["path=\"/b\""], 1.0);
    stage.await_count(&["source_app=\""], 0.0);
    let metric = |name: &str| stage.waypoint.metric(name, &[]).unwrap();
    assert_eq!(metric("istio_request_bytes_count"), 0.0);
    await_value(3.0, || metric("istio_response_bytes_count"));
    stage.record(|record| record["path"] == "/b");
    assert!(stage.records().iter().all(|record| record["path"] != "/a"), "{:#?}", stage.records());
    put(&stage, "  accessLogging: [{disabled: true}]\n");
    assert_eq!(stage.get("/c").status, 200);
    stage.await_count(&[], 4.0);
    put(&stage, "  accessLogging: [{disabled: false}]\n");
    assert_eq!(stage.get("/d").status, 200);
    stage.record(|record| record["path"] == "/d");
    assert!(stage.records().iter().all(|record| record["path"] != "/c"));
}

#[test]
fn tags_that_are_too_many_count_as_unknown() {
    let stage = Stage::new();
    let _server = Scripted::status(&stage.mesh.server, 200);
    put(
        &stage,
        "  metrics:\n  - overrides:\n    - match: {metric: REQUEST_COUNT}\n      \
         tagOverrides: {path: {value: request.url_path}}\n",
    );
    let folded = || stage.waypoint.metric("orlop_request_series_folded_total", &[]).unwrap();
    let mut stream = stage.connect();
    let mut ask = |number: usize| {
        let head = format!("GET /{number} HTTP/1.1\r\nhost: web\r\n\r\n");
        assert_eq!(request(&mut stream, &head).unwrap().status, 200);
    };
    (0..1000).for_each(&mut ask);
    stage.await_count(&[], 1000.0);
    assert_eq!((folded(), stage.counted(&["path=\"unknown\""])), (0.0, 0.0));
    (1000..1100).for_each(&mut ask);
    stage.await_count(&["path=\"unknown\""], 100.0);
    assert_eq!((folded(), stage.counted(&["path=\"1050\""])), (100.0, 0.0));
    // What was known before still is.
    ask(7);
    stage.await_count(&["path=\"/7\""], 2.0);
    assert_eq!(stage.counted(&[]), 1101.0);
}

#[test]
fn tags_of_connections_that_are_too_many_count_as_unknown_and_are_told() {
    let stage = Stage::new();
    let _server = stage.mesh.server.serve_echo(80).unwrap();
    put(
        &stage,
        "  metrics:\n  - overrides:\n    - match: {metric: TCP_OPENED_CONNECTIONS}\n      \
         tagOverrides: {port: {value: string(source.port)}}\n",
    );
    let metric = |name: &str, labels: &[&str]| stage.waypoint.metric(name, labels).unwrap();
    let connect = |times: usize| {
        for _ in 0..times {
            let stream = stage.mesh.client.connect(stage.web(), TIMEOUT).unwrap();
            ping(&stream, "\0 no HTTP\n").unwrap();
        }
    };
    let opened = "istio_tcp_connections_opened_total";
    let folded = || metric("orlop_connection_series_folded_total", &[]);
    connect(900);
    await_value(900.0, || metric(opened, &[]));
    assert_eq!((folded(), metric(opened, &["port=\"unknown\""])), (0.0, 0.0));
    connect(150);
    await_value(1050.0, || metric(opened, &[]));
    let unknown = metric(opened, &["port=\"unknown\""]);
    assert!(unknown > 0.0);
    assert_eq!(folded(), unknown, "each was a label set of its own");
}

#[test]
fn an_expression_sees_what_was_dialled_and_where_it_went() {
    let stage = Stage::new();
    let _server = Scripted::status(&stage.mesh.server, 200);
    put(
        &stage,
        "  metrics:\n  - overrides:\n    - match: {metric: REQUEST_COUNT}\n      tagOverrides:\n        \
         dialled: {value: destination.address}\n        went: {value: upstream.address}\n        \
         scheme: {value: request.scheme}\n        protocol: {value: request.protocol}\n",
    );
    let head = "GET / HTTP/1.0\r\nhost: web\r\n\r\n";
    assert_eq!(request(&mut stage.connect(), head).unwrap().status, 200);
    assert_eq!(stage.get("/").status, 200);
    let (dialled, went) = (stage.web(), stage.mesh.server.addr(80));
    let (dialled, went) = (format!("dialled=\"{dialled}\""), format!("went=\"{went}\""));
    for protocol in ["HTTP/1.0", "HTTP/1.1"] {
        let protocol = format!("protocol=\"{protocol}\"");
        stage.await_count(&[&dialled, &went, "scheme=\"http\"", &protocol], 1.0);
    }
}
