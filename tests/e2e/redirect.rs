//! Redirection: what an application sees of its sockets is what it would see without a mesh.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, SockaddrStorage, sendto};
use orlop_tests::traffic::{EchoServer, uninterrupted};
use orlop_tests::{Agent, AgentOptions, Pod, PodSpec, wait_for};
use serde_json::Value;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::pair::{Pair, TIMEOUT, assert_kernel_refuses, dial, is_refusal, ping, wait_enrolled};

#[test]
fn both_ends_see_each_other_over_ipv4() {
    let pair = Pair::new();
    both_ends_see_each_other(&pair, pair.server.addr(80), pair.client.ipv4().into());
}

#[test]
fn both_ends_see_each_other_over_ipv6() {
    let pair = Pair::new();
    both_ends_see_each_other(&pair, pair.server.addr6(80), pair.client.ipv6().into());
}

fn both_ends_see_each_other(pair: &Pair, to: SocketAddr, client_ip: IpAddr) {
    let listener = pair.server.listen(to.is_ipv6(), to.port()).unwrap();
    let client = pair.client.connect(to, TIMEOUT).unwrap();
    let (server, accepted) = accept(&listener);
    assert_eq!(client.peer_addr().unwrap(), to, "the client's getpeername");
    assert_eq!(client.local_addr().unwrap().ip(), client_ip, "the client's getsockname");
    let client_addr = client.local_addr().unwrap();
    assert_eq!(accepted, client_addr, "the server's accept");
    assert_eq!(server.peer_addr().unwrap(), client_addr, "the server's getpeername");
    assert_eq!(server.local_addr().unwrap(), to, "the server's getsockname");
}

#[test]
fn both_ends_see_each_other_through_ipv4_mapped_sockets() {
    let pair = Pair::new();
    let to = mapped(pair.server.ipv4(), 80);
    let listener = pair.server.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80))).unwrap().unwrap();
    let client = pair.client.connect(to, TIMEOUT).unwrap();
    let (server, accepted) = accept(&listener);
    let client_addr = client.local_addr().unwrap();
    assert_eq!(client.peer_addr().unwrap(), to);
    assert_eq!(client_addr.ip(), mapped(pair.client.ipv4(), 0).ip());
    assert_eq!(accepted, client_addr);
    assert_eq!(server.peer_addr().unwrap(), client_addr);
    assert_eq!(server.local_addr().unwrap(), to);
}

#[test]
fn what_stays_in_a_pod_is_not_paced_and_what_leaves_it_is_the_nodes_choice() {
    let pair = Pair::new();
    let street = pair.outsider(pair.near.node(), "street");
    let _echoes = [pair.server.serve_echo(80).unwrap(), street.serve_echo(80).unwrap()];
    let _redirected = dial(&pair.client, pair.server.addr(80)).unwrap();
    let _redirected6 = dial(&pair.client, pair.server.addr6(80)).unwrap();
    let _untouched = pair.server.node().connect(street.addr(80), TIMEOUT).unwrap();

    let chosen = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap();
    for pod in [&pair.client, &pair.server] {
        let sockets = congestion_controls(pod);
        // Both ends of a connection over each family.
        assert!(sockets.iter().filter(|(inside, _)| *inside).count() >= 4, "{sockets:?}");
        assert!(sockets.iter().any(|(inside, _)| !*inside), "the tunnel: {sockets:?}");
        for (inside, algorithm) in sockets {
            assert_eq!(algorithm, if inside { "reno" } else { chosen.trim() });
        }
    }
    assert!(congestion_controls(&street).iter().all(|(_, algorithm)| algorithm == chosen.trim()));
}

/// Of each established connection in a pod, whether it stays inside, and its congestion control.
fn congestion_controls(pod: &Pod) -> Vec<(bool, String)> {
    let inside = |address: &str| pod.ips().iter().any(|ip| address.contains(&ip.to_string()));
    let listed = pod.output("ss", &["-tniHO", "state", "established"]).unwrap();
    let sockets = listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // Receive queue, send queue, local and remote address, congestion control, figures.
    sockets.map(|words| (inside(words[2]) && inside(words[3]), words[4].to_owned())).collect()
}

