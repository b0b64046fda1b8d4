//! Pods that want to be the agent, or to get around it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::poll::PollFlags;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};
use orlop_tests::traffic::echo;
use orlop_tests::{Pod, PodSpec, wait_for};

use super::{Siege, assert_connection_refused, assert_turned_away};
use crate::mesh::{Mesh, NAMESPACE, TIMEOUT, await_value, failed, record, records};
use crate::pattern::{assert_reset, ready, reset};

const OWN_PORTS: [u16; 4] = [15001, 15006, 15008, 15053];

/// Listens on the proxy's ports, in both families.
fn squat(pod: &Pod) -> Vec<TcpListener> {
    let families = [false, true].into_iter();
    families.flat_map(|v6| OWN_PORTS.map(|port| pod.listen(v6, port).unwrap())).collect()
}

/// Nobody has ever connected to these.
fn assert_unused(listeners: &[TcpListener]) {
    for listener in listeners {
        let address = listener.local_addr().unwrap();
        assert!(!ready(listener, PollFlags::POLLIN, Duration::ZERO).unwrap(), "someone came to {address}");
    }
}

/// A pod on the server's node that took the proxy's ports before it was enrolled.
fn squatter(mesh: &Mesh) -> (Pod, Vec<TcpListener>) {
    let pod = mesh.nodes[1]
        .pod(NAMESPACE, "squatter", PodSpec::new().service_account("squatter").opt_out())
        .unwrap();
    let listeners = squat(&pod);
    pod.opt_in().unwrap();
    mesh.server_agent().wait_enrolled([&mesh.server, &pod]).unwrap();
    mesh.client_agent().wait_until(|dump| dump.contains("shop/squatter")).unwrap();
    (pod, listeners)
}

#[test]
fn a_pod_that_took_the_ports_first_is_enrolled_and_gets_nothing_there() {
    let siege = Siege::new();
    let (pod, listeners) = squatter(&siege.mesh);
    let served = pod.serve_echo(80).unwrap();
    // In through a tunnel, in in clear, and out.
    for (client, to) in [
        (&siege.mesh.client, served.addr()),
        (&siege.mesh.client, served.addr6()),
        (&siege.attacker, served.addr()),
        (&pod, siege.echo.addr()),
        (&pod, siege.echo.addr6()),
    ] {
        let stream = client.connect(to, TIMEOUT).unwrap();
        assert_eq!(echo(&stream, b"hello").unwrap(), b"hello", "{} to {to}", client.name());
    }
    let own = format!("{NAMESPACE}/squatter");
    record(siege.mesh.server_agent(), &[("direction", "outbound"), ("src_workload", &own)]);
    record(siege.mesh.client_agent(), &[("direction", "outbound"), ("dst_workload", &own)]);
    for port in [15001, 15006] {
        assert_connection_refused(siege.attacker.connect(pod.addr(port), TIMEOUT));
    }
    assert_unused(&listeners);
}

#[test]
fn a_port_that_the_proxy_had_to_move_to_leads_nowhere() {
    let siege = Siege::new();
    let (pod, _listeners) = squatter(&siege.mesh);
    let moved: Vec<u16> = listening(&pod).into_iter().filter(|port| !OWN_PORTS.contains(port)).collect();
    assert_eq!(moved.len(), OWN_PORTS.len(), "{moved:?}");
    let agent = siege.mesh.server_agent();
    let before = records(agent).len();
    for port in &moved {
        // From outside in clear, through a tunnel, and from inside.
        for client in [&siege.attacker, &siege.mesh.client, &pod] {
            let connected = client.connect(pod.addr(*port), TIMEOUT);
            if let Ok(mut stream) = connected.as_ref() {
                let _ = stream.write_all(b"hello");
            }
            assert_turned_away(connected);
        }
    }
    await_value(1.0, || agent.metric("orlop_connections_active", &[]).unwrap());
    let after = records(agent).len() - before;
    assert!(after <= 3 * moved.len() + 3, "{after} records: it dials itself");
    siege.assert_serves();
}

/// The ports that anybody listens on in the pod, from both families' tables.
fn listening(pod: &Pod) -> Vec<u16> {
    let tables = pod.output("cat", &["/proc/net/tcp", "/proc/net/tcp6"]).unwrap();
    let mut ports: Vec<u16> = tables
        .lines()
        .filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            // proc(5): local address, remote address, state; 0A is LISTEN.
            let (local, state) = (fields.get(1)?, fields.get(3)?);
            (*state == "0A").then(|| u16::from_str_radix(local.rsplit(':').next()?, 16).ok())?
        })
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

