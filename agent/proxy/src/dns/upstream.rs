//! Asking a resolver.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tokio::{net::UdpSocket, time::timeout};

use crate::{pod::Pod, shared::Shared};

/// The largest datagram.
const DATAGRAM: usize = 65535;
const ATTEMPTS: u32 = 2;

/// Sends `question` from a port of its own, and gives the first answer that is `wanted`. The resolver is dialled
/// from the pod's netns, as if by the pod; one that the node's operator has named from the node's.
pub(super) async fn ask(
    shared: &Shared,
    pod: &Pod,
    resolver: SocketAddr,
    question: &[u8],
    wanted: impl Fn(&[u8]) -> bool,
) -> io::Result<Vec<u8>> {
    let config = &shared.config.dns;
    let socket = match config.upstream {
        Some(_) => UdpSocket::bind(any(resolver)).await?,
        None => {
            let socket = UdpSocket::from_std(pod.netns().udp_socket(any(resolver))?)?;
            shared.kernel.claim(std::os::fd::AsFd::as_fd(&socket), None)?;
            socket
        }
    };
    // The kernel takes answers from the resolver alone, and tells if nobody is there.
    socket.connect(resolver).await?;
    for _ in 0..ATTEMPTS {
        socket.send(question).await?;
        if let Ok(answer) = timeout(config.timeout / ATTEMPTS, receive(&socket, &wanted)).await {
            return answer;
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

async fn receive(socket: &UdpSocket, wanted: impl Fn(&[u8]) -> bool) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if wanted(&buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

fn any(resolver: SocketAddr) -> SocketAddr {
    match resolver {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    }
}