#[test]
fn a_pod_reaches_itself_without_the_proxy() {
    let pair = Pair::new();
    let pod = &pair.client;
    let _server = pod.serve_echo(80).unwrap();
    for ip in [pod.ipv4().into(), pod.ipv6().into(), IpAddr::from([127, 0, 0, 1]), [127, 1, 2, 3].into()] {
        let to = SocketAddr::new(ip, 80);
        let stream = dial(pod, to).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), to);
    }
    dial(pod, (Ipv6Addr::LOCALHOST, 80).into()).unwrap();
    dial(pod, mapped(Ipv4Addr::LOCALHOST, 80)).unwrap();
    dial(pod, mapped(pod.ipv4(), 80)).unwrap();
    assert_eq!(pair.near.metric("istio_tcp_connections_opened_total", &[]).unwrap(), 0.0);
    assert_eq!(pair.near.metric("orlop_connections_failed_total", &[]).unwrap(), 0.0);
}

#[test]
fn an_address_that_the_world_does_not_know_leads_to_the_server_not_in_circles() {
    let pair = Pair::new();
    let outsider = pair.outsider(pair.near.node(), "outsider");
    let pod = &pair.client;
    pod.output("ip", &["addr", "add", "10.1.200.200/16", "dev", "eth0"]).unwrap();
    let server = pod.serve_echo(80).unwrap();
    let to = SocketAddr::from(([10, 1, 200, 200], 80));
    for from in [pod, &outsider] {
        let stream = dial(from, to).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), to);
        assert_eq!(server.peers().last().unwrap().ip(), from.ipv4());
    }
    let labels = ["reporter=\"destination\""];
    assert_eq!(pair.near.metric("istio_tcp_connections_opened_total", &labels).unwrap(), 2.0);
}

#[test]
fn the_proxys_ports_dialled_from_inside_are_closed_with_a_reason() {
    let pair = Pair::new();
    let pod = &pair.client;
    let mut expected = 0.0;
    for port in [15001, 15006] {
        for to in [pod.addr(port), pod.addr6(port), (Ipv4Addr::LOCALHOST, port).into()] {
            let error = dial(pod, to).expect_err("was served");
            assert!(is_refusal(&error), "{to}: {error}");
            expected += 1.0;
            pair.near
                .wait_log(|log| log.matches("no_original_destination").count() as f64 >= expected, TIMEOUT)
                .unwrap();
        }
    }
    let reason = ["reason=\"no_original_destination\""];
    assert_eq!(pair.near.metric("orlop_connections_failed_total", &reason).unwrap(), expected);
}

#[test]
fn the_proxys_ports_dialled_from_outside_are_refused_by_the_kernel() {
    let pair = Pair::new();
    let outsider = pair.outsider(pair.far.node(), "outsider");
    for port in [15001, 15006, 15053] {
        assert_kernel_refuses(&outsider, pair.server.addr(port));
        assert_kernel_refuses(&outsider, pair.server.addr6(port));
    }
    let reason = ["reason=\"reserved_port\""];
    assert_eq!(pair.far.metric("orlop_kernel_refused_total", &reason).unwrap(), 6.0);
}

#[test]
fn the_proxys_ports_of_another_pod_are_out_of_reach_through_the_mesh() {
    let pair = Pair::new();
    for port in [15001, 15006, 15008, 15053] {
        let error = dial(&pair.client, pair.server.addr(port)).expect_err("was served");
        assert!(is_refusal(&error), "{port}: {error}");
    }
    let reason = ["reporter=\"destination\"", "reason=\"not_this_pod\""];
    assert_eq!(pair.far.metric("orlop_connections_failed_total", &reason).unwrap(), 4.0);
}

#[test]
fn udp_is_left_alone() {
    assert_left_alone(&Pair::new(), 5353);
    let args = ["--log-format", "json", "--dns", "off"].map(str::to_owned).into();
    assert_left_alone(&Pair::with(AgentOptions { args, ..AgentOptions::default() }), 53);
}

