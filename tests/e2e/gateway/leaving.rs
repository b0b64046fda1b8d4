//! A gateway that is told to go.

use std::io::{Read, Write};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use orlop_tests::traffic::request;
use orlop_tests::wait_for;
use serde_json::Value;

use super::Stage;
use crate::l7::scripted::{Reply, Scripted};
use crate::mesh::TIMEOUT;

const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";

#[test]
fn it_takes_nobody_more_finishes_what_it_has_and_waits_no_longer_than_it_may() {
    let mut stage = Stage::with(&["--drain-timeout", "6s"], "http");
    let (asked, was_asked) = mpsc::channel();
    let (answer, answers) = mpsc::channel::<()>();
    let answers = Mutex::new(answers);
    let _server = Scripted::start(&stage.mesh.server, move |request| {
        if request.line.contains("/slow") {
            asked.send(()).unwrap();
            answers.lock().unwrap().recv().unwrap();
        }
        Reply::Answer(200, "ok".to_owned())
    });
    // Its body never comes.
    let mut stuck = stage.stranger.connect(stage.address(), TIMEOUT).unwrap();
    let head = "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\nexpect: 100-continue\r\n\r\n";
    stuck.write_all(head.as_bytes()).unwrap();
    let mut told = [0; CONTINUE.len()];
    stuck.read_exact(&mut told).unwrap();
    assert_eq!(told, CONTINUE.as_bytes());
    let mut slow = stage.connect();
    let asking = std::thread::spawn(move || request(&mut slow, "GET /slow HTTP/1.1\r\nhost: x\r\n\r\n"));
    was_asked.recv_timeout(TIMEOUT).unwrap();
    let start = Instant::now();
    stage.gateway.terminate().unwrap();
    let drains = |dump: &str| serde_json::from_str::<Value>(dump).is_ok_and(|dump| dump["draining"] == true);
    stage.gateway.wait_until(drains).unwrap();
    assert!(wait_for(TIMEOUT, || stage.stranger.connect(stage.address(), TIMEOUT).is_err()));
    answer.send(()).unwrap();
    let answer = asking.join().unwrap().unwrap();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert!(stage.gateway.wait(TIMEOUT).unwrap().success());
    let took = start.elapsed();
    assert!(took >= Duration::from_secs(6), "{took:?}");
    // The limit ended it, and nothing else.
    let log = stage.gateway.log().unwrap();
    let stopped = |line: &Value| line["message"] == "stopped" && line["connections"] == 1;
    assert!(log.lines().any(|line| serde_json::from_str(line).is_ok_and(|line| stopped(&line))), "{log}");
}
