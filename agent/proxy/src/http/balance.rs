//! Which endpoint of a destination a request goes to.

use std::{
    cell::Cell,
    collections::HashMap,
    iter::once,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use orlop_model::{
    Endpoint, NamespacedName, Reason,
    http::{Groups, Hashed, Routes, Target},
    world::routing::{Balancer, HashTable, LocalityBalancing, Warmup},
};

use super::hosts::ClusterState;
use crate::shared::InFlight;

/// What numbers have between them that are spread evenly: 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
/// Endpoints that are drawn, before any that fits is taken.
const DRAWN: usize = 32;

/// A sequence that is spread evenly over all numbers however short a part of it is looked at, so that weights and
/// percentages are met by few requests too: multiples of the golden ratio.
pub(crate) struct Even(Cell<u64>);

/// A sequence for each thing that is drawn for: how often one is drawn from depends on what another has given.
#[derive(Default)]
pub(crate) struct Draws {
    pub(super) split: Even,
    pub(super) delay: Even,
    pub(super) abort: Even,
    pub(super) mirror: Even,
    pub(super) log: Even,
}

impl Default for Even {
    /// Workers begin at different places.
    fn default() -> Self {
        Self(Cell::new(fastrand::u64(..)))
    }
}

impl Even {
    pub(super) fn next(&self) -> u64 {
        let next = self.0.get().wrapping_add(GOLDEN);
        self.0.set(next);
        next
    }
}

/// What choosing an endpoint depends on.
pub(super) struct Choosing<'a> {
    pub(super) target: Target<'a>,
    pub(super) cluster: &'a ClusterState,
    pub(super) in_flight: &'a InFlight,
    /// Of what is alike, if that is to go to one endpoint.
    pub(super) hash: Option<u64>,
    /// The address whose family is preferred.
    pub(super) dialled: SocketAddr,
    /// In milliseconds since the waypoint's start.
    pub(super) now: u64,
    /// Of the snapshot.
    pub(super) generation: u64,
    /// Those of the snapshot.
    pub(super) routes: &'a Routes,
    /// The workload that this is.
    pub(super) own: &'a NamespacedName,
}

/// Where a request was already.
#[derive(Clone, Copy)]
pub(super) struct Tried<'a> {
    pub(super) endpoints: &'a [SocketAddr],
    /// Whether their localities are passed over, as long as there are others.
    pub(super) localities: bool,
}

impl<'a> From<&'a [SocketAddr]> for Tried<'a> {
    fn from(endpoints: &'a [SocketAddr]) -> Self {
        Self { endpoints, localities: false }
    }
}

/// What is made of a cluster's endpoints, and made again when these change.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// For round robin.
    turn: AtomicUsize,
    /// For the shares of localities.
    spread: AtomicU64,
    /// By locality, if that matters: IPv4, and IPv6. With the last snapshot whose endpoints they are of.
    groups: [ArcSwapOption<(u64, Option<Arc<Groups>>)>; 2],
    /// IPv4, and IPv6.
    tables: [Table; 2],
    warming: Mutex<Warming>,
}

#[derive(Debug, Default)]
struct Table {
    /// With the last snapshot whose endpoints it is known to be of.
    made: ArcSwapOption<(u64, Arc<Hashed>)>,
    /// Held by whoever makes it.
    making: Mutex<()>,
}

/// Since when endpoints are there, in milliseconds since the waypoint's start.
#[derive(Debug, Default)]
struct Warming {
    generation: u64,
    since: HashMap<SocketAddr, u64>,
}

