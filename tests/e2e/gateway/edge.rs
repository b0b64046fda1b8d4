//! What strangers say of themselves, and what they send to be taken for something else or to tire the gateway out.

use std::io::{BufReader, Read, Write};
use std::time::Duration;

use orlop_tests::traffic::{ReadUninterrupted, request};
use orlop_tests::{Pod, PodSpec, wait_for};

use super::Stage;
use crate::hbone::within;
use crate::l7::scripted::{Reply, Scripted};
use crate::l7::{framing, h2c, raw, trailers};
use crate::mesh::{TIMEOUT, await_value};

fn stage(args: &[&str]) -> (Stage, Scripted) {
    let stage = Stage::with(args, "http");
    let server = Scripted::start(&stage.mesh.server, |_| Reply::Answer(200, "ok\n".to_owned()));
    (stage, server)
}

/// Sends bytes on a connection of their own, and gives all that comes back until the other side closes or is silent.
fn send(stage: &Stage, bytes: &[u8]) -> String {
    let mut stream = stage.stranger.connect(stage.address(), TIMEOUT).unwrap();
    stream.write_all(bytes).unwrap();
    // It may have been closed at once.
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// Sees that a connection which was no request's end is told of.
#[track_caller]
fn is_told(stage: &Stage, reason: &str, detail: &str) {
    let told = stage.record(|record| record["direction"] == "gateway" && record["reason"] == reason);
    assert!(told["detail"].as_str().unwrap().contains(detail), "{told}");
    let reason = format!("reason=\"{reason}\"");
    let labels = ["reporter=\"source\"", &reason];
    await_value(1.0, || stage.gateway.metric("orlop_connections_failed_total", &labels).unwrap());
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}

#[test]
fn what_is_known_of_a_client_comes_in_place_of_what_it_says() {
    let (stage, server) = stage(&[]);
    let forged = "x-forwarded-proto: https\r\nx_forwarded_proto: https\r\nx-request-id: mine\r\n\
         x-forwarded-client-cert: URI=spiffe://cluster.local/ns/shop/sa/client\r\n\
         x_forwarded_client_cert: URI=spiffe://cluster.local/ns/shop/sa/client\r\n\
         connection: keep-alive, x-forwarded-for, x-mine\r\nx-mine: 1\r\nx-kept: 1\r\n";
    let head = format!("GET / HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 10.1.1.1\r\n{forged}\r\n");
    assert_eq!(stage.ask(&head).status, 200);
    let asked = server.asked().pop().unwrap().headers;
    let own = stage.stranger.ipv4().to_string();
    assert_eq!(
        (&asked["x-forwarded-for"], &*asked["x-forwarded-proto"], &*asked["host"]),
        (&own, "http", "x")
    );
    let id = &asked["x-request-id"];
    assert!(id.len() == 36 && id.as_bytes()[14] == b'4', "{id}");
    assert_eq!(asked["x-kept"], "1");
    for gone in
        ["x-forwarded-client-cert", "x_forwarded_client_cert", "x_forwarded_proto", "x-mine", "connection"]
    {
        assert!(!asked.contains_key(gone), "{gone}: {asked:?}");
    }
    // What others say of it stays before what the gateway knows.
    let head = "GET / HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 10.1.1.1\r\nx-forwarded-for: 10.2.2.2\r\n\r\n";
    assert_eq!(stage.ask(head).status, 200);
    let asked = server.asked().pop().unwrap().headers;
    assert_eq!(asked["x-forwarded-for"], format!("10.1.1.1, 10.2.2.2, {own}"));
    assert_ne!(&asked["x-request-id"], id);
}

#[test]
fn the_waypoints_limits_hold_at_the_edge() {
    let (sized, server) = stage(&["--max-headers", "20", "--max-header-size", "8KiB"]);
    for head in [
        "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: +5\r\n\r\nhello",
        "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nhost : x\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: user@x\r\n\r\n",
        "GET /%00 HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET /../etc/passwd HTTP/1.1\r\nhost: x\r\n\r\n",
        "CONNECT x:80 HTTP/1.1\r\nhost: x:80\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{0}\u{5}hello no HTTP",
    ] {
        assert_eq!(status(&send(&sized, head.as_bytes())), "400", "{head:?}");
    }
    let many = format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(30));
    let large = format!("GET / HTTP/1.1\r\nhost: x\r\na: {}\r\n\r\n", "b".repeat(20_000));
    let failed = || {
        let labels = ["reason=\"header_limit\""];
        sized.gateway.metric("orlop_connections_failed_total", &labels).unwrap()
    };
    for head in [many, large] {
        let before = failed();
        assert_eq!(status(&send(&sized, head.as_bytes())), "431", "{}", head.len());
        await_value(before + 1.0, failed);
    }
    assert_eq!(server.count(), 0, "{:?}", server.asked());
    drop((server, sized));
    // A byte now and then keeps nobody's place.
    let (stage, server) = stage(&["--header-timeout", "200ms"]);
    let mut slow = stage.stranger.connect(stage.address(), TIMEOUT).unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n").unwrap();
    slow.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let dripped = (0..1000).take_while(|_| {
        let waiting = |error: &std::io::Error| {
            matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
        };
        slow.read_uninterrupted(&mut [0; 64]).is_err_and(|error| waiting(&error))
            && slow.write_all(b"a: b\r\n").is_ok()
    });
    assert!(dripped.count() < 1000, "it went on for ever");
    assert_eq!(server.count(), 0, "{:?}", server.asked());
    is_told(&stage, "header_timeout", "did not end in time");
    let mut stream = stage.connect();
    let get = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    assert_eq!(request(&mut stream, get).unwrap().status, 200);
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(request(&mut stream, get).unwrap().status, 200);
}

