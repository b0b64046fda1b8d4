//! Where one message ends and the next begins: whatever a client or a server says of that, all see the same.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use orlop_tests::Pod;
use orlop_tests::traffic::request;

use super::scripted::{Reply, Scripted};
use super::{Stage, h2c};
use crate::hbone::within;

const GET: &str = "GET /after HTTP/1.1\r\nhost: web\r\n\r\n";
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: web\r\n\r\n";

fn stage() -> (Stage, Scripted) {
    let stage = Stage::new();
    let server = Scripted::start(&stage.mesh.server, |asked| {
        Reply::Answer(200, String::from_utf8_lossy(&asked.body).into_owned())
    });
    (stage, server)
}

#[test]
fn only_chunked_is_a_transfer_coding() {
    let (stage, server) = stage();
    let chunked = "0\r\n\r\n";
    for headers in [
        "transfer-encoding: chunked, identity",
        "transfer-encoding: identity, chunked",
        "transfer-encoding: chunked, chunked",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: xchunked",
        "transfer-encoding: chunked;x=1",
        "transfer-encoding: \"chunked\"",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding:\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked, identity\r\ncontent-length: 5",
        "content-length: 5\r\ntransfer-encoding: gzip, chunked",
        "transfer-encoding: \x0bchunked",
        "transfer-encoding : chunked",
        "transfer-encoding: chunked\r\n , identity",
    ] {
        let mut stream = stage.connect();
        assert_eq!(request(&mut stream, GET).unwrap().status, 200);
        let odd = format!("POST /odd HTTP/1.1\r\nhost: web\r\n{headers}\r\n\r\n{chunked}{SMUGGLED}");
        assert_eq!(request(&mut stream, &odd).unwrap().status, 400, "{headers:?}");
        // Nobody knows where the next one begins.
        assert_eq!(rest(&mut stream), "", "{headers:?}");
    }
    assert!(server.asked().iter().all(|asked| asked.line == "GET /after HTTP/1.1"), "{:?}", server.asked());
    // In either case it is one.
    let mut stream = stage.connect();
    let head =
        "POST /good HTTP/1.1\r\nhost: web\r\nTransfer-Encoding:  ChunKed \r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    assert_eq!(request(&mut stream, head).unwrap().text(), "abc");
    assert_eq!(request(&mut stream, GET).unwrap().status, 200);
}

#[test]
fn a_body_is_one_whatever_the_method() {
    let (stage, server) = stage();
    let mut stream = stage.connect();
    for method in ["GET", "OPTIONS", "DELETE", "PUT", "SEARCH"] {
        for body in ["", SMUGGLED] {
            let chunk =
                if body.is_empty() { String::new() } else { format!("{:x}\r\n{body}\r\n", body.len()) };
            let heads = [
                format!("transfer-encoding: chunked\r\n\r\n{chunk}0\r\n\r\n"),
                format!("content-length: {}\r\n\r\n{body}", body.len()),
            ];
            for head in heads {
                let answer =
                    request(&mut stream, &format!("{method} /first HTTP/1.1\r\nhost: web\r\n{head}"));
                assert_eq!(answer.unwrap().text(), body, "{method} {head:?}");
                assert_eq!(request(&mut stream, GET).unwrap().status, 200);
                let [.., first, after] = &server.asked()[..] else { panic!("it was not asked twice") };
                assert_eq!(
                    (&*first.line, &first.body[..]),
                    (&*format!("{method} /first HTTP/1.1"), body.as_bytes())
                );
                assert_eq!(after.line, "GET /after HTTP/1.1");
            }
        }
    }
    assert_eq!(server.count(), 5 * 2 * 2 * 2);
}

#[test]
fn an_answer_without_one_clear_end_is_503_and_the_next_one_is_whole() {
    let stage = Stage::new();
    let server = Scripted::start(&stage.mesh.server, |asked| {
        const SECOND: &str = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";
        Reply::Raw(match asked.line.split(' ').nth(1) {
            Some("/both") => {
                "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
            }
            Some("/gzip") => {
                "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
            }
            Some("/identity") => "HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\n\r\nhello",
            Some("/twice") => "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello",
            Some("/listed") => "HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\nhello",
            Some("/old") => "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            Some("/more") => "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            Some("/none") => "HTTP/1.1 204 No Content\r\n\r\n",
            _ => SECOND,
        })
    });
    let mut stream = stage.connect();
    for path in ["/both", "/gzip", "/identity", "/twice", "/listed", "/old"] {
        // No answer that is tried again.
        let head = format!("POST {path} HTTP/1.1\r\nhost: web\r\ncontent-length: 0\r\n\r\n");
        let answer = request(&mut stream, &head).unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (503, "upstream_reset\n"), "{path}");
        assert_eq!(request(&mut stream, "GET /more HTTP/1.1\r\nhost: web\r\n\r\n").unwrap().text(), "ok");
    }
    assert_eq!(server.count(), 12);
}

