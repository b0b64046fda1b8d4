//! Which endpoint a hash leads to, such that few are led elsewhere when endpoints come and go.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::SocketAddr;

use crate::service::Endpoint;
use crate::world::routing::HashTable;

/// The endpoints in the places of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hashed {
    table: HashTable,
    /// The endpoints with their weights.
    endpoints: Vec<(SocketAddr, u32)>,
    /// On a ring, where each place is; empty in Maglev's table, where all are alike.
    positions: Vec<u64>,
    /// Whose each place is, by index.
    owners: Vec<u32>,
}

/// Places that are looked at for an endpoint that fits, before any that does is taken.
const LOOKED_AT: usize = 256;

impl Hashed {
    /// Gives places to these endpoints: as many to each as its weight says, and at least one on a ring.
    pub fn new(table: HashTable, endpoints: &[Endpoint]) -> Self {
        let endpoints = weighted(endpoints).collect();
        let mut made = Self { table, endpoints, positions: Vec::new(), owners: Vec::new() };
        match table {
            HashTable::Ring(size) => made.fill_ring(size),
            HashTable::Maglev(size) => made.fill_maglev(size),
        }
        made
    }

    /// Whether it is what would be made of these.
    pub fn is_of(&self, table: HashTable, endpoints: &[Endpoint]) -> bool {
        self.table == table
            && self.endpoints.len() == endpoints.len()
            && weighted(endpoints).eq(self.endpoints.iter().copied())
    }

    /// The endpoint of the first place that fits, from that of the hash on.
    pub fn find(&self, hash: u64, fits: impl Fn(SocketAddr) -> bool) -> Option<SocketAddr> {
        let size = self.owners.len();
        if size == 0 {
            return None;
        }
        let first = match self.positions.len() {
            0 => usize::try_from(hash % size as u64).unwrap_or_default(),
            _ => self.positions.partition_point(|position| *position < hash),
        };
        let places = (0..size.min(LOOKED_AT)).map(|nth| self.owners[(first + nth) % size]);
        let mut owners = places.map(|owner| self.endpoints[owner as usize].0);
        owners.find(|owner| fits(*owner)).or_else(|| {
            let (before, after) = self.endpoints.split_at(first % self.endpoints.len());
            after.iter().chain(before).map(|(address, _)| *address).find(|address| fits(*address))
        })
    }

    fn fill_ring(&mut self, size: u32) {
        let total: u64 = self.endpoints.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let (size, total) = (u64::from(size.max(1)), total.max(1));
        // In powers of two, so that nobody's places change with each endpoint that comes or goes.
        let more = size.div_ceil(total).next_power_of_two();
        let fewer = 1 << (total / size).max(1).ilog2();
        let mut places = Vec::new();
        for (index, (address, weight)) in (0_u32..).zip(&self.endpoints) {
            let share = (u64::from(*weight) * more / fewer).max(1);
            places.extend((0..share).map(|nth| (hash_of(*address, nth), index)));
        }
        places.sort_unstable();
        (self.positions, self.owners) = places.into_iter().unzip();
    }

    /// Each in its turn takes the next place that it likes and that is free (Eisenbud et al., "Maglev", section 3.4).
    fn fill_maglev(&mut self, size: u32) {
        const FREE: u32 = u32::MAX;
        let size = u64::from(size);
        let most = self.endpoints.iter().map(|(_, weight)| u64::from(*weight)).max().unwrap_or_default();
        if most == 0 {
            return;
        }
        struct Likes {
            next: u64,
            step: u64,
            taken: u64,
        }
        let mut likes: Vec<_> = (self.endpoints.iter())
            .map(|(address, _)| {
                let step = if size > 1 { hash_of(*address, 1) % (size - 1) + 1 } else { 0 };
                Likes { next: hash_of(*address, 0) % size, step, taken: 0 }
            })
            .collect();
        let mut owners = vec![FREE; usize::try_from(size).unwrap_or_default()];
        // By the round in which they take a place again: that of the most weight does in each.
        let mut turns: BinaryHeap<_> = (0..likes.len()).map(|index| Reverse((1_u64, index))).collect();
        for _ in 0..owners.len() {
            let Some(Reverse((round, index))) = turns.pop() else { break };
            let likes = &mut likes[index];
            while owners[likes.next as usize] != FREE {
                likes.next = (likes.next + likes.step) % size;
            }
            owners[likes.next as usize] = u32::try_from(index).unwrap_or(FREE);
            likes.taken += 1;
            let weight = u64::from(self.endpoints[index].1);
            turns.push(Reverse(((likes.taken * most).div_ceil(weight).max(round + 1), index)));
        }
        self.owners = owners;
    }
}

