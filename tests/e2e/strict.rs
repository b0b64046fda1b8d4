//! Mutual TLS alone: the kernel refuses plaintext by itself, and it is counted and told of.

use std::net::SocketAddr;

use orlop_tests::{Agent, wait_for};
use serde_json::Value;

use crate::pair::{Pair, TIMEOUT, apply, assert_kernel_refuses, dial, full_name, ping, record, remove};

const STRICT: &str = "{mtls: {mode: STRICT}}";
const STRICT_BUT_81: &str = "{selector: {matchLabels: {app: server}}, mtls: {mode: STRICT}, \
    portLevelMtls: {81: {mode: PERMISSIVE}}}";
const PERMISSIVE_BUT_81: &str = "{selector: {matchLabels: {app: server}}, mtls: {mode: PERMISSIVE}, \
    portLevelMtls: {81: {mode: STRICT}}}";

pub fn peer_authentication(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {{name: default, namespace: shop}}\nspec: {spec}\n"
    )
}

/// What the kernel refused by itself for want of mutual TLS.
pub fn refused(agent: &Agent) -> f64 {
    agent.metric("orlop_kernel_refused_total", &["reason=\"plaintext_refused\""]).unwrap()
}

#[test]
fn plaintext_is_refused_in_the_kernel_and_told_of() {
    let pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    let outsider = pair.outsider(pair.near.node(), "outsider");
    apply(&pair, "strict.yaml", &peer_authentication(STRICT));
    for (to, ip) in [(server.addr(), outsider.ips()[0]), (server.addr6(), outsider.ips()[1])] {
        let before = refused(&pair.far);
        assert_kernel_refuses(&outsider, to);
        assert_eq!(refused(&pair.far), before + 1.0, "{to}");
        let record = record(&pair.far, |record| record["dst"] == *to.to_string());
        let who: SocketAddr = record["src"].as_str().unwrap().parse().unwrap();
        assert_eq!(who.ip(), ip, "{record}");
        assert_ne!(who.port(), 0, "{record}");
        for (field, value) in [
            ("direction", "inbound"),
            ("result", "refused"),
            ("reason", "plaintext_refused"),
            ("src_workload", &full_name(&outsider)),
            ("dst_workload", &full_name(&pair.server)),
        ] {
            assert_eq!(record[field], value, "{field}: {record}");
        }
        drop(dial(&pair.client, to).unwrap());
    }
    assert!(server.peers().iter().all(|peer| peer.ip() != outsider.ipv4()));

    remove(&pair, "strict.yaml");
    drop(dial(&outsider, server.addr()).unwrap());
}

#[test]
fn ports_that_say_otherwise_are_left_out() {
    let pair = Pair::new();
    pair.server.set_label("app", Some("server")).unwrap();
    let (one, two) = (pair.server.serve_echo(80).unwrap(), pair.server.serve_echo(81).unwrap());
    let outsider = pair.outsider(pair.near.node(), "outsider");
    for (spec, open, closed) in [(STRICT_BUT_81, &two, &one), (PERMISSIVE_BUT_81, &one, &two)] {
        apply(&pair, "strict.yaml", &peer_authentication(spec));
        let before = refused(&pair.far);
        for (open, closed) in [(open.addr(), closed.addr()), (open.addr6(), closed.addr6())] {
            drop(dial(&outsider, open).unwrap());
            assert_kernel_refuses(&outsider, closed);
        }
        assert_eq!(refused(&pair.far), before + 2.0, "{spec}");
    }
}

#[test]
fn what_was_refused_without_an_agent_is_told_by_the_next() {
    let mut pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    let outsider = pair.outsider(pair.near.node(), "outsider");
    apply(&pair, "strict.yaml", &peer_authentication(STRICT));
    pair.far.kill().unwrap();
    assert_kernel_refuses(&outsider, server.addr());
    pair.far.restart().unwrap();
    record(&pair.far, |record| record["reason"] == "plaintext_refused");
    assert_eq!(refused(&pair.far), 1.0);
}

#[test]
fn a_flood_of_refusals_is_counted_whole_and_told_in_part() {
    let pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    let outsider = pair.outsider(pair.near.node(), "outsider");
    let open = dial(&pair.client, server.addr()).unwrap();
    apply(&pair, "strict.yaml", &peer_authentication(STRICT));
    let mut dialled = 0.0;
    let lost = || pair.far.metric("orlop_kernel_events_lost_total", &[]).unwrap();
    let too_many = wait_for(TIMEOUT, || {
        for _ in 0..2000 {
            assert_kernel_refuses(&outsider, server.addr());
            dialled += 1.0;
        }
        lost() > 0.0
    });
    assert!(too_many, "{dialled} refusals, and all of them told of");
    assert_eq!(refused(&pair.far), dialled);
    ping(&open, "still here?\n").unwrap();
    drop(dial(&pair.client, server.addr()).unwrap());
    let told = |log: &str| {
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["reason"] == "plaintext_refused").count() as f64
    };
    pair.far.wait_log(|log| told(log) + lost() >= dialled, TIMEOUT).unwrap();
    assert_eq!(told(&pair.far.log().unwrap()) + lost(), dialled);
}
