//! Nobody but a pod that policy allows gets past the proxy.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use orlop_tests::{Pod, PodSpec, wait_for};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::{Neighbours, authorization_policy, is_straight};
use crate::pair::{TIMEOUT, apply, assert_refused, dial, ping};
use crate::probes::spoof_syn;

const NEIGHBOURS_ALONE: &str = "{action: ALLOW, rules: [{from: [{source: {serviceAccounts: [neighbour]}}]}]}";

/// What a packet that is not answered may take.
pub const SHORT: Duration = Duration::from_secs(1);

/// Dials with this source, of the address family of both.
pub fn dial_from(from: SocketAddr, to: SocketAddr) -> impl Fn() -> io::Result<TcpStream> {
    move || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
        socket.connect_timeout(&to.into(), SHORT)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        Ok(socket.into())
    }
}

/// The neighbour alone may talk to the server, and does so without the proxy.
pub fn besieged() -> (Neighbours, TcpStream) {
    let set = Neighbours::new();
    apply(&set.pair, "policy.yaml", &authorization_policy(NEIGHBOURS_ALONE));
    let open = set.straight(set.server.addr());
    (set, open)
}

pub fn attacker(set: &Neighbours) -> Pod {
    set.pair.pod(&set.pair.far, "attacker", PodSpec::new().service_account("attacker"))
}

#[track_caller]
pub fn assert_nobody_else(set: &Neighbours) {
    let own = set.neighbour.ips();
    let others: Vec<_> = set.server.peers().into_iter().filter(|peer| !own.contains(&peer.ip())).collect();
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn another_pod_is_refused() {
    let (set, open) = besieged();
    let attacker = attacker(&set);
    let outsider = set.pair.outsider(set.pair.far.node(), "outsider");
    for to in [set.server.addr(), set.server.addr6()] {
        assert_refused(&attacker, to);
        assert_refused(&outsider, to);
    }
    assert_nobody_else(&set);
    ping(&open, "still here?\n").unwrap();
}

#[test]
fn the_neighbours_address_makes_nobody_the_neighbour() {
    let (set, open) = besieged();
    let peers = set.server.peers().len();
    drop(open);
    for thief in [attacker(&set), set.pair.outsider(set.pair.far.node(), "outsider")] {
        for ip in set.neighbour.ips() {
            let length = if ip.is_ipv4() { "16" } else { "64" };
            let address = format!("{ip}/{length}");
            let mut args = vec!["addr", "add", &*address, "dev", "eth0"];
            if ip.is_ipv6() {
                args.push("nodad");
            }
            thief.output("ip", &args).unwrap();
            let to = if ip.is_ipv4() { set.server.addr() } else { set.server.addr6() };
            let dialled = thief.run(dial_from((ip, 0).into(), to)).unwrap();
            let served = dialled.and_then(|stream| ping(&stream, "it is me\n"));
            served.expect_err("was served");
            thief.output("ip", &["addr", "del", &address, "dev", "eth0"]).unwrap();
        }
    }
    assert_eq!(set.server.peers().len(), peers, "{:?}", set.server.peers());
}

#[test]
fn packets_in_the_neighbours_name_lead_nowhere() {
    let (set, open) = besieged();
    let peers = set.server.peers().len();
    let (source, server) = (set.neighbour.ipv4(), set.pair.server.ipv4());
    let used = open.local_addr().unwrap().port();
    // From this node and from another, with a port of its own and with the open connection's.
    for from in [&attacker(&set), &set.pair.client] {
        for port in [used, 45_000] {
            from.run(|| spoof_syn((source, port), (server, 80))).unwrap();
        }
    }
    ping(&open, "still here?\n").unwrap();
    dial(&set.neighbour, set.server.addr()).unwrap();
    assert_eq!(set.server.peers().len(), peers + 1);
    assert_nobody_else(&set);
}

#[test]
fn the_four_tuple_of_a_connection_serves_nobody_else() {
    let (set, _open) = besieged();
    let Neighbours { neighbour, server, pair } = set;
    // The server's end is soon gone, while the neighbour's is still open: its four-tuple stays on record.
    pair.server.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_fin_timeout", "1")).unwrap().unwrap();
    let from = neighbour.addr(45_000);
    let stream = neighbour.run(dial_from(from, server.addr())).unwrap().unwrap();
    ping(&stream, "hello\n").unwrap();
    assert!(is_straight(&neighbour, &stream));
    drop(server);
    let gone = || !pair.server.output("ss", &["-Htan"]).unwrap().contains(":45000");
    assert!(wait_for(TIMEOUT, gone), "the server's end stays");

    let server = pair.server.serve_echo(80).unwrap();
    let thief = pair.outsider(pair.far.node(), "thief");
    thief.output("ip", &["addr", "add", &format!("{}/16", neighbour.ipv4()), "dev", "eth0"]).unwrap();
    thief.run(dial_from(from, server.addr())).unwrap().expect_err("was served");
    assert!(server.peers().is_empty(), "{:?}", server.peers());
    drop(stream);
}

#[test]
fn the_four_tuple_of_a_connection_that_its_own_pod_has_ended_serves_nobody_else() {
    let (set, _open) = besieged();
    let Neighbours { neighbour, server, pair } = set;
    let from = neighbour.addr(45_000);
    let stream = neighbour.run(dial_from(from, server.addr())).unwrap().unwrap();
    ping(&stream, "hello\n").unwrap();
    assert!(is_straight(&neighbour, &stream));
    let served = server.peers().len();
    // With a reset, so that neither end waits for late packets.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
    let gone = || !pair.server.output("ss", &["-Htan"]).unwrap().contains(":45000");
    assert!(wait_for(TIMEOUT, gone), "the server's end stays");
    let thief = pair.outsider(pair.far.node(), "thief");
    thief.output("ip", &["addr", "add", &format!("{}/16", neighbour.ipv4()), "dev", "eth0"]).unwrap();
    // The proxy may take it before it knows whether it can carry it.
    let dialled = thief.run(dial_from(from, server.addr())).unwrap();
    dialled.and_then(|stream| ping(&stream, "it is me\n")).expect_err("was served");
    assert_eq!(server.peers().len(), served, "{:?}", server.peers());
}
