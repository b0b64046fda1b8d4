//! Seeing: what an operator and a dashboard are told of each connection, and what nobody is told.

use std::fs;
use std::io::{ErrorKind, Write};
use std::net::{Shutdown, SocketAddr};

use orlop_tests::traffic::{connect, echo};
use orlop_tests::{
    ADMIN_PORT, Agent, AgentOptions, METRICS_PORT, READY_PORT, ServiceSpec, TargetPort, wait_for,
};
use serde_json::{Value, json};

use crate::pair::{Pair, TIMEOUT, assert_kernel_refuses, assert_refused, dial, ping, record};

const BUYER: &str = "spiffe://cluster.local/ns/shop/sa/buyer";
const SELLER: &str = "spiffe://cluster.local/ns/shop/sa/seller";

#[test]
fn a_connection_is_one_record_at_each_end() {
    let pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    let client = exchange(&pair, server.addr(), 100_000);
    let both = json!({
        "src": client.to_string(),
        "src_workload": "shop/client",
        "src_identity": BUYER,
        "dst": server.addr().to_string(),
        "dst_workload": "shop/server",
        "dst_identity": SELLER,
        "tunnel": pair.server.addr(15008).to_string(),
        "bytes_received": 100_000,
        "bytes_sent": 100_000,
        "result": "ok",
    });
    for (agent, direction) in [(&pair.near, "outbound"), (&pair.far, "inbound")] {
        let record = record(agent, |record| record["direction"] == direction);
        assert_holds(&record, &both);
        assert!(record["duration_us"].as_u64().is_some_and(|time| time > 0), "{record}");
        assert!(record.get("reason").is_none(), "{record}");
        assert_eq!(records(agent), 1, "one record for one connection");
    }
}

#[test]
fn the_text_log_has_the_same_fields() {
    let args = ["--log-format", "text"].map(str::to_owned).into();
    let pair = Pair::with(AgentOptions { args, ..AgentOptions::default() });
    let server = pair.server.serve_echo(80).unwrap();
    let client = exchange(&pair, server.addr(), 1000);
    let fields = [
        format!("src={client} "),
        "src_workload=shop/client ".to_owned(),
        format!("src_identity={BUYER} "),
        format!("dst={} ", server.addr()),
        "dst_workload=shop/server ".to_owned(),
        format!("dst_identity={SELLER} "),
        "bytes_received=1000 ".to_owned(),
        "bytes_sent=1000 ".to_owned(),
        "result=\"ok\"".to_owned(),
    ];
    for agent in [&pair.near, &pair.far] {
        let is_it = |line: &str| fields.iter().all(|field| line.contains(field.as_str()));
        agent.wait_log(|log| log.lines().any(is_it), TIMEOUT).unwrap();
    }
}

#[test]
fn a_record_names_the_service_and_the_endpoint() {
    let pair = Pair::new();
    let server = pair.server.serve_echo(8080).unwrap();
    let vip = pair.testbed.vip();
    let service = ServiceSpec::new("shop", "web", 80, TargetPort::Number(8080)).cluster_ips(vip.clone());
    pair.testbed.world().service(&service.endpoints([&pair.server])).unwrap();
    pair.wait_both(|snapshot| snapshot["services"][0]["name"] == "shop/web");
    exchange(&pair, SocketAddr::new(vip[0], 80), 10);
    let record = record(&pair.near, |record| record["direction"] == "outbound");
    let wanted = json!({ "dst_service": "web.shop.svc.cluster.local", "dst": server.addr().to_string() });
    assert_holds(&record, &wanted);
    let labels = [
        "destination_service=\"web.shop.svc.cluster.local\"",
        "destination_service_name=\"web\"",
        "destination_service_namespace=\"shop\"",
    ];
    assert_eq!(pair.near.metric("istio_tcp_connections_opened_total", &labels).unwrap(), 1.0);
}

#[test]
fn a_record_of_plain_traffic_claims_no_identity_of_the_other_end() {
    let pair = Pair::new();
    let outsider = pair.outsider(pair.far.node(), "outsider");
    let (own, other) = (pair.client.serve_echo(80).unwrap(), outsider.serve_echo(80).unwrap());
    exchange(&pair, other.addr(), 10);
    let out = record(&pair.near, |record| record["direction"] == "outbound");
    assert_holds(&out, &json!({ "dst_workload": "street/outsider", "src_identity": BUYER, "result": "ok" }));
    dial(&outsider, own.addr()).unwrap();
    let inbound = record(&pair.near, |record| record["direction"] == "inbound");
    assert_holds(&inbound, &json!({ "src_workload": "street/outsider", "dst_identity": BUYER }));
    for (record, identity) in [(&out, "dst_identity"), (&inbound, "src_identity")] {
        assert!(record.get(identity).is_none() && record.get("tunnel").is_none(), "{record}");
    }
    let labels = ["source_principal=\"unknown\"", "connection_security_policy=\"unknown\""];
    assert_eq!(pair.near.metric("istio_tcp_connections_opened_total", &labels).unwrap(), 1.0);
}

