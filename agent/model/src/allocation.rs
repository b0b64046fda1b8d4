use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::name::NamespacedName;
use crate::world::{Protocol, Resolution, ServiceEntry, World};

/// Istio's label of a ServiceEntry whose hosts are to be given no address if it is `false`.
const ENABLED: &str = "networking.istio.io/enable-autoallocate-ip";

/// Of the reserved block 240.0.0.0/4 (RFC 1112), which nobody routes.
const IPV4: u32 = 0xf000_0000;
const IPV4_BITS: u32 = 24;
/// The block for benchmarks, 2001:2::/48 (RFC 5180).
const IPV6: u128 = 0x2001_0002 << 96;

/// Addresses for the hosts of ServiceEntries that have none, so that the connections to a host are told from those to
/// anything else, whatever its endpoints' addresses are.
///
/// They come from the name alone, so that every node and waypoint has the same ones without asking anybody. Where two
/// names would get one address, the second in order gets another.
pub(crate) struct Allocation<'a>(HashMap<&'a NamespacedName, HashMap<&'a str, Vec<IpAddr>>>);

impl<'a> Allocation<'a> {
    pub fn new(world: &'a World) -> Self {
        let wanting = world.service_entries.values().filter(|entry| wants(entry));
        let hosts = wanting.flat_map(|entry| entry.hosts.iter().map(move |host| (entry, host.as_str())));
        let mut found: HashMap<_, HashMap<_, _>> = HashMap::new();
        let mut taken: HashSet<IpAddr> = world
            .service_entries
            .values()
            .flat_map(|entry| {
                let written = entry.addresses.iter().filter_map(|block| block.address());
                written.chain(entry.allocated.values().flatten().copied())
            })
            .collect();
        for (entry, host) in hosts.filter(|(_, host)| !host.starts_with('*')) {
            let given = entry.allocated.get(host).filter(|given| !given.is_empty());
            let addresses = given.cloned().unwrap_or_else(|| {
                let name = format!("{}/{host}", entry.name);
                let free = |make: fn(u64) -> IpAddr, taken: &HashSet<IpAddr>| {
                    let tries = (0_u64..).map(|nth| make(hash(&name, nth)));
                    tries.take(TRIES).find(|address| !taken.contains(address))
                };
                let both = [free(ipv4, &taken), free(ipv6, &taken)];
                both.into_iter().flatten().collect()
            });
            taken.extend(&addresses);
            found.entry(&entry.name).or_default().entry(host).or_insert(addresses);
        }
        Self(found)
    }

    pub fn of(&self, entry: &NamespacedName, host: &str) -> &[IpAddr] {
        self.0.get(entry).and_then(|hosts| hosts.get(host)).map_or(&[], Vec::as_slice)
    }
}

/// With a million hosts one in sixteen tries meets a taken address.
const TRIES: usize = 64;

/// UDP is not carried: it would go to an address that nobody has.
fn wants(entry: &ServiceEntry) -> bool {
    entry.addresses.is_empty()
        && entry.resolution != Resolution::None
        && !entry.ports.is_empty()
        && entry.ports.iter().all(|port| port.protocol == Protocol::Tcp)
        && entry.labels.get(ENABLED).is_none_or(|enabled| enabled != "false")
}

fn ipv4(hash: u64) -> IpAddr {
    let host = (hash >> (64 - IPV4_BITS)) as u32;
    // Neither 240.0.0.0 nor 240.255.255.255, which look like a network and its broadcast.
    Ipv4Addr::from_bits(IPV4 | host.clamp(1, (1 << IPV4_BITS) - 2)).into()
}

fn ipv6(hash: u64) -> IpAddr {
    Ipv6Addr::from_bits(IPV6 | u128::from(hash.max(1))).into()
}

/// FNV-1a with the finalizer of MurmurHash3: the same in every version of every program, unlike the standard
/// library's.
fn hash(name: &str, nth: u64) -> u64 {
    let bytes = name.bytes().chain(nth.to_le_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::world::ServicePort;

    #[test]
    fn addresses_come_from_names_alone_and_are_each_once() {
        let mut world = World::default();
        for nth in 0..20_000 {
            add(&mut world, &format!("shop/entry-{nth}"), &[&format!("h{nth}.example")]);
        }
        let all = Allocation::new(&world);
        let distinct: BTreeSet<_> = all.0.values().flat_map(HashMap::values).flatten().collect();
        assert_eq!(distinct.len(), 40_000);
        let mut alone = World::default();
        add(&mut alone, "shop/entry-7", &["h7.example"]);
        assert_eq!(of(&alone, "shop/entry-7", "h7.example"), of(&world, "shop/entry-7", "h7.example"));
        // Known to clients that remember it: it must never change.
        assert_eq!(
            of(&alone, "shop/entry-7", "h7.example"),
            ["240.84.98.212", "2001:2::5462:d427:4847:e2d8"]
        );
    }

    #[test]
    fn two_names_of_one_address_get_two() {
        let mut world = World::default();
        add(&mut world, "shop/a", &["a.example"]);
        let first = of(&world, "shop/a", "a.example");
        add(&mut world, "shop/0", &["0.example"]);
        let block = first[0].parse().unwrap();
        entry(&mut world, "shop/0").addresses = vec![block];
        let other = of(&world, "shop/a", "a.example");
        assert_ne!(other[0], first[0]);
        assert_eq!(other[1], first[1]);
    }

    #[test]
    fn what_has_or_wants_no_address_gets_none() {
        let mut world = World::default();
        for name in ["shop/addresses", "shop/none", "shop/label", "shop/udp", "shop/portless", "shop/star"] {
            add(&mut world, name, &["api.example"]);
        }
        entry(&mut world, "shop/addresses").addresses = vec!["192.0.2.1".parse().unwrap()];
        entry(&mut world, "shop/none").resolution = Resolution::None;
        entry(&mut world, "shop/label").labels.insert(ENABLED, "false");
        entry(&mut world, "shop/udp").ports.push(ServicePort { protocol: Protocol::Udp, ..port() });
        entry(&mut world, "shop/portless").ports.clear();
        entry(&mut world, "shop/star").hosts = vec!["*.api.example".into()];
        assert!(Allocation::new(&world).0.is_empty());
    }

    #[test]
    fn what_somebody_has_given_counts() {
        let mut world = World::default();
        add(&mut world, "shop/a", &["a.example", "b.example"]);
        let given = [("a.example".to_owned(), vec!["240.240.0.1".parse().unwrap()])];
        entry(&mut world, "shop/a").allocated = given.into();
        assert_eq!(of(&world, "shop/a", "a.example"), ["240.240.0.1"]);
        assert_eq!(of(&world, "shop/a", "b.example").len(), 2);
    }

    fn add(world: &mut World, name: &str, hosts: &[&str]) {
        let name: NamespacedName = name.parse().unwrap();
        let hosts = hosts.iter().map(|&host| host.to_owned()).collect();
        let entry =
            ServiceEntry { name: name.clone(), hosts, ports: vec![port()], ..ServiceEntry::default() };
        world.service_entries.insert(name, entry);
    }

    fn entry<'a>(world: &'a mut World, name: &str) -> &'a mut ServiceEntry {
        world.service_entries.get_mut(&name.parse().unwrap()).unwrap()
    }

    fn of(world: &World, name: &str, host: &str) -> Vec<String> {
        let allocation = Allocation::new(world);
        allocation.of(&name.parse().unwrap(), host).iter().map(ToString::to_string).collect()
    }

    fn port() -> ServicePort {
        ServicePort { number: 443, ..ServicePort::default() }
    }
}