impl<'a> Choosing<'a> {
    /// An endpoint that is not in `tried`, if there is another. Those that are ejected are left out, unless too few
    /// others are left.
    pub(super) fn choose(&self, tried: Tried<'_>) -> Result<&'a Endpoint, Reason> {
        let all = self.target.port.eligible(self.dialled.ip());
        if all.is_empty() {
            return Err(Reason::NoHealthyEndpoint);
        }
        let outliers = &self.cluster.outliers;
        let asked = self.target.policy.is_some_and(|policy| policy.outlier.is_some());
        let anyone = !asked || outliers.is_empty() || self.panics(all);
        let is_well = |endpoint: &Endpoint| anyone || !outliers.is_ejected(endpoint.address, self.now);
        let is_new = |endpoint: &Endpoint| !tried.endpoints.contains(&endpoint.address);
        let order = match self.groups(all) {
            None => None,
            Some(groups) => {
                let first = self.group(all, &groups, anyone, tried).ok_or(Reason::NoHealthyEndpoint)?;
                Some((groups, first))
            }
        };
        let pick = |fits: &dyn Fn(&Endpoint) -> bool| match &order {
            None => self.pick(Among { all, members: None }, fits),
            Some((groups, first)) => {
                let others = (0..groups.members().len()).filter(|group| group != first);
                let mut groups = once(*first).chain(others).filter_map(|group| groups.members().get(group));
                groups.find_map(|members| self.pick(Among { all, members: Some(members) }, fits))
            }
        };
        let fresh = pick(&|endpoint| is_new(endpoint) && is_well(endpoint));
        let found = fresh.or_else(|| if tried.endpoints.is_empty() { None } else { pick(&is_well) });
        found.ok_or(Reason::NoHealthyEndpoint)
    }

    /// The endpoints by locality, if that matters.
    fn groups(&self, all: &[Endpoint]) -> Option<Arc<Groups>> {
        let policy = self.target.policy?;
        let fails_over = policy.outlier.is_some();
        let setting = match &policy.locality {
            Some(setting) => setting,
            None if fails_over => &LocalityBalancing::DEFAULT,
            None => return None,
        };
        let place = &self.cluster.memory.groups[usize::from(all.first()?.address.is_ipv6())];
        if let Some((generation, groups)) = place.load().as_deref()
            && *generation == self.generation
        {
            return groups.clone();
        }
        let here = self.routes.here(self.own);
        let endpoints = all.iter().map(|endpoint| self.routes.whereabouts(endpoint));
        let groups = Groups::new(setting, fails_over, here, endpoints).map(Arc::new);
        // An older snapshot's are for the requests that still go by it.
        if place.load().as_deref().is_none_or(|(made, _)| *made < self.generation) {
            place.store(Some(Arc::new((self.generation, groups.clone()))));
        }
        groups
    }

    /// Which of them has this request. What is alike has the same.
    fn group(&self, all: &[Endpoint], groups: &Groups, anyone: bool, tried: Tried<'_>) -> Option<usize> {
        let spread = &self.cluster.memory.spread;
        let draw = match self.hash {
            // The same number says which of a group's endpoints it is.
            Some(hash) => hash.wrapping_mul(GOLDEN).rotate_left(32),
            None => spread.fetch_add(GOLDEN, Ordering::Relaxed),
        };
        let is_of = |host, group| place_of(all, host).is_some_and(|at| groups.group_of(at) == Some(group));
        let tried = if tried.localities { tried.endpoints } else { &[] };
        let tries = |group| tried.iter().filter(|host| is_of(**host, group)).count();
        if anyone {
            return groups.pick(|_| 0, tries, draw);
        }
        groups.pick(|group| self.cluster.outliers.ejected(self.now, |host| is_of(host, group)), tries, draw)
    }

    /// How many there are to choose from.
    pub(super) fn candidates(&self) -> usize {
        self.target.port.eligible(self.dialled.ip()).len()
    }

    /// Whether so few are well that these would have to bear too much: Envoy's panic.
    fn panics(&self, all: &[Endpoint]) -> bool {
        let outlier = self.target.policy.and_then(|policy| policy.outlier.as_ref());
        let min = outlier.map_or(0, |outlier| outlier.min_health as usize);
        let too_many = |ejected: usize| (all.len() - ejected.min(all.len())) * 100 < all.len() * min;
        min > 0
            && too_many(self.cluster.outliers.ejected(self.now, |_| true))
            && too_many(self.cluster.outliers.ejected(self.now, |host| at(all, host).is_some()))
    }

    fn pick(&self, among: Among<'a, '_>, fits: impl Fn(&Endpoint) -> bool) -> Option<&'a Endpoint> {
        let Among { all, .. } = among;
        if among.len() == 0 {
            return None;
        }
        let policy = self.target.policy;
        let warmup = policy.and_then(|policy| policy.warmup.as_ref());
        let random = || self.draw(among, warmup, &fits, || fastrand::usize(..among.len()));
        // Two, and not the same one twice; of those that are new each is drawn as often only as it is warm.
        let two = || {
            let first = Cell::new(0);
            let drawn = || {
                first.set(fastrand::usize(..among.len()));
                first.get()
            };
            let one = self.draw(among, warmup, &fits, drawn)?;
            let other = match among.len() - 1 {
                0 => None,
                _ if warmup.is_some() => random(),
                others => self.draw(among, None, &fits, || {
                    let at = fastrand::usize(..others);
                    at + usize::from(at >= first.get())
                }),
            };
            Some([one].into_iter().chain(other))
        };
        match policy.and_then(|policy| policy.balancer.as_ref()) {
            Some(Balancer::Random) => random(),
            Some(Balancer::RoundRobin) => {
                let turn = &self.cluster.memory.turn;
                self.draw(among, warmup, &fits, || turn.fetch_add(1, Ordering::Relaxed) % among.len())
            }
            Some(Balancer::Hash(_, table)) if self.hash.is_some() => {
                let found = self.hashed(all, *table).and_then(|hashed| {
                    let found = hashed.find(self.hash?, |address| {
                        let at = place_of(all, address).filter(|at| among.has(*at));
                        at.and_then(|at| all.get(at)).is_some_and(&fits)
                    });
                    at(all, found?)
                });
                // The table may be of other endpoints than the request's snapshot has.
                found.or_else(random)
            }
            Some(Balancer::PeakEwma) => {
                let cost = |endpoint: &&Endpoint| {
                    let latency = self.cluster.outliers.latency(endpoint.address, self.now);
                    latency.as_micros() * (self.in_flight.count(endpoint.address) as u128 + 1)
                };
                // Drawn twice, one whose answers took long is asked again now and then.
                [random()?, random()?].into_iter().min_by_key(cost)
            }
            _ => {
                let load = |endpoint: &&Endpoint| self.in_flight.count(endpoint.address);
                two()?.min_by_key(load)
            }
        }
    }

