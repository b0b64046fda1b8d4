//! What tells connections to servers apart.

use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
};

use orlop_identity::ClientCredential;
use orlop_model::{
    Identity,
    ports::HBONE_PORT,
    world::routing::{ProxyVersion, ServerCheck},
};

/// What connections are shared by: nothing that differs in one of these may share one. The caller is in it, since
/// the server's node judges each connection by whom it is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) address: SocketAddr,
    /// Whose certificate the endpoint's proxy must show; `None` for one that is reached in plain.
    pub(super) destination: Option<Identity>,
    /// What the tunnel is to lead to, where it is to a waypoint: `host:port`.
    pub(super) through: Option<Rc<str>>,
    /// For whom it is; `None` for the waypoint or gateway itself.
    pub(super) caller: Option<Identity>,
    pub(super) client: IpAddr,
    pub(super) http2: bool,
    /// What it begins with.
    pub(super) preface: Option<Rc<Preface>>,
    /// By what it is secured, beyond its tunnel.
    pub(super) tls: Option<Rc<Tls>>,
}

/// TLS with the server itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tls {
    pub(super) check: Arc<ServerCheck>,
    /// The name that is asked for.
    pub(super) name: String,
    /// What the Secret that the check names has: another one is for other connections.
    pub(super) credential: Option<Arc<ClientCredential>>,
    /// Whether HTTP is spoken in it.
    pub(super) http: bool,
}

/// What a connection begins with to tell who its client is, and where that has dialled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Preface {
    pub(super) version: ProxyVersion,
    pub(super) client: SocketAddr,
    pub(super) dialled: SocketAddr,
}

impl Key {
    /// Where its tunnel leads to, if it has one.
    pub(super) fn tunnel(&self) -> Option<SocketAddr> {
        self.destination.as_ref().map(|_| match self.through {
            Some(_) => self.address,
            None => SocketAddr::new(self.address.ip(), HBONE_PORT),
        })
    }
}
