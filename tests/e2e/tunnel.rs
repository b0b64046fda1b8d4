//! HBONE between the agents of two nodes, seen from the applications.

mod bulk;
mod ends;
mod idle;
mod pooling;

use std::io;
use std::net::{TcpListener, TcpStream};
use std::thread;

use nix::poll::PollFlags;
use orlop_tests::Pod;

use crate::mesh::{Mesh, TIMEOUT};
use crate::pattern::ready;

/// The port of the servers.
const PORT: u16 = 80;

/// A connection from the mesh's client to its server, both ends in hand.
fn pair(mesh: &Mesh) -> (TcpStream, TcpStream) {
    let listener = mesh.server.listen(false, PORT).unwrap();
    connect(&mesh.client, &mesh.server, &listener)
}

/// One more connection to `listener`, which is in `server`.
fn connect(client: &Pod, server: &Pod, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let dialled = client.connect(server.addr(listener.local_addr().unwrap().port()), TIMEOUT).unwrap();
    (dialled, accept(listener).unwrap())
}

/// Accepts, for some time; reads and writes on the stream get the same limit.
pub(crate) fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    if !ready(listener, PollFlags::POLLIN, TIMEOUT)? {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let (stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Runs `f` for each item on a thread of its own, all at once.
fn at_once<T: Send>(items: impl IntoIterator<Item = T>, f: impl Fn(T) + Sync) {
    let f = &f;
    thread::scope(|scope| {
        for item in items {
            scope.spawn(move || f(item));
        }
    });
}
