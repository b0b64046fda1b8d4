//! An HTTP/1.1 server that answers as a test wants.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use nix::sys::socket::shutdown;
use orlop_tests::Pod;

/// What was asked: the request line, headers in lower case, the body and its trailers.
#[derive(Clone, Debug)]
pub struct Asked {
    pub line: String,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
    pub trailers: HashMap<String, String>,
}

/// What is done about it.
pub enum Reply {
    /// A status and a body.
    Answer(u16, String),
    /// The same, and headers.
    With(u16, Vec<(&'static str, &'static str)>, String),
    /// These bytes, and nothing after them.
    Raw(&'static str),
    /// The connection is closed.
    Close,
}

type Script = dyn Fn(&Asked) -> Reply + Send + Sync;

/// Serves until it is dropped.
pub struct Scripted {
    listener: Arc<TcpListener>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stopping: AtomicBool,
    count: AtomicUsize,
    connections: AtomicUsize,
    ended: AtomicUsize,
    asked: Mutex<Vec<Asked>>,
    open: Mutex<Vec<TcpStream>>,
}

impl Scripted {
    pub fn start(pod: &Pod, script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = Arc::new(pod.listen(false, 80).unwrap());
        let shared = Arc::new(Shared::default());
        let script: Arc<Script> = Arc::new(script);
        let (accepting, of) = (Arc::clone(&listener), Arc::clone(&shared));
        let thread = thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                if of.stopping.load(Ordering::SeqCst) {
                    return;
                }
                of.open.lock().unwrap().push(stream.try_clone().unwrap());
                of.connections.fetch_add(1, Ordering::SeqCst);
                let (script, of) = (Arc::clone(&script), Arc::clone(&of));
                thread::spawn(move || {
                    drop(serve(stream, &*script, &of));
                    of.ended.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        Self { listener, shared, thread: Some(thread) }
    }

    /// Always this status.
    pub fn status(pod: &Pod, status: u16) -> Self {
        Self::start(pod, move |_| Reply::Answer(status, format!("{status}\n")))
    }

    /// How often it was asked.
    pub fn count(&self) -> usize {
        self.shared.count.load(Ordering::SeqCst)
    }

    /// Connections that it took.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Of these, how many are open.
    pub fn open(&self) -> usize {
        self.connections() - self.shared.ended.load(Ordering::SeqCst)
    }

    /// What it was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let _ = shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for stream in self.shared.open.lock().unwrap().iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn serve(stream: TcpStream, script: &Script, shared: &Shared) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while let Some(asked) = read(&mut reader)? {
        shared.asked.lock().unwrap().push(asked.clone());
        // Whoever has counted it may look at it.
        shared.count.fetch_add(1, Ordering::SeqCst);
        match script(&asked) {
            Reply::Answer(status, body) => answer(reader.get_mut(), status, &[], &body)?,
            Reply::With(status, headers, body) => answer(reader.get_mut(), status, &headers, &body)?,
            Reply::Raw(text) => reader.get_mut().write_all(text.as_bytes())?,
            Reply::Close => return reader.get_ref().shutdown(Shutdown::Both),
        }
    }
    Ok(())
}

fn answer(stream: &mut TcpStream, status: u16, headers: &[(&str, &str)], body: &str) -> std::io::Result<()> {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
    stream.write_all((head + body).as_bytes())
}

/// `None` at the end of the connection.
fn read(reader: &mut BufReader<TcpStream>) -> std::io::Result<Option<Asked>> {
    let line = line_of(reader)?;
    if line.is_empty() {
        return Ok(None);
    }
    let mut asked = Asked {
        line: line.trim_end().to_owned(),
        headers: fields(reader)?,
        body: Vec::new(),
        trailers: HashMap::new(),
    };
    if asked.headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked") {
        loop {
            let line = line_of(reader)?;
            let size = usize::from_str_radix(line.trim_end(), 16).unwrap_or(0);
            let start = asked.body.len();
            asked.body.resize(start + size, 0);
            if size == 0 {
                asked.trailers = fields(reader)?;
                return Ok(Some(asked));
            }
            reader.read_exact(&mut asked.body[start..])?;
            line_of(reader)?;
        }
    }
    let length = asked.headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    asked.body.resize(length, 0);
    reader.read_exact(&mut asked.body)?;
    Ok(Some(asked))
}

/// Of what is no UTF-8 only that much.
fn line_of(reader: &mut BufReader<TcpStream>) -> std::io::Result<String> {
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line)?;
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// Headers or trailers, to the line that ends them.
fn fields(reader: &mut BufReader<TcpStream>) -> std::io::Result<HashMap<String, String>> {
    let mut fields = HashMap::new();
    loop {
        let line = line_of(reader)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { return Ok(fields) };
        fields.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
}
