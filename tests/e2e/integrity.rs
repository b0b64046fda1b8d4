//! Every byte arrives once and in its place, in whatever shape it is sent and read, on every way between two pods.
//!
//! Each byte is compared with the one that was sent. `cargo xtask integrity` sends as many as one wants.

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv};
use orlop_tests::traffic::ReadUninterrupted;
use orlop_tests::{Pod, PodSpec, ServiceSpec, TargetPort, wait_for};

use crate::pair::{Pair, TIMEOUT};
use crate::pattern::{Pattern, assert_reset, fill, receive, reset, send};
use crate::samenode::is_in_kernel;
use crate::tunnel::accept;

const PORT: u16 = 80;
/// Odd on purpose: bytes one by one, around the sizes of buffers, and beyond a frame.
const SIZES: &[usize] = &[1, 1, 1, 13, 4095, 4097, 65_537, 131_073, 1, 300_007, 16_383];
/// A socket that takes nothing for so long is stuck.
const STUCK: Duration = Duration::from_millis(200);

/// In bulk, both directions together: `$ORLOP_INTEGRITY_BYTES`.
fn volume() -> u64 {
    std::env::var("ORLOP_INTEGRITY_BYTES").ok().and_then(|bytes| bytes.parse().ok()).unwrap_or(256 << 20)
}

/// A way from a client to a server.
struct Way {
    client: Pod,
    to: SocketAddr,
    listener: TcpListener,
    _pair: Pair,
}

impl Way {
    fn new(pair: Pair, client: &Pod, to: SocketAddr) -> Self {
        let listener = pair.server.listen(false, PORT).unwrap();
        Self { client: client.clone(), to, listener, _pair: pair }
    }

    /// Waits until connections do without the proxy.
    fn straight(self) -> Self {
        let straight = || {
            let (client, _server) = self.connect();
            is_in_kernel(&self.client, client.local_addr().unwrap().port(), PORT)
        };
        assert!(wait_for(TIMEOUT, straight), "it goes through the proxy");
        self
    }

    /// Both ends of a connection.
    fn connect(&self) -> (TcpStream, TcpStream) {
        let client = self.client.connect(self.to, TIMEOUT).unwrap();
        (client, accept(&self.listener).unwrap())
    }
}

fn tunnel() -> Way {
    let pair = Pair::new();
    let (client, to) = (pair.client.clone(), pair.server.addr(PORT));
    Way::new(pair, &client, to)
}

fn same_node() -> Way {
    let pair = Pair::new();
    let client = pair.pod(&pair.far, "neighbour", PodSpec::new());
    let to = pair.server.addr(PORT);
    Way::new(pair, &client, to).straight()
}

fn service() -> Way {
    let pair = Pair::new();
    let client = pair.pod(&pair.far, "neighbour", PodSpec::new());
    let vip = pair.testbed.vip();
    let to = SocketAddr::new(vip[0], 8000);
    let spec = ServiceSpec::new("shop", "web", 8000, TargetPort::Number(PORT)).cluster_ips(vip);
    pair.change(|world| world.service(&spec.endpoints([&pair.server])));
    Way::new(pair, &client, to).straight()
}

#[test]
fn tunnel_keeps_every_byte() {
    every_shape(&tunnel());
}

#[test]
fn node_keeps_every_byte() {
    every_shape(&same_node());
}

#[test]
fn service_keeps_every_byte() {
    every_shape(&service());
}

fn every_shape(way: &Way) {
    both_ways_at_once(way, volume() / 2);
    a_reader_that_stops(way);
    a_reader_that_looks_first(way, 10_000_000);
    single_bytes(way, 100_000);
    cut_short(way);
}

/// Each end says all, and then still hears all.
fn both_ways_at_once(way: &Way, length: u64) {
    let (client, server) = way.connect();
    thread::scope(|scope| {
        for (stream, own) in [(&client, 1), (&server, 2)] {
            scope.spawn(move || {
                send(stream, own, length, SIZES).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
            });
        }
        for (mut stream, others) in [(&client, 2), (&server, 1)] {
            scope.spawn(move || {
                receive(stream, others, length).unwrap();
                assert_eq!(stream.read_uninterrupted(&mut [0]).unwrap(), 0);
            });
        }
    });
}

fn a_reader_that_stops(way: &Way) {
    let (client, server) = way.connect();
    for (from, to) in [(&client, &server), (&server, &client)] {
        let taken = fill(from, 3, STUCK).unwrap().position();
        receive(to, 3, taken).unwrap();
    }
}

fn a_reader_that_looks_first(way: &Way, length: u64) {
    let (client, server) = way.connect();
    thread::scope(|scope| {
        scope.spawn(|| {
            send(&client, 4, length, SIZES).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
        });
        let (mut pattern, mut buffer) = (Pattern::new(4), vec![0; 30_000]);
        loop {
            let seen = recv(server.as_raw_fd(), &mut buffer, MsgFlags::MSG_PEEK).unwrap();
            pattern.clone().check(&buffer[..seen]);
            let taken = (&server).read_uninterrupted(&mut buffer[..(seen / 2 + 1).min(30_000)]).unwrap();
            if taken == 0 {
                break;
            }
            pattern.check(&buffer[..taken]);
        }
        assert_eq!(pattern.position(), length);
    });
}

fn single_bytes(way: &Way, length: u64) {
    let (client, server) = way.connect();
    thread::scope(|scope| {
        scope.spawn(|| send(&client, 5, length, &[1]).unwrap());
        receive(&server, 5, length).unwrap();
    });
}

/// What came before a reset is right, and a reset is no orderly end.
fn cut_short(way: &Way) {
    for by_client in [true, false] {
        let (client, server) = way.connect();
        let (ours, theirs) = if by_client { (client, server) } else { (server, client) };
        send(&ours, 6, 50_000, SIZES).unwrap();
        receive(&theirs, 6, 50_000).unwrap();
        reset(ours);
        assert_reset(&theirs);
    }
}
