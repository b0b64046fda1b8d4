//! What dashboards and scrapers of the chart name is what agents, waypoints and controllers really show.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{SocketAddr, TcpStream};

use hickory_proto::rr::RecordType;
use orlop_tests::traffic::{self, request};
use orlop_tests::{Testbed, wait_for};
use serde_json::Value;

use super::api::Kubernetes;
use super::controller::ask as ask_for_certificate;
use super::install::{SYSTEM, roots};
use super::kubelet::Kubelet;
use super::replica::{LONG, Replica};
use crate::chart::deploy;
use crate::dns::ask::{Way, ask};
use crate::l7::Stage;
use crate::l7::scripted::{Reply, Scripted};
use crate::mesh::TIMEOUT;

/// Labels that whoever scrapes adds to each sample.
const OF_SCRAPE: [&str; 2] = ["namespace", "pod"];
/// What queries are made of beside metrics and labels.
const WORDS: [&str; 10] =
    ["sum", "min", "max", "rate", "by", "topk", "bottomk", "histogram_quantile", "time", "or"];

/// The labels of each metric.
type Shown = BTreeMap<String, BTreeSet<String>>;

/// Adds what a `/metrics` shows.
fn read(text: &str, shown: &mut Shown) {
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let end = line.find(['{', ' ']).unwrap();
        let labels = shown.entry(line[..end].to_owned()).or_default();
        let Some(mut rest) = line[end..].strip_prefix('{') else { continue };
        while let Some((label, value)) = rest.split_once("=\"") {
            labels.insert(label.trim_start_matches(',').to_owned());
            let escaped =
                |at: usize| value[..at].bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1;
            let end = value.match_indices('"').map(|(at, _)| at).find(|at| !escaped(*at)).unwrap();
            rest = &value[end + 1..];
        }
    }
}

/// What a query names: metrics, and labels.
fn names(query: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    // Without texts and times.
    let mut plain = String::new();
    for (index, part) in query.split('"').enumerate() {
        plain += if index % 2 == 0 { part } else { "" };
    }
    while let Some((before, after)) = plain.split_once('[') {
        plain = format!("{before}{}", after.split_once(']').unwrap().1);
    }
    let is_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let (mut metrics, mut labels) = (BTreeSet::new(), BTreeSet::new());
    // Within the braces of a selector, or the parentheses that follow `by`.
    let (mut selecting, mut grouping) = (false, false);
    let mut word = String::new();
    for letter in plain.chars().chain([' ']) {
        if is_name(letter) {
            word.push(letter);
            continue;
        }
        let name = std::mem::take(&mut word);
        if !name.is_empty() && !name.starts_with(|letter: char| letter.is_ascii_digit()) {
            if selecting || grouping {
                labels.insert(name.clone());
            } else if name.starts_with("orlop_") || name.starts_with("istio_") {
                metrics.insert(name.clone());
            } else {
                assert!(WORDS.contains(&&*name), "{name} in {query}");
            }
        }
        match letter {
            '{' => selecting = true,
            '}' => selecting = false,
            ')' => grouping = false,
            _ => grouping |= name == "by",
        }
    }
    (metrics, labels)
}

/// The labels that a legend shows.
fn legend(text: &str) -> BTreeSet<String> {
    let parts = text.split("{{").skip(1);
    parts.map(|part| part.split_once("}}").unwrap().0.trim().to_owned()).collect()
}

/// The queries of all dashboards, with their legends.
fn queries() -> Vec<(String, String)> {
    let mut queries = Vec::new();
    for file in fs::read_dir(deploy().join("helm/orlop/files/dashboards")).unwrap() {
        let dashboard: Value =
            serde_json::from_str(&fs::read_to_string(file.unwrap().path()).unwrap()).unwrap();
        for panel in dashboard["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().unwrap() {
                let text = |field: &str| target[field].as_str().unwrap().to_owned();
                queries.push((text("expr"), text("legendFormat")));
            }
        }
    }
    queries
}

