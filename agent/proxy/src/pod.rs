use std::{
    io,
    net::TcpListener,
    os::fd::{AsFd as _, BorrowedFd},
    sync::Arc,
};

use orlop_model::{
    NamespacedName,
    ports::{HBONE_PORT, INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT},
};
use tokio::sync::watch;

use crate::{
    inherited::{Inherited, Protocol, SocketName},
    socket::Netns,
};

/// A pod of this node that the proxy serves. Dropping it stops the listening, not the connections.
#[derive(Debug)]
pub struct Pod {
    name: NamespacedName,
    netns: Netns,
    listeners: [(u16, Arc<TcpListener>); 3],
    /// Where they are, which differs where the pod had taken the port.
    ports: [u16; 3],
    open: watch::Sender<bool>,
}

impl Pod {
    /// Opens the pod's listening sockets in its netns, or takes those of an earlier agent. Nothing comes there
    /// before the kernel side leads it there.
    pub(crate) fn open(name: NamespacedName, netns: Netns, inherited: &mut Inherited) -> io::Result<Self> {
        let mut listen = |port| {
            let name = SocketName { netns: netns.cookie(), port, protocol: Protocol::Tcp };
            let listener = match inherited.take(name) {
                Some(socket) => TcpListener::from(socket),
                None => netns.listen(port)?,
            };
            Ok::<_, io::Error>((port, Arc::new(listener)))
        };
        let listeners = [listen(OUTBOUND_PORT)?, listen(INBOUND_PLAINTEXT_PORT)?, listen(HBONE_PORT)?];
        let mut ports = [0; 3];
        for (port, (_, listener)) in ports.iter_mut().zip(&listeners) {
            *port = listener.local_addr()?.port();
        }
        Ok(Self { name, netns, listeners, ports, open: watch::Sender::new(true) })
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

    /// All of its sockets that another agent can take over.
    pub fn sockets(&self) -> impl Iterator<Item = (SocketName, BorrowedFd<'_>)> {
        let netns = self.netns.cookie();
        self.listeners()
            .map(move |(port, socket)| (SocketName { netns, port, protocol: Protocol::Tcp }, socket))
    }

    /// Whether the proxy itself is at this port of the pod: what it led there would come back to it, for ever.
    pub(crate) fn is_own_port(&self, port: u16) -> bool {
        self.ports.contains(&port)
    }

    pub(crate) fn clone_listeners(&self) -> io::Result<Vec<(u16, TcpListener)>> {
        self.listeners.iter().map(|(port, listener)| Ok((*port, listener.try_clone()?))).collect()
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
