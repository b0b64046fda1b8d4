use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::world::{BackendAddress, Resolution, ServiceEntry, World};

/// What DNS says of the names that [`hosts_of`] lists, in its own order. A name that is not in it has no address.
pub type Hosts = BTreeMap<String, Vec<IpAddr>>;

/// The names that a compilation of the world wants resolved: those of backends, and the hosts of ServiceEntries
/// that leave their endpoints to DNS.
pub fn hosts_of(world: &World) -> BTreeSet<String> {
    let entries = world.service_entries.values();
    let listed = entries.clone().flat_map(|entry| &entry.endpoints);
    let registered = world.workload_entries.values().map(|entry| &entry.backend);
    let backends = listed.chain(registered).filter_map(|backend| match &backend.address {
        BackendAddress::Host(name) => Some(name),
        BackendAddress::Ip(_) => None,
    });
    let own = entries.filter(|entry| is_own_endpoint(entry)).flat_map(|entry| &entry.hosts);
    let own = own.filter(|host| !host.starts_with('*'));
    backends.chain(own).filter(|name| !name.is_empty()).cloned().collect()
}

/// Whether the hosts of the entry are its endpoints too.
pub(crate) fn is_own_endpoint(entry: &ServiceEntry) -> bool {
    let by_dns = matches!(entry.resolution, Resolution::Dns | Resolution::DnsRoundRobin);
    by_dns && entry.endpoints.is_empty() && entry.selector.is_empty()
}