#[test]
fn metrics_have_istios_names_labels_and_directions() {
    let pair = Pair::new();
    let server = pair.server.serve_http(80).unwrap();
    let path = "/bulk?bytes=500000";
    pair.client.http_get(server.addr(), path, TIMEOUT).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", server.addr());
    let response =
        500_000 + "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 500000\r\n\r\n".len();
    for (agent, reporter) in [(&pair.near, "source"), (&pair.far, "destination")] {
        let reporter = format!("reporter=\"{reporter}\"");
        let principals =
            [format!("source_principal=\"{BUYER}\""), format!("destination_principal=\"{SELLER}\"")];
        let labels = [
            &reporter,
            &principals[0],
            &principals[1],
            "source_workload=\"client\"",
            "source_workload_namespace=\"shop\"",
            "source_canonical_service=\"client\"",
            "source_canonical_revision=\"latest\"",
            "source_app=\"client\"",
            "source_version=\"latest\"",
            "source_cluster=\"Kubernetes\"",
            "destination_workload=\"server\"",
            "destination_workload_namespace=\"shop\"",
            "destination_canonical_service=\"server\"",
            "destination_canonical_revision=\"latest\"",
            "destination_app=\"server\"",
            "destination_version=\"latest\"",
            "destination_cluster=\"Kubernetes\"",
            "request_protocol=\"tcp\"",
            "response_flags=\"-\"",
            "connection_security_policy=\"mutual_tls\"",
        ];
        let metric = |name: &str| agent.metric(name, &labels).unwrap();
        assert!(wait_for(TIMEOUT, || metric("istio_tcp_connections_closed_total") == 1.0), "{reporter}");
        assert_eq!(metric("istio_tcp_connections_opened_total"), 1.0, "{reporter}");
        assert_eq!(
            metric("istio_tcp_received_bytes_total"),
            request.len() as f64,
            "from the client, {reporter}"
        );
        assert_eq!(metric("istio_tcp_sent_bytes_total"), response as f64, "to the client, {reporter}");
    }
}

#[test]
fn bytes_are_counted_while_a_connection_is_open() {
    let pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    let mut stream = pair.client.connect(server.addr(), TIMEOUT).unwrap();
    ping(&stream, "0123456789").unwrap();
    for (agent, reporter) in [(&pair.near, "reporter=\"source\""), (&pair.far, "reporter=\"destination\"")] {
        let metric = |name: &str| agent.metric(name, &[reporter]).unwrap();
        assert!(wait_for(TIMEOUT, || metric("istio_tcp_sent_bytes_total") == 10.0), "{reporter}");
        assert_eq!(metric("istio_tcp_received_bytes_total"), 10.0, "{reporter}");
        assert_eq!(metric("istio_tcp_connections_opened_total"), 1.0, "{reporter}");
        assert_eq!(metric("istio_tcp_connections_closed_total"), 0.0, "{reporter}");
        assert_eq!(agent.metric("orlop_connections_active", &[]).unwrap(), 1.0, "{reporter}");
        assert_eq!(records(agent), 0, "its record comes at its end");
    }
    stream.write_all(b"more").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    for agent in [&pair.near, &pair.far] {
        assert!(wait_for(TIMEOUT, || agent.metric("orlop_connections_active", &[]).unwrap() == 0.0));
    }
}

#[test]
fn failures_are_counted_by_reason_at_the_end_that_knows() {
    let pair = Pair::new();
    assert_refused(&pair.client, pair.server.addr(4711));
    let inbound = record(&pair.far, |record| record["direction"] == "inbound");
    assert_holds(
        &inbound,
        &json!({ "result": "refused", "reason": "connect_failed", "src_identity": BUYER }),
    );
    let outbound = record(&pair.near, |record| record["direction"] == "outbound");
    assert_holds(&outbound, &json!({ "result": "refused", "reason": "peer_refused" }));
    for (agent, labels) in [
        (&pair.near, ["reporter=\"source\"", "reason=\"peer_refused\""]),
        (&pair.far, ["reporter=\"destination\"", "reason=\"connect_failed\""]),
    ] {
        assert_eq!(agent.metric("orlop_connections_failed_total", &labels).unwrap(), 1.0);
        assert_eq!(agent.metric("orlop_connections_failed_total", &[]).unwrap(), 1.0);
        assert_eq!(agent.metric("istio_tcp_connections_opened_total", &[]).unwrap(), 0.0);
    }
}

