//! What follows a body: no place to write what nobody may write at the beginning.

use std::net::TcpStream;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::raw::{DATA, END_HEADERS, END_STREAM, Field, HEADERS, Said, block, frame, say};
use super::{Stage, h2c};
use crate::hbone::within;
use crate::mesh::TIMEOUT;

const CONTINUATION: u8 = 9;

/// Asks for `/` with these trailers, which the head tells of.
pub fn ask(stream: TcpStream, trailers: &[Field<'_>]) -> Said {
    let names = trailers.iter().map(|(name, _)| *name);
    let names: Vec<_> = names.filter(|name| HeaderName::from_lowercase(name).is_ok()).collect();
    let told = names.join(&b", "[..]);
    let head: [Field<'_>; 5] = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/"),
        (b":authority", b"web"),
        (b"trailer", &told),
    ];
    let frames = [
        frame(HEADERS, END_HEADERS, 1, &block(&head)),
        frame(DATA, 0, 1, b"abc"),
        frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(trailers)),
    ];
    say(stream, &frames.concat())
}

/// Trailers that are no part of any message of HTTP/2 end the request, whatever else there is.
pub fn refuses_those_that_are_none(connect: impl Fn() -> TcpStream) {
    let none: [Field<'_>; 6] = [
        (b"transfer-encoding", b"chunked"),
        (b"connection", b"close"),
        (b"upgrade", b"h2c"),
        (b"X-Upper", b"1"),
        (b"x", b"a\r\nx-smuggled: 1"),
        (b"x\r\ny", b"1"),
    ];
    for field in none {
        let mark: Field<'_> = (b"mark", b"1");
        let said = ask(connect(), &[mark, field]);
        assert!(matches!(said, Said::Reset | Said::Closed), "{said:?} to {field:?}");
    }
}

/// The trailers of an answer to a request with these.
fn answered(stage: &Stage, path: &'static str, trailers: HeaderMap) -> HeaderMap {
    let to = stage.web();
    within(&stage.mesh.client, async move || {
        let client = h2c::connect(to).await;
        let (answer, mut send) = h2c::ask(&client, path).await;
        send.send_data(Bytes::from_static(b"abc"), false).unwrap();
        send.send_trailers(trailers).unwrap();
        let mut body = answer.await.unwrap().into_body();
        assert_eq!(h2c::read(&mut body, 3).await, b"abc");
        while body.data().await.is_some() {}
        body.trailers().await.unwrap().unwrap()
    })
}

#[test]
fn trailers_of_http2_say_nothing_that_headers_must_not() {
    let stage = Stage::new();
    let _server = h2c::Server::start(&stage.mesh.server, 80);
    let mut trailers = HeaderMap::new();
    trailers.insert("mark", HeaderValue::from_static("1"));
    for name in h2c::UNFIT_NAMES {
        trailers.insert(name, HeaderValue::from_static("5"));
    }
    let found = answered(&stage, "/", trailers);
    assert_eq!(found["mark"], "1");
    assert_eq!(found["seen-trailers"], "mark");
    // Nor those of an answer.
    let found = answered(&stage, h2c::UNFIT, HeaderMap::new());
    assert_eq!(found["grpc-status"], "0");
    assert!(h2c::UNFIT_NAMES.iter().all(|name| !found.contains_key(*name)), "{found:?}");
    refuses_those_that_are_none(|| stage.mesh.client.connect(stage.web(), TIMEOUT).unwrap());
}

#[test]
fn trailers_that_are_too_large_reach_no_server() {
    let stage = Stage::with(&["--max-header-size", "8KiB"]);
    let _server = h2c::Server::start(&stage.mesh.server, 80);
    let mut trailers = HeaderMap::new();
    trailers.insert("mark", HeaderValue::from_static("1"));
    trailers.insert("large", HeaderValue::try_from("x".repeat(9 << 10)).unwrap());
    let found = answered(&stage, "/", trailers);
    assert_eq!(found["seen-trailers"], "mark");
    // Of far more than the limit there is no more to be read.
    let mark: Field<'_> = (b"mark", b"1");
    let large = vec![mark; 20_000];
    let connect = || stage.mesh.client.connect(stage.web(), TIMEOUT).unwrap();
    let head: [Field<'_>; 4] =
        [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"web")];
    let mut frames = frame(HEADERS, END_HEADERS, 1, &block(&head));
    let trailers = block(&large);
    let mut pieces = trailers.chunks(16 << 10).peekable();
    let mut kind = HEADERS;
    while let Some(piece) = pieces.next() {
        let end = if pieces.peek().is_none() { END_HEADERS } else { 0 };
        let flags = if kind == HEADERS { END_STREAM | end } else { end };
        frames.extend(frame(kind, flags, 1, piece));
        kind = CONTINUATION;
    }
    let said = say(connect(), &frames);
    assert!(matches!(said, Said::Reset | Said::Closed), "{said:?}");
    assert_eq!(answered(&stage, "/", HeaderMap::new())["grpc-status"], "0");
}
