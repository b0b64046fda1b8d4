//! A gateway's ports: those of its Gateway's listeners, opened and closed as these come and go.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr, TcpListener},
    time::Duration,
};

use orlop_model::{NamespacedName, Snapshot};
use orlop_proxy::{HttpProxy, OpenPort};

use super::listen;

/// Until a port that could not be opened is tried again.
const AGAIN: Duration = Duration::from_secs(1);

pub struct Ports {
    address: IpAddr,
    open: BTreeMap<u16, Open>,
    failed: BTreeMap<u16, String>,
    /// Whether all that were wanted were open once: from then on those that work must not go with one that does not.
    was_open: bool,
}

/// The port is closed before its socket.
struct Open {
    _port: OpenPort,
    _listener: TcpListener,
}

impl Ports {
    pub fn at(address: IpAddr) -> Self {
        Self { address, open: BTreeMap::new(), failed: BTreeMap::new(), was_open: false }
    }

    /// Opens and closes what is to be by this snapshot. Says why nobody is to come yet, if so.
    pub fn open(
        &mut self,
        proxy: &HttpProxy,
        gateway: &NamespacedName,
        snapshot: &Snapshot,
    ) -> Option<String> {
        let wanted: BTreeSet<u16> = snapshot.routes().ports().collect();
        self.open.retain(|port, _| {
            let stays = wanted.contains(port);
            if !stays {
                tracing::info!(port, "closed");
            }
            stays
        });
        self.failed.retain(|port, _| wanted.contains(port));
        for port in wanted {
            if self.open.contains_key(&port) {
                continue;
            }
            let address = SocketAddr::new(self.address, port);
            let opened = listen(address)
                .and_then(|listener| Ok(Open { _port: proxy.open(&listener)?, _listener: listener }));
            match opened {
                Ok(open) => {
                    tracing::info!(%address, "listening");
                    self.failed.remove(&port);
                    self.open.insert(port, open);
                }
                Err(error) => {
                    let error = format!("cannot listen on {address}: {error}");
                    if self.failed.get(&port) != Some(&error) {
                        tracing::error!("{error}; trying again");
                    }
                    self.failed.insert(port, error);
                }
            }
        }
        if !snapshot.routes().has_gateway() {
            return Some(format!("there is no Gateway {gateway}"));
        }
        if self.open.is_empty() && self.failed.is_empty() {
            return Some(format!("the Gateway {gateway} has no listener that could be opened"));
        }
        self.was_open |= self.failed.is_empty();
        let is_ready = self.was_open && !self.open.is_empty();
        self.failed.values().next().filter(|_| !is_ready).cloned()
    }

    /// When to try again what has failed.
    pub fn retry(&self) -> Option<Duration> {
        (!self.failed.is_empty()).then_some(AGAIN)
    }
}