#[test]
fn a_connection_that_is_cut_says_so() {
    let pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    let stream = dial(&pair.client, server.addr()).unwrap();
    socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    drop(stream);
    for agent in [&pair.near, &pair.far] {
        let record = record(agent, |_| true);
        assert_holds(&record, &json!({ "result": "cut", "reason": "reset", "bytes_received": 15 }));
    }
}

#[test]
fn what_the_kernel_refused_while_no_agent_ran_is_counted() {
    let mut pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    pair.near.kill().unwrap();
    for _ in 0..3 {
        assert_kernel_refuses(&pair.client, server.addr());
    }
    pair.near.restart().unwrap();
    let refused = |reason: &str| pair.near.metric("orlop_kernel_refused_total", &[reason]).unwrap();
    assert_eq!(refused("reason=\"no_listener\""), 3.0);
    assert_eq!(refused("reason=\"reserved_port\""), 0.0);
}

#[test]
fn readiness_answers_get_on_its_path_alone() {
    let pair = Pair::new();
    let status = |path| pair.near.http_get(path, READY_PORT).unwrap().status;
    assert_eq!(status("/healthz/ready"), 200);
    assert_eq!(status("/config_dump"), 404);
    assert_eq!(status("/"), 404);
}

#[test]
fn the_config_dump_shows_what_is_in_force_and_no_key() {
    let pair = Pair::new();
    dial(&pair.client, pair.server.serve_echo(80).unwrap().addr()).unwrap();
    let text = pair.near.config_dump().unwrap();
    let dump: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(dump["node"], "n1");
    assert!(dump["enrolled"]["shop/client"]["netns_cookie"].is_u64(), "{text}");
    let certificates = dump["certificates"].as_array().unwrap();
    assert_eq!(certificates.len(), 1, "of this node's pods alone: {text}");
    assert_eq!(certificates[0]["identity"], BUYER);
    assert!(certificates[0]["not_after"].is_string(), "{text}");
    let mut lines = 0;
    for file in fs::read_dir(pair.testbed.ca_dir()).unwrap().map(Result::unwrap) {
        let text_of_file = fs::read_to_string(file.path()).unwrap();
        for line in text_of_file.lines().filter(|line| line.len() > 20 && !line.starts_with("-----")) {
            lines += 1;
            assert!(!text.contains(line), "{} is in the dump", file.path().display());
        }
    }
    assert!(lines > 2, "the CA's key and certificate were looked for");
    assert!(!text.contains("BEGIN") && !text.to_lowercase().contains("private"), "{text}");
}

#[test]
fn the_admin_api_is_for_the_node_itself_alone() {
    let pair = Pair::new();
    let node = pair.near.node();
    let outsider = pair.outsider(node, "outsider");
    assert_eq!(pair.near.http_get("/config_dump", ADMIN_PORT).unwrap().status, 200);
    for to in [SocketAddr::from((node.ipv4(), ADMIN_PORT)), (node.ipv6(), ADMIN_PORT).into()] {
        let from_node = node.run(|| connect(to, TIMEOUT)).unwrap();
        assert_eq!(from_node.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{to}");
        assert_kernel_refuses(&outsider, to);
        assert_refused(&pair.client, to);
    }
    // The others are for Prometheus and the kubelet.
    for (port, path) in [(METRICS_PORT, "/metrics"), (READY_PORT, "/healthz/ready")] {
        let answer = outsider.http_get((node.ipv4(), port).into(), path, TIMEOUT).unwrap();
        assert_eq!(answer.status, 200, "{path}");
    }
}

/// Sends this many bytes to an echo server and takes them back, to the orderly end; gives the client's
/// address.
fn exchange(pair: &Pair, to: SocketAddr, bytes: usize) -> SocketAddr {
    let stream = pair.client.connect(to, TIMEOUT).unwrap();
    assert_eq!(echo(&stream, &vec![7; bytes]).unwrap().len(), bytes);
    stream.local_addr().unwrap()
}

/// Whether the record has all of these fields.
#[track_caller]
fn assert_holds(record: &Value, wanted: &Value) {
    for (key, value) in wanted.as_object().unwrap() {
        assert_eq!(record.get(key), Some(value), "{key} in {record}");
    }
}

fn records(agent: &Agent) -> usize {
    agent.log().unwrap().lines().filter(|line| line.contains("\"target\":\"access\"")).count()
}