fn weighted(endpoints: &[Endpoint]) -> impl Iterator<Item = (SocketAddr, u32)> {
    endpoints.iter().map(|endpoint| (endpoint.address, endpoint.weight.get()))
}

/// The same in every process of one version.
fn hash_of(address: SocketAddr, nth: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (address, nth).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::num::NonZeroU32;

    use super::*;

    const TABLES: [HashTable; 2] = [HashTable::Ring(16_384), HashTable::Maglev(65_537)];

    fn endpoints(numbers: impl IntoIterator<Item = u8>) -> Vec<Endpoint> {
        numbers.into_iter().map(|n| Endpoint::at(([10, 0, 0, n], 80).into(), None)).collect()
    }

    fn owners(hashed: &Hashed) -> Vec<SocketAddr> {
        let spread = (0..20_000_u64).map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        spread.map(|hash| hashed.find(hash, |_| true).unwrap()).collect()
    }

    fn counts(hashed: &Hashed) -> HashMap<SocketAddr, usize> {
        let mut counts = HashMap::new();
        owners(hashed).into_iter().for_each(|owner| *counts.entry(owner).or_default() += 1);
        counts
    }

    #[test]
    fn all_get_about_the_same() {
        for table in TABLES {
            let counts = counts(&Hashed::new(table, &endpoints(0..10)));
            assert_eq!(counts.len(), 10);
            assert!(counts.values().all(|count| (1600..2400).contains(count)), "{table:?}: {counts:?}");
        }
    }

    #[test]
    fn weights_count() {
        for table in TABLES {
            let mut two = endpoints([1, 2]);
            two[0].weight = NonZeroU32::new(3).unwrap();
            let heavy = counts(&Hashed::new(table, &two))[&two[0].address];
            assert!((14_000..16_000).contains(&heavy), "{table:?}: {heavy}");
        }
    }

    #[test]
    fn weights_that_differ_as_much_as_can_be_take_no_longer() {
        let mut many: Vec<_> =
            (0..10_000_u32).map(|n| Endpoint::at((n.to_be_bytes(), 80).into(), None)).collect();
        many[7].weight = NonZeroU32::MAX;
        let began = std::time::Instant::now();
        let hashed = Hashed::new(HashTable::Maglev(HashTable::MAX), &many);
        assert!(began.elapsed().as_secs() < 5);
        let heavy = hashed.owners.iter().filter(|owner| **owner == 7).count();
        assert_eq!(heavy + many.len() - 1, hashed.owners.len());
    }

    #[test]
    fn one_that_goes_takes_hardly_any_but_its_own_with_it() {
        for table in TABLES {
            let (all, fewer) = (endpoints(0..10), endpoints((0..10).filter(|n| *n != 4)));
            let gone = all[4].address;
            let pairs = owners(&Hashed::new(table, &all)).into_iter();
            let pairs = pairs.zip(owners(&Hashed::new(table, &fewer)));
            let moved = pairs.filter(|(then, now)| *then != gone && then != now).count();
            let allowed = if matches!(table, HashTable::Ring(_)) { 0 } else { 1200 };
            assert!(moved <= allowed, "{table:?}: {moved} of 20000 were moved without need");
        }
    }

    #[test]
    fn one_that_does_not_fit_is_passed_over() {
        for table in [HashTable::Ring(1), HashTable::Maglev(2), TABLES[0], TABLES[1]] {
            let hashed = Hashed::new(table, &endpoints(0..10));
            let last = SocketAddr::from(([10, 0, 0, 9], 80));
            for hash in [0, 1, u64::MAX / 3, u64::MAX] {
                assert_eq!(hashed.find(hash, |address| address == last), Some(last), "{table:?}");
                assert_eq!(hashed.find(hash, |_| false), None);
            }
            assert_eq!(Hashed::new(table, &[]).find(7, |_| true), None);
        }
    }

    #[test]
    fn a_table_is_known_by_what_it_is_made_of() {
        let hashed = Hashed::new(TABLES[0], &endpoints(0..3));
        assert!(hashed.is_of(TABLES[0], &endpoints(0..3)));
        assert!(!hashed.is_of(TABLES[1], &endpoints(0..3)));
        assert!(!hashed.is_of(TABLES[0], &endpoints(0..4)));
        assert!(!hashed.is_of(TABLES[0], &endpoints(1..4)));
    }
}
