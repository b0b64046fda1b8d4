//! What a socket can do before, while and after it dials makes nobody else of it.

use std::io::{self, ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;

use nix::libc;
use nix::sys::socket::{MsgFlags, SockaddrStorage, sendto};
use orlop_tests::{Pod, wait_for};
use socket2::{Domain, Protocol, Socket, Type};

use super::attacks::{SHORT, assert_nobody_else, attacker, besieged};
use super::{NO_NEIGHBOURS, authorization_policy, is_straight};
use crate::pair::{TIMEOUT, apply, dial, is_refusal, ping, remove};

const NO_ATTACKERS: &str = "{action: DENY, rules: [{from: [{source: {serviceAccounts: [attacker]}}]}]}";

fn tcp() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket
}

/// Dials with a socket that may have dialled before, and hears of the server.
fn dial_with(socket: &Socket, to: SocketAddr) -> io::Result<TcpStream> {
    socket.connect_timeout(&to.into(), SHORT)?;
    let stream = TcpStream::from(socket.try_clone()?);
    stream.set_nonblocking(false)?;
    ping(&stream, "are you there?\n")?;
    Ok(stream)
}

/// connect(2) with AF_UNSPEC: ends the connection, and the socket may dial again.
fn disconnect(socket: &Socket) {
    let nowhere = libc::sockaddr { sa_family: libc::AF_UNSPEC as u16, sa_data: [0; 14] };
    let length = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: an address as long as it says.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const nowhere, length) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

fn assert_not_served(result: io::Result<TcpStream>) {
    use ErrorKind::{AddrNotAvailable, NetworkUnreachable, TimedOut};
    let error = result.map(drop).expect_err("was served");
    let no_way = matches!(error.kind(), AddrNotAvailable | NetworkUnreachable | TimedOut);
    assert!(is_refusal(&error) || no_way, "{error}");
}

#[test]
fn a_socket_that_dials_again_is_judged_again() {
    let (set, _open) = besieged();
    let (to, closed) = (set.server.addr(), set.pair.server.addr(81));
    set.neighbour
        .run(|| {
            let socket = tcp();
            assert_not_served(dial_with(&socket, closed));
            disconnect(&socket);
            let stream = dial_with(&socket, to).unwrap();
            assert!(is_straight(&set.neighbour, &stream));
            disconnect(&socket);
            assert!(is_straight(&set.neighbour, &dial_with(&socket, to).unwrap()));
            disconnect(&socket);

            apply(&set.pair, "policy.yaml", &authorization_policy(NO_NEIGHBOURS));
            assert_not_served(dial_with(&socket, to));
            disconnect(&socket);
            remove(&set.pair, "policy.yaml");
            dial_with(&socket, to).unwrap();
        })
        .unwrap();
    assert_nobody_else(&set);
}

#[test]
fn a_socket_is_of_the_pod_that_it_was_made_in() {
    let (set, _open) = besieged();
    let attacker = attacker(&set);
    let peers = set.server.peers().len();
    // Made by the attacker, dialled by a process of the neighbour.
    let strangers = attacker.run(tcp).unwrap();
    assert_not_served(set.neighbour.run(|| dial_with(&strangers, set.server.addr())).unwrap());
    assert_eq!(set.server.peers().len(), peers);
    // The neighbour may do the attacker's work if it wants to: it has given its own socket away.
    let own = set.neighbour.run(tcp).unwrap();
    let stream = attacker.run(|| dial_with(&own, set.server.addr())).unwrap().unwrap();
    assert_eq!(stream.local_addr().unwrap().ip(), set.neighbour.ipv4());
    assert_nobody_else(&set);
}

#[test]
fn an_address_that_is_not_the_pods_own_goes_nowhere() {
    let (set, _open) = besieged();
    let attacker = attacker(&set);
    let peers = set.server.peers().len();
    let from = SocketAddr::from((set.neighbour.ipv4(), 0));
    let outsider = set.pair.outsider(set.pair.far.node(), "outsider");
    for free in [Socket::set_freebind_v4, Socket::set_ip_transparent_v4] {
        for thief in [&attacker, &outsider] {
            let dialled = thief.run(|| {
                let socket = tcp();
                free(&socket, true)?;
                socket.bind(&from.into())?;
                dial_with(&socket, set.server.addr())
            });
            assert_not_served(dialled.unwrap());
        }
    }
    assert_eq!(set.server.peers().len(), peers, "{:?}", set.server.peers());
}

#[test]
fn data_in_the_first_packet_is_let_in_by_the_same_rule() {
    let (set, _open) = besieged();
    let attacker = attacker(&set);
    let peers = set.server.peers().len();
    // Client and server, with no cookie asked for: tcp(7), ip-sysctl.
    let enable =
        |pod: &Pod| pod.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "1543")).unwrap().unwrap();
    [&set.pair.server, &set.neighbour, &attacker].into_iter().for_each(enable);
    let server = SocketAddrV4::new(set.pair.server.ipv4(), 80);
    let say = |pod: &Pod| {
        pod.run(|| -> io::Result<(TcpStream, [u8; 6])> {
            let socket = tcp();
            let to = SockaddrStorage::from(server);
            sendto(socket.as_raw_fd(), b"hello\n", &to, MsgFlags::from_bits_retain(libc::MSG_FASTOPEN))?;
            let mut stream = TcpStream::from(socket);
            let mut back = [0; 6];
            stream.read_exact(&mut back)?;
            Ok((stream, back))
        })
        .unwrap()
    };
    let (stream, back) = say(&set.neighbour).unwrap();
    assert_eq!(&back, b"hello\n");
    assert!(is_straight(&set.neighbour, &stream));
    say(&attacker).expect_err("was served");
    assert_eq!(set.server.peers().len(), peers + 1);
    assert_nobody_else(&set);
}

#[test]
fn both_dialling_at_once_gives_neither_more_than_its_own() {
    let (set, _open) = besieged();
    let attacker = attacker(&set);
    apply(&set.pair, "policy.yaml", &authorization_policy(NO_ATTACKERS));
    let (theirs, own) = (attacker.addr(45_000), set.pair.server.addr(46_000));
    // The server may dial the attacker, the attacker may not dial the server.
    let listener = attacker.serve_echo(45_000).unwrap();
    let straight =
        wait_for(TIMEOUT, || is_straight(&set.pair.server, &dial(&set.pair.server, theirs).unwrap()));
    assert!(straight);
    drop(listener);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let dials = |pod: &Pod, from: SocketAddr, to: SocketAddr| {
        pod.run(|| {
            let mut connected = 0;
            for _ in 0..200 {
                let socket = tcp();
                socket.set_reuse_address(true).unwrap();
                socket.set_reuse_port(true).unwrap();
                let port = SocketAddr::from((Ipv4Addr::UNSPECIFIED, from.port()));
                if socket.bind(&port.into()).is_ok() && dial_with(&socket, to).is_ok() {
                    connected += 1;
                }
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
            }
            connected
        })
        .unwrap()
    };
    let (a, b) = std::thread::scope(|scope| {
        let a = scope.spawn(|| dials(&attacker, theirs, own));
        let b = dials(&set.pair.server, own, theirs);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        (a.join().unwrap(), b)
    });
    assert_eq!((a, b), (0, 0));
    assert_nobody_else(&set);
}
