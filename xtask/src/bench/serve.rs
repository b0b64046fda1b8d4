use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, Result};

/// As many connections are served at the same time; a blocking thread each is the fastest there is.
const THREADS: usize = 64;
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nHello, world\n";
const LAST_ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\nConnection: close\r\n\r\nHello, world\n";

/// Answers every request alike, until the process is killed.
pub(super) fn run(port: u16) -> Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).context("listening")?;
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Ok((stream, _)) = listener.accept() {
                    // A client that breaks off is its own business.
                    let _ = answer(stream);
                }
            });
        }
    });
    Ok(())
}

/// wrk sends one request at a time, which fits into one read.
fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 4096];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        let request = buffer.get(..read).unwrap_or_default();
        if request.windows(5).any(|window| window == b"close") {
            return stream.write_all(LAST_ANSWER);
        }
        stream.write_all(ANSWER)?;
    }
}
