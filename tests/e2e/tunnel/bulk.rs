//! Much at once: backpressure, readers that stop, and every byte in its place.

use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv};
use orlop_tests::traffic::ReadUninterrupted;

use super::{PORT, connect, pair};
use crate::mesh::{Mesh, tunnels};
use crate::pattern::{Pattern, fill, receive, send};

const MIB: u64 = 1 << 20;
/// A socket that takes nothing for so long is stuck.
const STUCK: Duration = Duration::from_millis(500);
/// Odd on purpose: bytes one by one, around the sizes of buffers, and beyond a frame.
const SIZES: &[usize] = &[1, 1, 1, 13, 4095, 4097, 65_537, 131_073, 1, 300_007, 16_383];

#[test]
fn a_server_that_never_reads_stops_the_client() {
    let mesh = Mesh::new();
    let (client, server) = pair(&mesh);
    assert_stops(&client, &server);
}

#[test]
fn a_client_that_never_reads_stops_the_server() {
    let mesh = Mesh::new();
    let (client, server) = pair(&mesh);
    assert_stops(&server, &client);
}

/// What `from` can send is bounded, and all of it arrives once `to` reads.
fn assert_stops(from: &TcpStream, to: &TcpStream) {
    let taken = fill(from, 7, STUCK).unwrap().position();
    assert!(taken < 16 * MIB, "{taken} bytes were taken");
    thread::scope(|scope| {
        scope.spawn(|| {
            send_rest(from, 7, taken, 8 * MIB);
            from.shutdown(Shutdown::Write).unwrap();
        });
        receive(to, 7, taken + 8 * MIB).unwrap();
        let mut end = to;
        assert_eq!(end.read_uninterrupted(&mut [0]).unwrap(), 0);
    });
}

fn send_rest(mut stream: &TcpStream, seed: u8, from: u64, length: u64) {
    let mut pattern = Pattern::new(seed);
    pattern.take(usize::try_from(from).unwrap());
    std::io::Write::write_all(&mut stream, &pattern.take(usize::try_from(length).unwrap())).unwrap();
}

#[test]
fn one_stopped_reader_does_not_hold_up_its_tunnel() {
    assert_others_move_on(1);
}

#[test]
fn eight_stopped_readers_do_not_hold_up_their_tunnel() {
    assert_others_move_on(8);
}

#[test]
fn ninety_nine_stopped_readers_do_not_hold_up_their_tunnel() {
    assert_others_move_on(99);
}

fn assert_others_move_on(stopped: usize) {
    let mesh = Mesh::new();
    let listener = mesh.server.listen(false, PORT).unwrap();
    let streams: Vec<_> = (0..stopped).map(|_| connect(&mesh.client, &mesh.server, &listener)).collect();
    let (client, server) = connect(&mesh.client, &mesh.server, &listener);
    super::at_once(&streams, |(client, _)| {
        assert!(fill(client, 8, STUCK).unwrap().position() > 0);
    });
    thread::scope(|scope| {
        scope.spawn(|| send(&client, 9, 50 * MIB, &[100_000]).unwrap());
        receive(&server, 9, 50 * MIB).unwrap();
    });
    assert_eq!(tunnels(mesh.client_agent(), "outbound"), 1.0, "all of them in one tunnel");
}

#[test]
fn two_hundred_megabytes_each_way_at_once_arrive_as_they_were_sent() {
    let mesh = Mesh::new();
    let (client, server) = pair(&mesh);
    let length = 200_000_001;
    thread::scope(|scope| {
        for (stream, own) in [(&client, 10), (&server, 11)] {
            scope.spawn(move || {
                send(stream, own, length, SIZES).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
            });
        }
        for (mut stream, others) in [(&client, 11), (&server, 10)] {
            scope.spawn(move || {
                receive(stream, others, length).unwrap();
                assert_eq!(stream.read_uninterrupted(&mut [0]).unwrap(), 0);
            });
        }
    });
}

#[test]
fn a_reader_that_looks_before_it_takes_gets_every_byte() {
    let mesh = Mesh::new();
    let (client, server) = pair(&mesh);
    let length = 10_000_000;
    thread::scope(|scope| {
        scope.spawn(|| {
            send(&client, 12, length, SIZES).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
        });
        let mut pattern = Pattern::new(12);
        let mut buffer = vec![0; 30_000];
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

#[test]
fn many_single_bytes_arrive() {
    let mesh = Mesh::new();
    let (client, server) = pair(&mesh);
    thread::scope(|scope| {
        scope.spawn(|| send(&client, 13, 200_000, &[1]).unwrap());
        receive(&server, 13, 200_000).unwrap();
    });
}
