//! HTTP/2 in bytes: heads that no library would send, and what is said to them.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use super::policy::write;
use super::scripted::Scripted;
use super::{Stage, h2c};
use crate::mesh::TIMEOUT;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A field's name and value.
pub type Field<'a> = (&'a [u8], &'a [u8]);

/// What comes of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    Status(u16),
    Reset,
    Closed,
}

/// Says these frames, which begin the stream 1, on a connection of their own. A status is that of a whole answer.
pub fn say(mut stream: TcpStream, frames: &[u8]) -> Said {
    let opening = [PREFACE, &frame(SETTINGS, 0, 0, &[]), frames].concat();
    // It may be closed by then.
    let _ = stream.write_all(&opening);
    let mut answered = None;
    loop {
        let (kind, flags, id, payload) = match next(&mut stream) {
            Ok(frame) => frame,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                panic!("nothing is said to it")
            }
            Err(_) => return Said::Closed,
        };
        match (kind, id) {
            (HEADERS, 1) if answered.is_none() => answered = Some(status(&payload)),
            (RST_STREAM, 1) => return Said::Reset,
            (GOAWAY, _) => return Said::Closed,
            _ => {}
        }
        if let (Some(status), DATA | HEADERS, 1, 1) = (answered, kind, id, flags & END_STREAM) {
            return Said::Status(status);
        }
    }
}

/// The next frame: its kind, its flags, its stream and what is in it.
fn next(stream: &mut TcpStream) -> io::Result<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head)?;
    let [a, b, c, kind, flags, id @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    stream.read_exact(&mut payload)?;
    Ok((kind, flags, u32::from_be_bytes(id), payload))
}

