//! A resolver of the old kind, in a pod outside the mesh.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use orlop_tests::Pod;

/// How often a server looks whether it is over.
const TICK: Duration = Duration::from_millis(20);

/// Answers over UDP and TCP, IPv4 and IPv6: addresses for `*.example`, as many as its first label says if that is
/// a number; nothing else exists. Ends with its owner, and then nobody listens.
pub struct Resolver {
    shared: Arc<Shared>,
    threads: Vec<thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    over: AtomicBool,
    silent: AtomicBool,
    ttl: u32,
    asked: Mutex<BTreeMap<String, Vec<IpAddr>>>,
}

impl Resolver {
    /// Listens on port 53 of all the pod's addresses; its answers may be remembered for `ttl` seconds.
    pub fn start(pod: &Pod, ttl: u32) -> Self {
        let shared = Arc::new(Shared { ttl, ..Shared::default() });
        let sockets = pod
            .run(|| {
                let udp = |ip: IpAddr| UdpSocket::bind(SocketAddr::new(ip, 53)).unwrap();
                [udp(pod.ipv4().into()), udp(pod.ipv6().into()), udp(Ipv4Addr::LOCALHOST.into())]
            })
            .unwrap();
        let mut threads = Vec::new();
        for socket in sockets {
            socket.set_read_timeout(Some(TICK)).unwrap();
            let shared = Arc::clone(&shared);
            threads.push(thread::spawn(move || serve_udp(&socket, &shared)));
        }
        for v6 in [false, true] {
            let listener = pod.listen(v6, 53).unwrap();
            listener.set_nonblocking(true).unwrap();
            let shared = Arc::clone(&shared);
            threads.push(thread::spawn(move || serve_tcp(&listener, &shared)));
        }
        Self { shared, threads }
    }

    /// Who has asked for this name, of any type, in order.
    pub fn asked(&self, name: &str) -> Vec<IpAddr> {
        self.shared.asked.lock().unwrap().get(name).cloned().unwrap_or_default()
    }

    /// Every name that was asked for.
    pub fn names(&self) -> Vec<String> {
        self.shared.asked.lock().unwrap().keys().cloned().collect()
    }

    /// From now on nothing is answered, or is again.
    pub fn silence(&self, silent: bool) {
        self.shared.silent.store(silent, Ordering::SeqCst);
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve_udp(socket: &UdpSocket, shared: &Shared) {
    let mut buffer = [0; 4096];
    while !shared.over.load(Ordering::SeqCst) {
        if let Ok((length, client)) = socket.recv_from(&mut buffer)
            && let Some(answer) = shared.answer(&buffer[..length], client.ip(), 512)
        {
            let _ = socket.send_to(&answer, client);
        }
    }
}

fn serve_tcp(listener: &std::net::TcpListener, shared: &Arc<Shared>) {
    while !shared.over.load(Ordering::SeqCst) {
        let Ok((mut stream, client)) = listener.accept() else {
            thread::sleep(TICK);
            continue;
        };
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            stream.set_nonblocking(false).unwrap();
            let mut length = [0; 2];
            while stream.read_exact(&mut length).is_ok() {
                let mut query = vec![0; u16::from_be_bytes(length).into()];
                let Ok(()) = stream.read_exact(&mut query) else { return };
                let Some(answer) = shared.answer(&query, client.ip(), usize::MAX) else { return };
                let framed = [&(answer.len() as u16).to_be_bytes(), &answer[..]].concat();
                let Ok(()) = stream.write_all(&framed) else { return };
            }
        });
    }
}

impl Shared {
    fn answer(&self, query: &[u8], client: IpAddr, limit: usize) -> Option<Vec<u8>> {
        let query = Message::from_vec(query).ok()?;
        let question = query.queries.first()?.clone();
        let name = question.name.to_lowercase().to_ascii();
        self.asked.lock().unwrap().entry(name.clone()).or_default().push(client.to_canonical());
        if self.silent.load(Ordering::SeqCst) {
            return None;
        }
        let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
        answer.metadata.recursion_available = true;
        answer.queries.push(question.clone());
        if name.ends_with(".example.") {
            let count = name.split('.').next().and_then(|label| label.parse().ok()).unwrap_or(1);
            for n in 1..=count {
                let data = match question.query_type {
                    RecordType::A => RData::A(Ipv4Addr::from_bits(0xc000_0200 + n).into()),
                    RecordType::AAAA => {
                        RData::AAAA(Ipv6Addr::from_bits((0x2001_0db8 << 96) + u128::from(n)).into())
                    }
                    _ => break,
                };
                answer.answers.push(Record::from_rdata(question.name.clone(), self.ttl, data));
            }
        } else {
            answer.metadata.response_code = ResponseCode::NXDomain;
            let soa = SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, self.ttl);
            answer.authorities.push(Record::from_rdata(Name::root(), self.ttl, RData::SOA(soa)));
        }
        let bytes = answer.to_vec().ok()?;
        if bytes.len() > limit { answer.truncate().to_vec().ok() } else { Some(bytes) }
    }
}
