//! Heads of answers: those that are too large, too many or never end are the server's failure, and cost nobody else anything.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use http::Request;
use orlop_tests::traffic::request;

use super::routes::Versions;
use super::scripted::{Reply, Scripted};
use super::{Stage, h2c};
use crate::hbone::within;

const POST: &str = "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 0\r\n\r\n";

#[test]
fn a_head_with_too_many_or_too_large_headers_is_the_servers_failure() {
    let stage = Stage::with(&["--max-headers", "20", "--max-header-size", "8KiB"]);
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n";
    let many: &str = format!("{ok}{}\r\n", "a: b\r\n".repeat(30)).leak();
    let large: &str = format!("{ok}a: {}\r\n\r\n", "b".repeat(20_000)).leak();
    let fits: &str = format!("{ok}{}\r\n", "a: b\r\n".repeat(19)).leak();
    let server = Scripted::start(&stage.mesh.server, move |asked| {
        Reply::Raw(match asked.line.split(' ').nth(1) {
            Some("/many") => many,
            Some("/large") => large,
            _ => fits,
        })
    });
    let mut stream = stage.connect();
    for path in ["/many", "/large"] {
        let answer = request(&mut stream, &POST.replace("/ ", &format!("{path} "))).unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (503, "upstream_reset\n"), "{path}");
        let record = stage.record(|record| record["path"] == path);
        assert_eq!((&record["flags"], &record["reason"]), (&"UPE".into(), &"upstream_reset".into()));
        assert_eq!(request(&mut stream, POST).unwrap().status, 200, "after {path}");
    }
    // None was asked twice.
    assert_eq!(server.count(), 4);
}

#[test]
fn a_head_of_http2_with_too_many_or_too_large_headers_is_the_servers_failure() {
    let stage = Stage::with(&["--max-headers", "20", "--max-header-size", "8KiB"]);
    let _server = h2c::Server::start(&stage.mesh.server, 80);
    let to = stage.web();
    within(&stage.mesh.client, async move || {
        let client = h2c::connect(to).await;
        for (path, wanted) in [(h2c::MANY, 503), ("/after", 200), (h2c::LARGE_HEAD, 503), ("/after", 200)] {
            let request = Request::post(format!("http://web{path}")).body(()).unwrap();
            let (answer, _) = client.clone().ready().await.unwrap().send_request(request, true).unwrap();
            assert_eq!(answer.await.unwrap().status(), wanted, "{path}");
        }
    });
    for path in [h2c::MANY, h2c::LARGE_HEAD] {
        let record = stage.record(|record| record["path"] == path);
        assert_eq!((&record["flags"], &record["reason"]), (&"UPE".into(), &"upstream_reset".into()));
        assert_ne!(record["attempts"], 2, "the server has answered");
    }
}

#[test]
fn answers_that_are_only_ever_announced_end_with_the_time_for_them() {
    let versions = Versions::new();
    let stage = &versions.stage;
    versions.route(
        "- match: [{uri: {exact: /announced}}]\n  timeout: 3s\n  retries: {attempts: 0}\n  \
         route: [{destination: {host: web, subset: v1}}]\n\
         - route: [{destination: {host: web, subset: v2}}]",
    );
    let _other = Scripted::status(&versions.pods[1], 200);
    let listener = versions.pods[0].listen(false, 80).unwrap();
    let server = thread::spawn(move || {
        let stream = listener.accept().unwrap().0;
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            assert_ne!(reader.read_line(&mut line).unwrap(), 0);
        }
        announce(stream)
    });
    let mut stream = stage.connect();
    let answer = request(&mut stream, &POST.replace("/ ", "/announced ")).unwrap();
    assert_eq!(answer.status, 504);
    let record = stage.record(|record| record["path"] == "/announced");
    assert_eq!((&record["flags"], &record["reason"]), (&"UT".into(), &"request_timeout".into()));
    // The server is told, and the next request is served.
    assert!(server.join().unwrap() > 1);
    assert_eq!(request(&mut stream, POST).unwrap().status, 200);
}

/// Announces an answer until nobody listens any more: how often.
fn announce(mut stream: TcpStream) -> usize {
    let mut announced = 0;
    while stream.write_all(&b"HTTP/1.1 102 Processing\r\nx: y\r\n\r\n".repeat(100)).is_ok() {
        announced += 1;
        // It is not to be the processor that ends it.
        thread::sleep(Duration::from_millis(5));
    }
    announced
}
