//! What clients speak is carried whole: HTTP/1.1, HTTP/2, gRPC, WebSocket, and anything else.

use std::io::{BufRead, Read, Write};
use std::net::Shutdown;
use std::thread;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use orlop_tests::traffic::request;

use super::{Stage, h2c};
use crate::hbone::{identity, within, write};
use crate::mesh::{TIMEOUT, await_value};
use crate::pair::ping;

#[test]
fn ten_thousand_requests_on_kept_connections() {
    const CONNECTIONS: usize = 8;
    const EACH: usize = 1250;
    let stage = Stage::new();
    let server = stage.mesh.server.serve_http(80).unwrap();
    thread::scope(|scope| {
        for connection in 0..CONNECTIONS {
            let mut stream = stage.connect();
            scope.spawn(move || {
                for number in 0..EACH {
                    let path = format!("/{connection}/{number}?q=1");
                    let body = "x".repeat(number % 64);
                    let head = format!(
                        "POST {path} HTTP/1.1\r\nhost: web:80\r\ncontent-length: {}\r\n\r\n",
                        body.len()
                    );
                    let answer = request(&mut stream, &(head + &body)).unwrap();
                    assert_eq!(answer.status, 200);
                    assert_eq!(answer.field("path"), Some(path));
                    assert_eq!(answer.field("host").as_deref(), Some("web:80"));
                    assert_eq!(answer.field("received"), Some(body.len().to_string()));
                    assert_eq!(answer.field("pod").as_deref(), Some("shop/server"));
                }
            });
        }
    });
    let labels = [
        "reporter=\"waypoint\"",
        "response_code=\"200\"",
        "response_flags=\"-\"",
        "source_workload=\"client\"",
        "destination_workload=\"server\"",
        "destination_service=\"web.shop.svc.cluster.local\"",
        "request_protocol=\"http\"",
    ];
    stage.await_count(&labels, (CONNECTIONS * EACH) as f64);
    assert_eq!(stage.counted(&[]), (CONNECTIONS * EACH) as f64);
    // Each of the client's connections has one to the server at a time, and all of them are the client's.
    assert!(server.peers().len() <= 2 * CONNECTIONS, "{:?}", server.peers());
    assert!(server.peers().iter().all(|peer| stage.mesh.client.ips().contains(&peer.ip())));
}

#[test]
fn http2_with_prior_knowledge_and_many_requests_at_once() {
    let stage = Stage::new();
    let _server = h2c::Server::start(&stage.mesh.server, 80);
    let to = stage.web();
    within(&stage.mesh.client, async move || {
        let client = h2c::connect(to).await;
        for round in 0..5 {
            let mut open = Vec::new();
            for number in 0..50 {
                open.push(h2c::ask(&client, &format!("/{round}/{number}")).await);
            }
            for (number, (answer, mut send)) in open.into_iter().enumerate() {
                write(&mut send, Bytes::from(vec![b'a'; number])).await.unwrap();
                send.send_data(Bytes::new(), true).unwrap();
                let answer = answer.await.unwrap();
                assert_eq!(answer.status(), 200);
                assert_eq!(answer.headers()["seen-path"], format!("/{round}/{number}"));
                assert_eq!(answer.headers()["seen-host"], "web");
                let caller = answer.headers()["seen-caller"].to_str().unwrap();
                assert_eq!(caller, format!("By={};URI={}", identity("gate"), identity("client")));
                let mut body = answer.into_body();
                assert_eq!(h2c::read(&mut body, number).await.len(), number);
                assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "0");
            }
        }
    });
    let labels = ["request_protocol=\"grpc\"", "grpc_response_status=\"0\"", "response_code=\"200\""];
    stage.await_count(&labels, 250.0);
}

