//! Bodies that stop halfway: whoever holds them does so for a while only.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use bytes::Bytes;
use orlop_tests::traffic::{ReadUninterrupted, request};
use orlop_tests::{Pod, PodSpec};

use super::Stage;
use crate::hbone::{within, write};
use crate::l7::h2c;
use crate::l7::scripted::Scripted;
use crate::mesh::TIMEOUT;

/// Whether a request is told of that stopped halfway.
fn is_stalled(record: &serde_json::Value) -> bool {
    record["reason"] == "idle_timeout" && record["flags"] == "SI"
}

const STALL: [&str; 2] = ["--stall-timeout", "2s"];

/// All that comes until the connection ends, which must not take as long as tests wait.
fn read_to_end(stream: &mut impl Read) -> String {
    let (start, mut answer) = (Instant::now(), Vec::new());
    let _ = stream.read_to_end(&mut answer);
    assert!(start.elapsed() < TIMEOUT, "it is left open");
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_request_that_stops_halfway_is_answered_and_closed() {
    let stage = Stage::with(&STALL, "http");
    let _server = Scripted::status(&stage.mesh.server, 200);
    let mut stream = stage.stranger.connect(stage.address(), TIMEOUT).unwrap();
    stream.write_all(b"POST /half HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhalf").unwrap();
    let answer = read_to_end(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    stage.record(|record| record["path"] == "/half" && is_stalled(record));
    // One that is slow goes on.
    let mut stream = stage.stranger.connect(stage.address(), TIMEOUT).unwrap();
    stream
        .write_all(b"POST /slow HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 100\r\n\r\n")
        .unwrap();
    for _ in 0..100 {
        std::thread::sleep(Duration::from_millis(50));
        stream.write_all(b"x").unwrap();
    }
    assert!(read_to_end(&mut stream).starts_with("HTTP/1.1 200"));
}

#[test]
fn an_answer_that_stops_halfway_is_broken_off() {
    let stage = Stage::with(&STALL, "http");
    let listener = stage.mesh.server.listen(false, 80).unwrap();
    let server = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let _ = stream.read_uninterrupted(&mut [0; 1024]);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").unwrap();
        // Until the gateway closes it.
        read_to_end(&mut stream);
    });
    let mut stream = stage.stranger.connect(stage.address(), TIMEOUT).unwrap();
    stream.write_all(b"GET /half HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    assert!(read_to_end(&mut stream).ends_with("half"));
    stage.record(|record| record["path"] == "/half" && is_stalled(record));
    server.join().unwrap();
}

#[test]
fn an_answer_that_nobody_reads_is_broken_off() {
    let stage = Stage::with(&STALL, "http");
    let _server = stage.mesh.server.serve_http(80).unwrap();
    let mut stream = stage.stranger.connect(stage.address(), TIMEOUT).unwrap();
    stream.write_all(b"GET /bulk?bytes=200000000 HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    stage.record(|record| record["path"] == "/bulk" && is_stalled(record));
}

#[test]
fn a_stream_that_stops_costs_the_client_its_connection() {
    let stage = Stage::with(&STALL, "http2");
    let _server = h2c::Server::start(&stage.mesh.server, 80);
    let to = stage.address();
    within(&stage.stranger, async move || {
        let client = h2c::connect(to).await;
        let (stopping, mut send) = h2c::ask(&client, "/stops").await;
        write(&mut send, Bytes::from_static(b"half")).await.unwrap();
        let mut body = stopping.await.unwrap().into_body();
        assert_eq!(h2c::read(&mut body, 4).await, b"half");
        // As long as something moves, it goes on.
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            write(&mut send, Bytes::from_static(b"x")).await.unwrap();
            assert_eq!(h2c::read(&mut body, 1).await, b"x");
        }
        assert!(body.data().await.is_none_or(|data| data.is_err()), "it is left open");
    });
    stage.record(|record| record["path"] == "/stops" && is_stalled(record));
}

#[test]
fn a_connection_that_asks_nothing_is_closed() {
    let stage = Stage::with(
        &["--client-idle-timeout", "500ms", "--header-timeout", "1s", "--detection-timeout", "1s"],
        "http",
    );
    let mut silent = stage.stranger.connect(stage.address(), TIMEOUT).unwrap();
    silent.write_all(b"GET").unwrap();
    read_to_end(&mut silent);
    let mut h2 = stage.stranger.connect(stage.address(), TIMEOUT).unwrap();
    h2.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    read_to_end(&mut h2);
}

#[test]
fn readers_that_stop_stall_nobody_else_at_the_same_server() {
    let stage = Stage::with(&["--workers", "1"], "http2");
    let _server = h2c::Server::start(&stage.mesh.server, 80);
    let to = stage.address();
    within(&stage.stranger, async move || {
        let large = async |client| {
            let (answer, mut send) = h2c::ask(client, h2c::LARGE).await;
            send.send_data(Bytes::new(), true).unwrap();
            answer.await.unwrap().into_body()
        };
        let stopping = h2c::connect(to).await;
        let mut unread = Vec::new();
        for _ in 0..4 {
            unread.push(large(&stopping).await);
        }
        let other = h2c::connect(to).await;
        let mut body = large(&other).await;
        assert_eq!(h2c::read(&mut body, h2c::BULK).await.len(), h2c::BULK);
    });
}

#[test]
fn a_head_that_has_begun_must_end_however_little_of_it_came() {
    let stage = Stage::with(&["--header-timeout", "500ms"], "http");
    let _server = Scripted::status(&stage.mesh.server, 200);
    let mut stream = stage.connect();
    assert_eq!(request(&mut stream, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap().status, 200);
    stream.get_mut().write_all(b"G").unwrap();
    read_to_end(&mut stream);
    let mut stream = stage.stranger.connect(stage.address(), TIMEOUT).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    // HEADERS that other frames are to go on with.
    stream.write_all(b"\0\0\x01\x01\0\0\0\0\x01\x82").unwrap();
    read_to_end(&mut stream);
}

#[test]
fn without_memory_nobody_new_is_taken() {
    let stage = Stage::with(&["--max-memory", "1KiB"], "http");
    // The reset may come before the connection is told of.
    if let Ok(mut stream) = stage.stranger.connect(stage.address(), TIMEOUT) {
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n");
        assert_eq!(read_to_end(&mut stream), "");
    }
    stage.record(|record| record["reason"] == "memory_limit");
}

#[test]
fn one_client_has_at_most_half_of_all_requests_and_what_does_not_move_makes_room() {
    let stage = Stage::with(&["--max-requests", "4"], "http2");
    let _server = h2c::Server::start(&stage.mesh.server, 80);
    let to = stage.address();
    let other = stage.mesh.nodes[0].pod("street", "other", PodSpec::new()).unwrap();
    let third = stage.mesh.nodes[0].pod("street", "third", PodSpec::new()).unwrap();
    // Answers of more than has room on the way, which nobody reads.
    let unread = |pod: &Pod, fits: &'static [bool]| {
        let (held, until) = std::sync::mpsc::channel::<()>();
        let (told, ready) = std::sync::mpsc::channel::<()>();
        let pod = pod.clone();
        let holding = std::thread::spawn(move || {
            within(&pod, async move || {
                let client = h2c::connect(to).await;
                let mut bodies = Vec::new();
                for fits in fits {
                    let (answer, mut send) = h2c::ask(&client, h2c::LARGE).await;
                    send.send_data(Bytes::new(), true).unwrap();
                    let answer = answer.await.unwrap();
                    // To gRPC a refusal is a status of its own.
                    assert_eq!(!answer.headers().contains_key("grpc-status"), *fits);
                    bodies.push(answer.into_body());
                }
                told.send(()).unwrap();
                // What it holds is the gateway's to end.
                while until.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
        });
        ready.recv_timeout(TIMEOUT).unwrap();
        (held, holding)
    };
    let first = unread(&stage.stranger, &[true, true, false]);
    let second = unread(&other, &[true, true]);
    let status = || {
        let stream = third.connect(to, TIMEOUT).ok()?;
        let head = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        request(&mut std::io::BufReader::new(stream), head).ok().map(|answer| answer.status)
    };
    assert_eq!(status(), Some(503));
    stage.record(|record| record["reason"] == "memory_limit");
    let start = Instant::now();
    while status() != Some(200) {
        assert!(start.elapsed() < 2 * TIMEOUT, "there is no room for anybody else");
        std::thread::sleep(Duration::from_millis(100));
    }
    for (held, holding) in [first, second] {
        drop(held);
        holding.join().unwrap();
    }
}

#[test]
fn a_short_answer_counts_until_its_client_has_let_it_come() {
    let stage = Stage::with(&["--max-requests", "2"], "http2");
    let _server = h2c::Server::start(&stage.mesh.server, 80);
    let to = stage.address();
    within(&stage.stranger, async move || {
        let mut settings = h2::client::Builder::new();
        settings.initial_window_size(1);
        let client = h2c::connect_with(to, settings).await;
        let ask = async || {
            let (answer, mut send) = h2c::ask(&client, "/echo").await;
            send.send_data(Bytes::from_static(b"0123456789"), true).unwrap();
            answer.await.unwrap()
        };
        let is_refused =
            |answer: &http::Response<h2::RecvStream>| answer.headers().contains_key("grpc-status");
        let first = ask().await;
        assert!(!is_refused(&first));
        let mut body = first.into_body();
        let byte = body.data().await.unwrap().unwrap();
        assert_eq!(byte, "0");
        assert!(is_refused(&ask().await), "what is held for it counts no more");
        body.flow_control().release_capacity(1).unwrap();
        assert_eq!(h2c::read(&mut body, 9).await, b"123456789");
        body.trailers().await.unwrap();
        assert!(!is_refused(&ask().await));
    });
}