#[test]
fn a_pod_that_takes_the_ports_while_the_agent_is_dead_gets_nothing_there() {
    let mut siege = Siege::new();
    siege.mesh.server_agent_mut().kill().unwrap();
    assert_reset(&siege.open);
    let pod = siege.mesh.server.clone();
    let mut listeners = squat(&pod);
    listeners.push(pod.listen(false, 81).unwrap());
    for port in [80, 81, 15001, 15006, 15008, 15053] {
        assert_connection_refused(siege.attacker.connect(pod.addr(port), TIMEOUT));
        assert_connection_refused(siege.mesh.nodes[0].connect(pod.addr6(port), TIMEOUT));
    }
    // Its own connections would have to pass 15001, which is now its own.
    assert_connection_refused(pod.connect(siege.mesh.client.addr(80), TIMEOUT));
    siege.mesh.server_agent_mut().start_again().unwrap();
    siege.mesh.server_agent_mut().wait_ready().unwrap();
    siege.open = siege.mesh.client.connect(siege.echo.addr(), TIMEOUT).unwrap();
    siege.assert_serves();
    assert_unused(&listeners);
}

#[test]
fn a_pod_cannot_listen_beside_the_proxy() {
    let mesh = Mesh::second_only(&[]);
    for port in OWN_PORTS {
        let result = mesh.server.run(|| {
            let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
            setsockopt(&socket, sockopt::ReusePort, &true).unwrap();
            setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
            let address = SockaddrStorage::from(SocketAddr::from(([0, 0, 0, 0], port)));
            nix::sys::socket::bind(socket.as_raw_fd(), &address)
        });
        assert_eq!(result.unwrap(), Err(nix::errno::Errno::EADDRINUSE), "port {port}");
    }
}

#[test]
fn a_mark_makes_no_socket_the_agents() {
    let siege = Siege::new();
    let server = &siege.mesh.server;
    let capture = siege.mesh.testbed.capture().unwrap();
    for mark in [1, 0x539, 0x1337, 0x400, u32::MAX] {
        let stream = siege.mesh.client.run(|| marked(mark, siege.echo.addr())).unwrap();
        assert_eq!(echo(&stream, b"marked and in clear?").unwrap(), b"marked and in clear?");
    }
    let frames = capture.stop().unwrap();
    assert!(!frames.contains(b"marked and in clear?"));
    assert_eq!(frames.tcp_ports(), [15008].into());
    assert_eq!(server.addr(80), siege.echo.addr());
}

/// A connection whose socket has this mark; needs CAP_NET_ADMIN, which the pod is given here.
fn marked(mark: u32, to: SocketAddr) -> TcpStream {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
    setsockopt(&socket, sockopt::Mark, &mark).unwrap();
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to)).unwrap();
    TcpStream::from(socket)
}

#[test]
fn a_second_connection_gets_nothing_of_the_firsts_destination() {
    let siege = Siege::new();
    // Whoever dials 15001 with a port that was used before is asked where to, and nobody knows.
    let mut first = siege.mesh.client.connect(siege.echo.addr(), TIMEOUT).unwrap();
    let from = first.local_addr().unwrap();
    first.write_all(b"x").unwrap();
    first.read_exact(&mut [0]).unwrap();
    reset(first);
    // A process that another test is just starting may hold the first one's socket for a moment more.
    let mut second = Err(io::ErrorKind::AddrInUse.into());
    wait_for(TIMEOUT, || {
        let dial = || dial_from(from, SocketAddr::new(from.ip(), 15001));
        second = siege.mesh.client.run(dial).unwrap();
        second.as_ref().err().is_none_or(|error| error.kind() != io::ErrorKind::AddrInUse)
    });
    assert_turned_away(second);
    await_value(1.0, || failed(siege.mesh.client_agent(), "no_original_destination"));
    siege.assert_serves();
}

fn dial_from(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
    setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
    nix::sys::socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

#[test]
fn what_listens_on_loopback_stays_the_pods_own() {
    let siege = Siege::new();
    let server = &siege.mesh.server;
    let private = server.run(|| TcpListener::bind("127.0.0.1:8080").unwrap()).unwrap();
    assert_turned_away(siege.mesh.client.connect(server.addr(8080), TIMEOUT));
    let mut inside = server.connect(private.local_addr().unwrap(), TIMEOUT).unwrap();
    let (mut accepted, _) = private.accept().unwrap();
    inside.write_all(b"x").unwrap();
    accepted.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_client_that_is_gone_before_it_is_accepted_does_not_pass_for_the_pod_itself() {
    let mesh = Mesh::new();
    for v6 in [false, true] {
        let listener = mesh.server.listen(v6, 80).unwrap();
        let to = if v6 { mesh.server.addr6(80) } else { mesh.server.addr(80) };
        // Through a tunnel, and in clear.
        let outsider = mesh.nodes[0].pod("outside", &format!("v6-{v6}"), PodSpec::new()).unwrap();
        for client in [&mesh.client, &outsider] {
            let mut stream = client.connect(to, TIMEOUT).unwrap();
            let own = stream.local_addr().unwrap();
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
            assert!(ready(&listener, PollFlags::POLLIN, TIMEOUT).unwrap());
            reset(stream);
            record(mesh.server_agent(), &[("direction", "inbound"), ("src", &own.to_string())]);
            assert_eq!(listener.accept().unwrap().1, own, "{}", client.name());
        }
    }
}
