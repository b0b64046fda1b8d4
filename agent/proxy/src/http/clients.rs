//! How many connections and requests clients from outside the mesh have, so that no one has all of them and there is
//! memory for what they hold.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

/// Of those alone that have any.
#[derive(Debug, Default)]
pub(crate) struct Clients(Mutex<HashMap<IpAddr, usize>>);

impl Clients {
    /// One more of this client's, unless it has `limit` already.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr, limit: usize) -> Option<ClientGuard> {
        let client = site(address);
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match open.entry(client) {
            Entry::Occupied(count) if *count.get() >= limit => return None,
            Entry::Occupied(mut count) => *count.get_mut() += 1,
            Entry::Vacant(_) if limit == 0 => return None,
            Entry::Vacant(count) => drop(count.insert(1)),
        }
        Some(ClientGuard { clients: Arc::clone(self), client })
    }
}

/// Counts a connection as its client's until it is dropped.
#[derive(Debug)]
pub(super) struct ClientGuard {
    clients: Arc<Clients>,
    client: IpAddr,
}

impl Drop for ClientGuard {
    fn drop(&mut self) {
        let mut open = self.clients.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = open.entry(self.client) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// The requests of all of them, from the head to the end of the answer.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// Those for which there was room.
    all: AtomicUsize,
    clients: Arc<Clients>,
    /// Those for which there was none, and whose answer nobody has read yet.
    refused: Arc<Clients>,
}

/// Counts a request as its client's until it is dropped.
#[derive(Debug)]
pub(super) enum Room {
    Given {
        requests: Arc<Requests>,
        _client: ClientGuard,
    },
    /// It holds no more than our own answer.
    Refused {
        _client: ClientGuard,
    },
    /// Nor may it have that: its client does not read what it is answered.
    Abused,
}

impl Requests {
    /// One more: one that has room is one of the first `limit`, of which no client has more than half. What one client
    /// is refused takes nothing from the others.
    pub(super) fn enter(self: &Arc<Self>, client: IpAddr, limit: usize) -> Room {
        let half = limit.div_ceil(2);
        if let Some(guard) = self.clients.enter(client, half) {
            let room = Room::Given { requests: Arc::clone(self), _client: guard };
            // Dropped, it gives back what it counts.
            if self.all.fetch_add(1, Relaxed) < limit {
                return room;
            }
        }
        self.refused.enter(client, half).map_or(Room::Abused, |guard| Room::Refused { _client: guard })
    }

    /// Those for which there was room.
    pub(super) fn count(&self) -> usize {
        self.all.load(Relaxed)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Self::Given { requests, .. } = self {
            requests.all.fetch_sub(1, Relaxed);
        }
    }
}

/// Whoever has one address of IPv6 most often has all of its /64 (RFC 4291, section 2.5.4).
pub(super) fn site(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_as_many_as_it_may_and_nothing_is_kept_of_those_who_have_left() {
        let clients = Arc::new(Clients::default());
        let enter = |address: &str| clients.enter(address.parse().unwrap(), 2);
        let held =
            [enter("192.0.2.1"), enter("::ffff:192.0.2.1"), enter("2001:db8::1"), enter("2001:db8::2")];
        assert!(held.iter().all(Option::is_some));
        assert!(enter("192.0.2.1").is_none() && enter("2001:db8::ffff:1").is_none());
        assert!(enter("192.0.2.2").is_some() && enter("2001:db8:0:1::1").is_some());
        drop(held);
        assert!(clients.0.lock().unwrap().is_empty());
        assert!(clients.enter("192.0.2.1".parse().unwrap(), 0).is_none());
    }

    #[test]
    fn no_client_has_more_than_half_of_all_requests_nor_takes_from_others_by_being_refused() {
        let requests = Arc::new(Requests::default());
        let enter = |address: &str| requests.enter(address.parse().unwrap(), 4);
        let told = |room: &Room| match room {
            Room::Given { .. } => "given",
            Room::Refused { .. } => "refused",
            Room::Abused => "abused",
        };
        let one = ["192.0.2.1"; 5].map(enter);
        assert_eq!(one.each_ref().map(told), ["given", "given", "refused", "refused", "abused"]);
        let other = ["192.0.2.2"; 2].map(enter);
        assert_eq!(other.each_ref().map(told), ["given", "given"]);
        let third = enter("192.0.2.3");
        assert_eq!((told(&third), requests.count()), ("refused", 4));
        drop((one, other, third));
        assert_eq!(requests.count(), 0);
        assert_eq!(told(&enter("192.0.2.1")), "given");
        assert!(requests.refused.0.lock().unwrap().is_empty());
    }
}