    /// The first that fits of those that are drawn. One that is new is taken as often only as it is warm.
    fn draw(
        &self,
        among: Among<'a, '_>,
        warmup: Option<&Warmup>,
        fits: impl Fn(&Endpoint) -> bool,
        next: impl Fn() -> usize,
    ) -> Option<&'a Endpoint> {
        let warming = warmup.map(|warmup| (warmup, self.warming(among.all)));
        let mut last = None;
        for _ in 0..DRAWN {
            let Some(endpoint) = among.get(next()) else { continue };
            if !fits(endpoint) {
                continue;
            }
            last = Some(endpoint);
            let part = warming.as_ref().map_or(1.0, |(warmup, ages)| warmup.part(ages(endpoint.address)));
            if part >= 1.0 || fastrand::f64() < part {
                return last;
            }
        }
        last.or_else(|| {
            let first = next();
            let rest = (0..among.len()).map(|nth| (first + nth) % among.len());
            rest.filter_map(|nth| among.get(nth)).find(|endpoint| fits(endpoint))
        })
    }

    /// For how long endpoints are there.
    fn warming(&self, all: &[Endpoint]) -> impl Fn(SocketAddr) -> Duration {
        let memory = &self.cluster.memory;
        {
            let mut warming = memory.warming.lock().unwrap_or_else(PoisonError::into_inner);
            if warming.generation < self.generation {
                warming.generation = self.generation;
                let mut before = std::mem::take(&mut warming.since);
                let endpoints = self.target.port.endpoints.iter().chain(all);
                let ready = endpoints.filter(|endpoint| endpoint.ready || endpoint.draining);
                for Endpoint { address, .. } in ready {
                    let since = before.remove(address).unwrap_or(self.now);
                    warming.since.entry(*address).or_insert(since);
                }
            }
        }
        let now = self.now;
        move |address| {
            let warming = memory.warming.lock().unwrap_or_else(PoisonError::into_inner);
            let since = warming.since.get(&address).copied().unwrap_or(now);
            Duration::from_millis(now.saturating_sub(since))
        }
    }

    /// The table of these endpoints. An older snapshot than the last takes that one's: it is right for all that are
    /// still there.
    fn hashed(&self, all: &[Endpoint], table: HashTable) -> Option<Arc<Hashed>> {
        let place = &self.cluster.memory.tables[usize::from(all.first()?.address.is_ipv6())];
        let current = || {
            let made = place.made.load();
            let (generation, hashed) = &**made.as_ref()?;
            (*generation >= self.generation).then(|| Arc::clone(hashed))
        };
        current().or_else(|| {
            let _making = place.making.lock().unwrap_or_else(PoisonError::into_inner);
            current().or_else(|| {
                let before = place.made.load_full();
                let same = before.filter(|before| before.1.is_of(table, all));
                let hashed = match same {
                    Some(same) => Arc::clone(&same.1),
                    None => Arc::new(Hashed::new(table, all)),
                };
                place.made.store(Some(Arc::new((self.generation, Arc::clone(&hashed)))));
                Some(hashed)
            })
        })
    }
}

/// Endpoints to choose from: all, or those at these places.
#[derive(Clone, Copy)]
struct Among<'a, 'm> {
    all: &'a [Endpoint],
    members: Option<&'m [usize]>,
}

impl<'a> Among<'a, '_> {
    fn len(&self) -> usize {
        self.members.map_or(self.all.len(), <[usize]>::len)
    }

    fn get(&self, nth: usize) -> Option<&'a Endpoint> {
        let place = match self.members {
            Some(members) => *members.get(nth)?,
            None => nth,
        };
        self.all.get(place)
    }

    /// Whether the one at this place is among them. They are sorted.
    fn has(&self, place: usize) -> bool {
        self.members.is_none_or(|members| members.binary_search(&place).is_ok())
    }
}

/// The endpoint at this address.
fn at(all: &[Endpoint], address: SocketAddr) -> Option<&Endpoint> {
    all.get(place_of(all, address)?)
}

/// Where it is among them: they are sorted by address, as those that are eligible are.
fn place_of(all: &[Endpoint], address: SocketAddr) -> Option<usize> {
    all.binary_search_by_key(&address, |endpoint| endpoint.address).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_few_is_a_tenth() {
        let even = Even::default();
        for count in [10_u32, 100, 1000, 10_000] {
            let hits = (0..count).filter(|_| even.next() < u64::MAX / 10).count();
            let off = (hits as f64 - f64::from(count) / 10.0).abs();
            assert!(off <= 3.0, "{hits} of {count}");
        }
    }
}
