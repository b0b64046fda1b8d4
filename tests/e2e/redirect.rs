//! Redirection: what an application sees of its sockets is what it would see without a mesh.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket,
};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, SockaddrStorage, sendto};
use orlop_tests::{PodSpec, wait_for};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::mesh::{Mesh, TIMEOUT, assert_kernel_refuses, dial, ping, wait_enrolled};

#[test]
fn both_ends_see_each_other_over_ipv4() {
    let mesh = Mesh::new();
    both_ends_see_each_other(&mesh, mesh.server.addr(80), mesh.client.ipv4().into());
}

#[test]
fn both_ends_see_each_other_over_ipv6() {
    let mesh = Mesh::new();
    both_ends_see_each_other(&mesh, mesh.server.addr6(80), mesh.client.ipv6().into());
}

fn both_ends_see_each_other(mesh: &Mesh, to: SocketAddr, client_ip: IpAddr) {
    let listener = mesh.server.listen(to.is_ipv6(), to.port()).unwrap();
    let client = mesh.client.connect(to, TIMEOUT).unwrap();
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
    let mesh = Mesh::new();
    let to = mapped(mesh.server.ipv4(), 80);
    let listener = mesh.server.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80))).unwrap().unwrap();
    let client = mesh.client.connect(to, TIMEOUT).unwrap();
    let (server, accepted) = accept(&listener);
    let client_addr = client.local_addr().unwrap();
    assert_eq!(client.peer_addr().unwrap(), to);
    assert_eq!(client_addr.ip(), mapped(mesh.client.ipv4(), 0).ip());
    assert_eq!(accepted, client_addr);
    assert_eq!(server.peer_addr().unwrap(), client_addr);
    assert_eq!(server.local_addr().unwrap(), to);
}

#[test]
fn a_pod_reaches_itself_without_the_proxy() {
    let mesh = Mesh::new();
    let pod = &mesh.client;
    let _server = pod.serve_echo(80).unwrap();
    for ip in [pod.ipv4().into(), pod.ipv6().into(), IpAddr::from([127, 0, 0, 1]), [127, 1, 2, 3].into()] {
        let to = SocketAddr::new(ip, 80);
        let stream = dial(pod, to).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), to);
    }
    dial(pod, (Ipv6Addr::LOCALHOST, 80).into()).unwrap();
    dial(pod, mapped(Ipv4Addr::LOCALHOST, 80)).unwrap();
    dial(pod, mapped(pod.ipv4(), 80)).unwrap();
    assert_eq!(mesh.near.metric("istio_tcp_connections_opened_total", &[]).unwrap(), 0.0);
    assert_eq!(mesh.near.metric("orlop_connections_failed_total", &[]).unwrap(), 0.0);
}

#[test]
fn the_proxys_ports_dialled_from_inside_are_closed_with_a_reason() {
    let mesh = Mesh::new();
    let pod = &mesh.client;
    let mut expected = 0.0;
    for port in [15001, 15006] {
        for to in [pod.addr(port), pod.addr6(port), (Ipv4Addr::LOCALHOST, port).into()] {
            let error = dial(pod, to).expect_err("was served");
            assert!(is_reset(&error), "{to}: {error}");
            expected += 1.0;
            mesh.near
                .wait_log(
                    |log| log.matches("no_original_destination").count() as f64 >= expected,
                    TIMEOUT,
                )
                .unwrap();
        }
    }
    let reason = ["reason=\"no_original_destination\""];
    assert_eq!(mesh.near.metric("orlop_connections_failed_total", &reason).unwrap(), expected);
}

#[test]
fn the_proxys_ports_dialled_from_outside_are_refused_by_the_kernel() {
    let mesh = Mesh::new();
    let outsider = mesh.outsider(mesh.far.node(), "outsider");
    for port in [15001, 15006, 15053] {
        assert_kernel_refuses(&outsider, mesh.server.addr(port));
        assert_kernel_refuses(&outsider, mesh.server.addr6(port));
    }
    let reason = ["reason=\"reserved_port\""];
    assert_eq!(mesh.far.metric("orlop_kernel_refused_total", &reason).unwrap(), 6.0);
}

#[test]
fn the_proxys_ports_of_another_pod_are_out_of_reach_through_the_mesh() {
    let mesh = Mesh::new();
    for port in [15001, 15006, 15008, 15053] {
        let error = dial(&mesh.client, mesh.server.addr(port)).expect_err("was served");
        assert!(is_reset(&error), "{port}: {error}");
    }
    let reason = ["reporter=\"destination\"", "reason=\"not_this_pod\""];
    assert_eq!(mesh.far.metric("orlop_connections_failed_total", &reason).unwrap(), 4.0);
}

#[test]
fn udp_is_left_alone() {
    let mesh = Mesh::new();
    for (from, to) in
        [(mesh.client.addr(0), mesh.server.addr(53)), (mesh.client.addr6(0), mesh.server.addr6(53))]
    {
        let server = mesh.server.run(|| UdpSocket::bind(to)).unwrap().unwrap();
        let client = mesh.client.run(|| UdpSocket::bind(from)).unwrap().unwrap();
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        }
        client.connect(to).unwrap();
        client.send(b"question").unwrap();
        let mut buffer = [0; 16];
        let (length, peer) = server.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], peer), (&b"question"[..], client.local_addr().unwrap()));
        server.send_to(b"answer", peer).unwrap();
        let (length, peer) = client.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], peer), (&b"answer"[..], to));
        assert_eq!(client.peer_addr().unwrap(), to);
    }
}

