//! The node's own probes reach their pods, whatever the policy; nobody else passes for the node.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::process::Command;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};
use orlop_tests::traffic::EchoServer;
use orlop_tests::{AgentOptions, Node, Pod, wait_for};
use socket2::{Domain, Protocol, Socket, Type};
use std::os::fd::AsRawFd;

use crate::pair::{Pair, TIMEOUT, apply, assert_refused, ping, record, remove, wait_enrolled};
use crate::strict::{peer_authentication, refused};

const STRICT: &str = "{mtls: {mode: STRICT}}";
const NOBODY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
    metadata: {name: nobody, namespace: shop}\nspec: {}\n";
/// Of the node's bridge, from which kubelet's probes come.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 1);
/// What a packet that is not answered may take.
const SHORT: Duration = Duration::from_secs(1);

/// A pair under STRICT, and a server there whose port is probed; and so is the next.
fn strict() -> (Pair, EchoServer) {
    let pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    pair.change(|world| {
        pair.server.set_probes(Some(&[80, 81]))?;
        world.write("strict.yaml", &peer_authentication(STRICT))
    });
    (pair, server)
}

/// As kubelet does: a socket of the node's, outside any pod.
fn probe(node: &Node, to: SocketAddr) -> io::Result<TcpStream> {
    let stream = node.connect(to, TIMEOUT)?;
    ping(&stream, "are you well?\n")?;
    Ok(stream)
}

#[test]
fn a_probe_passes_and_the_app_sees_the_node() {
    let (pair, server) = strict();
    for to in [server.addr(), server.addr6()] {
        let stream = probe(pair.far.node(), to).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), to);
        assert_eq!(*server.peers().last().unwrap(), stream.local_addr().unwrap());
    }
    apply(&pair, "nobody.yaml", NOBODY);
    probe(pair.far.node(), server.addr()).unwrap();
    remove(&pair, "nobody.yaml");
    assert_eq!(refused(&pair.far), 0.0);
}

#[test]
fn a_probe_passes_without_an_agent() {
    let (mut pair, server) = strict();
    pair.far.kill().unwrap();
    probe(pair.far.node(), server.addr()).unwrap();
    probe(pair.far.node(), server.addr6()).unwrap();
    assert_refused(&pair.client, server.addr());
}

#[test]
fn a_probe_of_a_dual_stack_socket_passes() {
    let (pair, server) = strict();
    let to = SocketAddr::new(pair.server.ipv4().to_ipv6_mapped().into(), 80);
    probe(pair.far.node(), to).unwrap();
    assert_eq!(server.peers().len(), 1);
}

#[test]
fn a_port_where_nobody_listens_refuses_the_probe() {
    let (pair, _server) = strict();
    let error = pair.far.node().connect(pair.server.addr(81), TIMEOUT).expect_err("was served");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
    assert_eq!(refused(&pair.far), 0.0, "it is the pod that refuses");
}

#[test]
fn the_node_reaches_no_port_but_those_of_probes() {
    let (pair, server) = strict();
    let other = pair.server.serve_echo(82).unwrap();
    for to in [other.addr(), other.addr6()] {
        let error = probe(pair.far.node(), to).expect_err("was served");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
    }
    assert_eq!(refused(&pair.far), 2.0);
    let log = record(&pair.far, |record| record["dst"] == *other.addr().to_string());
    assert_eq!((&log["reason"], &log["result"]), (&"plaintext_refused".into(), &"refused".into()));

    pair.change(|_| pair.server.set_probes(Some(&[82])));
    probe(pair.far.node(), other.addr()).unwrap();
    probe(pair.far.node(), server.addr()).expect_err("was served");
}

#[test]
fn without_a_word_about_probes_the_node_reaches_every_port() {
    let (pair, server) = strict();
    pair.change(|_| pair.server.set_probes(Some(&[])));
    probe(pair.far.node(), server.addr()).expect_err("was served");
    pair.change(|_| pair.server.set_probes(None));
    probe(pair.far.node(), server.addr()).unwrap();
    probe(pair.far.node(), server.addr6()).unwrap();
}

#[test]
fn the_other_nodes_probes_are_plaintext() {
    let (pair, server) = strict();
    for to in [server.addr(), server.addr6()] {
        let error = probe(pair.near.node(), to).expect_err("was served");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
    }
    assert_eq!(refused(&pair.far), 2.0);
}

