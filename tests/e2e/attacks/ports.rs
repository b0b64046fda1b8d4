//! The proxy's own ports, from outside and from inside the pod.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Siege, assert_closed, assert_connection_refused, assert_turned_away};
use crate::mesh::{Mesh, TIMEOUT, await_value, failed};

#[test]
fn from_outside_they_are_refused_by_the_kernel() {
    let siege = Siege::new();
    let (agent, server) = (siege.mesh.server_agent(), &siege.mesh.server);
    for port in [15001, 15006, 15053] {
        for to in [server.addr(port), server.addr6(port)] {
            assert_connection_refused(siege.attacker.connect(to, TIMEOUT));
            for node in &siege.mesh.nodes {
                assert_connection_refused(node.connect(to, TIMEOUT));
            }
        }
    }
    let refused = agent.metric("orlop_kernel_refused_total", &["reason=\"reserved_port\""]).unwrap();
    assert_eq!(refused, 18.0);
    siege.assert_serves();
}

#[test]
fn through_the_mesh_they_are_refused_too() {
    let siege = Siege::new();
    for port in [15001, 15006, 15008, 15053] {
        let to = siege.mesh.server.addr(port);
        assert_turned_away(siege.mesh.client.connect(to, TIMEOUT));
    }
    await_value(4.0, || failed(siege.mesh.server_agent(), "not_this_pod"));
    siege.assert_serves();
}

#[test]
fn from_inside_the_plain_ones_lead_nowhere() {
    let siege = Siege::new();
    let server = &siege.mesh.server;
    let own = server.ips().into_iter();
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let mut refused = 0.0;
    for ip in own.chain(loopback) {
        for port in [15001, 15006, 15053] {
            assert_turned_away(server.connect(SocketAddr::new(ip, port), TIMEOUT));
            refused += 1.0;
        }
    }
    await_value(refused, || failed(siege.mesh.server_agent(), "no_original_destination"));
    siege.assert_serves();
}

#[test]
fn from_inside_the_tunnels_port_asks_for_a_certificate() {
    let mesh = Mesh::second_only(&[]);
    for ip in mesh.server.ips() {
        let mut stream = mesh.server.connect(SocketAddr::new(ip, 15008), TIMEOUT).unwrap();
        std::io::Write::write_all(&mut stream, b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert_closed(&stream);
    }
    await_value(2.0, || failed(mesh.server_agent(), "tls_failed"));
}
