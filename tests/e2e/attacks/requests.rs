//! Workloads of the mesh that ask for what they may not have.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio_rustls::TlsConnector;

use super::Siege;
use super::forge::{certificate, client};
use crate::hbone::{connect_request, hbone, identity, within};
use crate::mesh::await_value;

/// What a good certificate is answered with when it asks for this.
fn ask(siege: &Siege, request: Request<()>) -> u16 {
    let config = client(Some(certificate(&siege.mesh.testbed, |_| {})), &[b"h2"]);
    let to = hbone(&siege.mesh.server);
    within(&siege.attacker, async move || {
        let tcp = TcpStream::connect(to).await.unwrap();
        let name = ServerName::IpAddress(to.ip().into());
        let tls = TlsConnector::from(config).connect(name, tcp).await.unwrap();
        let (send, connection) = h2::client::handshake(tls).await.unwrap();
        spawn_local(connection);
        let mut send: SendRequest<Bytes> = send.ready().await.unwrap();
        let (answer, _stream) = send.send_request(request, false).unwrap();
        answer.await.unwrap().status().as_u16()
    })
}

/// CONNECTs to each are answered with 400, and recorded with `reason`.
fn assert_not_led_to(siege: &Siege, reason: &str, authorities: &[String]) {
    for authority in authorities {
        siege.assert_refused(reason, || {
            assert_eq!(ask(siege, connect_request(authority, &[])), 400, "{authority}");
        });
    }
}

#[test]
fn another_pods_address() {
    let siege = Siege::new();
    let beyond = [siege.mesh.client.addr(80), siege.attacker.addr(80), SocketAddr::from(([10, 2, 0, 1], 22))];
    assert_not_led_to(&siege, "not_this_pod", &beyond.map(|to| to.to_string()));
}

#[test]
fn the_pods_loopback() {
    let siege = Siege::new();
    let _private = siege.mesh.server.serve_echo(8080).unwrap();
    let loopback = ["127.0.0.1:8080", "127.1.2.3:8080", "0.0.0.0:8080", "[::1]:8080", "[::]:8080"];
    let mapped = ["[::ffff:127.0.0.1]:8080", "[::127.0.0.1]:8080"];
    let all: Vec<_> = loopback.iter().chain(&mapped).map(|to| (*to).to_owned()).collect();
    assert_not_led_to(&siege, "not_this_pod", &all);
}

#[test]
fn the_proxys_own_ports() {
    let siege = Siege::new();
    let ports = [15001, 15006, 15008, 15053, 0].map(|port| siege.mesh.server.addr(port).to_string());
    assert_not_led_to(&siege, "not_this_pod", &ports);
}

#[test]
fn a_name_instead_of_an_address() {
    let siege = Siege::new();
    let names = ["server.shop.svc.cluster.local:80", "localhost:8080", "10.2.0.2"].map(str::to_owned);
    assert_not_led_to(&siege, "bad_connect_request", &names);
}

#[test]
fn another_method_than_connect() {
    let siege = Siege::new();
    let uri = format!("http://{}/", siege.mesh.server.addr(80));
    for method in ["GET", "POST", "OPTIONS"] {
        siege.assert_refused("bad_connect_request", || {
            assert_eq!(ask(&siege, Request::builder().method(method).uri(&uri).body(()).unwrap()), 400);
        });
    }
}

#[test]
fn a_lie_about_where_the_connection_comes_from() {
    let siege = Siege::new();
    let listener = siege.mesh.server.listen(false, 81).unwrap();
    let (client, attacker) = (siege.mesh.client.ipv4(), siege.attacker.ipv4());
    let lies = [
        format!("for=\"{client}:4711\""),
        format!("for=\"[::ffff:{client}]:4711\""),
        format!("for=\"{client}:4711\", for=\"{attacker}:4711\""),
        "for=\"127.0.0.1:4711\"".to_owned(),
        format!("for=\"{attacker}:0\""),
    ];
    for lie in lies {
        let request = connect_request(&siege.mesh.server.addr(81).to_string(), &[("forwarded", &lie)]);
        assert_eq!(ask(&siege, request), 200);
        let (_, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip(), attacker, "after {lie}");
    }
    // Nor does the address make a certificate someone else's.
    let identity = identity("mallory").to_string();
    let seen = || {
        crate::mesh::records(siege.mesh.server_agent())
            .into_iter()
            .filter(|record| record["dst"] == siege.mesh.server.addr(81).to_string())
            .map(|record| {
                (
                    record["src_identity"] == identity.as_str(),
                    record["src_workload"].is_null() || record["src_workload"] == "",
                )
            })
            .collect::<Vec<_>>()
    };
    await_value(vec![(true, true); 5], seen);
}
