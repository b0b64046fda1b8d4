//! What is tried again, and what is not since a server may have acted upon it.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use http::Request;
use orlop_tests::traffic::{Response, request};
use serde_json::Value;

use super::destinations::treat;
use super::gateway_api::route;
use super::routes::{Versions, routes};
use super::scripted::{Reply, Scripted};
use super::{Stage, grpc, h2c};
use crate::hbone::within;
use crate::mesh::{NAMESPACE, TIMEOUT, await_value};

const TO: &str = "route: [{destination: {host: web}}]";

/// Has these paths tried again so, up to twice.
fn retry<'a>(stage: &Stage, paths: impl IntoIterator<Item = (&'a str, &'a str)>) {
    let rules: String = paths
        .into_iter()
        .map(|(path, how)| {
            format!("- match: [{{uri: {{exact: {path}}}}}]\n  retries: {{attempts: 2, {how}}}\n  {TO}\n")
        })
        .collect();
    stage.change(|| stage.mesh.testbed.world().write("routes.yaml", &routes(&rules)).unwrap());
}

/// A request that is not idempotent.
fn post(stage: &Stage, path: &str) -> Response {
    let head = format!("POST {path} HTTP/1.1\r\nhost: web\r\ncontent-length: 1\r\n\r\nx");
    request(&mut stage.connect(), &head).unwrap()
}

/// Answers no path but `/warm`, which is asked here: the tunnel to it is there then, and takes no part of an attempt's time.
fn never_answers(stage: &Stage) -> Scripted {
    let server = Scripted::start(&stage.mesh.server, |asked| {
        while !asked.line.contains(" /warm ") {
            thread::park();
        }
        Reply::Answer(200, String::new())
    });
    assert_eq!(stage.get("/warm").status, 200);
    server
}

#[test]
fn what_a_server_has_had_for_too_long_is_sent_again_only_where_that_is_wanted() {
    let stage = Stage::new();
    let slow = never_answers(&stage);
    let rules = [
        ("/default", "perTryTimeout: 2s", 1),
        ("/connect", "perTryTimeout: 2s, retryOn: connect-failure", 1),
        ("/before", "perTryTimeout: 2s, retryOn: \"reset-before-request,refused-stream\"", 1),
        ("/none", "perTryTimeout: 2s, retryOn: retriable-headers", 1),
        ("/reset", "perTryTimeout: 2s, retryOn: reset", 3),
        ("/gateway", "perTryTimeout: 2s, retryOn: gateway-error", 3),
        ("/5xx", "perTryTimeout: 2s, retryOn: 5xx", 3),
    ];
    retry(&stage, rules.map(|(path, how, _)| (path, how)));
    for (path, how, attempts) in rules {
        let before = slow.count();
        assert_eq!(post(&stage, path).status, 504, "{how}");
        await_value(attempts, || slow.count() - before);
        // Of one attempt no number is told.
        let told = if attempts == 1 { Value::Null } else { attempts.into() };
        stage.record(|record| record["path"] == path && record["attempts"] == told);
    }
}

#[test]
fn what_a_server_has_had_for_too_long_by_an_http_route_is_sent_again_only_if_it_has_retry() {
    let stage = Stage::new();
    let slow = never_answers(&stage);
    let to = "timeouts: {backendRequest: 2s}\n  backendRefs: [{name: web, port: 80}]";
    let rules = format!(
        "- {to}\n- matches: [{{path: {{value: /again}}}}]\n  retry: {{attempts: 2, codes: [503]}}\n  {to}"
    );
    route(&stage, "HTTPRoute", NAMESPACE, &rules);
    for (path, attempts) in [("/once", 1), ("/again", 3)] {
        let before = slow.count();
        assert_eq!(post(&stage, path).status, 504, "{path}");
        await_value(attempts, || slow.count() - before);
    }
}

/// RFC 9110, section 9.2.2: the server may have closed a connection just before the request came.
#[test]
fn a_connection_that_has_died_costs_what_is_idempotent_nothing_unless_nothing_is_to_be_tried_again() {
    let stage = Stage::new();
    let seen = Mutex::new(BTreeSet::new());
    let server = Scripted::start(&stage.mesh.server, move |asked| {
        let path = asked.line.split(' ').nth(1).unwrap();
        match path {
            "/warm" => Reply::Answer(200, String::new()),
            _ if !seen.lock().unwrap().insert(path.to_owned()) => Reply::Answer(200, String::new()),
            "/garbage" => Reply::Raw("what is no HTTP\r\n\r\n"),
            _ => Reply::Close,
        }
    });
    let rules =
        format!("- match: [{{uri: {{exact: /never}}}}]\n  retries: {{attempts: 0}}\n  {TO}\n- {TO}\n");
    stage.change(|| stage.mesh.testbed.world().write("routes.yaml", &routes(&rules)).unwrap());
    // From one connection to one, that one worker has both.
    let mut stream = stage.connect();
    let mut ask =
        |head: &str| request(&mut stream, &format!("{head} HTTP/1.1\r\nhost: web\r\n\r\n")).unwrap();
    for (head, answered, times) in [
        ("GET /closes", true, 2),
        ("GET /garbage", false, 1),
        ("GET /never", false, 1),
        ("POST /closes-as-well", false, 1),
    ] {
        assert_eq!(ask("GET /warm").status, 200);
        let before = server.count();
        let status = ask(head).status;
        assert_eq!((status == 200, server.count() - before), (answered, times), "{head}: {status}");
    }
}

