//! Where clients went last, for services that want them to come back to one endpoint.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use orlop_model::{Balance, Choice, NamespacedName, Service};

use crate::{away::Away, shared::Shared};

/// So many are kept before those that are over are looked for.
const FEW: usize = 1024;

/// The last endpoint of each client and port of a service, for as long as it counts.
#[derive(Debug, Default)]
pub(crate) struct Affinity(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    last: HashMap<Key, Last>,
    /// At this size those that are over are thrown out.
    full: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    client: IpAddr,
    service: NamespacedName,
    port: u16,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    endpoint: SocketAddr,
    until: Instant,
}

impl Table {
    fn insert(&mut self, key: Key, last: Last, now: Instant) {
        if self.last.len() >= self.full.max(FEW) {
            self.last.retain(|_, last| last.until > now);
            self.full = 2 * self.last.len();
        }
        self.last.insert(key, last);
    }
}

/// This moment, as load balancing sees it for one connection.
pub(crate) struct Moment<'a> {
    shared: &'a Shared,
    away: &'a Away,
    dialled: Dialled,
    asked: Option<Asked<'a>>,
}

/// The connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dialled {
    /// Who dialled.
    pub(crate) client: IpAddr,
    /// In this netns.
    pub(crate) netns: u64,
    /// What was dialled.
    pub(crate) destination: SocketAddr,
    /// What the kernel has chosen.
    pub(crate) choice: Choice,
}

/// The table stays locked until the choice is made: of two connections at once the second follows the first.
struct Asked<'a> {
    table: MutexGuard<'a, Table>,
    key: Key,
    timeout: Duration,
}

impl<'a> Moment<'a> {
    pub(crate) fn new(shared: &'a Shared, away: &'a Away, dialled: Dialled) -> Self {
        Self { shared, away, dialled, asked: None }
    }

    /// The connection goes to this endpoint.
    pub(crate) fn chosen(self, endpoint: SocketAddr) {
        if let Some(Asked { mut table, key, timeout }) = self.asked {
            let now = Instant::now();
            table.insert(key, Last { endpoint, until: now + timeout }, now);
            self.shared.kernel.went(self.dialled.netns, self.dialled.destination, endpoint);
        }
    }
}

impl Balance for Moment<'_> {
    fn random(&mut self, bound: usize) -> usize {
        fastrand::usize(..bound)
    }

    fn in_flight(&self, endpoint: SocketAddr) -> usize {
        // One that can't be reached is chosen only where there is no other.
        if self.away.contains(endpoint) { usize::MAX } else { self.shared.in_flight.count(endpoint) }
    }

    fn last(&mut self, service: &Arc<Service>, port: u16, timeout: Duration) -> Option<SocketAddr> {
        // Whatever was asked before is not what counts, and the lock is not to be taken twice.
        self.asked = None;
        let Dialled { client, netns, destination, .. } = self.dialled;
        let table = self.shared.affinity.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = Key { client, service: service.name.clone(), port };
        let last = table.last.get(&key).filter(|last| last.until > Instant::now());
        // Connections without the proxy count too, and the kernel remembers them for longer than an agent lives.
        let endpoint = last.map(|last| last.endpoint).or_else(|| self.shared.kernel.last(netns, destination));
        self.asked = Some(Asked { table, key, timeout });
        endpoint
    }

    fn choice(&self) -> Choice {
        self.dialled.choice
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_makes_room() {
        let mut table = Table::default();
        let start = Instant::now();
        for port in 0..FEW as u16 {
            table.insert(key(port), last(start + Duration::from_secs(1)), start);
        }
        table.insert(key(u16::MAX), last(start + Duration::from_secs(5)), start + Duration::from_secs(2));
        assert_eq!(table.last.len(), 1);
    }

    #[test]
    fn what_still_counts_stays() {
        let mut table = Table::default();
        let start = Instant::now();
        for port in 0..3 * FEW as u16 {
            table.insert(key(port), last(start + Duration::from_secs(1)), start);
        }
        assert_eq!(table.last.len(), 3 * FEW);
    }

    fn key(port: u16) -> Key {
        Key { client: IpAddr::from([10, 0, 0, 1]), service: NamespacedName::new("shop", "web"), port }
    }

    fn last(until: Instant) -> Last {
        Last { endpoint: SocketAddr::from(([10, 0, 0, 2], 80)), until }
    }
}