#[test]
fn a_non_blocking_connect_works() {
    let mesh = Mesh::new();
    let _server = mesh.server.serve_echo(80).unwrap();
    let to = mesh.server.addr(80);
    let socket = mesh.client.run(|| tcp(Domain::IPV4)).unwrap();
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
    let mut mesh = Mesh::new();
    let _remote = mesh.server.serve_echo(80).unwrap();
    let own = mesh.client.serve_echo(81).unwrap();
    mesh.near.kill().unwrap();
    let sockets = [(); 2].map(|()| mesh.client.run(|| tcp(Domain::IPV4)).unwrap());
    for socket in &sockets {
        let error = socket.connect(&mesh.server.addr(80).into()).expect_err("connected without an agent");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    }
    mesh.near.restart().unwrap();
    let second = mesh.pod(&mesh.far, "second", PodSpec::new());
    let _second = second.serve_echo(82).unwrap();
    let [to_itself, to_another] = sockets;
    for (socket, to) in [(to_itself, own.addr()), (to_another, second.addr(82))] {
        socket.connect(&to.into()).unwrap();
        assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(to));
        ping(&timed(socket), "hello\n").unwrap();
    }
    assert_eq!(own.peers()[0].ip(), mesh.client.ipv4());
}

#[test]
fn fast_open_is_redirected_too() {
    let mesh = Mesh::new();
    let server = mesh.server.serve_echo(80).unwrap();
    let secret = b"sent with the SYN, or so it hopes";
    let ((), frames) = mesh.captured(|| {
        for to in [server.addr(), server.addr6()] {
            let socket = mesh.client.run(|| tcp(Domain::for_address(to))).unwrap();
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
    let mesh = Mesh::new();
    let server = mesh.server.serve_echo(80).unwrap();
    let secret = b"sent over several paths, or so it hopes";
    let (results, frames) = mesh.captured(|| {
        [server.addr(), server.addr6()].map(|to| -> io::Result<()> {
            let protocol = Some(Protocol::MPTCP);
            let socket = mesh.client.run(|| Socket::new(Domain::for_address(to), Type::STREAM, protocol));
            let socket = socket.unwrap()?;
            socket.connect_timeout(&to.into(), TIMEOUT)?;
            let mut stream = timed(socket);
            stream.write_all(secret)?;
            stream.shutdown(Shutdown::Write)?;
            stream.read_to_end(&mut Vec::new()).map(drop)
        })
    });
    assert!(!frames.contains(secret), "in clear on the wire: {results:?}");
}

#[test]
fn two_pods_use_the_same_source_port_at_once() {
    let mesh = Mesh::new();
    let other = mesh.pod(&mesh.near, "other", PodSpec::new());
    let (first, second) = (mesh.server.serve_echo(80).unwrap(), mesh.server.serve_echo(81).unwrap());
    let one = mesh.client.run(|| dial_from(40_000, first.addr())).unwrap().unwrap();
    let two = other.run(|| dial_from(40_000, second.addr())).unwrap().unwrap();
    ping(&one, "one\n").unwrap();
    ping(&two, "two\n").unwrap();
    assert_eq!(first.peers(), [mesh.client.addr(40_000)]);
    assert_eq!(second.peers(), [other.addr(40_000)]);
}

#[test]
fn a_source_port_used_again_leads_where_it_was_dialled() {
    let mesh = Mesh::new();
    let (first, second) = (mesh.server.serve_echo(80).unwrap(), mesh.server.serve_echo(81).unwrap());
    for round in 0..3 {
        for server in [&first, &second] {
            let stream = mesh.client.run(|| dial_from(40_000, server.addr())).unwrap().unwrap();
            assert_eq!(stream.peer_addr().unwrap(), server.addr());
            ping(&stream, "hello\n").unwrap();
            assert_eq!(server.peers().len(), round + 1);
            // No TIME_WAIT, so that the port is free again.
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
    }
}

#[test]
fn one_source_port_is_shared_by_two_destinations_or_refused() {
    let mesh = Mesh::new();
    let (first, second) = (mesh.server.serve_echo(80).unwrap(), mesh.server.serve_echo(81).unwrap());
    let one = mesh.client.run(|| dial_from(40_000, first.addr())).unwrap().unwrap();
    ping(&one, "one\n").unwrap();
    match mesh.client.run(|| dial_from(40_000, second.addr())).unwrap() {
        Ok(two) => ping(&two, "two\n").unwrap(),
        Err(error) => assert_eq!(error.kind(), ErrorKind::AddrNotAvailable, "{error}"),
    }
    ping(&one, "still one\n").unwrap();
    assert_eq!(first.peers().len(), 1);
}

#[test]
fn nothing_changes_inside_a_pod() {
    let mesh = Mesh::new();
    let pod = mesh.near.node().pod("street", "pod", PodSpec::new()).unwrap();
    let server = mesh.server.serve_echo(80).unwrap();
    let before = pod.network_state().unwrap();
    mesh.testbed.world().enrolled_namespace("street").unwrap();
    mesh.wait_known(&pod, true);
    wait_enrolled(&mesh.near, &pod, true);
    assert_eq!(pod.network_state().unwrap(), before, "enrolled");
    dial(&pod, server.addr()).unwrap();
    dial(&pod, server.addr6()).unwrap();
    assert_eq!(pod.network_state().unwrap(), before, "after traffic");
    pod.opt_out().unwrap();
    wait_enrolled(&mesh.near, &pod, false);
    assert_eq!(pod.network_state().unwrap(), before, "opted out");
}

fn tcp(domain: Domain) -> Socket {
    Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).unwrap()
}

fn dial_from(port: u16, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = tcp(Domain::IPV4);
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
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

fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}
