//! UDP: passes untouched, and is seen.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use orlop_tests::traffic::uninterrupted;
use orlop_tests::{ADMIN_PORT, Agent, Pod, PodSpec, wait_for};
use serde_json::Value;

use crate::pair::{Pair, TIMEOUT, full_name};

const PORT: u16 = 5000;

/// What `/udp` says of a pod.
fn exchanges(agent: &Agent, pod: &Pod) -> Vec<Value> {
    let text = agent.http_get("/udp", ADMIN_PORT).unwrap().text();
    let all: Vec<Value> = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    all.into_iter().filter(|one| one["pod"] == *full_name(pod)).collect()
}

fn metric(agent: &Agent, name: &str, pod: &Pod) -> f64 {
    let labels = [format!("namespace=\"{}\"", pod.namespace()), format!("pod=\"{}\"", pod.name())];
    agent.metric(&format!("orlop_udp_{name}_total"), &[&labels[0], &labels[1]]).unwrap()
}

fn bind(pod: &Pod, address: SocketAddr) -> UdpSocket {
    let socket = pod.run(|| UdpSocket::bind(address)).unwrap().unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket
}

/// Three questions of eight bytes, and an answer of three to each.
fn talk(client: &UdpSocket, server: &UdpSocket, connected: bool) {
    let to = server.local_addr().unwrap();
    if connected {
        client.connect(to).unwrap();
    }
    let mut buffer = [0; 16];
    for _ in 0..3 {
        let sent = if connected { client.send(b"question") } else { client.send_to(b"question", to) };
        assert_eq!(sent.unwrap(), 8);
        let (length, peer) = uninterrupted(|| server.recv_from(&mut buffer)).unwrap();
        assert_eq!((&buffer[..length], peer), (&b"question"[..], client.local_addr().unwrap()));
        server.send_to(b"yes", peer).unwrap();
        let (length, peer) = uninterrupted(|| client.recv_from(&mut buffer)).unwrap();
        assert_eq!((&buffer[..length], peer), (&b"yes"[..], to));
    }
}

#[test]
fn both_ends_count_by_peer_whether_connected_or_not() {
    let pair = Pair::new();
    let families = [
        (pair.client.addr(0), pair.server.addr(PORT), pair.client.ips()[0], pair.server.ips()[0]),
        (pair.client.addr6(0), pair.server.addr6(PORT), pair.client.ips()[1], pair.server.ips()[1]),
    ];
    for (from, to, client_ip, server_ip) in families {
        let server = bind(&pair.server, to);
        for connected in [false, true] {
            talk(&bind(&pair.client, from), &server, connected);
        }
        let ends = [
            (&pair.near, &pair.client, server_ip, &pair.server, "peer", ("sent", "received")),
            (&pair.far, &pair.server, client_ip, &pair.client, "pod", ("received", "sent")),
        ];
        for (agent, pod, peer, peer_pod, port_of, (asked, answered)) in ends {
            let all = exchanges(agent, pod);
            let one = all.iter().find(|one| one["peer"] == *peer.to_string());
            let one = one.unwrap_or_else(|| panic!("nothing of {peer}: {all:?}"));
            assert_eq!(one["peer_pod"], *full_name(peer_pod), "{one}");
            assert_eq!((&one["port"], &one["port_of"]), (&PORT.into(), &port_of.into()), "{one}");
            for (way, packets, bytes) in [(asked, 6, 6 * 8), (answered, 6, 6 * 3)] {
                assert_eq!(one[format!("{way}_packets")], packets, "{way}: {one}");
                assert_eq!(one[format!("{way}_bytes")], bytes, "{way}: {one}");
            }
        }
    }
    assert_eq!(metric(&pair.near, "sent_packets", &pair.client), 12.0);
    assert_eq!(metric(&pair.near, "received_bytes", &pair.client), 36.0);
    assert_eq!(metric(&pair.far, "received_bytes", &pair.server), 96.0);
    assert_eq!(metric(&pair.far, "sent_packets", &pair.server), 12.0);
}

#[test]
fn a_pod_that_is_not_enrolled_is_not_counted() {
    let pair = Pair::new();
    let outsider = pair.outsider(pair.near.node(), "outsider");
    let server = bind(&pair.server, pair.server.addr(PORT));
    talk(&bind(&outsider, outsider.addr(0)), &server, true);
    assert!(exchanges(&pair.near, &outsider).is_empty());
    assert_eq!(metric(&pair.near, "sent_packets", &outsider), 0.0);
    assert_eq!(metric(&pair.far, "received_packets", &pair.server), 3.0);
    pair.server.opt_out().unwrap();
    crate::pair::wait_enrolled(&pair.far, &pair.server, false);
    assert!(exchanges(&pair.far, &pair.server).is_empty(), "forgotten");
}

#[test]
fn a_borrowed_address_counts_for_who_borrows_it() {
    let pair = Pair::new();
    let thief = pair.pod(&pair.near, "thief", PodSpec::new());
    let stolen = pair.client.ipv4();
    thief.output("ip", &["addr", "add", &format!("{stolen}/32"), "dev", "eth0"]).unwrap();
    let socket = bind(&thief, (IpAddr::from(stolen), 0).into());
    let to = pair.server.addr(PORT);
    for _ in 0..5 {
        socket.send_to(b"not me", to).unwrap();
    }
    assert_eq!(metric(&pair.near, "sent_packets", &thief), 5.0);
    assert_eq!(metric(&pair.near, "sent_packets", &pair.client), 0.0);
    assert!(exchanges(&pair.near, &pair.client).is_empty());
}

#[test]
fn more_peers_than_there_is_room_for_are_counted_in_sum() {
    let pair = Pair::new();
    let socket = bind(&pair.client, pair.client.addr(40_000));
    // Nobody has these addresses, and nobody is asked who has.
    pair.client.output("ip", &["link", "set", "eth0", "arp", "off"]).unwrap();
    let peers = 20_000u32;
    for n in 0..peers {
        let [.., b, c, d] = n.to_be_bytes();
        socket.send_to(b"x", (IpAddr::from([198, 18 + b, c, d]), 9)).unwrap();
    }
    let sent = || metric(&pair.near, "sent_packets", &pair.client);
    assert!(wait_for(TIMEOUT, || sent() >= f64::from(peers)), "{}", sent());
    assert_eq!(sent(), f64::from(peers));
    let known = exchanges(&pair.near, &pair.client).len();
    assert!((1000..=16384).contains(&known), "{known} peers");
}