fn assert_left_alone(pair: &Pair, port: u16) {
    for (from, to) in
        [(pair.client.addr(0), pair.server.addr(port)), (pair.client.addr6(0), pair.server.addr6(port))]
    {
        let server = pair.server.run(|| UdpSocket::bind(to)).unwrap().unwrap();
        let client = pair.client.run(|| UdpSocket::bind(from)).unwrap().unwrap();
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        }
        client.connect(to).unwrap();
        client.send(b"question").unwrap();
        let mut buffer = [0; 16];
        let (length, peer) = uninterrupted(|| server.recv_from(&mut buffer)).unwrap();
        assert_eq!((&buffer[..length], peer), (&b"question"[..], client.local_addr().unwrap()));
        server.send_to(b"answer", peer).unwrap();
        let (length, peer) = uninterrupted(|| client.recv_from(&mut buffer)).unwrap();
        assert_eq!((&buffer[..length], peer), (&b"answer"[..], to));
        assert_eq!(client.peer_addr().unwrap(), to);
    }
}

#[test]
fn a_non_blocking_connect_works() {
    let pair = Pair::new();
    let _server = pair.server.serve_echo(80).unwrap();
    let to = pair.server.addr(80);
    let socket = pair.client.run(|| tcp(Domain::IPV4)).unwrap();
    socket.set_nonblocking(true).unwrap();
    match socket.connect(&to.into()) {
        Ok(()) => {}
        Err(error) => assert_eq!(error.raw_os_error(), Some(nix::libc::EINPROGRESS), "{error}"),
    }
    assert!(wait_for(TIMEOUT, || socket.peer_addr().is_ok()), "never connected");
    assert!(socket.take_error().unwrap().is_none());
    assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(to));
    socket.set_nonblocking(false).unwrap();
    ping(&timed(socket), "hello\n").unwrap();
}

#[test]
fn a_socket_that_failed_once_sees_its_next_peer() {
    let mut pair = Pair::new();
    let _remote = pair.server.serve_echo(80).unwrap();
    let own = pair.client.serve_echo(81).unwrap();
    pair.near.kill().unwrap();
    let sockets = [(); 2].map(|()| pair.client.run(|| tcp(Domain::IPV4)).unwrap());
    for socket in &sockets {
        let error = socket.connect(&pair.server.addr(80).into()).expect_err("connected without an agent");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    }
    pair.near.restart().unwrap();
    let second = pair.pod(&pair.far, "second", PodSpec::new());
    let _second = second.serve_echo(82).unwrap();
    let [to_itself, to_another] = sockets;
    for (socket, to) in [(to_itself, own.addr()), (to_another, second.addr(82))] {
        socket.connect(&to.into()).unwrap();
        assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(to));
        ping(&timed(socket), "hello\n").unwrap();
    }
    assert_eq!(own.peers()[0].ip(), pair.client.ipv4());
}

#[test]
fn fast_open_is_redirected_too() {
    let pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    let secret = b"sent with the SYN, or so it hopes";
    let ((), frames) = pair.captured(|| {
        for to in [server.addr(), server.addr6()] {
            let socket = pair.client.run(|| tcp(Domain::for_address(to))).unwrap();
            let address = SockaddrStorage::from(to);
            sendto(socket.as_raw_fd(), secret, &address, MsgFlags::from_bits_retain(MSG_FASTOPEN)).unwrap();
            assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(to));
            let mut stream = timed(socket);
            let mut back = vec![0; secret.len()];
            stream.read_exact(&mut back).unwrap();
            assert_eq!(back, secret);
        }
    });
    assert!(frames.tls_application_records(15008) > 0);
    assert!(!frames.contains(secret), "the payload is on the wire in clear");
}

/// Not in every libc crate's flags.
const MSG_FASTOPEN: i32 = 0x2000_0000;

