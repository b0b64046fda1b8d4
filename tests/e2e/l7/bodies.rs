//! Bodies of requests: those that are waited for, those that are too large, and what comes after them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use bytes::Bytes;
use http::Request;
use orlop_tests::traffic::request;

use super::framing::head_of;
use super::scripted::{Reply, Scripted};
use super::{Stage, h2c};
use crate::hbone::{within, write};

const GET: &str = "GET /after HTTP/1.1\r\nhost: web\r\n\r\n";
const EXPECT: &str = "POST /wait HTTP/1.1\r\nhost: web\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n";

fn echo(args: &[&str]) -> (Stage, Scripted) {
    let stage = Stage::with(args);
    let server = Scripted::start(&stage.mesh.server, |asked| {
        Reply::Answer(200, String::from_utf8_lossy(&asked.body).into_owned())
    });
    (stage, server)
}

#[test]
fn a_client_that_waits_is_told_to_go_on() {
    // The server is silent until it has the body.
    let (stage, server) = echo(&[]);
    let mut stream = stage.connect();
    for _ in 0..3 {
        stream.get_mut().write_all(EXPECT.as_bytes()).unwrap();
        assert!(head_of(&mut stream).starts_with("http/1.1 100 "));
        assert_eq!(request(&mut stream, "hello").unwrap().text(), "hello");
        assert_eq!(request(&mut stream, GET).unwrap().status, 200);
    }
    // One that does not wait gets its answer too.
    stream.get_mut().write_all(format!("{EXPECT}hello").as_bytes()).unwrap();
    let mut head = head_of(&mut stream);
    if head.starts_with("http/1.1 100 ") {
        head = head_of(&mut stream);
    }
    assert!(head.starts_with("http/1.1 200 "), "{head}");
    let mut body = [0; 5];
    stream.read_exact(&mut body).unwrap();
    assert_eq!(request(&mut stream, GET).unwrap().status, 200);
    assert_eq!(server.count(), 8);
    assert!(server.asked().iter().all(|asked| asked.body.is_empty() || asked.body == b"hello"));
}

#[test]
fn who_may_not_ask_is_not_asked_for_a_body() {
    let (stage, server) = echo(&[]);
    let rules = "- match: [{uri: {prefix: /wait}}]\n  directResponse: {status: 403}\n- route: [{destination: {host: web}}]";
    stage.change(|| stage.mesh.testbed.world().write("routes.yaml", &super::routes::routes(rules)).unwrap());
    let mut stream = stage.connect();
    stream.get_mut().write_all(EXPECT.as_bytes()).unwrap();
    assert!(head_of(&mut stream).starts_with("http/1.1 403 "));
    // Whether what comes next is the body nobody can tell: it is the end.
    assert!(request(&mut stream, GET).is_err());
    // Where the body has come as well, it is clear.
    let mut stream = stage.connect();
    assert_eq!(request(&mut stream, &format!("{EXPECT}hello")).unwrap().status, 403);
    assert_eq!(request(&mut stream, GET).unwrap().status, 200);
    assert_eq!(server.count(), 1);
}

#[test]
fn a_server_that_wants_no_body_says_so() {
    let stage = Stage::new();
    let said = unwilling(&stage);
    let mut stream = stage.connect();
    stream.get_mut().write_all(EXPECT.as_bytes()).unwrap();
    let mut head = head_of(&mut stream);
    if head.starts_with("http/1.1 100 ") {
        head = head_of(&mut stream);
    }
    assert!(head.starts_with("http/1.1 417 "), "{head}");
    assert!(said.recv().unwrap().contains("expect: 100-continue"));
    // The body, which it was told to send, is no request, and what follows it is one.
    stream.get_mut().write_all(b"hello").unwrap();
    let answer = request(&mut stream, GET).unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    assert!(said.recv().unwrap().starts_with("get /after "));
}

/// A server that answers requests with bodies before these have come, and reads them afterwards. Gives the heads.
fn unwilling(stage: &Stage) -> Receiver<String> {
    let listener = stage.mesh.server.listen(false, 80).unwrap();
    let (sender, said) = channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let sender = sender.clone();
            thread::spawn(move || {
                let mut stream = BufReader::new(stream.unwrap());
                while let Some(head) = read_head(&mut stream) {
                    let is_get = head.starts_with("get");
                    let answer = if is_get {
                        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
                    } else {
                        "HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n"
                    };
                    stream.get_mut().write_all(answer.as_bytes()).unwrap();
                    if sender.send(head).is_err() || (!is_get && stream.read_exact(&mut [0; 5]).is_err()) {
                        return;
                    }
                }
            });
        }
    });
    said
}

fn read_head(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    Some(head.to_ascii_lowercase())
}

