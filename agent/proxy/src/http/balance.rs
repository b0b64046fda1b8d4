//! Which endpoint of a destination a request goes to.

use std::{
    cell::Cell,
    hash::{DefaultHasher, Hash, Hasher},
    net::SocketAddr,
    sync::atomic::Ordering,
};

use http::{HeaderMap, header::COOKIE};
use orlop_model::{
    Endpoint, Reason,
    http::Target,
    world::routing::{Balancer, HashOn},
};

use super::{
    hosts::{Hosts, ServiceState},
    session::Session,
};
use crate::shared::InFlight;

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
    pub(super) state: &'a ServiceState,
    pub(super) hosts: &'a Hosts,
    pub(super) in_flight: &'a InFlight,
    /// Of what is alike, if that is to go to one endpoint.
    pub(super) hash: Option<u64>,
    /// The address whose family is preferred.
    pub(super) dialled: SocketAddr,
}

impl<'a> Choosing<'a> {
    /// An endpoint that is not in `tried`, if there is another. Those that are ejected are left out, unless too few
    /// others are left.
    pub(super) fn choose(&self, tried: &[SocketAddr]) -> Result<&'a Endpoint, Reason> {
        let all = self.target.port.eligible(self.dialled.ip());
        if all.is_empty() {
            return Err(Reason::NoHealthyEndpoint);
        }
        let now = self.hosts.now();
        let is_well =
            |endpoint: &Endpoint| !self.state.has_ejected() || !self.state.is_ejected(endpoint.address, now);
        let is_new = |endpoint: &Endpoint| !tried.contains(&endpoint.address);
        let panics = self.state.has_ejected() && self.panics(all, &is_well);
        let fresh = self.pick(all, |endpoint| is_new(endpoint) && (panics || is_well(endpoint)));
        let found = fresh.or_else(|| self.pick(all, |endpoint| panics || is_well(endpoint)));
        found.ok_or(Reason::NoHealthyEndpoint)
    }

    /// How many there are to choose from.
    pub(super) fn candidates(&self) -> usize {
        self.target.port.eligible(self.dialled.ip()).len()
    }

    fn panics(&self, all: &[Endpoint], is_well: &impl Fn(&Endpoint) -> bool) -> bool {
        let outlier = self.target.policy.and_then(|policy| policy.outlier.as_ref());
        let min = outlier.map_or(0, |outlier| outlier.min_health as usize);
        min > 0 && all.iter().filter(|endpoint| is_well(endpoint)).count() * 100 < all.len() * min
    }

    fn pick(&self, all: &'a [Endpoint], fits: impl Fn(&Endpoint) -> bool) -> Option<&'a Endpoint> {
        let from = |start: usize| {
            let (before, after) = all.split_at(start);
            after.iter().chain(before).find(|endpoint| fits(endpoint))
        };
        let random = || from(fastrand::usize(..all.len()));
        match self.target.policy.and_then(|policy| policy.balancer.as_ref()) {
            Some(Balancer::Random) => random(),
            Some(Balancer::RoundRobin) => from(self.state.turn.fetch_add(1, Ordering::Relaxed) % all.len()),
            Some(Balancer::Hash(_)) if self.hash.is_some() => {
                let hash = self.hash.unwrap_or_default();
                // Rendezvous hashing: an endpoint that goes takes only its own with it.
                let fitting = all.iter().filter(|endpoint| fits(endpoint));
                fitting.max_by_key(|endpoint| hash_of(&(hash, endpoint.address)))
            }
            _ => {
                let (one, other) = (random()?, random()?);
                let load = |endpoint: &Endpoint| self.in_flight.count(endpoint.address);
                let fewer = other.address != one.address && load(other) < load(one);
                Some(if fewer { other } else { one })
            }
        }
    }
}

/// What is alike of a request, as its destination's policy says; a cookie that is to be made, where there is none.
pub(super) fn hash_on(
    on: &HashOn,
    session: &Session,
    headers: &HeaderMap,
    query: Option<&str>,
) -> (Option<u64>, Option<String>) {
    match on {
        HashOn::Header(name) => (headers.get(name).map(|value| hash_of(&value.as_bytes())), None),
        HashOn::Source => (Some(hash_of(&session.client.ip())), None),
        HashOn::Query(name) => {
            let pairs = query.into_iter().flat_map(|query| query.split('&'));
            let mut pairs = pairs.filter_map(|pair| pair.split_once('='));
            (pairs.find(|(key, _)| key == name).map(|(_, value)| hash_of(&value)), None)
        }
        HashOn::Cookie { name, path, ttl } => {
            let lines = headers.get_all(COOKIE).into_iter().filter_map(|value| value.to_str().ok());
            let mut cookies =
                lines.flat_map(|line| line.split(';')).filter_map(|one| one.trim().split_once('='));
            if let Some((_, value)) = cookies.find(|(key, _)| key == name) {
                return (Some(hash_of(&value)), None);
            }
            let Some(ttl) = ttl else { return (None, None) };
            let value = format!("{:016x}", fastrand::u64(..));
            let mut cookie = format!("{name}={value}");
            // A time of 0 means until the browser is closed.
            if !ttl.is_zero() {
                cookie += &format!("; Max-Age={}", ttl.as_secs());
            }
            if let Some(path) = path {
                cookie += &format!("; Path={path}");
            }
            (Some(hash_of(&value.as_str())), Some(cookie + "; HttpOnly"))
        }
    }
}

/// The same in every process of one version.
fn hash_of(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
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
