//! Which endpoint of a destination a request goes to.

use std::{
    cell::Cell,
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use orlop_model::{
    Endpoint, Reason,
    http::{Hashed, Target},
    world::routing::{Balancer, HashTable, Warmup},
};

use super::hosts::ClusterState;
use crate::shared::InFlight;

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
}

impl Default for Even {
    /// Workers begin at different places.
    fn default() -> Self {
        Self(Cell::new(fastrand::u64(..)))
    }
}

impl Even {
    pub(super) fn next(&self) -> u64 {
        let next = self.0.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
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
}

/// What is made of a cluster's endpoints, and made again when these change.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// For round robin.
    turn: AtomicUsize,
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
    pub(super) fn choose(&self, tried: &[SocketAddr]) -> Result<&'a Endpoint, Reason> {
        let all = self.target.port.eligible(self.dialled.ip());
        if all.is_empty() {
            return Err(Reason::NoHealthyEndpoint);
        }
        let outliers = &self.cluster.outliers;
        let asked = self.target.policy.is_some_and(|policy| policy.outlier.is_some());
        let anyone = !asked || outliers.is_empty() || self.panics(all);
        let is_well = |endpoint: &Endpoint| anyone || !outliers.is_ejected(endpoint.address, self.now);
        let is_new = |endpoint: &Endpoint| !tried.contains(&endpoint.address);
        let fresh = self.pick(all, |endpoint| is_new(endpoint) && is_well(endpoint));
        let found = fresh.or_else(|| if tried.is_empty() { None } else { self.pick(all, is_well) });
        found.ok_or(Reason::NoHealthyEndpoint)
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

    fn pick(&self, all: &'a [Endpoint], fits: impl Fn(&Endpoint) -> bool) -> Option<&'a Endpoint> {
        let policy = self.target.policy;
        let warmup = policy.and_then(|policy| policy.warmup.as_ref());
        let random = || self.draw(all, warmup, &fits, || fastrand::usize(..all.len()));
        match policy.and_then(|policy| policy.balancer.as_ref()) {
            Some(Balancer::Random) => random(),
            Some(Balancer::RoundRobin) => {
                let turn = &self.cluster.memory.turn;
                self.draw(all, warmup, &fits, || turn.fetch_add(1, Ordering::Relaxed) % all.len())
            }
            Some(Balancer::Hash(_, table)) if self.hash.is_some() => {
                let found = self.hashed(all, *table).and_then(|hashed| {
                    let found = hashed.find(self.hash?, |address| at(all, address).is_some_and(&fits));
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
                [random()?, random()?].into_iter().min_by_key(cost)
            }
            _ => {
                let load = |endpoint: &&Endpoint| self.in_flight.count(endpoint.address);
                [random()?, random()?].into_iter().min_by_key(load)
            }
        }
    }

    /// The first that fits of those that are drawn. One that is new is taken as often only as it is warm.
    fn draw(
        &self,
        all: &'a [Endpoint],
        warmup: Option<&Warmup>,
        fits: impl Fn(&Endpoint) -> bool,
        next: impl Fn() -> usize,
    ) -> Option<&'a Endpoint> {
        let warming = warmup.map(|warmup| (warmup, self.warming(all)));
        let mut last = None;
        for _ in 0..DRAWN {
            let Some(endpoint) = all.get(next()) else { continue };
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
            let (before, after) = all.split_at(next() % all.len());
            after.iter().chain(before).find(|endpoint| fits(endpoint))
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

/// The endpoint at this address; they are sorted by address, as those that are eligible are.
fn at(all: &[Endpoint], address: SocketAddr) -> Option<&Endpoint> {
    let index = all.binary_search_by_key(&address, |endpoint| endpoint.address).ok()?;
    all.get(index)
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