#[test]
fn a_pod_on_the_nodes_network_is_no_probe() {
    let pair = Pair::new();
    pair.server.set_probes(Some(&[80])).unwrap();
    let server = pair.server.serve_echo(80).unwrap();
    let pod = pair.outsider(pair.far.node(), "on-host");
    apply(&pair, "strict.yaml", &peer_authentication(STRICT));
    let Pair { near, far, client, server: served, testbed } = pair;
    drop(far);
    let args = ["--log-format", "json", "--pods-cgroup", pod.cgroup().to_str().unwrap()];
    let options = AgentOptions { args: args.map(str::to_owned).into(), ..AgentOptions::default() };
    let far = served.node().agent(options).unwrap();
    wait_enrolled(&far, &served, true);
    let pair = Pair { near, far, client, server: served, testbed };

    for to in [server.addr(), server.addr6()] {
        assert!(
            !dials(pod.host_network_command("bash").unwrap(), to),
            "{to}: the pod's cgroup gives it away"
        );
        assert!(dials(pair.far.node().command("bash").unwrap(), to), "{to}: and nothing else keeps it out");
    }
    assert_eq!(refused(&pair.far), 2.0);
}

/// Whether `bash` reaches a server.
fn dials(mut bash: Command, to: SocketAddr) -> bool {
    let script = format!("exec 3<>/dev/tcp/{}/{}", to.ip(), to.port());
    bash.args(["-c", &script]).output().unwrap().status.success()
}

#[test]
fn the_nodes_address_makes_nobody_the_node() {
    let (pair, server) = strict();
    let thief = thief(&pair);
    let before = refused(&pair.far);
    let error = thief.run(|| dial_from((GATEWAY, 0), server.addr())).unwrap().expect_err("was served");
    assert!(matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::TimedOut), "{error}");
    assert!(refused(&pair.far) > before);
    assert!(server.peers().is_empty());
}

#[test]
fn a_packet_in_the_nodes_name_leads_nowhere() {
    let (pair, server) = strict();
    let attacker = pair.outsider(pair.far.node(), "attacker");
    let before = refused(&pair.far);
    attacker.run(|| spoof_syn((GATEWAY, 41_000), (pair.server.ipv4(), 80))).unwrap();
    assert!(wait_for(TIMEOUT, || refused(&pair.far) > before), "the packet did not arrive");
    assert!(server.peers().is_empty());
}

#[test]
fn the_four_tuple_of_a_probe_serves_nobody_else() {
    let (pair, server) = strict();
    // The pod's end is soon gone, while the node's is still open: its four-tuple stays on record.
    pair.server.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_fin_timeout", "1")).unwrap().unwrap();
    let node = pair.far.node();
    let stream = node.run(|| dial_from((GATEWAY, 41_000), server.addr())).unwrap().unwrap();
    ping(&stream, "hello\n").unwrap();
    drop(server);
    let gone = || !pair.server.output("ss", &["-Htan"]).unwrap().contains(":41000");
    assert!(wait_for(TIMEOUT, gone), "the pod's end stays");

    let server = pair.server.serve_echo(80).unwrap();
    let thief = thief(&pair);
    thief.run(|| dial_from((GATEWAY, 41_000), server.addr())).unwrap().expect_err("was served");
    assert!(server.peers().is_empty(), "{:?}", server.peers());
    drop(stream);
}

/// A pod beside the server that has given itself the node's address.
fn thief(pair: &Pair) -> Pod {
    let thief = pair.outsider(pair.far.node(), "thief");
    thief.output("ip", &["addr", "add", &format!("{GATEWAY}/16"), "dev", "eth0"]).unwrap();
    thief
}

fn dial_from(from: (Ipv4Addr, u16), to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from(from).into())?;
    socket.connect_timeout(&to.into(), SHORT)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    Ok(socket.into())
}

/// Sends a SYN that claims to be from another address (RFC 791, RFC 9293), which takes CAP_NET_RAW.
pub fn spoof_syn(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) {
    let (source, destination) = (from.0.octets(), to.0.octets());
    let mut tcp = [0u8; 20];
    tcp[..2].copy_from_slice(&from.1.to_be_bytes());
    tcp[2..4].copy_from_slice(&to.1.to_be_bytes());
    tcp[4..8].copy_from_slice(&1u32.to_be_bytes());
    (tcp[12], tcp[13]) = (5 << 4, 2);
    tcp[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
    let pseudo = [&source[..], &destination, &[0, 6, 0, 20], &tcp].concat();
    tcp[16..18].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    // The kernel fills in the length, the identification and the header's checksum; ip(7).
    let mut ip = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    ip[12..16].copy_from_slice(&source);
    ip[16..].copy_from_slice(&destination);
    let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Raw).unwrap();
    let address = SockaddrStorage::from(SocketAddr::V4(SocketAddrV4::new(to.0, 0)));
    sendto(raw.as_raw_fd(), &[&ip[..], &tcp].concat(), &address, MsgFlags::empty()).unwrap();
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    !((sum & 0xffff) + (sum >> 16)) as u16
}