/// RFC 9113, section 4.1.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A request's head, which ends the request.
pub fn head(fields: &[Field<'_>]) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(fields))
}

/// Literals with names of their own, never indexed nor compressed (RFC 7541, section 6.2.2).
pub fn block(fields: &[Field<'_>]) -> Vec<u8> {
    let field = |(name, value): &Field<'_>| [&[0][..], &text(name), &text(value)].concat();
    fields.iter().flat_map(field).collect()
}

/// RFC 7541, section 5.
fn text(bytes: &[u8]) -> Vec<u8> {
    let mut found = Vec::new();
    let mut length = bytes.len();
    if length < 127 {
        found.push(length as u8);
    } else {
        found.push(127);
        length -= 127;
        while length >= 128 {
            found.push((length % 128) as u8 | 128);
            length /= 128;
        }
        found.push(length as u8);
    }
    found.extend(bytes);
    found
}

/// The status that an answer's head begins with (RFC 7541, appendices A and B).
fn status(block: &[u8]) -> u16 {
    const INDEXED: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    match block {
        // The size of a table.
        [0x20..0x40, rest @ ..] => status(rest),
        [indexed @ 0x88..=0x8e, ..] => INDEXED[usize::from(indexed - 0x88)],
        [0x08 | 0x18 | 0x48, length, rest @ ..] if *length < 0x80 => {
            std::str::from_utf8(&rest[..usize::from(*length)]).unwrap().parse().unwrap()
        }
        [0x08 | 0x18 | 0x48, _, rest @ ..] => digits(rest),
        _ => panic!("no status in {block:x?}"),
    }
}

/// Three digits in Huffman's code: of five bits up to 2, of six from 3 on.
fn digits(bytes: &[u8]) -> u16 {
    let mut bits = bytes.iter().flat_map(|byte| (0..8).rev().map(move |n| u16::from(byte >> n & 1)));
    let mut next = |count| (0..count).fold(0, |found, _| found << 1 | bits.next().unwrap());
    (0..3).fold(0, |found, _| {
        let five = next(5);
        let digit = if five < 3 { five } else { (five << 1 | next(1)) - 0x19 + 3 };
        found * 10 + digit
    })
}

/// `GET PATH` for the host `web`.
pub fn get(path: &[u8]) -> [Field<'_>; 4] {
    [(b":method", b"GET"), (b":scheme", b"http"), (b":path", path), (b":authority", b"web")]
}

#[test]
fn a_status_is_read_however_it_is_written() {
    assert_eq!(status(&[0x88]), 200);
    assert_eq!(status(&[0x20, 0x8c]), 400);
    assert_eq!(status(&[0x48, 3, b'4', b'3', b'1']), 431);
    // RFC 7541, appendix C.6.
    assert_eq!(status(&[0x48, 0x82, 0x64, 0x02]), 302);
    assert_eq!(status(&[0x48, 0x83, 0x64, 0x0e, 0xff]), 307);
}

#[test]
fn a_denied_path_is_denied_with_a_fragment_too() {
    let stage = Stage::new();
    let server = Scripted::status(&stage.mesh.server, 200);
    stage.change(|| {
        let deny = "action: DENY\nrules:\n- to: [{operation: {paths: [/admin, /admin/]}}]";
        write(&stage, "web", "Service, group: '', name: web", deny);
    });
    let connect = || stage.mesh.client.connect(stage.web(), TIMEOUT).unwrap();
    for path in [
        "/admin",
        "/admin#x",
        "/admin#",
        "/admin#?x",
        "/admin?x#y",
        "/x/../admin#x",
        "/admin;x",
        "/admin%2f",
        "/admin%23x",
        "/admin%2523x",
    ] {
        assert_eq!(stage.get(path).status, 403, "{path}");
        assert_eq!(say(connect(), &head(&get(path.as_bytes()))), Said::Status(403), "{path}");
    }
    assert_eq!((server.count(), server.connections()), (0, 0), "{:?}", server.asked());
    assert_eq!(stage.get("/public#/admin").status, 200);
    assert_eq!(server.asked()[0].line, "GET /public HTTP/1.1");
}

#[test]
fn heads_of_http2_that_are_none_reach_no_server() {
    let stage = Stage::new();
    let server = Scripted::status(&stage.mesh.server, 200);
    refuses_heads_that_are_none(|| stage.mesh.client.connect(stage.web(), TIMEOUT).unwrap());
    assert_eq!(server.connections(), 0, "{:?}", server.asked());
    drop(server);
    let _server = h2c::Server::start(&stage.mesh.server, 80);
    let connect = || stage.mesh.client.connect(stage.web(), TIMEOUT).unwrap();
    assert_eq!(say(connect(), &head(&get(b"/"))), Said::Status(200));
}

/// Asks with heads each of which would be something else to a server of HTTP/1, or says two things.
pub fn refuses_heads_that_are_none(connect: impl Fn() -> TcpStream) {
    let refused = |fields: &[Field<'_>]| {
        let said = say(connect(), &head(fields));
        let shown: Vec<_> = fields
            .iter()
            .map(|(name, value)| (String::from_utf8_lossy(name), String::from_utf8_lossy(value)))
            .collect();
        assert!(matches!(said, Said::Reset | Said::Closed | Said::Status(400)), "{said:?} to {shown:?}");
    };
    let more: [Field<'_>; 27] = [
        (b"transfer-encoding", b"chunked"),
        (b"connection", b"close"),
        (b"connection", b"upgrade"),
        (b"upgrade", b"websocket"),
        (b"keep-alive", b"timeout=5"),
        (b"proxy-connection", b"keep-alive"),
        (b"te", b"chunked"),
        (b"content-length", b"5"),
        (b"host", b"other"),
        (b"x", b"a\r\nx-smuggled: 1"),
        (b"x", b"a\nx-smuggled: 1"),
        (b"x", b"a\rb"),
        (b"x", b"a\0b"),
        (b"X-Upper", b"1"),
        (b"Transfer-Encoding", b"chunked"),
        (b"x y", b"1"),
        (b"x:y", b"1"),
        (b"x\r\nx-smuggled: 1\r\ny", b"1"),
        (b"x\0", b"1"),
        (b"", b"1"),
        (b":path", b"/second"),
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":authority", b"other"),
        (b":status", b"200"),
        (b":protocol", b"websocket"),
        (b":odd", b"1"),
    ];
    for field in more {
        refused(&[&get(b"/odd")[..], &[field]].concat());
    }
    // A pseudo-header is none behind a header.
    let behind: [Field<'_>; 2] = [(b"x", b"1"), (b":authority", b"web")];
    refused(&[&get(b"/odd")[..3], &behind].concat());
    let twice: [Field<'_>; 2] = [(b"host", b"web"), (b"host", b"web")];
    refused(&[&get(b"/odd")[..], &twice].concat());
    let instead: [Field<'_>; 18] = [
        (b":path", b"/a b"),
        (b":path", b"/ HTTP/1.1\r\nhost: web\r\n\r\nGET /smuggled"),
        (b":path", b"/a\nb"),
        (b":path", b"/a\0b"),
        (b":path", b"/%0d%0ax:y"),
        (b":path", b""),
        (b":path", b"odd"),
        (b":method", b""),
        (b":method", b"G ET"),
        (b":method", b"GET / HTTP/1.1\r\nhost: web\r\n\r\nGET"),
        (b":method", b"GET\0"),
        (b":method", b"CONNECT"),
        (b":scheme", b"ht tp"),
        (b":authority", b"we b"),
        (b":authority", b"web\r\nx-smuggled: 1"),
        (b":authority", b"user@web"),
        (b":authority", b"web/x"),
        (b":authority", b""),
    ];
    for field in instead {
        let given = get(b"/odd").map(|of| if of.0 == field.0 { field } else { of });
        refused(&given);
        let without: Vec<_> = get(b"/odd").into_iter().filter(|of| of.0 != field.0).collect();
        refused(&without);
    }
}
