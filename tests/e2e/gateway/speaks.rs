//! HTTP/1.1, HTTP/2 and gRPC, on either side.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use orlop_tests::traffic::request;

use super::{Stage, TO_WEB};
use crate::hbone::{within, write};
use crate::l7::h2c;
use crate::l7::scripted::Scripted;

#[test]
fn a_server_is_spoken_to_as_its_port_says_and_not_as_the_client_speaks() {
    let stage = Stage::new();
    let server = Scripted::status(&stage.mesh.server, 200);
    let to = stage.address();
    // It speaks HTTP/2, says that it is gRPC, and is answered by a server that understands HTTP/1.1 alone.
    let status = within(&stage.stranger, async move || {
        let client = h2c::connect(to).await;
        let (answer, mut send) = h2c::ask(&client, "/a.B/C").await;
        send.send_data(Bytes::new(), true).unwrap();
        answer.await.unwrap().status()
    });
    assert_eq!((status.as_u16(), server.asked()[0].line.as_str()), (200, "POST /a.B/C HTTP/1.1"));
}

#[test]
fn a_port_that_says_http2_is_spoken_to_so() {
    let stage = Stage::with(&[], "http2");
    let _server = h2c::Server::start(&stage.mesh.server, 80);
    let answer = request(&mut stage.connect(), "GET /x HTTP/1.1\r\nhost: a.example\r\n\r\n").unwrap();
    assert_eq!(
        (answer.status, answer.header("seen-path"), answer.header("seen-host")),
        (200, Some("/x"), Some("a.example"))
    );
}

#[test]
fn a_grpc_route_leads_to_http2_and_trailers_pass_both_ways() {
    let stage = Stage::new();
    let _server = h2c::Server::start(&stage.mesh.server, 80);
    // The older kind of route has the host.
    stage.change(|mesh| mesh.testbed.world().remove("HTTPRoute-web.yaml").unwrap());
    stage.route("GRPCRoute", "rpc", "", TO_WEB);
    let to = stage.address();
    within(&stage.stranger, async move || {
        let client = h2c::connect(to).await;
        let (answer, mut send) = h2c::ask(&client, "/a.B/C").await;
        write(&mut send, Bytes::from_static(b"ping")).await.unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), 200);
        let mut body = answer.into_body();
        assert_eq!(h2c::read(&mut body, 4).await, b"ping");
        let mut trailers = HeaderMap::new();
        trailers.insert("mark", HeaderValue::from_static("seen"));
        send.send_trailers(trailers).unwrap();
        assert!(body.data().await.is_none());
        let trailers = body.trailers().await.unwrap().unwrap();
        assert_eq!(
            (&trailers["grpc-status"], &trailers["mark"]),
            (&"0".parse().unwrap(), &"seen".parse().unwrap())
        );
    });
    // What is no gRPC follows no GRPCRoute.
    assert_eq!(stage.get("x", "/a.B/C").status, 404);
}
