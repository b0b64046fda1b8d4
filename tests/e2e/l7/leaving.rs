//! A waypoint that is told to go.

use orlop_tests::traffic::request;

use super::Stage;
use crate::mesh::TIMEOUT;

#[test]
fn a_kept_connection_ends_with_its_next_answer() {
    let mut stage = Stage::new();
    let _server = stage.mesh.server.serve_http(80).unwrap();
    let mut stream = stage.connect();
    let get = "GET / HTTP/1.1\r\nhost: web\r\n\r\n";
    assert_eq!(request(&mut stream, get).unwrap().status, 200);
    stage.waypoint.terminate().unwrap();
    // An idle one is closed at once.
    assert!(stage.waypoint.wait(TIMEOUT).unwrap().success());
    assert!(request(&mut stream, get).is_err());
}
