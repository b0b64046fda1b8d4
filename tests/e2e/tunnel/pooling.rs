//! Which connections share a tunnel, and that nothing of them is left.

use std::fs;

use orlop_tests::traffic::{ReadUninterrupted, echo};
use orlop_tests::{Agent, Pod, PodSpec};

use super::{PORT, at_once, connect};
use crate::mesh::{Mesh, NAMESPACE, TIMEOUT, await_value, record, tunnels};
use crate::pattern::{receive, send};

const MIB: u64 = 1 << 20;

#[test]
fn two_hundred_connections_at_once_take_two_tunnels_and_keep_apart() {
    let mesh = Mesh::new();
    let listener = mesh.server.listen(false, PORT).unwrap();
    let streams: Vec<_> =
        (0..200_u8).map(|seed| (seed, connect(&mesh.client, &mesh.server, &listener))).collect();
    assert_eq!(tunnels(mesh.client_agent(), "outbound"), 2.0);
    assert_eq!(tunnels(mesh.server_agent(), "inbound"), 2.0);
    at_once(&streams, |(seed, (client, server))| {
        // Less than what the buffers between hold: one thread may do both ends.
        for _ in 0..4 {
            send(client, *seed, MIB / 8, &[7001]).unwrap();
            receive(server, *seed, MIB / 8).unwrap();
            send(server, !*seed, MIB / 8, &[9001]).unwrap();
            receive(client, !*seed, MIB / 8).unwrap();
        }
    });
}

#[test]
fn connections_that_are_over_leave_nothing() {
    let mesh = Mesh::new();
    let server = mesh.server.serve_echo(PORT).unwrap();
    let to = server.addr();
    // The tunnel stays, and is to be there before and after.
    echo(&mesh.client.connect(to, TIMEOUT).unwrap(), b"first").unwrap();
    for agent in mesh.agents() {
        await_value(0.0, || active(agent));
    }
    let before = mesh.agents().map(descriptors);
    mesh.client
        .run(|| {
            for n in 0..2000_u32 {
                let stream = orlop_tests::traffic::connect(to, TIMEOUT).unwrap();
                assert_eq!(echo(&stream, &n.to_be_bytes()).unwrap(), n.to_be_bytes());
            }
        })
        .unwrap();
    for (agent, before) in mesh.agents().into_iter().zip(before) {
        await_value(0.0, || active(agent));
        // The count before may have had a scrape's own connection in it.
        await_value(true, || descriptors(agent) <= before);
    }
    assert_eq!(tunnels(mesh.client_agent(), "outbound"), 1.0);
    assert_eq!(tunnels(mesh.server_agent(), "inbound"), 1.0);
}

fn active(agent: &Agent) -> f64 {
    agent.metric("orlop_connections_active", &[]).unwrap()
}

fn descriptors(agent: &Agent) -> usize {
    fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count()
}

#[test]
fn pods_and_identities_do_not_share_tunnels() {
    let mesh = Mesh::new();
    let node = mesh.nodes[0].clone();
    // One with the first client's identity, one with another.
    let twin = node.pod(NAMESPACE, "twin", PodSpec::new().service_account("client")).unwrap();
    let other = node.pod(NAMESPACE, "other", PodSpec::new().service_account("other")).unwrap();
    mesh.client_agent().wait_enrolled([&mesh.client, &twin, &other]).unwrap();
    // Its records name those that it knows at the time.
    let knows = |dump: &str| ["shop/twin", "shop/other"].iter().all(|name| dump.contains(name));
    mesh.server_agent().wait_until(knows).unwrap();
    let server = mesh.server.serve_echo(PORT).unwrap();
    let clients = [mesh.client.clone(), twin, other];
    for round in 0..2 {
        for client in &clients {
            let stream = client.connect(server.addr(), TIMEOUT).unwrap();
            assert_eq!(echo(&stream, b"hello").unwrap(), b"hello", "round {round}");
        }
    }
    assert_eq!(tunnels(mesh.client_agent(), "outbound"), 3.0);
    assert_eq!(tunnels(mesh.server_agent(), "inbound"), 3.0);
    for (client, account) in clients.iter().zip(["client", "client", "other"]) {
        assert_seen_as(&mesh, client, account);
    }
}

fn assert_seen_as(mesh: &Mesh, client: &Pod, account: &str) {
    let identity = format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/{account}");
    let workload = format!("{NAMESPACE}/{}", client.name());
    let seen = record(mesh.server_agent(), &[("src_workload", &workload), ("src_identity", &identity)]);
    assert!(seen["src"].as_str().unwrap().starts_with(&format!("{}:", client.ipv4())), "{seen}");
}

#[test]
fn destinations_do_not_share_tunnels() {
    let mesh = Mesh::new();
    let server = mesh.server.serve_echo(PORT).unwrap();
    let twin = mesh.nodes[1].pod(NAMESPACE, "twin", PodSpec::new().service_account("server")).unwrap();
    mesh.server_agent().wait_enrolled([&mesh.server, &twin]).unwrap();
    let twin_server = twin.serve_echo(PORT).unwrap();
    for to in [server.addr(), server.addr6(), twin_server.addr()] {
        // The client's agent may hear of the twin a little later than its own one.
        mesh.client_agent().wait_until(|dump| dump.contains(&format!("{NAMESPACE}/twin"))).unwrap();
        assert_eq!(echo(&mesh.client.connect(to, TIMEOUT).unwrap(), b"hello").unwrap(), b"hello");
    }
    assert_eq!(tunnels(mesh.client_agent(), "outbound"), 3.0);
}

#[test]
fn connections_of_a_burst_share_the_tunnel_that_the_first_opens() {
    let mesh = Mesh::new();
    let server = mesh.server.serve_echo(PORT).unwrap();
    let to = server.addr();
    at_once(0..50_u32, |n| {
        let stream = mesh.client.connect(to, TIMEOUT).unwrap();
        assert_eq!(echo(&stream, &n.to_be_bytes()).unwrap(), n.to_be_bytes());
        assert_eq!((&stream).read_uninterrupted(&mut [0]).unwrap(), 0);
    });
    assert_eq!(tunnels(mesh.client_agent(), "outbound"), 1.0);
}
