//! Providers that fail open: for what lets a request pass, and for what not.

use serde_json::{Value, json};

use super::Stage;
use super::custom::{Asked, ask, denied, grpc, http, status};
use super::grpc::{self, Reply as Rpc, bytes, number};
use super::scripted::{Reply, Scripted};
use crate::mesh::NAMESPACE;

#[test]
fn one_that_fails_open_lets_pass_while_it_is_away_and_no_longer() {
    let asked = Asked::new();
    let stage = &asked.stage;
    let server = Scripted::status(&stage.mesh.server, 200);
    asked.ask(
        &http(json!({
            "failOpen": true, "includeRequestBodyInCheck": {"maxRequestBytes": 9},
            "headersToUpstreamOnAllow": ["x-user"],
        })),
        &json!({}),
    );
    // Nobody's word stands in place of that of one who is away.
    assert_eq!(ask(stage, "GET /", &[("x-user", "root")], "").status, 200);
    assert!(!server.asked().pop().unwrap().headers.contains_key("x-user"));
    let failed_open =
        || stage.waypoint.metric("orlop_authorizer_checks_total", &["outcome=\"failed_open\""]).unwrap();
    assert_eq!(failed_open(), 1.0);
    // What a client does itself opens nothing.
    assert_eq!(ask(stage, "POST /", &[], "more than nine bytes").status, 413);
    for page in [String::new(), "no ".repeat(30_000)] {
        let authz = Scripted::start(&asked.pod, move |_| Reply::Answer(403, page.clone()));
        assert_eq!(stage.get("/").status, 403);
        drop(authz);
    }
    // Nor does a refusal that is too long, or one over gRPC, or a pass that can't be followed.
    asked.ask(&grpc(json!({"failOpen": true})), &json!({}));
    for odd in [denied(200), [status(0), bytes(3, bytes(8, "token"))].concat()] {
        let _authz = grpc::Server::start(&asked.pod, move |_| grpc::Reply::Message(odd.clone()));
        assert_eq!(stage.get("/").status, 403);
    }
    assert_eq!(server.count(), 1);
}

fn failed_open(stage: &Stage) -> f64 {
    stage.waypoint.metric("orlop_authorizer_checks_total", &["outcome=\"failed_open\""]).unwrap()
}

#[test]
fn only_one_that_is_away_is_passed_over() {
    let asked = Asked::new();
    let stage = &asked.stage;
    let server = Scripted::status(&stage.mesh.server, 200);
    let open = |more: Value| {
        let mut of = json!({"failOpen": true});
        for (name, value) in more.as_object().unwrap() {
            of[name] = value.clone();
        }
        of
    };
    asked.ask(&grpc(open(json!({}))), &json!({}));
    // UNAVAILABLE, INTERNAL, and Envoy's own word of one that could not tell.
    let unsure = [status(13), bytes(5, "")].concat();
    let away = [Rpc::Status(14), Rpc::Status(13), Rpc::Message(unsure), Rpc::Reset];
    for reply in away {
        let _authz = grpc::Server::start(&asked.pod, move |_| reply.clone());
        assert_eq!(stage.get("/").status, 200);
    }
    let passed = server.count();
    // PERMISSION_DENIED, UNIMPLEMENTED, UNAUTHENTICATED; no status, no message, no gRPC; and one that says no at length.
    let long = [status(7), bytes(2, bytes(3, "no ".repeat(1 << 16)))].concat();
    let wrong = [
        Rpc::Status(7),
        Rpc::Status(12),
        Rpc::Status(16),
        Rpc::Message(Vec::new()),
        Rpc::Message(number(1, 3)),
        Rpc::Garbage(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()),
        Rpc::Message(long),
    ];
    for (index, reply) in wrong.into_iter().enumerate() {
        let _authz = grpc::Server::start(&asked.pod, move |_| reply.clone());
        assert_eq!(stage.get("/").status, 403, "{index}");
    }
    // What speaks another protocol than was written down.
    let web =
        Scripted::start(&asked.pod, |_| Reply::Raw("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"));
    assert_eq!(stage.get("/").status, 403);
    drop(web);
    // One that says no by its head, and then nothing more.
    asked.ask(&http(open(json!({"timeout": "3s"}))), &json!({}));
    let stalls =
        Scripted::start(&asked.pod, |_| Reply::Raw("HTTP/1.1 401 No\r\ncontent-length: 9\r\n\r\nno"));
    assert_eq!(stage.get("/").status, 401);
    drop(stalls);
    asked.ask(&http(open(json!({"timeout": "300ms"}))), &json!({}));
    let hangs = Scripted::start(&asked.pod, |_| Reply::Raw("HTTP/1.1 "));
    assert_eq!(stage.get("/").status, 200);
    drop(hangs);
    let _fails = Scripted::status(&asked.pod, 503);
    assert_eq!(stage.get("/").status, 200);
    assert_eq!(server.count(), passed + 2);
    assert_eq!(failed_open(stage), 6.0);
}

#[test]
fn one_that_must_not_be_asked_lets_nothing_pass() {
    let asked = Asked::new();
    let stage = &asked.stage;
    let _server = Scripted::status(&stage.mesh.server, 200);
    let _authz = Scripted::status(&asked.pod, 200);
    let world = stage.mesh.testbed.world();
    // What is written down is no service, or has no such port.
    for wrong in [json!({"service": "nobody.shop.svc.cluster.local"}), json!({"port": 9001})] {
        let mut provider = http(json!({"failOpen": true}));
        let of = provider["envoyExtAuthzHttp"].as_object_mut().unwrap();
        of.extend(wrong.as_object().unwrap().clone());
        asked.ask(&provider, &json!({}));
        assert_eq!(stage.get("/").status, 403, "{wrong}");
    }
    // Its policies do not let the waypoint in.
    asked.ask(&http(json!({"failOpen": true})), &json!({}));
    assert_eq!(stage.get("/").status, 200);
    let nobody = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "closed", "namespace": NAMESPACE},
        "spec": {"action": "DENY", "rules": [{"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/gate"]}}]}],
                 "selector": {"matchLabels": {"app": "authz"}}},
    });
    stage.change(|| world.write("closed.yaml", &nobody.to_string()).unwrap());
    crate::mesh::await_value(403, || stage.get("/").status);
    stage.change(|| world.remove("closed.yaml").unwrap());
    crate::mesh::await_value(200, || stage.get("/").status);
}
