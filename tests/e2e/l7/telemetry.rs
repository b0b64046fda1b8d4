//! What a Telemetry has the waypoint tell of requests.

use super::Stage;
use super::scripted::Scripted;

fn put(stage: &Stage, spec: &str) {
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
    assert_eq!(metric("istio_response_bytes_count"), 3.0);
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