#[test]
fn multipath_tcp_is_no_way_around_the_mesh() {
    let pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    let (results, frames) = pair.captured(|| {
        [server.addr(), server.addr6()].map(|to| -> io::Result<()> {
            let new = || Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::MPTCP));
            let socket = pair.client.run(new).unwrap()?;
            socket.connect_timeout(&to.into(), TIMEOUT)?;
            ping(&timed(socket), "by several paths\n")
        })
    });
    // A kernel without MPTCP has nothing to try.
    let served = results.iter().any(Result::is_ok);
    let ports = if served { [15008].into() } else { BTreeSet::new() };
    assert_eq!(frames.tcp_ports(), ports, "{results:?}");
    assert!(!frames.contains(b"by several paths"), "in clear on the wire: {results:?}");
}

#[test]
fn two_pods_use_the_same_source_port_at_once() {
    let pair = Pair::new();
    let other = pair.pod(&pair.near, "other", PodSpec::new());
    let (first, second) = (pair.server.serve_echo(80).unwrap(), pair.server.serve_echo(81).unwrap());
    let one = pair.client.run(|| dial_from(40_000, first.addr())).unwrap().unwrap();
    let two = other.run(|| dial_from(40_000, second.addr())).unwrap().unwrap();
    ping(&one, "one\n").unwrap();
    ping(&two, "two\n").unwrap();
    assert_eq!(first.peers(), [pair.client.addr(40_000)]);
    assert_eq!(second.peers(), [other.addr(40_000)]);
}

