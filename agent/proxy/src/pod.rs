use std::{
    io,
    net::{TcpListener, UdpSocket},
    os::fd::{AsFd as _, BorrowedFd},
    sync::{Arc, OnceLock},
};

use orlop_model::{
    NamespacedName,
    ports::{DNS_PORT, HBONE_PORT, INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT},
};
use tokio::sync::watch;

use crate::{
    inherited::{Inherited, Protocol, SocketName},
    shared::Live,
    socket::{self, Netns},
};

/// A pod of this node that the proxy serves. Dropping it stops the listening, not the connections.
#[derive(Debug)]
pub struct Pod {
    name: NamespacedName,
    netns: Netns,
    listeners: [(u16, Arc<TcpListener>); 4],
    /// Where they are, which differs where the pod had taken the port.
    ports: [u16; 4],
    /// For DNS over UDP; none where that is left alone.
    dns: OnceLock<UdpSocket>,
    open: watch::Sender<bool>,
    live: Live,
}

impl Pod {
    /// Opens the pod's listening sockets in its netns, or takes those of an earlier agent. Nothing comes there
    /// before the kernel side leads it there.
    pub(crate) fn open(
        name: NamespacedName,
        netns: Netns,
        inherited: &mut Inherited,
        dns: bool,
    ) -> io::Result<Self> {
        let mut listen = |port| {
            let name = SocketName { netns: netns.cookie(), port, protocol: Protocol::Tcp };
            let inherited = inherited.take(name).map(TcpListener::from);
            let listener = match inherited.filter(socket::is_listening) {
                Some(listener) => listener,
                None => netns.listen(port)?,
            };
            socket::send_at_once(&listener);
            if port != HBONE_PORT {
                socket::reset_unless_whole(&listener);
            }
            Ok::<_, io::Error>((port, Arc::new(listener)))
        };
        let listeners =
            [listen(OUTBOUND_PORT)?, listen(INBOUND_PLAINTEXT_PORT)?, listen(HBONE_PORT)?, listen(DNS_PORT)?];
        let mut ports = [0; 4];
        for (port, (_, listener)) in ports.iter_mut().zip(&listeners) {
            *port = listener.local_addr()?.port();
        }
        let name_of_dns = SocketName { netns: netns.cookie(), port: DNS_PORT, protocol: Protocol::Udp };
        let (open, live) = (watch::Sender::new(true), Live::new());
        let pod = Self { name, netns, listeners, ports, dns: OnceLock::new(), open, live };
        match inherited.take(name_of_dns) {
            Some(socket) if dns => drop(pod.dns.set(UdpSocket::from(socket))),
            None if dns && !pod.open_dns()? => {
                let name = &pod.name;
                tracing::warn!(pod = %name, port = DNS_PORT, "somebody has taken the port; its DNS is left alone meanwhile");
            }
            _ => {}
        }
        Ok(pod)
    }

    /// Opens its socket for DNS, if it has none, unless somebody has taken the port: the answers must come from the
    /// one that was asked. Whether it has one now.
    pub(crate) fn open_dns(&self) -> io::Result<bool> {
        if self.dns.get().is_some() {
            return Ok(true);
        }
        match self.netns.udp_server(DNS_PORT) {
            Ok(socket) => Ok(self.dns.set(socket).is_ok()),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Namespace and name.
    pub fn name(&self) -> &NamespacedName {
        &self.name
    }

    /// Where its sockets are made.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its listening sockets, by the port that each stands for.
    pub fn listeners(&self) -> impl Iterator<Item = (u16, BorrowedFd<'_>)> {
        self.listeners.iter().map(|(port, listener)| (*port, listener.as_fd()))
    }

    /// Its UDP socket for DNS, if it has one.
    pub fn dns(&self) -> Option<BorrowedFd<'_>> {
        self.dns.get().map(|socket| socket.as_fd())
    }

    /// All of its sockets that another agent can take over.
    pub fn sockets(&self) -> impl Iterator<Item = (SocketName, BorrowedFd<'_>)> {
        let name = |protocol, port| SocketName { netns: self.netns.cookie(), port, protocol };
        let listeners = self.listeners().map(move |(port, socket)| (name(Protocol::Tcp, port), socket));
        listeners.chain(self.dns().map(move |socket| (name(Protocol::Udp, DNS_PORT), socket)))
    }

    pub(crate) fn clone_dns(&self) -> io::Result<Option<UdpSocket>> {
        self.dns.get().map(UdpSocket::try_clone).transpose()
    }

    /// Whether the proxy itself is at this port of the pod: what it led there would come back to it, for ever.
    pub(crate) fn is_own_port(&self, port: u16) -> bool {
        self.ports.contains(&port)
    }

    pub(crate) fn clone_listeners(&self) -> io::Result<Vec<(u16, TcpListener)>> {
        self.listeners.iter().map(|(port, listener)| Ok((*port, listener.try_clone()?))).collect()
    }

    /// Its connections and streams.
    pub(crate) fn live(&self) -> &Live {
        &self.live
    }

    pub(crate) fn close(&self) {
        self.open.send_replace(false);
    }

    /// Until [`Self::close`].
    pub(crate) async fn closed(&self) {
        // The sender is ours, so that waiting can't fail.
        let _ = self.open.subscribe().wait_for(|open| !open).await;
    }
}