/// What a controller shows that somebody has asked for a certificate.
fn of_controller(shown: &mut Shown) {
    let kubernetes = Kubernetes::shared();
    let controller = Replica::shared(&kubernetes);
    let testbed = Testbed::in_shared_cluster().unwrap();
    let node = Kubelet::start(&kubernetes, &testbed, "n1");
    let _way = node.way_to(controller.listen);
    let root = testbed.dir().join("root.pem");
    fs::write(&root, roots(&kubernetes, SYSTEM)).unwrap();
    ask_for_certificate(&node, &root, "no.token.atall", "default").unwrap_err();
    let address = SocketAddr::new(controller.listen.ip(), 15021);
    let answer = traffic::get(TcpStream::connect(address).unwrap(), "localhost", "/metrics").unwrap();
    read(&String::from_utf8(answer.body).unwrap(), shown);
}

#[test]
fn every_metric_and_label_of_the_dashboards_is_shown_by_somebody() {
    let mut shown = Shown::new();
    of_controller(&mut shown);

    let stage = Stage::new();
    // Nobody serves yet.
    assert_eq!(stage.get("/").status, 503);
    let reply = |_: &_| {
        Reply::With(200, vec![("content-type", "application/grpc"), ("grpc-status", "0")], String::new())
    };
    let _server = Scripted::start(&stage.mesh.server, reply);
    let call = "POST /shop.Web/Buy HTTP/1.1\r\nhost: web\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(request(&mut stage.connect(), call).unwrap().status, 200);
    // Nobody listens there, and no waypoint stands before it.
    let (client, server) = (&stage.mesh.client, &stage.mesh.server);
    assert!(server.http_get(client.addr(81), "/", TIMEOUT).is_err());
    ask(client, Way::Connected, stage.vip[0], "web.shop.svc.cluster.local.", RecordType::A).unwrap();

    let queries = queries();
    assert!(queries.len() > 30, "{queries:#?}");
    let mut missing = Vec::new();
    // Counts come somewhat after what they count.
    let complete = wait_for(LONG, || {
        let [client, server] = stage.mesh.agents();
        let of_waypoint = stage.waypoint.http_get("/metrics", 15020).unwrap().body;
        let of_waypoint = String::from_utf8(of_waypoint).unwrap();
        for text in [client.metrics().unwrap(), server.metrics().unwrap(), of_waypoint] {
            read(&text, &mut shown);
        }
        missing.clear();
        for (query, shows) in &queries {
            let (metrics, mut labels) = names(query);
            assert!(!metrics.is_empty(), "{query}");
            labels.extend(legend(shows));
            for metric in &metrics {
                let Some(known) = shown.get(metric) else {
                    missing.push(format!("{metric} in {query}"));
                    continue;
                };
                let unknown =
                    labels.iter().filter(|label| !known.contains(*label) && !OF_SCRAPE.contains(&&***label));
                missing.extend(unknown.map(|label| format!("{label} of {metric} in {query}")));
            }
        }
        missing.is_empty()
    });
    assert!(complete, "nobody shows:\n{}", missing.join("\n"));
}

#[test]
fn what_a_query_names_is_told() {
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let query = "1 - (sum by (a, b) (rate(istio_x_total{c=~\"5.. orlop_no\", d!=\"\"}[5m])) or 0 * orlop_y)";
    assert_eq!(names(query), (set(&["istio_x_total", "orlop_y"]), set(&["a", "b", "c", "d"])));
    assert_eq!(legend("{{a}} of {{ b }}"), set(&["a", "b"]));
    let mut shown = Shown::new();
    read("# TYPE m counter\nm_total{a=\"x\\\"y, b=\\\\\",c=\"\"} 1\nn 2\n", &mut shown);
    assert_eq!(shown, BTreeMap::from([("m_total".to_owned(), set(&["a", "c"])), ("n".to_owned(), set(&[]))]));
}