#[test]
fn what_is_in_a_body_is_no_request() {
    let (stage, server) = stage(&[]);
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: x\r\nx: ";
    let both = format!(
        "POST /first HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}",
        smuggled.len() + 5
    );
    send(&stage, both.as_bytes());
    assert_eq!(stage.get("x", "/second").status, 200);
    let lines: Vec<_> = server.asked().into_iter().map(|asked| asked.line).collect();
    assert_eq!(lines, ["POST /first HTTP/1.1", "GET /second HTTP/1.1"]);
}

#[test]
fn a_length_that_http2_does_not_keep_reaches_no_server_of_http1() {
    let (stage, server) = stage(&[]);
    framing::refuses_untrue_lengths(&stage.stranger, stage.address());
    // What was broken off is nothing that the server takes for a request, nor for the beginning of the next one. One that
    // says that it has no body may be there before it has one.
    let (whole, rest): (Vec<_>, Vec<_>) = server.asked().into_iter().partition(|asked| asked.body == b"abc");
    assert!(whole.iter().all(|asked| asked.line == "POST / HTTP/1.1"), "{whole:?}");
    assert_eq!(whole.len(), 11);
    assert!(
        rest.iter().all(|asked| asked.body.is_empty() && asked.headers["content-length"] == "0"),
        "{rest:?}"
    );
}

#[test]
fn a_head_of_http2_that_is_none_reaches_no_server_of_http1() {
    let (stage, server) = stage(&[]);
    let connect = || stage.stranger.connect(stage.address(), TIMEOUT).unwrap();
    raw::refuses_heads_that_are_none(connect);
    assert_eq!(server.count(), 0, "{:?}", server.asked());
    assert_eq!(raw::say(connect(), &raw::head(&raw::get(b"/"))), raw::Said::Status(200));
    assert_eq!(server.asked()[0].line, "GET / HTTP/1.1");
}

#[test]
fn trailers_of_http2_say_nothing_to_a_server_of_http1_that_headers_must_not() {
    let (stage, server) = stage(&[]);
    let connect = || stage.stranger.connect(stage.address(), TIMEOUT).unwrap();
    let names = [
        "host",
        "content-length",
        "x-forwarded-client-cert",
        "x_forwarded_client_cert",
        "x-forwarded-for",
        "mark",
    ];
    let fields = names.map(|name| (name.as_bytes(), &b"5"[..]));
    assert_eq!(trailers::ask(connect(), &fields), raw::Said::Status(200));
    let asked = server.asked();
    assert_eq!(asked[0].body, b"abc");
    assert_eq!(asked[0].trailers, [("mark".to_owned(), "5".to_owned())].into());
    // Of what is broken off the beginning may have come.
    trailers::refuses_those_that_are_none(connect);
    assert!(server.asked()[1..].iter().all(|asked| asked.trailers.is_empty()), "{:?}", server.asked());
}

#[test]
fn streams_that_are_reset_at_once_cost_the_client_its_connection_and_nobody_else() {
    let stage = Stage::with(&[], "http2");
    let _server = h2c::Server::start(&stage.mesh.server, 80);
    let to = stage.address();
    within(&stage.stranger, async move || {
        let client = h2c::connect(to).await;
        let mut lost = false;
        for _ in 0..20_000 {
            let Ok(mut ready) = client.clone().ready().await else {
                lost = true;
                break;
            };
            let request = http::Request::get("http://web/").body(()).unwrap();
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
        let other = h2c::connect(to).await;
        let (answer, mut send) = h2c::ask(&other, "/other").await;
        send.send_data(bytes::Bytes::new(), true).unwrap();
        assert_eq!(answer.await.unwrap().status(), 200);
    });
    is_told(&stage, "stream_limit", "excessive load");
}

#[test]
fn one_client_has_no_more_connections_than_it_may_and_the_others_have_theirs() {
    let (stage, _server) = stage(&["--max-connections-per-client", "2"]);
    let head = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut held = [stage.connect(), stage.connect()];
    for open in &mut held {
        assert_eq!(request(open, head).unwrap().status, 200);
    }
    let ask = |pod: &Pod| {
        // One that is reset may be so before it is told of.
        let stream = pod.connect(stage.address(), TIMEOUT)?;
        request(&mut BufReader::new(stream), head).map(|answer| answer.status)
    };
    assert!(ask(&stage.stranger).is_err(), "a third one was taken");
    stage.record(|record| record["reason"] == "connection_limit");
    let other = stage.mesh.nodes[0].pod("street", "other", PodSpec::new()).unwrap();
    assert_eq!(ask(&other).unwrap(), 200);
    drop(held);
    assert!(wait_for(TIMEOUT, || ask(&stage.stranger).is_ok()));
}
