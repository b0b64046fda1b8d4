//! Whom RateLimits count for, where tokens say so, and several limits that one service counts at once.

use orlop_tests::{PodSpec, ServiceSpec, TargetPort};
use serde_json::{Value, json};

use super::Stage;
use super::grpc::{self, at, bytes, number, text};
use super::limits::{ask, limits, write};
use super::scripted::Scripted;
use super::tokens::{ISSUER, Issuer, authentication};
use crate::mesh::NAMESPACE;

#[test]
fn requests_are_counted_by_whom_a_token_is_of_and_by_what_it_claims() {
    let stage = Stage::new();
    let server = Scripted::status(&stage.mesh.server, 200);
    let (issuer, stranger) = (Issuer::new("1"), Issuer::new("1"));
    authentication(&stage, json!({"issuer": ISSUER, "jwks": issuer.jwks()}));
    let count = |token: &str, times: usize| -> Vec<u16> {
        let bearer = format!("Bearer {token}");
        let with = [("authorization", bearer.as_str())];
        let headers = if token.is_empty() { &[][..] } else { &with[..] };
        (0..times).map(|_| ask(&stage, "GET /", headers).status).collect()
    };
    let token = |sub: &str, team: Value| issuer.token(json!({"sub": sub, "team": team}));
    let by = |name: &str, part: &str| json!([{"name": name, "requests": 2, "unit": "day", "by": [part]}]);
    limits(&stage, "web", by("callers", "request.auth.principal"));
    // However often it is issued, and whatever else it says.
    assert_eq!(count(&token("ann", json!("blue")), 1), [200]);
    assert_eq!(count(&token("ann", json!("red")), 2), [200, 429]);
    assert_eq!(count(&token("bob", json!("blue")), 3), [200, 200, 429]);
    assert_eq!(count("", 3), [200, 200, 429]);
    // What nobody believes is of nobody, and takes nothing.
    let forged = stranger.token(json!({"sub": "cid"}));
    assert_eq!(count(&forged, 3), [401, 401, 401]);
    assert_eq!(count(&token("cid", json!("blue")), 3), [200, 200, 429]);
    limits(&stage, "web", by("teams", "request.auth.claims[team][name]"));
    let team = |sub: &str, name: &str| token(sub, json!({"name": name}));
    assert_eq!(count(&team("ann", "blue"), 1), [200]);
    assert_eq!(count(&team("bob", "blue"), 2), [200, 429]);
    assert_eq!(count(&team("ann", "red"), 3), [200, 200, 429]);
    assert_eq!(count("", 3), [200, 200, 429]);
    assert_eq!(server.count(), 8 + 6);
}

/// `RateLimitResponse` that is over a limit, with for each descriptor its code and the seconds until there is more.
fn statuses(of: &[(u64, u64)]) -> Vec<u8> {
    let limit = [number(1, 5), number(2, 2)].concat();
    let status = |(code, seconds): &(u64, u64)| {
        bytes(2, [number(1, *code), bytes(2, &limit), bytes(4, number(1, *seconds))].concat())
    };
    [number(1, 2), of.iter().flat_map(status).collect()].concat()
}

#[test]
fn limits_that_one_service_counts_are_asked_about_at_once_and_the_longest_wait_is_told() {
    let stage = Stage::new();
    let server = Scripted::status(&stage.mesh.server, 200);
    let pod = stage.mesh.nodes[0].pod(NAMESPACE, "counts", PodSpec::new()).unwrap();
    stage.mesh.client_agent().wait_enrolled([&stage.mesh.client, &pod]).unwrap();
    let shared = json!({
        "service": "counts.shop.svc.cluster.local", "port": 8081, "domain": "shop", "timeout": "20s",
    });
    stage.change(|| {
        let service = ServiceSpec::new(NAMESPACE, "counts", 8081, TargetPort::Number(80));
        let service = service.cluster_ips(stage.mesh.testbed.vip()).endpoints([&pod]);
        stage.mesh.testbed.world().service(&service).unwrap();
        let limits = json!([
            {"name": "tenants", "shared": shared, "by": ["request.headers[x-tenant]"]},
            {"name": "namespaces", "shared": shared, "by": ["source.namespace"]},
        ]);
        write(&stage, "web", limits);
    });
    let counts = grpc::Server::start(&pod, |asked| {
        let keys = at(asked, &[2, 1, 2]);
        let is = |tenant: &str| keys.contains(&tenant.as_bytes().to_vec());
        grpc::Reply::Message(if is("both") {
            statuses(&[(2, 7), (2, 30)])
        } else if is("first") {
            statuses(&[(2, 40), (1, 90)])
        } else {
            number(1, 1)
        })
    });
    let tenant = |name: &str| ask(&stage, "GET /", &[("x-tenant", name)]);
    for (name, limit, wait) in [("both", "namespaces", "30"), ("first", "tenants", "40")] {
        let over = tenant(name);
        assert_eq!((over.status, over.header("retry-after")), (429, Some(wait)), "{name}");
        assert_eq!(over.header("ratelimit"), Some(&*format!("\"{limit}\";r=0;t={wait}")));
        let detail = format!("RateLimit shop/web, limit {limit}");
        stage.record(|record| {
            record["code"] == 429 && record["detail"].as_str().is_some_and(|text| text.starts_with(&detail))
        });
    }
    assert_eq!(tenant("neither").status, 200);
    let asked = counts.asked();
    assert_eq!(asked.len(), 3, "one call for both");
    for (_, message) in &asked {
        let descriptors = at(message, &[2]);
        let keys: Vec<_> = descriptors.iter().map(|of| text(of, &[1, 1])).collect();
        assert_eq!(keys, ["request.headers[x-tenant]", "source.namespace"]);
    }
    assert_eq!(server.count(), 1);
}