#[test]
fn a_grpc_stream_flows_both_ways_and_ends_with_trailers() {
    let stage = Stage::new();
    let _server = h2c::Server::start(&stage.mesh.server, 80);
    let to = stage.web();
    within(&stage.mesh.client, async move || {
        let client = h2c::connect(to).await;
        let (answer, mut send) = h2c::ask(&client, "/shop.Web/Chat").await;
        // The server's head comes before the request has ended, and each message before the next is sent.
        let mut body = answer.await.unwrap().into_body();
        for number in 0..1000_usize {
            let text = number.to_string().repeat(number % 200 + 1);
            let length = u32::try_from(text.len()).unwrap().to_be_bytes();
            let message = Bytes::from([&[0], &length[..], text.as_bytes()].concat());
            write(&mut send, message.clone()).await.unwrap();
            assert_eq!(h2c::read(&mut body, message.len()).await, message);
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("mark", HeaderValue::from_static("7"));
        send.send_trailers(trailers).unwrap();
        assert!(body.data().await.is_none());
        let trailers = body.trailers().await.unwrap().unwrap();
        assert_eq!(
            (&trailers["grpc-status"], &trailers["mark"]),
            (&"0".parse().unwrap(), &"7".parse().unwrap())
        );
    });
    stage.await_count(&["request_protocol=\"grpc\"", "grpc_response_status=\"0\""], 1.0);
    for metric in ["istio_request_messages_total", "istio_response_messages_total"] {
        let labels = ["grpc_response_status=\"0\"", "destination_workload=\"server\""];
        await_value(1000.0, || stage.waypoint.metric(metric, &labels).unwrap());
    }
}

#[test]
fn megabytes_pass_at_the_readers_pace() {
    const LENGTH: usize = 8 << 20;
    let stage = Stage::new();
    let _server = stage.mesh.server.serve_http(80).unwrap();
    let answer = stage.get(&format!("/bulk?bytes={LENGTH}"));
    assert_eq!((answer.status, answer.body.len()), (200, LENGTH));
    let body = "y".repeat(LENGTH);
    let head = format!("PUT /up HTTP/1.1\r\nhost: web\r\ncontent-length: {LENGTH}\r\n\r\n");
    let answer = request(&mut stage.connect(), &(head + &body)).unwrap();
    assert_eq!(answer.field("received"), Some(LENGTH.to_string()));
}

#[test]
fn an_answer_that_is_broken_off_is_no_whole_one() {
    let stage = Stage::new();
    let _server = h2c::Server::start(&stage.mesh.server, 80);
    let to = stage.web();
    within(&stage.mesh.client, async move || {
        let client = h2c::connect(to).await;
        let (answer, mut send) = h2c::ask(&client, h2c::BROKEN_OFF).await;
        let mut body = answer.await.unwrap().into_body();
        assert_eq!(h2c::read(&mut body, 4).await, b"half");
        write(&mut send, Bytes::from_static(b"go")).await.unwrap();
        let end = body.data().await;
        assert!(matches!(end, Some(Err(_))), "{end:?}");
    });
    let record = stage.record(|record| record["path"] == h2c::BROKEN_OFF);
    assert_eq!((&record["reason"], &record["bytes_sent"]), (&"upstream_reset".into(), &4.into()));
}

#[test]
fn a_websocket_is_upgraded_and_carried_until_both_sides_have_ended() {
    let stage = Stage::new();
    let listener = stage.mesh.server.listen(false, 80).unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        // The first frame comes with the answer.
        let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: x\r\n\r\nhello";
        stream.write_all(answer.as_bytes()).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        stream.write_all(&rest).unwrap();
        String::from_utf8(head).unwrap()
    });
    let mut stream = stage.connect();
    let ask = "GET /chat HTTP/1.1\r\nhost: web\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\n\r\n";
    stream.get_mut().write_all(ask.as_bytes()).unwrap();
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    assert_eq!(line, "HTTP/1.1 101 Switching Protocols\r\n");
    let mut headers = Vec::new();
    loop {
        line.clear();
        stream.read_line(&mut line).unwrap();
        if line == "\r\n" {
            break;
        }
        headers.push(line.trim_end().to_ascii_lowercase());
    }
    for header in ["connection: upgrade", "upgrade: websocket", "sec-websocket-accept: x"] {
        assert!(headers.contains(&header.to_owned()), "{headers:?}");
    }
    let mut hello = [0; 5];
    stream.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello");
    stream.get_mut().write_all(b"frames, whatever they are").unwrap();
    stream.get_mut().shutdown(Shutdown::Write).unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "frames, whatever they are");
    let head = server.join().unwrap().to_ascii_lowercase();
    assert!(head.contains("connection: upgrade\r\n") && head.contains("upgrade: websocket\r\n"), "{head}");
    let record = stage.record(|record| record["code"] == 101);
    assert_eq!((&record["bytes_received"], &record["bytes_sent"]), (&25.into(), &30.into()));
}

#[test]
fn what_is_not_http_passes_as_it_is_and_half_closes() {
    let stage = Stage::new();
    let listener = stage.mesh.server.listen(false, 80).unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all.reverse();
        stream.write_all(&all).unwrap();
    });
    let mut stream = stage.mesh.client.connect(stage.web(), TIMEOUT).unwrap();
    stream.write_all(b"\x00\x01 none of your business").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"ssenisub ruoy fo enon \x01\x00");
    server.join().unwrap();
    let record = stage.record(|record| record["direction"] == "waypoint");
    assert_eq!(
        (record["result"].as_str(), record["dst_workload"].as_str()),
        (Some("ok"), Some("shop/server"))
    );
    assert_eq!(record["src_identity"], identity("client").as_str());
}

#[test]
fn a_server_may_speak_first_where_nobody_says_what_is_spoken() {
    let stage = Stage::with(&["--detection-timeout", "100ms"]);
    let listener = stage.mesh.server.listen(false, 80).unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"220 ready\r\n").unwrap();
        let mut buffer = [0; 4];
        stream.read_exact(&mut buffer).unwrap();
        stream.write_all(&buffer).unwrap();
    });
    let mut stream = stage.connect();
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    assert_eq!(line, "220 ready\r\n");
    ping(stream.get_ref(), "QUIT").unwrap();
    server.join().unwrap();
}

#[test]
fn a_client_that_half_closes_after_its_request_gets_the_answer() {
    let stage = Stage::new();
    let _server = stage.mesh.server.serve_http(80).unwrap();
    let mut stream = stage.connect();
    stream.get_mut().write_all(b"GET /last HTTP/1.1\r\nhost: web\r\n\r\n").unwrap();
    stream.get_mut().shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("path=/last"), "{answer}");
}

#[test]
fn an_endpoint_that_is_not_there_is_answered_with_503_and_the_connection_goes_on() {
    let stage = Stage::new();
    let mut stream = stage.connect();
    let get = "GET / HTTP/1.1\r\nhost: web\r\n\r\n";
    let answer = request(&mut stream, get).unwrap();
    assert_eq!(answer.status, 503);
    let record = stage.record(|record| record["code"] == 503);
    assert_eq!((record["flags"].as_str(), record["reason"].as_str()), (Some("UF,URX"), Some("peer_refused")));
    let _server = stage.mesh.server.serve_http(80).unwrap();
    assert_eq!(request(&mut stream, get).unwrap().status, 200);
    stage.change(|| stage.mesh.testbed.world().service(&super::web(&stage.vip)).unwrap());
    assert_eq!(request(&mut stream, get).unwrap().status, 503);
    let record = stage.record(|record| record["flags"] == "UH");
    assert_eq!(record["reason"], "no_healthy_endpoint");
}
