//! Envoy's response flags, in the log and in metrics.

use std::io::Read;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use orlop_tests::traffic::request;

use super::routes::Versions;
use super::scripted::{Reply, Scripted};
use super::{Stage, h2c};
use crate::hbone::{within, write};

const TO: &str = "route: [{destination: {host: web, subset: v1}}]";

#[test]
fn what_a_rule_does_to_a_request_is_told() {
    let versions = Versions::new();
    let _server = Scripted::status(&versions.pods[0], 200);
    let delay = "delay: {percentage: {value: 100}, fixedDelay: 10ms}";
    versions.route(&format!(
        "- match: [{{uri: {{exact: /slow}}}}]\n  fault: {{{delay}}}\n  {TO}\n\
         - match: [{{uri: {{exact: /both}}}}]\n  fault: {{{delay}, abort: {{percentage: {{value: 100}}, httpStatus: 555}}}}\n  {TO}\n\
         - {TO}"
    ));
    for (path, status, flags) in [("/slow", 200, "DI"), ("/both", 555, "DI,FI"), ("/", 200, "-")] {
        assert_eq!(versions.stage.get(path).status, status);
        versions.stage.record(|record| record["path"] == path && record["flags"] == flags);
        versions.stage.await_count(
            &[&format!("response_flags=\"{flags}\""), &format!("response_code=\"{status}\"")],
            1.0,
        );
    }
}

#[test]
fn how_a_server_fails_is_told_and_that_it_was_tried_often_enough() {
    let versions = Versions::new();
    let stage = &versions.stage;
    let retries = "retries: {attempts: 1, retryOn: \"5xx\"}";
    versions.route(&format!(
        "- match: [{{uri: {{prefix: /again}}}}]\n  {retries}\n  {TO}\n- retries: {{attempts: 0}}\n  {TO}"
    ));
    let mut stream = stage.connect();
    let mut fails = |path: &str, status: u16, flags: &str| {
        let head = format!("POST {path} HTTP/1.1\r\nhost: web\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(request(&mut stream, &head).unwrap().status, status, "{path}");
        let record = stage.record(|record| record["path"] == path);
        assert_eq!(record["flags"], flags, "{record}");
    };
    fails("/away", 503, "UF");
    fails("/again/away", 503, "UF,URX");
    let _server = Scripted::start(&versions.pods[0], |asked| {
        let path = asked.line.split(' ').nth(1).unwrap_or_default();
        match path.trim_start_matches("/again") {
            "/close" => Reply::Close,
            "/nonsense" => Reply::Raw("nonsense\r\n\r\n"),
            "/unclear" => Reply::Raw("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
            _ => Reply::Answer(503, String::new()),
        }
    });
    fails("/close", 503, "UC");
    fails("/again/close", 503, "UC,URX");
    fails("/nonsense", 503, "UPE");
    fails("/again/unclear", 503, "URX,UPE");
    // What the server answers is no failure by itself.
    fails("/answered", 503, "-");
    fails("/again/answered", 503, "URX");
    stage.await_count(&["response_flags=\"UC,URX\""], 1.0);
}

#[test]
fn a_stream_that_a_server_resets_is_its_doing() {
    let stage = Stage::new();
    let _server = h2c::Server::start(&stage.mesh.server, 80);
    let to = stage.web();
    within(&stage.mesh.client, async move || {
        let client = h2c::connect(to).await;
        let (answer, mut send) = h2c::ask(&client, h2c::BROKEN_OFF).await;
        let mut received = answer.await.unwrap().into_body();
        write(&mut send, Bytes::from_static(b"x")).await.unwrap();
        let mut broken = false;
        while let Some(data) = received.data().await {
            broken |= data.is_err();
            if broken {
                break;
            }
        }
        assert!(broken, "it ended");
    });
    let record = stage.record(|record| record["path"] == h2c::BROKEN_OFF);
    assert_eq!((&record["flags"], &record["reason"]), (&"UR".into(), &"upstream_reset".into()));
}

#[test]
fn what_a_client_does_is_told_of_the_client() {
    let stage = Stage::new();
    assert_eq!(stage.get("/a%zz").status, 400);
    let record = stage.record(|record| record["code"] == 400);
    assert_eq!((&record["flags"], &record["reason"]), (&"DPE".into(), &"bad_request".into()));
    stage.await_count(&["response_flags=\"DPE\"", "response_code=\"400\""], 1.0);
    // Somebody who takes what is asked, and never answers.
    let listener = stage.mesh.server.listen(false, 80).unwrap();
    let (asked, is_asked) = channel();
    let server = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        stream.read_exact(&mut [0]).unwrap();
        asked.send(()).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let to = stage.web();
    within(&stage.mesh.client, async move || {
        let client = h2c::connect(to).await;
        let (answer, mut send) = h2c::ask(&client, "/left").await;
        while is_asked.try_recv().is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        send.send_reset(h2::Reason::CANCEL);
        assert!(answer.await.is_err());
    });
    let record = stage.record(|record| record["path"] == "/left");
    assert_eq!((&record["flags"], &record["reason"]), (&"DC".into(), &"reset".into()));
    assert_eq!(record["code"], 0);
    stage.await_count(&["response_flags=\"DC\"", "response_code=\"0\""], 1.0);
    drop(stage);
    server.join().unwrap();
}
