//! What Istio's metrics measure of requests, and by which labels.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::Duration;

use orlop_tests::METRICS_PORT;
use orlop_tests::traffic::request;

use super::Stage;
use super::scripted::{Reply, Scripted};
use crate::hbone::identity;
use crate::mesh::await_value;

/// How long the server takes, at the least.
const TAKES: Duration = Duration::from_millis(60);

#[test]
fn bytes_are_exact_and_no_request_is_shorter_than_its_server_takes() {
    let stage = Stage::new();
    let _server = Scripted::start(&stage.mesh.server, |asked| {
        sleep(TAKES);
        Reply::Answer(200, "x".repeat(asked.body.len() * 3))
    });
    let mut stream = stage.connect();
    for length in [0, 10, 70_000] {
        let head = format!("POST / HTTP/1.1\r\nhost: web\r\ncontent-length: {length}\r\n\r\n");
        let answer = request(&mut stream, &(head + &"y".repeat(length))).unwrap();
        assert_eq!(answer.body.len(), 3 * length);
    }
    let labels = ["response_code=\"200\"", "destination_workload=\"server\""];
    stage.await_count(&labels, 3.0);
    let metric = |name: &str| stage.waypoint.metric(name, &labels).unwrap();
    for name in ["istio_request_bytes", "istio_response_bytes", "istio_request_duration_milliseconds"] {
        await_value(3.0, || metric(&format!("{name}_count")));
    }
    assert_eq!(metric("istio_request_bytes_sum"), 70_010.0);
    assert_eq!(metric("istio_response_bytes_sum"), 210_030.0);
    let took = metric("istio_request_duration_milliseconds_sum");
    assert!(took >= 3.0 * TAKES.as_millis() as f64, "{took} ms");
    let within = |name: &str, most: &str| {
        stage.waypoint.metric(&format!("{name}_bucket"), &[&format!("le=\"{most}\"")]).unwrap()
    };
    assert_eq!(within("istio_request_bytes", "10.0"), 2.0);
    assert_eq!(within("istio_response_bytes", "25.0"), 1.0);
    assert_eq!(within("istio_request_duration_milliseconds", "50.0"), 0.0);
}

#[test]
fn a_request_has_istios_labels_and_no_others() {
    let stage = Stage::new();
    let _server = Scripted::status(&stage.mesh.server, 200);
    assert_eq!(stage.get("/").status, 200);
    stage.await_count(&[], 1.0);
    let text = stage.waypoint.http_get("/metrics", METRICS_PORT).unwrap().text();
    let line = text.lines().find_map(|line| line.strip_prefix("istio_requests_total{")).unwrap();
    let (labels, _) = line.rsplit_once('}').unwrap();
    let labels: BTreeMap<&str, &str> =
        labels.split("\",").filter_map(|pair| pair.split_once("=\"")).collect();
    let labels: BTreeMap<_, _> =
        labels.into_iter().map(|(name, value)| (name, value.trim_end_matches('"').to_owned())).collect();
    let mut wanted: BTreeMap<_, _> = [
        ("reporter", "waypoint"),
        ("destination_service", "web.shop.svc.cluster.local"),
        ("destination_service_name", "web"),
        ("destination_service_namespace", "shop"),
        ("request_protocol", "http"),
        ("response_code", "200"),
        ("response_flags", "-"),
        ("connection_security_policy", "mutual_tls"),
    ]
    .map(|(name, value)| (name, value.to_owned()))
    .into();
    let of = |name: &'static str, value: &str| (name, value.to_owned());
    wanted.extend([
        of("source_workload", "client"),
        of("source_workload_namespace", "shop"),
        of("source_principal", identity("client").as_str()),
        of("source_app", "client"),
        of("source_version", "latest"),
        of("source_cluster", "Kubernetes"),
        of("source_canonical_service", "client"),
        of("source_canonical_revision", "latest"),
        of("destination_workload", "server"),
        of("destination_workload_namespace", "shop"),
        of("destination_principal", identity("server").as_str()),
        of("destination_app", "server"),
        of("destination_version", "latest"),
        of("destination_cluster", "Kubernetes"),
        of("destination_canonical_service", "server"),
        of("destination_canonical_revision", "latest"),
    ]);
    assert_eq!(labels, wanted);
}
