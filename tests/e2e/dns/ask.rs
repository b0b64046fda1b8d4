//! The ways in which a program asks a resolver.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{Name, RData, RecordType};
use orlop_tests::Pod;
use orlop_tests::traffic::uninterrupted;

use crate::pair::TIMEOUT;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// UDP with connect.
    Connected,
    /// UDP with sendto.
    Unconnected,
    /// UDP with sendto to an IPv4-mapped address, as from musl's dual-stack socket.
    Mapped,
    Tcp,
}

pub const WAYS: [Way; 4] = [Way::Connected, Way::Unconnected, Way::Mapped, Way::Tcp];

/// Asks as a program in the pod. The answer must look as if it came from the resolver.
pub fn ask(
    pod: &Pod,
    way: Way,
    resolver: IpAddr,
    name: &str,
    record_type: RecordType,
) -> io::Result<Message> {
    let resolver = SocketAddr::new(resolver, 53);
    let query = query(name, record_type);
    let answer = exchange(pod, way, resolver, &query.to_vec().unwrap())?;
    let answer = Message::from_vec(&answer).map_err(io::Error::other)?;
    assert_eq!((answer.metadata.id, &answer.queries), (query.metadata.id, &query.queries));
    Ok(answer)
}

/// With EDNS, so that errors are explained.
pub fn query(name: &str, record_type: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries.push(Query::query(Name::from_ascii(name).unwrap(), record_type));
    message.edns = Some(Edns::new());
    message
}

/// Sends bytes and gives what comes back.
pub fn exchange(pod: &Pod, way: Way, resolver: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    if way == Way::Tcp {
        let mut stream = pod.connect(resolver, TIMEOUT)?;
        assert_eq!(stream.peer_addr()?, resolver);
        stream.write_all(&[&(query.len() as u16).to_be_bytes(), query].concat())?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut answer)?;
        return Ok(answer);
    }
    let socket = socket(pod, resolver.is_ipv6() || way == Way::Mapped)?;
    let mut answer = vec![0; 4096];
    let (length, source) = match way {
        Way::Connected => {
            pod.run(|| socket.connect(resolver)).unwrap()?;
            assert_eq!(socket.peer_addr()?, resolver);
            socket.send(query)?;
            uninterrupted(|| socket.recv_from(&mut answer))?
        }
        _ => {
            let to = match resolver.ip() {
                IpAddr::V4(ip) if way == Way::Mapped => SocketAddr::new(ip.to_ipv6_mapped().into(), 53),
                _ => resolver,
            };
            socket.send_to(query, to)?;
            uninterrupted(|| socket.recv_from(&mut answer))?
        }
    };
    assert_eq!(SocketAddr::new(source.ip().to_canonical(), source.port()), resolver);
    answer.truncate(length);
    Ok(answer)
}

/// A UDP socket in the pod.
pub fn socket(pod: &Pod, v6: bool) -> io::Result<UdpSocket> {
    let any = if v6 { IpAddr::from(Ipv6Addr::UNSPECIFIED) } else { Ipv4Addr::UNSPECIFIED.into() };
    // std binds, and then the port is known to connect hooks; programs that do not bind are asked for with `getent`.
    let socket = pod.run(|| UdpSocket::bind(SocketAddr::new(any, 0))).unwrap()?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    Ok(socket)
}

/// Sorted.
pub fn addresses(answer: &Message) -> Vec<IpAddr> {
    let mut found: Vec<_> = answer
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(ip) => Some(IpAddr::V4(ip.0)),
            RData::AAAA(ip) => Some(IpAddr::V6(ip.0)),
            _ => None,
        })
        .collect();
    found.sort();
    found
}

/// What glibc finds for a name, with the search path of a pod in namespace `shop`, sorted.
pub fn getent(pod: &Pod, resolver: IpAddr, name: &str) -> Vec<IpAddr> {
    let configuration = format!(
        "nameserver {resolver}\\nsearch shop.svc.cluster.local svc.cluster.local cluster.local corp\\noptions ndots:5\\n"
    );
    let script = format!(
        "mount -t tmpfs none /mnt && printf '{configuration}' > /mnt/resolv.conf && \
         mount --bind /mnt/resolv.conf /etc/resolv.conf && getent ahosts {name} || true"
    );
    let text = pod.output("unshare", &["--mount", "sh", "-c", &script]).unwrap();
    let mut found: Vec<IpAddr> =
        text.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect();
    found.sort();
    found.dedup();
    found
}

pub fn code(answer: &Message) -> ResponseCode {
    answer.metadata.response_code
}

/// The code of RFC 8914.
pub fn extended_error(answer: &Message) -> Option<u16> {
    let options = answer.edns.as_ref()?.options();
    options.options.iter().find_map(|(_, option)| match option {
        EdnsOption::Unknown(15, data) => Some(u16::from_be_bytes(*data.first_chunk()?)),
        _ => None,
    })
}
