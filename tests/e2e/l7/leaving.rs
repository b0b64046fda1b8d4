//! A waypoint that is told to go.

use std::sync::mpsc;
use std::thread;

use bytes::Bytes;
use orlop_tests::traffic::request;
use orlop_tests::wait_for;

use super::{Stage, h2c};
use crate::hbone::{within, write};
use crate::mesh::TIMEOUT;

#[test]
fn a_kept_connection_ends_with_its_next_answer() {
    let mut stage = Stage::new();
    let _server = stage.mesh.server.serve_http(80).unwrap();
    let mut stream = stage.connect();
    let get = "GET / HTTP/1.1\r\nhost: web\r\n\r\n";
    assert_eq!(request(&mut stream, get).unwrap().status, 200);
    let mut idle = stage.connect();
    assert_eq!(request(&mut idle, get).unwrap().status, 200);
    stage.waypoint.terminate().unwrap();
    // Whoever asks meanwhile is answered, before it has taken the signal as after.
    let ends = wait_for(TIMEOUT, || {
        let answer = request(&mut stream, get).unwrap();
        assert_eq!(answer.status, 200);
        answer.header("connection") == Some("close")
    });
    assert!(ends);
    assert!(stage.waypoint.wait(TIMEOUT).unwrap().success());
    assert!([stream, idle].iter_mut().all(|stream| request(stream, get).is_err()));
}

#[test]
fn what_is_under_way_over_http2_is_carried_to_its_end() {
    let mut stage = Stage::new();
    let _server = h2c::Server::start(&stage.mesh.server, 80);
    let (to, client) = (stage.web(), stage.mesh.client.clone());
    let (open, opened) = mpsc::channel();
    let asking = thread::spawn(move || {
        within(&client, async move || {
            let client = h2c::connect(to).await;
            let (answer, mut send) = h2c::ask(&client, "/long").await;
            write(&mut send, Bytes::from_static(b"before")).await.unwrap();
            let mut body = answer.await.unwrap().into_body();
            assert_eq!(h2c::read(&mut body, 6).await, b"before");
            open.send(()).unwrap();
            // Until GOAWAY.
            while client.clone().ready().await.is_ok() {
                tokio::task::yield_now().await;
            }
            write(&mut send, Bytes::from_static(b"after")).await.unwrap();
            assert_eq!(h2c::read(&mut body, 5).await, b"after");
            send.send_data(Bytes::new(), true).unwrap();
            let end = body.data().await;
            assert!(end.is_none(), "{end:?}");
            body.trailers().await.unwrap().unwrap()["grpc-status"].clone()
        })
    });
    opened.recv_timeout(TIMEOUT).unwrap();
    stage.waypoint.terminate().unwrap();
    assert_eq!(asking.join().unwrap(), "0");
    assert!(stage.waypoint.wait(TIMEOUT).unwrap().success());
}