#[test]
fn a_body_has_a_limit() {
    let (stage, server) = echo(&["--max-body-size", "1KiB"]);
    let post = |headers: &str, body: &str| format!("POST / HTTP/1.1\r\nhost: web\r\n{headers}\r\n\r\n{body}");
    let (fits, large) = ("x".repeat(1024), "x".repeat(1025));
    let mut stream = stage.connect();
    // One that says how long it is is refused before it is sent, and asked for in vain by nobody.
    stream.get_mut().write_all(post("content-length: 1025\r\nexpect: 100-continue", "").as_bytes()).unwrap();
    assert!(head_of(&mut stream).starts_with("http/1.1 413 "));
    for (length, chunked) in [(&fits, false), (&fits, true), (&large, false), (&large, true)] {
        let mut stream = stage.connect();
        let body = if chunked {
            // In pieces, so that some of it is at the server by then.
            let (one, other) = length.split_at(600);
            let piece = |piece: &str| format!("{:x}\r\n{piece}\r\n", piece.len());
            post("transfer-encoding: chunked", &(piece(one) + &piece(other) + "0\r\n\r\n"))
        } else {
            post(&format!("content-length: {}", length.len()), length)
        };
        let answer = request(&mut stream, &body).unwrap();
        if length.len() == 1024 {
            assert_eq!(answer.text(), fits);
            assert_eq!(request(&mut stream, GET).unwrap().status, 200);
        } else {
            assert_eq!((answer.status, answer.text().as_str()), (413, "body_too_large\n"));
        }
    }
    assert_eq!(server.asked().iter().filter(|asked| asked.line.starts_with("POST")).count(), 2);
    assert_eq!(stage.get("/after").status, 200);
    let refused =
        stage.waypoint.metric("orlop_requests_failed_total", &["reason=\"body_too_large\""]).unwrap();
    assert_eq!(refused, 3.0);
    stage.record(|record| record["code"] == 413 && record["flags"] == "-");
}

#[test]
fn a_stream_that_is_too_large_is_broken_off_and_the_others_go_on() {
    let stage = Stage::with(&["--max-body-size", "1KiB"]);
    let _server = h2c::Server::start(&stage.mesh.server, 80);
    let to = stage.web();
    within(&stage.mesh.client, async move || {
        let client = h2c::connect(to).await;
        let (other, mut other_send) = h2c::ask(&client, "/other").await;
        let (answer, mut send) = h2c::ask(&client, "/large").await;
        let mut received = answer.await.unwrap().into_body();
        let mut ended = false;
        for _ in 0..100 {
            if write(&mut send, Bytes::from(vec![7; 512])).await.is_err() {
                ended = true;
                break;
            }
            tokio::task::yield_now().await;
        }
        while let Some(data) = received.data().await {
            let Ok(data) = data else {
                ended = true;
                break;
            };
            received.flow_control().release_capacity(data.len()).unwrap();
        }
        assert!(ended, "it goes on");
        write(&mut other_send, Bytes::from(vec![7; 512])).await.unwrap();
        other_send.send_data(Bytes::new(), true).unwrap();
        let mut received = other.await.unwrap().into_body();
        assert_eq!(h2c::read(&mut received, 512).await.len(), 512);
        assert_eq!(received.trailers().await.unwrap().unwrap()["grpc-status"], "0");
        let head = Request::post("http://web/").header("content-length", "1025").body(()).unwrap();
        let (answer, _send) = client.clone().ready().await.unwrap().send_request(head, false).unwrap();
        assert_eq!(answer.await.unwrap().status(), 413);
    });
    stage.record(|record| record["reason"] == "body_too_large" && record["path"] == "/large");
}

#[test]
fn trailers_pass_between_neighbours_that_want_them() {
    let stage = Stage::new();
    let server = Scripted::start(&stage.mesh.server, |_| {
        Reply::Raw(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n2\r\nok\r\n0\r\nx-sum: 2\r\n\r\n",
        )
    });
    let mut stream = stage.connect();
    let head = "POST / HTTP/1.1\r\nhost: web\r\nte: trailers\r\ntransfer-encoding: chunked\r\n\
        trailer: x-sum, host, content-length, x-forwarded-client-cert\r\n\r\n2\r\nhi\r\n0\r\n\
        x-sum: 1\r\nhost: evil\r\ncontent-length: 9\r\nx-forwarded-client-cert: URI=evil\r\n\r\n";
    for _ in 0..2 {
        stream.get_mut().write_all(head.as_bytes()).unwrap();
        assert!(head_of(&mut stream).contains("trailer: x-sum"));
        let mut rest = String::new();
        while !rest.ends_with("\r\n\r\n") {
            assert!(stream.read_line(&mut rest).unwrap() > 0, "it ended after {rest:?}");
        }
        assert_eq!(rest, "2\r\nok\r\n0\r\nx-sum: 2\r\n\r\n");
    }
    for asked in server.asked() {
        assert_eq!(asked.body, b"hi");
        assert_eq!(asked.trailers.into_iter().collect::<Vec<_>>(), [("x-sum".to_owned(), "1".to_owned())]);
    }
}
