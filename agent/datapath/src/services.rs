use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::libc;
use orlop_common::{Client, Endpoint, Last, MAX_LOCAL, NO_ENDPOINT, Service};
use orlop_model::{LocalService, MAX_LOCAL_ENDPOINTS, NamespacedName, Snapshot};

use crate::{NetnsCookie, maps::Map, sockets, sys};

const _: () = assert!(MAX_LOCAL == MAX_LOCAL_ENDPOINTS);

/// The services of which hooks choose endpoints. Cheap to clone; used from every thread at once.
///
/// Each is one value, replaced as a whole, so that a hook sees one state of it or another. What is no more in the
/// map is the proxy's to choose.
#[derive(Clone, Debug)]
pub struct Services(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    services: Map<Endpoint, Service>,
    last: Map<Client, Last>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Of the value that was written last.
    revision: u64,
    /// What the kernel is in step with; `None` where that is not known.
    snapshot: Option<Arc<Snapshot>>,
    /// What is in the kernel, by the service that it is of.
    known: HashMap<NamespacedName, Vec<LocalService>>,
}

impl Services {
    pub(crate) fn new(services: OwnedFd, last: OwnedFd) -> Self {
        let (services, last) = (Map::new(services), Map::new(last));
        Self(Arc::new(Inner { services, last, state: Mutex::default() }))
    }

    /// Brings the kernel in step with the snapshot; without one, nothing is left there. Looks only at the services that
    /// the snapshot does not share with the one before, and at those that have an address of theirs.
    pub(crate) fn renew(&self, snapshot: Option<&Arc<Snapshot>>) -> io::Result<()> {
        let mut state = self.state();
        // If it fails half way, all is done again.
        let before = std::mem::take(&mut state.snapshot);
        let (mut unwanted, mut wanted) = (HashSet::new(), Vec::new());
        if before.is_none() {
            state.known.clear();
            unwanted.extend(self.0.services.keys()?);
        }
        let (none, before) = (Arc::default(), before.unwrap_or_default());
        let now = snapshot.unwrap_or(&none);
        for name in changed(&before, now) {
            let ports: Vec<_> =
                now.service(&name).map(|service| now.local_services(service).collect()).unwrap_or_default();
            let then = state.known.remove(&name).unwrap_or_default();
            unwanted.extend(then.iter().map(|port| sockets::endpoint(port.address)));
            for port in &ports {
                if then.contains(port) {
                    unwanted.remove(&sockets::endpoint(port.address));
                } else {
                    wanted.push(port.clone());
                }
            }
            if !ports.is_empty() {
                state.known.insert(name, ports);
            }
        }
        self.write(&mut state, &unwanted, &wanted)?;
        state.snapshot = Some(Arc::clone(now));
        Ok(())
    }

    /// Where the pod's last connection to this service went, as long as that counts.
    pub fn last(&self, netns: NetnsCookie, service: SocketAddr) -> io::Result<Option<SocketAddr>> {
        let last = self.0.last.get(client(netns, service))?;
        Ok(last
            .filter(|last| last.until > sys::monotonic())
            .map(|last| sockets::socket_address(last.endpoint)))
    }

    /// A connection of the pod to this service goes to `endpoint`, and so will the next if the service asks for
    /// that and the endpoint is on this node.
    pub fn went(&self, netns: NetnsCookie, service: SocketAddr, endpoint: SocketAddr) -> io::Result<()> {
        let (client, endpoint) = (client(netns, service), sockets::endpoint(endpoint));
        match self.0.services.get(client.service)? {
            Some(service) if service.affinity != 0 && service.local.contains(&endpoint) => {
                let until = sys::monotonic() + service.affinity;
                self.0.last.insert(client, Last { revision: service.revision, until, endpoint, reserved: 0 })
            }
            _ => self.0.last.remove(client),
        }
    }

    fn write(
        &self,
        state: &mut State,
        unwanted: &HashSet<Endpoint>,
        wanted: &[LocalService],
    ) -> io::Result<()> {
        // First, as another service may have the address now.
        let replaced: HashSet<_> = wanted.iter().map(|port| sockets::endpoint(port.address)).collect();
        for key in unwanted.difference(&replaced) {
            self.0.services.remove(*key)?;
        }
        for port in wanted {
            let key = sockets::endpoint(port.address);
            // Never that of a value of an earlier agent either.
            state.revision = sys::monotonic().max(state.revision + 1);
            match self.0.services.insert(key, value(port, state.revision)) {
                // No room: its connections are the proxy's.
                Err(error) if error.raw_os_error() == Some(libc::E2BIG) => self.0.services.remove(key)?,
                result => result?,
            }
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The services that are not the same in both, and those that have one of their addresses in either: of two Services
/// with one address only one has it.
fn changed(before: &Snapshot, now: &Snapshot) -> BTreeSet<NamespacedName> {
    let mut names = BTreeSet::new();
    for (name, then, is) in now.changed_services(before) {
        let addresses = then.into_iter().chain(is).flat_map(|service| &service.vips);
        let owners = addresses.flat_map(|vip| [before.service_at(*vip), now.service_at(*vip)]);
        names.extend(owners.flatten().map(|owner| owner.name.clone()));
        names.insert(name.clone());
    }
    names
}

fn value(port: &LocalService, revision: u64) -> Service {
    let mut local = [NO_ENDPOINT; MAX_LOCAL];
    local.iter_mut().zip(&port.local).for_each(|(slot, address)| *slot = sockets::endpoint(*address));
    let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let affinity =
        port.affinity.map_or(0, |timeout| u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX / 2));
    Service { revision, affinity, eligible: number(port.eligible), count: number(port.local.len()), local }
}

fn client(netns: NetnsCookie, service: SocketAddr) -> Client {
    Client { netns, service: sockets::endpoint(service), reserved: 0 }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_service_is_laid_out_for_the_hooks() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let port = LocalService {
            address: address("10.96.0.1:80"),
            eligible: 3,
            local: vec![address("10.1.0.2:8080"), address("10.1.0.3:8080")],
            affinity: Some(Duration::from_secs(1)),
        };
        let value = value(&port, 7);
        assert_eq!((value.revision, value.affinity, value.eligible, value.count), (7, 1_000_000_000, 3, 2));
        assert_eq!(value.local[1], sockets::endpoint(port.local[1]));
        assert_eq!(value.local[2], NO_ENDPOINT);
    }
}
