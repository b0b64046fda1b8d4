//! The routes of the Gateway API that are attached to one Service.

use std::collections::HashMap;
use std::sync::Arc;

use super::made::Made;
use super::stream::StreamTable;
use super::table::Table;
use crate::world::gateway_api::Route;

/// The routes of one Service.
#[derive(Clone, Debug, Default)]
pub(super) struct Attached {
    /// Those of its own namespace, for all clients.
    pub producer: Option<Arc<Made<Route, Ports>>>,
    /// Those of other namespaces, for clients of these.
    pub consumers: HashMap<String, Arc<Made<Route, Ports>>>,
}

/// The rules for each port, of routes of one namespace: of requests, or of connections in which none are read.
#[derive(Clone, Debug, Default)]
pub(super) struct Ports {
    pub requests: HashMap<u16, Arc<Table>>,
    pub streams: HashMap<u16, Arc<StreamTable>>,
}

impl Ports {
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.streams.is_empty()
    }
}

impl Attached {
    /// The rules for requests of clients of this namespace: their own routes come instead of the producer's, and don't
    /// merge.
    pub fn table(&self, namespace: &str, port: u16) -> Option<&Arc<Table>> {
        let own = self.consumers.get(namespace).and_then(|of| of.made.requests.get(&port));
        own.or_else(|| self.producer.as_ref()?.made.requests.get(&port))
    }

    /// The same for connections in which no HTTP is read.
    pub fn streams(&self, namespace: &str, port: u16) -> Option<&Arc<StreamTable>> {
        let own = self.consumers.get(namespace).and_then(|of| of.made.streams.get(&port));
        own.or_else(|| self.producer.as_ref()?.made.streams.get(&port))
    }

    /// Whether no HTTP is read of clients of this namespace, whatever they say. Only the producer's routes can have that:
    /// else whoever may write one anywhere would lead his connections past policies of requests. A consumer's routes for
    /// requests have it read.
    pub fn is_opaque(&self, namespace: &str, port: u16) -> bool {
        let reads = self.consumers.get(namespace).is_some_and(|of| of.made.requests.contains_key(&port));
        !reads && self.producer.as_ref().is_some_and(|of| of.made.streams.contains_key(&port))
    }

    /// What was made of the routes of this namespace, those of a service of which are `own`.
    pub fn of(&self, namespace: &str, own: &str) -> Option<&Arc<Made<Route, Ports>>> {
        if namespace == own { self.producer.as_ref() } else { self.consumers.get(namespace) }
    }
}