#[test]
fn what_a_server_of_http2_resets_is_not_sent_again_by_default() {
    let stage = Stage::new();
    let server = h2c::Server::start(&stage.mesh.server, 80);
    let to = stage.web();
    within(&stage.mesh.client, async move || {
        let client = h2c::connect(to).await;
        for (path, answered) in [("/warm", true), (h2c::RESET, false), ("/warm", true)] {
            let request = Request::get(format!("http://web{path}")).body(()).unwrap();
            let (answer, _) = client.clone().ready().await.unwrap().send_request(request, true).unwrap();
            let status = answer.await.unwrap().status();
            assert_eq!(status == 200, answered, "{path}: {status}");
        }
    });
    assert_eq!(server.count(), 3);
}

#[test]
fn what_a_client_takes_to_send_its_request_is_no_part_of_an_attempts_time() {
    let stage = Stage::new();
    let slow = never_answers(&stage);
    retry(&stage, [("/upload", "perTryTimeout: 1s, retryOn: 5xx")]);
    let mut stream = stage.connect();
    let head = "POST /upload HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n";
    stream.get_mut().write_all(head.as_bytes()).unwrap();
    stream.get_ref().set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let early = stream.read_exact(&mut [0]).map_err(|error| error.kind());
    assert_eq!(early, Err(ErrorKind::WouldBlock), "answered before the request had ended");
    stream.get_ref().set_read_timeout(Some(TIMEOUT)).unwrap();
    assert_eq!(request(&mut stream, "0\r\n\r\n").unwrap().status, 504);
    await_value(4, || slow.count());
}

#[test]
fn what_is_refused_here_is_refused_once() {
    let versions = Versions::new();
    let stage = &versions.stage;
    retry(stage, [("/tls", "retryOn: \"5xx,connect-failure,reset\"")]);
    treat(&versions, "tls: {mode: SIMPLE, caCertificates: /etc/certs/ca.pem}");
    assert_eq!(stage.get("/tls").status, 503);
    let record = stage.record(|record| record["path"] == "/tls");
    assert_eq!((&record["reason"], &record["attempts"]), (&"tls_unavailable".into(), &Value::Null));
}

#[test]
fn answers_are_tried_again_by_their_status_and_by_their_limits_header() {
    let stage = Stage::new();
    let server = Scripted::start(&stage.mesh.server, |asked| {
        match asked.line.split(' ').nth(1).unwrap().rsplit('/').next().unwrap() {
            "limited" => Reply::With(503, vec![("x-envoy-ratelimited", "true")], String::new()),
            status => Reply::Answer(status.parse().unwrap(), String::new()),
        }
    });
    let rules = [
        ("/gateway/500", "retryOn: gateway-error", 1),
        ("/gateway/502", "retryOn: gateway-error", 3),
        ("/gateway/503", "retryOn: gateway-error", 3),
        ("/gateway/504", "retryOn: gateway-error", 3),
        // As Istio's own default has it.
        ("/codes/503", "retryOn: \"connect-failure,retriable-status-codes,503\"", 3),
        ("/codes/502", "retryOn: \"connect-failure,retriable-status-codes,503\"", 1),
        ("/by-header/limited", "retryOn: envoy-ratelimited", 3),
        ("/by-header/503", "retryOn: envoy-ratelimited", 1),
        ("/by-status/limited", "retryOn: 5xx", 1),
    ];
    retry(&stage, rules.map(|(path, how, _)| (path, how)));
    for (path, how, attempts) in rules {
        let before = server.count();
        assert!(post(&stage, path).status >= 500);
        assert_eq!(server.count() - before, attempts, "{path}: {how}");
    }
}

#[test]
fn what_a_server_of_http2_refuses_unread_and_a_call_that_it_can_not_take_are_tried_again_by_default() {
    let stage = Stage::new();
    let known = Mutex::new(BTreeSet::new());
    let server = grpc::Server::start(&stage.mesh.server, move |message| {
        let is_new = known.lock().unwrap().insert(message.to_vec());
        match message {
            b"refused" if is_new => grpc::Reply::Refused,
            b"unavailable" if is_new => grpc::Reply::Status(14),
            b"cancelled" if is_new => grpc::Reply::Status(1),
            b"internal" if is_new => grpc::Reply::Status(13),
            _ => grpc::Reply::Message(Vec::new()),
        }
    });
    let to = stage.web();
    for (message, status, attempts) in
        [("refused", "0", 2), ("unavailable", "0", 2), ("cancelled", "0", 2), ("internal", "13", 1)]
    {
        let found = within(&stage.mesh.client, async move || {
            grpc::call(to, &format!("/{message}"), message.as_bytes()).await
        });
        let asked = server.asked().iter().filter(|(_, of)| of == message.as_bytes()).count();
        assert_eq!((found.as_str(), asked), (status, attempts), "{message}");
    }
}

#[test]
fn an_endpoint_that_fails_calls_in_the_heads_of_its_answers_is_ejected() {
    let versions = Versions::new();
    let stage = &versions.stage;
    let bad = grpc::Server::start(&versions.pods[0], |_| grpc::Reply::Status(14));
    let _good = grpc::Server::start(&versions.pods[1], |_| grpc::Reply::Message(Vec::new()));
    treat(
        &versions,
        "loadBalancer: {simple: ROUND_ROBIN}, \
         outlierDetection: {consecutiveGatewayErrors: 2, consecutive5xxErrors: 0, interval: 100ms, \
         baseEjectionTime: 60s, maxEjectionPercent: 100}",
    );
    let to = stage.web();
    let call = || within(&stage.mesh.client, async move || grpc::call(to, "/s/m", b"x").await);
    await_value(1.0, || {
        call();
        stage.waypoint.metric("orlop_endpoints_ejected_total", &[]).unwrap()
    });
    let before = bad.asked().len();
    assert!((0..10).all(|_| call() == "0"));
    assert_eq!(bad.asked().len(), before);
}
