use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;

use anyhow::Result;

use super::server::Server;
use crate::Pod;

/// A small HTTP/1.1 server with kept connections.
///
/// `/bulk?bytes=N` answers N bytes of [`BULK_PATTERN`](Self::BULK_PATTERN), repeated. Any other path
/// answers lines of `key=value`: `pod`, `peer` (as `accept` saw it), `local`, `host`, `path`, `received`
/// (bytes of body).
#[derive(Debug)]
pub struct HttpServer {
    server: Server,
    pod: Pod,
}

impl HttpServer {
    /// What bulk bodies consist of.
    pub const BULK_PATTERN: &str = "orlop testbed bulk data in clear ";

    /// Listens in `pod` on all addresses; port 0 picks a free one.
    pub fn start(pod: &Pod, port: u16) -> Result<Self> {
        let name = format!("{}/{}", pod.namespace(), pod.name());
        let server = Server::start(pod, port, move |stream, peer| serve(stream, peer, &name))?;
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

/// The same server in the calling process's own network namespace, for as long as the process lives.
pub fn serve_http(name: &str, port: u16) -> io::Result<()> {
    let name = name.to_owned();
    let _server = Server::start_here(port, move |stream, peer| serve(stream, peer, &name))?;
    loop {
        thread::park();
    }
}

struct Request {
    path: String,
    host: String,
    close: bool,
    length: u64,
}

fn serve(stream: TcpStream, peer: SocketAddr, pod: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let local = stream.local_addr()?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader)? {
        let received = io::copy(&mut (&mut reader).take(request.length), &mut io::sink())?;
        match request.path.strip_prefix("/bulk?bytes=").and_then(|bytes| bytes.parse().ok()) {
            Some(bytes) => answer_bulk(reader.get_mut(), bytes)?,
            None => {
                let Request { host, path, .. } = &request;
                let body = format!(
                    "pod={pod}\npeer={peer}\nlocal={local}\nhost={host}\npath={path}\nreceived={received}\n"
                );
                let head = head(body.len() as u64);
                reader.get_mut().write_all(format!("{head}{body}").as_bytes())?;
            }
        }
        if request.close {
            break;
        }
    }
    Ok(())
}

/// `None` at the end of the connection.
fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let path = line.split(' ').nth(1).unwrap_or("/").to_owned();
    let close = line.trim_end().ends_with("HTTP/1.0");
    let mut request = Request { path, host: String::new(), close, length: 0 };
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let Some((name, value)) = line.trim_end().split_once(':') else { return Ok(Some(request)) };
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "host" => value.clone_into(&mut request.host),
            "connection" => request.close = value.eq_ignore_ascii_case("close"),
            "content-length" => request.length = value.parse().unwrap_or(0),
            _ => {}
        }
    }
}

fn answer_bulk(stream: &mut TcpStream, bytes: u64) -> io::Result<()> {
    stream.write_all(head(bytes).as_bytes())?;
    let block = HttpServer::BULK_PATTERN.repeat(2000);
    let mut left = bytes;
    while left > 0 {
        let n = left.min(block.len() as u64);
        stream.write_all(&block.as_bytes()[..n as usize])?;
        left -= n;
    }
    Ok(())
}

fn head(length: u64) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\r\n")
}