#[test]
fn answers_that_nobody_asked_for_reach_nobody() {
    let stage = Stage::new();
    let _server = Scripted::start(&stage.mesh.server, |asked| {
        Reply::Raw(match asked.line.split(' ').nth(1) {
            Some("/two") => {
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"
            }
            Some("/empty") => {
                "HTTP/1.1 204 No Content\r\ncontent-length: 42\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"
            }
            Some("/same") => {
                "HTTP/1.1 304 Not Modified\r\ncontent-length: 42\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"
            }
            _ => {
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood"
            }
        })
    });
    let mut stream = stage.connect();
    for (path, status) in [("/two", "200"), ("/empty", "204"), ("/same", "304")] {
        let head = format!("GET {path} HTTP/1.1\r\nhost: web\r\n\r\n");
        stream.get_mut().write_all(head.as_bytes()).unwrap();
        let head = head_of(&mut stream);
        assert_eq!(head.split(' ').nth(1), Some(status), "{head}");
        if status == "200" {
            let mut body = [0; 2];
            stream.read_exact(&mut body).unwrap();
            assert_eq!(&body, b"ok");
        }
        assert!(status != "204" || !head.contains("content-length"), "{head}");
        for _ in 0..3 {
            assert_eq!(request(&mut stream, GET).unwrap().text(), "good", "after {path}");
        }
    }
}

#[test]
fn a_length_that_http2_does_not_keep_is_refused() {
    let stage = Stage::new();
    let _server = h2c::Server::start(&stage.mesh.server, 80);
    refuses_untrue_lengths(&stage.mesh.client, stage.web());
    // Those that h2 takes for none have no record of their own.
    let is_told = |record: &serde_json::Value| {
        let detail = record["detail"].as_str().unwrap_or_default();
        record["reason"] == "bad_request" && detail.starts_with("streams that were no requests")
    };
    stage.record(is_told);
}

/// Asks with bodies that are not as long as is said, on one connection, and after each as one should.
pub fn refuses_untrue_lengths(client: &Pod, to: SocketAddr) {
    within(client, async move || {
        let client = h2c::connect(to).await;
        for (lengths, body) in [
            (&["5"][..], "abc"),
            (&["5"], "abcdefgh"),
            (&["5"], ""),
            (&["0"], "abc"),
            (&["3", "8"], "abc"),
            (&["3", "3"], "abc"),
            (&["3, 3"], "abc"),
            (&["+3"], "abc"),
            (&[""], ""),
            (&["18446744073709551619"], "abc"),
        ] {
            assert!(!is_answered(&client, lengths, body).await, "{lengths:?} {body:?}");
            assert!(is_answered(&client, &["3"], "abc").await, "after {lengths:?} {body:?}");
        }
        assert!(is_answered(&client, &[], "abc").await);
    });
}

/// Whether all of an answer of 200 comes.
async fn is_answered(client: &SendRequest<Bytes>, lengths: &[&str], body: &'static str) -> bool {
    let mut request = Request::post("http://web/");
    for length in lengths {
        request = request.header("content-length", *length);
    }
    let Ok(mut client) = client.clone().ready().await else { panic!("the connection is gone") };
    let (answer, mut send) = client.send_request(request.body(()).unwrap(), false).unwrap();
    // It may be refused by then.
    let _ = send.send_data(Bytes::from_static(body.as_bytes()), true);
    let Ok(answer) = answer.await else { return false };
    let (head, mut received) = answer.into_parts();
    while let Some(data) = received.data().await {
        let Ok(data) = data else { return false };
        received.flow_control().release_capacity(data.len()).unwrap();
    }
    head.status == 200 && received.trailers().await.is_ok()
}

/// All that still comes.
fn rest(stream: &mut BufReader<TcpStream>) -> String {
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    String::from_utf8_lossy(&rest).into_owned()
}

/// The head of an answer, in lower case.
pub fn head_of(stream: &mut BufReader<TcpStream>) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(stream.read_line(&mut head).unwrap() > 0, "it ended after {head:?}");
    }
    head.to_ascii_lowercase()
}