#[test]
fn a_source_port_used_again_leads_where_it_was_dialled() {
    let pair = Pair::new();
    let (first, second) = (pair.server.serve_echo(80).unwrap(), pair.server.serve_echo(81).unwrap());
    for round in 0..3 {
        for server in [&first, &second] {
            // A child process of another test may hold the last one open until it runs its program.
            let mut stream = Err(ErrorKind::NotConnected.into());
            wait_for(TIMEOUT, || {
                stream = pair.client.run(|| dial_from(40_000, server.addr())).unwrap();
                stream.is_ok()
            });
            let stream = stream.unwrap();
            assert_eq!(stream.peer_addr().unwrap(), server.addr());
            ping(&stream, "hello\n").unwrap();
            assert_eq!(server.peers().len(), round + 1);
            // No TIME_WAIT, so that the port is free again.
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
    }
}

#[test]
fn one_source_port_serves_several_destinations() {
    let pair = Pair::new();
    let servers = [80, 81, 82, 83, 84, 85].map(|port| pair.server.serve_echo(port).unwrap());
    let dial = |to| pair.client.run(|| dial_from(40_000, to)).unwrap().unwrap();
    for v6 in [false, true] {
        let address = |server: &EchoServer| if v6 { server.addr6() } else { server.addr() };
        let from = if v6 { pair.client.addr6(40_000) } else { pair.client.addr(40_000) };
        let streams: Vec<_> = servers.iter().map(|server| dial(address(server))).collect();
        for (stream, server) in streams.iter().zip(&servers) {
            assert_eq!((stream.peer_addr().unwrap(), stream.local_addr().unwrap()), (address(server), from));
            ping(stream, "hello\n").unwrap();
            assert_eq!(server.peers().last(), Some(&from));
        }
    }
}

#[test]
fn more_connections_than_there_are_ephemeral_ports() {
    const PORTS: usize = 64;
    const EACH: usize = 20;
    let pair = Pair::new();
    let servers: Vec<_> = (80..96).map(|port| pair.server.serve_echo(port).unwrap()).collect();
    let range = format!("40000 {}", 40_000 + PORTS - 1);
    pair.client.run(|| fs::write("/proc/sys/net/ipv4/ip_local_port_range", range)).unwrap().unwrap();
    for address in [EchoServer::addr, EchoServer::addr6] {
        let mut streams = Vec::new();
        for to in servers.iter().map(address) {
            let some: Vec<_> = (0..EACH).map(|_| dial(&pair.client, to).unwrap()).collect();
            let ports: BTreeSet<_> = some.iter().map(|stream| stream.local_addr().unwrap().port()).collect();
            assert_eq!(ports.len(), EACH, "a server takes two clients for one: {ports:?}");
            streams.extend(some);
        }
        assert!(streams.len() > 4 * PORTS);
    }
}

#[test]
fn the_ports_that_lead_to_the_proxy_are_the_pods_own_to_listen_on() {
    let pair = Pair::new();
    let outsider = pair.outsider(pair.near.node(), "outsider");
    let (client, server) = (&pair.client, &pair.server);
    for port in [15064, 15071, 15079] {
        let served = server.serve_echo(port).unwrap();
        for to in [served.addr(), served.addr6()] {
            for from in [client, server, &outsider] {
                let stream = dial(from, to).unwrap();
                assert_eq!(stream.peer_addr().unwrap(), to);
                assert_eq!(served.peers().last(), Some(&stream.local_addr().unwrap()), "{}", from.name());
            }
        }
        dial(server, (Ipv4Addr::LOCALHOST, port).into()).unwrap();
        // Nobody listens there in the client's pod, and the proxy does not either.
        assert_kernel_refuses(client, client.addr(port));
    }
}

#[test]
fn pinned_maps_can_be_read_by_people() {
    let pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    let stream = dial(&pair.client, server.addr()).unwrap();
    let pods = dump(&pair.near, "PODS");
    let mapped = |ip: Ipv4Addr| Value::from(ip.to_ipv6_mapped().octets().to_vec());
    let pod = &pods[0]["value"];
    assert_eq!(pod["ipv4"], mapped(pair.client.ipv4()), "{pods}");
    assert_eq!(pod["ipv6"], Value::from(pair.client.ipv6().octets().to_vec()), "{pods}");

    let clients = dump(&pair.far, "CLIENTS");
    let port = stream.local_addr().unwrap().port();
    let entries = clients.as_array().unwrap();
    let entry = entries.iter().find(|entry| entry["value"]["port"] == port).expect("the open connection's");
    assert_eq!(entry["value"]["address"], mapped(pair.client.ipv4()), "{entry}");
    assert_eq!(entry["key"]["source"], mapped(pair.server.ipv4()), "{entry}");
    assert_eq!(entry["key"]["destination_port"], 80, "{entry}");
    assert!(entry["key"]["netns"].is_u64() && entry["key"]["source_port"].is_u64(), "{entry}");
}

/// A pinned map as bpftool shows it with the map's BTF.
fn dump(agent: &Agent, map: &str) -> Value {
    let pin = agent.node().pins_dir().unwrap().join("maps").join(map);
    // `-j` would show raw bytes beside it.
    let output = Command::new("bpftool").args(["map", "dump", "pinned"]).arg(pin).output();
    let output = output.expect("bpftool is installed: `cargo xtask setup`");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn nothing_changes_inside_a_pod() {
    let pair = Pair::new();
    let pod = pair.near.node().pod("street", "pod", PodSpec::new()).unwrap();
    let server = pair.server.serve_echo(80).unwrap();
    let before = pod.network_state().unwrap();
    pair.testbed.world().enrolled_namespace("street").unwrap();
    pair.wait_known(&pod, true);
    wait_enrolled(&pair.near, &pod, true);
    assert_eq!(pod.network_state().unwrap(), before, "enrolled");
    dial(&pod, server.addr()).unwrap();
    dial(&pod, server.addr6()).unwrap();
    assert_eq!(pod.network_state().unwrap(), before, "after traffic");
    pod.opt_out().unwrap();
    wait_enrolled(&pair.near, &pod, false);
    assert_eq!(pod.network_state().unwrap(), before, "opted out");
}

fn tcp(domain: Domain) -> Socket {
    Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).unwrap()
}

fn dial_from(port: u16, to: SocketAddr) -> io::Result<TcpStream> {
    let any: IpAddr = if to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = tcp(Domain::for_address(to));
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(any, port).into())?;
    socket.connect_timeout(&to.into(), TIMEOUT)?;
    Ok(timed(socket))
}

fn timed(socket: Socket) -> TcpStream {
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket.set_write_timeout(Some(TIMEOUT)).unwrap();
    socket.into()
}

fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    // accept(2) keeps to it as well.
    SockRef::from(listener).set_read_timeout(Some(TIMEOUT)).unwrap();
    listener.accept().unwrap()
}

fn mapped(ip: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddrV6::new(ip.to_ipv6_mapped(), port, 0, 0).into()
}
