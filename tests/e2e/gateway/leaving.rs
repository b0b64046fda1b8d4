//! A gateway that is told to go.

use std::io::Write;
use std::time::{Duration, Instant};

use orlop_tests::traffic::request;

use super::Stage;
use crate::l7::scripted::{Reply, Scripted};
use crate::mesh::TIMEOUT;

#[test]
fn it_takes_nobody_more_finishes_what_it_has_and_waits_no_longer_than_it_may() {
    let mut stage = Stage::with(&["--drain-timeout", "2s"], "http");
    let _server = Scripted::start(&stage.mesh.server, |asked| {
        if asked.line.contains("/slow") {
            std::thread::sleep(Duration::from_secs(1));
        }
        Reply::Answer(200, "ok".to_owned())
    });
    let mut slow = stage.connect();
    // Its body never comes.
    let mut stuck = stage.stranger.connect(stage.address(), TIMEOUT).unwrap();
    stuck.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n").unwrap();
    let asking = std::thread::spawn(move || request(&mut slow, "GET /slow HTTP/1.1\r\nhost: x\r\n\r\n"));
    std::thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    stage.gateway.terminate().unwrap();
    let answer = asking.join().unwrap().unwrap();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert!(stage.stranger.connect(stage.address(), TIMEOUT).is_err());
    assert!(stage.gateway.wait(TIMEOUT).unwrap().success());
    let took = start.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(4)).contains(&took), "{took:?}");
}
