//! What a DestinationRule lets there be at once.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::destinations::treat;
use super::routes::Versions;
use super::scripted::{Reply, Scripted};
use super::{grpc, web};
use crate::hbone::within;
use crate::mesh::await_value;

/// Of one attempt no number is told.
const ONCE: Value = Value::Null;

/// What a server waits for.
#[derive(Clone, Default)]
struct Signal(Arc<(Mutex<bool>, Condvar)>);

impl Signal {
    fn wait(&self) {
        let (given, changed) = &*self.0;
        drop(changed.wait_while(given.lock().unwrap(), |given| !*given).unwrap());
    }

    fn give(&self) {
        let (given, changed) = &*self.0;
        *given.lock().unwrap() = true;
        changed.notify_all();
    }
}

/// A service with one endpoint, for which this policy is in force.
fn with(policy: &str) -> Versions {
    let versions = Versions::new();
    let stage = &versions.stage;
    let only = web(&stage.vip).endpoints([&versions.pods[0]]);
    stage.change(|| stage.mesh.testbed.world().service(&only).unwrap());
    treat(&versions, policy);
    versions
}

#[test]
fn one_request_more_than_there_may_be_is_refused_and_not_tried_again() {
    let versions = with("connectionPool: {http: {http2MaxRequests: 1}}");
    versions.route("- retries: {attempts: 2, retryOn: 5xx}\n  route: [{destination: {host: web}}]");
    let stage = &versions.stage;
    let release = Signal::default();
    let held = release.clone();
    let server = Scripted::start(&versions.pods[0], move |asked| {
        if asked.line.contains("/held") {
            held.wait();
        }
        Reply::Answer(200, String::new())
    });
    thread::scope(|scope| {
        let first = scope.spawn(|| stage.get("/held").status);
        await_value(1, || server.count());
        let second = stage.get("/second").status;
        let asked = server.count();
        release.give();
        assert_eq!((second, asked), (503, 1));
        assert_eq!(first.join().unwrap(), 200);
    });
    let record = stage.record(|record| record["path"] == "/second");
    assert_eq!(
        (&record["reason"], &record["flags"], &record["attempts"]),
        (&"overflow".into(), &"UO".into(), &ONCE)
    );
    await_value(200, || stage.get("/third").status);
}

#[test]
fn one_retry_more_than_there_may_be_is_not_made() {
    let versions = with("connectionPool: {http: {maxRetries: 1}}");
    versions.route("- retries: {attempts: 1, retryOn: \"503\"}\n  route: [{destination: {host: web}}]");
    let stage = &versions.stage;
    let release = Signal::default();
    let (held, known) = (release.clone(), Mutex::new(BTreeSet::new()));
    let server = Scripted::start(&versions.pods[0], move |asked| {
        if known.lock().unwrap().insert(asked.line.clone()) {
            return Reply::Answer(503, String::new());
        }
        if asked.line.contains("/held") {
            held.wait();
        }
        Reply::Answer(200, String::new())
    });
    thread::scope(|scope| {
        let first = scope.spawn(|| stage.get("/held").status);
        // That is its retry.
        await_value(2, || server.count());
        let second = stage.get("/second").status;
        let asked = server.count();
        release.give();
        assert_eq!((second, asked), (503, 3));
        assert_eq!(first.join().unwrap(), 200);
    });
    let record = stage.record(|record| record["path"] == "/second");
    assert_eq!((&record["flags"], &record["attempts"]), (&"UO".into(), &ONCE));
    await_value(200, || stage.get("/third").status);
}

#[test]
fn one_stream_more_than_a_connection_may_have_gets_a_connection() {
    let versions = with("connectionPool: {http: {maxConcurrentStreams: 1}}");
    let server = grpc::Server::start(&versions.pods[0], |_| grpc::Reply::Nothing);
    let to = versions.stage.web();
    let seen = &server;
    within(&versions.stage.mesh.client, async move || {
        let client = super::h2c::connect(to).await;
        let mut waiting = Vec::new();
        for calls in 1..=2 {
            waiting.push(grpc::ask(&client, "/s/m", b"x").await);
            while seen.asked().len() < calls {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    });
    assert_eq!(server.connections(), 2);
}
