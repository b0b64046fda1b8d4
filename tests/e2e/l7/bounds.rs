//! How much there may be at once: what is too much is refused and told of, and what is open goes on.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;

use orlop_tests::traffic::request;
use orlop_tests::wait_for;

use super::scripted::Scripted;
use super::{Stage, h2c};
use crate::mesh::{TIMEOUT, await_value};

const GET: &str = "GET / HTTP/1.1\r\nhost: web\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const REFUSED_STREAM: [u8; 4] = [0, 0, 0, 7];

#[test]
fn a_connection_has_as_many_streams_as_it_may() {
    let stage = Stage::with(&["--max-streams", "2"]);
    let _server = h2c::Server::start(&stage.mesh.server, 80);
    refuses_a_third_stream(stage.mesh.client.connect(stage.web(), TIMEOUT).unwrap());
    stage.record(|record| record["reason"] == "bad_request" && record["direction"] == "waypoint");
    let failed = || stage.waypoint.metric("orlop_connections_failed_total", &["reason=\"bad_request\""]);
    await_value(1.0, || failed().unwrap());
}

/// Opens three streams that stay open, however many there may be: the first two are served, the third is not.
pub fn refuses_a_third_stream(mut stream: TcpStream) {
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).unwrap();
    for id in [1, 3, 5] {
        // POST http web, by HPACK's static table; more is to come.
        let head = [0x83, 0x86, 0x84, 0x41, 3, b'w', b'e', b'b'];
        let length = u8::try_from(head.len()).unwrap();
        stream.write_all(&[0, 0, length, HEADERS, 4, 0, 0, 0, id]).unwrap();
        stream.write_all(&head).unwrap();
    }
    let (mut served, mut refused) = (Vec::new(), false);
    while served.len() < 2 || !refused {
        let mut head = [0; 9];
        stream.read_exact(&mut head).unwrap();
        let [a, b, c, kind, _, _, _, _, id] = head;
        let mut payload = vec![0; usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)];
        stream.read_exact(&mut payload).unwrap();
        match kind {
            HEADERS => served.push(id),
            RST_STREAM => {
                assert_eq!((id, &payload[..]), (5, &REFUSED_STREAM[..]));
                refused = true;
            }
            _ => {}
        }
    }
    served.sort_unstable();
    assert_eq!(served, [1, 3]);
}

#[test]
fn past_its_connections_a_waypoint_takes_no_more_until_some_have_ended() {
    let stage = Stage::with(&["--max-connections", "6"]);
    let _server = Scripted::status(&stage.mesh.server, 200);
    let mut held = Vec::new();
    while held.len() < 10 {
        // The refusal may come before the connection is told of.
        let Ok(stream) = stage.mesh.client.connect(stage.web(), TIMEOUT) else { break };
        let mut stream = BufReader::new(stream);
        match request(&mut stream, GET) {
            Ok(answer) => assert_eq!(answer.status, 200),
            Err(_) => break,
        }
        held.push(stream);
    }
    // Their tunnel is one, too.
    assert!((1..6).contains(&held.len()), "{} were taken", held.len());
    stage.record(|record| record["reason"] == "connection_limit" && record["result"] == "refused");
    let labels = ["reason=\"connection_limit\""];
    assert!(stage.waypoint.metric("orlop_connections_failed_total", &labels).unwrap() >= 1.0);
    for stream in &mut held {
        assert_eq!(request(stream, GET).unwrap().status, 200);
    }
    drop(held);
    let is_served = || {
        let stream = stage.mesh.client.connect(stage.web(), TIMEOUT);
        stream.is_ok_and(|stream| request(&mut BufReader::new(stream), GET).is_ok())
    };
    assert!(wait_for(TIMEOUT, is_served));
}

#[test]
fn without_memory_a_waypoint_takes_nothing_new() {
    let stage = Stage::with(&["--max-memory", "1KiB"]);
    let server = Scripted::status(&stage.mesh.server, 200);
    // As above.
    if let Ok(mut stream) = stage.mesh.client.connect(stage.web(), TIMEOUT) {
        let _ = stream.write_all(GET.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(String::from_utf8_lossy(&answer), "");
    }
    stage.record(|record| record["reason"] == "memory_limit");
    let labels = ["reason=\"memory_limit\""];
    assert!(stage.waypoint.metric("orlop_connections_failed_total", &labels).unwrap() >= 1.0);
    assert_eq!(server.count(), 0);
}
