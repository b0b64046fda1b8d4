use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;

use crate::traffic::ReadUninterrupted;
use anyhow::Result;

use super::server::Server;
use crate::Pod;

/// Sends back what it gets until the client shuts down its side; then closes.
#[derive(Debug)]
pub struct EchoServer {
    server: Server,
    pod: Pod,
}

impl EchoServer {
    /// Listens in `pod` on all addresses; port 0 picks a free one.
    pub fn start(pod: &Pod, port: u16) -> Result<Self> {
        let server = Server::start(pod, port, |stream, _| echo_back(&stream))?;
        Ok(Self { server, pod: pod.clone() })
    }

    /// Its IPv4 address.
    pub fn addr(&self) -> SocketAddr {
        self.pod.addr(self.server.port())
    }

    /// Its IPv6 address.
    pub fn addr6(&self) -> SocketAddr {
        self.pod.addr6(self.server.port())
    }

    /// Who connected so far, as `accept` saw them, in order.
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.server.peers()
    }
}

/// Sends `bytes`, shuts down the sending side and reads until the server closes.
pub fn echo(stream: &TcpStream, bytes: &[u8]) -> io::Result<Vec<u8>> {
    thread::scope(|scope| {
        // Apart from the reading: more bytes than the buffers hold would block both ends.
        let sender = scope.spawn(|| {
            (&*stream).write_all(bytes)?;
            stream.shutdown(Shutdown::Write)
        });
        let mut back = Vec::with_capacity(bytes.len());
        (&*stream).read_to_end(&mut back)?;
        sender.join().map_err(|_| io::Error::other("the sender panicked"))??;
        Ok(back)
    })
}

fn echo_back(mut stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let n = stream.read_uninterrupted(&mut buffer)?;
        if n == 0 {
            return stream.shutdown(Shutdown::Write);
        }
        stream.write_all(&buffer[..n])?;
    }
}
