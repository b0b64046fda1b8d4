//! Requests that are made to be taken for something else, and those that are made to tire the waypoint out.

use std::io::{self, BufReader, Read, Write};
use std::net::TcpStream;

use orlop_tests::traffic::{ReadUninterrupted, request};

use super::Stage;
use super::scripted::{Asked, Reply, Scripted};
use crate::hbone::{identity, within};
use crate::mesh::{TIMEOUT, await_value};

/// A stage whose server answers everything.
fn stage(args: &[&str]) -> (Stage, Scripted) {
    let stage = Stage::with(args);
    let server = Scripted::start(&stage.mesh.server, |_| Reply::Answer(200, "ok\n".to_owned()));
    (stage, server)
}

/// Sends bytes on a connection of their own, and gives all that comes back until the other side closes or is silent.
fn send(stage: &Stage, bytes: &[u8]) -> String {
    let mut stream = stage.mesh.client.connect(stage.web(), TIMEOUT).unwrap();
    stream.write_all(bytes).unwrap();
    // It may have been closed at once.
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// Connections that the waypoint has counted as failed for this reason.
fn failed(stage: &Stage, reason: &str) -> f64 {
    let reason = format!("reason=\"{reason}\"");
    let labels = ["reporter=\"waypoint\"", &reason];
    stage.waypoint.metric("orlop_connections_failed_total", &labels).unwrap()
}

/// Sees that a connection which was no request's end is told of.
#[track_caller]
fn is_told(stage: &Stage, reason: &str, detail: &str) {
    let told = stage.record(|record| record["direction"] == "waypoint" && record["reason"] == reason);
    assert!(told["detail"].as_str().unwrap().contains(detail), "{told}");
    await_value(1.0, || failed(stage, reason));
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}

#[test]
fn a_request_without_one_clear_end_or_host_is_refused() {
    let (stage, server) = stage(&[]);
    for head in [
        "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: +5\r\n\r\nhello",
        "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 5, 6\r\n\r\nhello",
        "POST / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.0\r\nhost: web\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nhost : web\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: web\r\nx: a\r\n b\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: web\r\nhost: other\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: user@web\r\n\r\n",
        "GET /%00 HTTP/1.1\r\nhost: web\r\n\r\n",
        "GET /%0d%0aX:y HTTP/1.1\r\nhost: web\r\n\r\n",
        "GET /../etc/passwd HTTP/1.1\r\nhost: web\r\n\r\n",
        "GET /a%zz HTTP/1.1\r\nhost: web\r\n\r\n",
    ] {
        assert_eq!(status(&send(&stage, head.as_bytes())), "400", "{head:?}");
    }
    assert_eq!(server.count(), 0, "{:?}", server.asked());
    assert_eq!(stage.get("/").status, 200);
}

#[test]
fn what_is_in_a_body_is_no_request() {
    let (stage, server) = stage(&[]);
    // Whatever the two lengths say, the server gets one of them, and the waypoint has read what the server reads.
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: web\r\nx: ";
    let both = format!(
        "POST /first HTTP/1.1\r\nhost: web\r\ncontent-length: {}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}",
        smuggled.len() + 5
    );
    send(&stage, both.as_bytes());
    let late = format!(
        "POST /second HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n{:x}\r\n{smuggled}\r\n0\r\n\r\n",
        smuggled.len()
    );
    send(&stage, late.as_bytes());
    let asked = server.asked();
    let lines: Vec<_> = asked.iter().map(|asked| asked.line.as_str()).collect();
    assert_eq!(lines, ["POST /first HTTP/1.1", "POST /second HTTP/1.1"]);
    assert_eq!(asked[1].body, smuggled.as_bytes());
    let ambiguous = |asked: &Asked| {
        asked.headers.contains_key("content-length") && asked.headers.contains_key("transfer-encoding")
    };
    assert!(!asked.iter().any(ambiguous), "{asked:?}");
}

#[test]
fn a_path_has_one_form_for_rules_and_servers() {
    let (stage, server) = stage(&[]);
    let rules = "- match: [{uri: {exact: /admin}}]\n  directResponse: {status: 403}\n- route: [{destination: {host: web}}]";
    stage.change(|| stage.mesh.testbed.world().write("routes.yaml", &super::routes::routes(rules)).unwrap());
    for path in [
        "/admin",
        "//admin",
        "/./admin",
        "/x/../admin",
        "/x/%2e%2e/admin",
        "/%61dmin",
        "/\\admin",
        "/admin/../admin",
        "http://web/admin",
        "/admin#x",
        "/admin#?x",
        "/admin?x#/public",
        "http://web/admin#x",
        "/x/../admin#/public",
    ] {
        let answer = send(&stage, format!("GET {path} HTTP/1.1\r\nhost: web\r\n\r\n").as_bytes());
        assert!(matches!(status(&answer), "403" | "400"), "{path}: {answer}");
    }
    assert_eq!(server.count(), 0, "{:?}", server.asked());
    // What is part of a segment stays so, and a fragment is nothing that a server gets.
    for (path, seen) in [
        ("//a/%7e/../b?x=//y", "/a/b?x=//y"),
        ("/admin%2f", "/admin%2F"),
        ("/admin;x=1", "/admin;x=1"),
        ("/public#/../admin", "/public"),
        ("/public?x#/../admin", "/public?x"),
    ] {
        send(&stage, format!("GET {path} HTTP/1.1\r\nhost: web\r\n\r\n").as_bytes());
        assert_eq!(server.asked().last().unwrap().line, format!("GET {seen} HTTP/1.1"));
    }
}

#[test]
fn a_client_takes_nothing_out_by_naming_it_and_gets_no_other_protocol() {
    let (stage, server) = stage(&[]);
    let head = "GET / HTTP/1.1\r\nhost: web\r\nconnection: keep-alive, upgrade, x-forwarded-client-cert, host, x-mine, HTTP2-Settings\r\n\
        upgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\nx-mine: 1\r\n\r\n";
    assert_eq!(request(&mut stage.connect(), head).unwrap().status, 200);
    let asked = &server.asked()[0];
    assert_eq!(asked.headers["host"], "web");
    let caller = format!("By={};URI={}", identity("gate"), identity("client"));
    assert_eq!(asked.headers["x-forwarded-client-cert"], caller);
    for gone in ["x-mine", "upgrade", "http2-settings", "connection"] {
        assert!(!asked.headers.contains_key(gone), "{gone}: {asked:?}");
    }
}

#[test]
fn heads_have_limits_in_size_number_and_time() {
    {
        let (stage, server) = stage(&["--max-headers", "20", "--max-header-size", "8KiB"]);
        let many = format!("GET / HTTP/1.1\r\nhost: web\r\n{}\r\n", "a: b\r\n".repeat(30));
        let large = format!("GET / HTTP/1.1\r\nhost: web\r\na: {}\r\n\r\n", "b".repeat(20_000));
        for (number, head) in [many, large].iter().enumerate() {
            assert_eq!(status(&send(&stage, head.as_bytes())), "431", "{}", head.len());
            // No request has come of it.
            await_value(number as f64 + 1.0, || failed(&stage, "header_limit"));
        }
        let fits = format!("GET / HTTP/1.1\r\nhost: web\r\n{}\r\n", "a: b\r\n".repeat(19));
        assert_eq!(status(&send(&stage, fits.as_bytes())), "200");
        assert_eq!(server.count(), 1);
    }
    let (stage, server) = stage(&["--header-timeout", "200ms"]);
    // A byte now and then keeps nobody's place.
    let mut slow = stage.mesh.client.connect(stage.web(), TIMEOUT).unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n").unwrap();
    let dripped = (0..1000).take_while(|_| {
        let read = slow.set_read_timeout(Some(std::time::Duration::from_millis(20)));
        read.unwrap();
        let waiting =
            |error: &io::Error| matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        slow.read_uninterrupted(&mut [0; 64]).is_err_and(|error| waiting(&error))
            && slow.write_all(b"a: b\r\n").is_ok()
    });
    assert!(dripped.count() < 1000, "it went on for ever");
    assert_eq!(server.count(), 0);
    // One that waits between two requests is no such.
    let mut stream = stage.connect();
    let get = "GET / HTTP/1.1\r\nhost: web\r\n\r\n";
    assert_eq!(request(&mut stream, get).unwrap().status, 200);
    is_told(&stage, "header_timeout", "did not end in time");
    std::thread::sleep(std::time::Duration::from_millis(600));
    assert_eq!(request(&mut stream, get).unwrap().status, 200);
}

#[test]
fn cookies_that_come_one_by_one_count_as_one_header() {
    let stage = Stage::with(&["--max-headers", "20"]);
    let _server = super::h2c::Server::start(&stage.mesh.server, 80);
    let to = stage.web();
    within(&stage.mesh.client, async move || {
        let client = super::h2c::connect(to).await;
        for (name, wanted) in [("cookie", 200), ("a", 431)] {
            let mut request = http::Request::post("http://web/");
            for n in 0..30 {
                request = request.header(name, format!("n{n}=1"));
            }
            let mut ready = client.clone().ready().await.unwrap();
            let (answer, _) = ready.send_request(request.body(()).unwrap(), true).unwrap();
            assert_eq!(answer.await.unwrap().status(), wanted, "{name}");
        }
    });
    let labels = ["reason=\"header_limit\""];
    await_value(1.0, || stage.waypoint.metric("orlop_requests_failed_total", &labels).unwrap());
}

#[test]
fn streams_that_are_reset_at_once_cost_the_client_its_connection_and_nobody_else() {
    let stage = Stage::new();
    let _server = super::h2c::Server::start(&stage.mesh.server, 80);
    let to = stage.web();
    within(&stage.mesh.client, async move || {
        let client = super::h2c::connect(to).await;
        let mut lost = false;
        for _ in 0..20_000 {
            let Ok(ready) = client.clone().ready().await else {
                lost = true;
                break;
            };
            let request = http::Request::get("http://web/").body(()).unwrap();
            let mut ready = ready;
            match ready.send_request(request, true) {
                Ok((answer, mut send)) => {
                    send.send_reset(h2::Reason::CANCEL);
                    drop(answer);
                }
                Err(_) => {
                    lost = true;
                    break;
                }
            }
            tokio::task::yield_now().await;
        }
        assert!(lost, "it may go on for ever");
        let other = super::h2c::connect(to).await;
        let (answer, mut send) = super::h2c::ask(&other, "/other").await;
        send.send_data(bytes::Bytes::new(), true).unwrap();
        assert_eq!(answer.await.unwrap().status(), 200);
    });
    is_told(&stage, "stream_limit", "excessive load");
}

#[test]
fn a_head_of_http2_that_is_too_large_is_431_and_told() {
    let stage = Stage::with(&["--max-header-size", "8KiB"]);
    let _server = super::h2c::Server::start(&stage.mesh.server, 80);
    let to = stage.web();
    within(&stage.mesh.client, async move || {
        let client = super::h2c::connect(to).await;
        let ask = async |headers: usize, length: usize| {
            let mut request = http::Request::post("http://web/");
            for n in 0..headers {
                request = request.header(format!("x-{n}"), "v".repeat(length));
            }
            let mut ready = client.clone().ready().await.unwrap();
            let (answer, _) = ready.send_request(request.body(()).unwrap(), true).unwrap();
            answer.await.unwrap().status()
        };
        // RFC 9113, section 6.5.2: each counts 32 more than it has.
        for (headers, length, wanted) in [(40, 100, 200), (40, 300, 431), (80, 60, 200), (80, 80, 431)] {
            assert_eq!(ask(headers, length).await, wanted, "{headers} of {length}");
        }
    });
    is_told(&stage, "bad_request", "too large or too many at once: 2");
}

#[test]
fn a_head_that_never_ends_costs_the_client_its_connection() {
    let (stage, _server) = stage(&[]);
    let mut stream = stage.mesh.client.connect(stage.web(), TIMEOUT).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    stream.write_all(&frame(4, 0, 0, &[])).unwrap();
    // The pseudo-headers, and then one literal after the other that is never to be indexed.
    let head = [0x82, 0x86, 0x84, 0x41, 3, b'w', b'e', b'b'];
    stream.write_all(&frame(1, 0, 1, &head)).unwrap();
    let more: Vec<u8> = [0x10, 1, b'a', 1, b'b'].repeat(2000);
    let sent = (0..2000).take_while(|_| stream.write_all(&frame(9, 0, 1, &more)).is_ok()).count();
    assert!(sent < 2000, "20 MB of one head were taken");
    assert_eq!(stage.get("/").status, 200);
    is_told(&stage, "stream_limit", "excessive load");
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

#[test]
fn a_server_that_breaks_off_or_talks_nonsense_is_503_and_its_connection_is_not_used_again() {
    let stage = Stage::new();
    let listener = stage.mesh.server.listen(false, 80).unwrap();
    let server = std::thread::spawn(move || {
        for answer in [
            "nonsense\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
            "",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        ] {
            let mut stream = BufReader::new(listener.accept().unwrap().0);
            read_head(&mut stream);
            stream.get_mut().write_all(answer.as_bytes()).unwrap();
        }
    });
    let mut stream = stage.connect();
    let mut ask =
        || request(&mut stream, "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 0\r\n\r\n").unwrap();
    for _ in 0..4 {
        assert_eq!(ask().status, 503);
    }
    assert_eq!(ask().text(), "ok");
    server.join().unwrap();
}

fn read_head(stream: &mut BufReader<TcpStream>) {
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        assert!(io::BufRead::read_line(stream, &mut line).unwrap() > 0);
    }
}
