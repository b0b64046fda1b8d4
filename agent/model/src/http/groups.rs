//! In which of a destination's localities requests go: `localityLbSetting`, with the semantics of Istio, and of Envoy's
//! priorities and weights of localities.

use std::collections::BTreeMap;

use crate::locality::{REGION, SUBZONE, ZONE};
use crate::service::Endpoint;
use crate::world::routing::{LocalityBalancing, LocalityPattern};
use crate::world::{Labels, Locality};

/// The label of the node that a pod is on.
const HOSTNAME: &str = "kubernetes.io/hostname";
/// In percent: a group is as good as whole while so much of it divided by this is well. Envoy's default.
const OVERPROVISIONED: u64 = 140;

/// Where somebody is, and what is known of it.
#[derive(Clone, Copy, Debug)]
pub struct Whereabouts<'a> {
    /// Its region, zone and subzone.
    pub locality: &'a Locality,
    /// Its node, or empty.
    pub node: &'a str,
    /// The labels of its pod.
    pub labels: Option<&'a Labels>,
}

/// Endpoints in groups, of which each gets requests by how many of its endpoints are well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups {
    /// By the endpoint's place among those that they are made of; `None` gets nothing.
    of: Vec<Option<usize>>,
    members: Vec<Vec<usize>>,
    /// What each gets. Without them the first gets everything, and the others what it can't bear.
    weights: Option<Vec<u64>>,
}

impl Groups {
    /// What is said for somebody who is `here`; `None` where all endpoints are alike. Without `fails_over` (as outliers
    /// are not detected) only `distribute` counts.
    pub fn new<'e>(
        setting: &LocalityBalancing,
        fails_over: bool,
        here: Whereabouts<'_>,
        endpoints: impl Iterator<Item = Whereabouts<'e>>,
    ) -> Option<Self> {
        if !setting.enabled {
            return None;
        }
        if !setting.distribute.is_empty() {
            let mut all = setting.distribute.iter();
            let to = &all.find(|of| of.from.includes(here.locality))?.to;
            let group = |of: Whereabouts<'_>| to.iter().position(|(place, _)| place.includes(of.locality));
            let of: Vec<_> = endpoints.map(group).collect();
            return Some(Self::of(
                of,
                to.len(),
                Some(to.iter().map(|(_, weight)| u64::from(*weight)).collect()),
            ));
        }
        let is_known = here.locality.region.is_some();
        if !fails_over || (!is_known && setting.priority.is_empty()) {
            return None;
        }
        let ranks: Vec<_> = endpoints.map(|of| rank(setting, here, of)).collect();
        let known: BTreeMap<_, _> = ranks.iter().map(|rank| (*rank, ())).collect();
        let order: BTreeMap<_, _> = known.into_keys().enumerate().map(|(n, rank)| (rank, n)).collect();
        let of = ranks.iter().map(|rank| order.get(rank).copied()).collect();
        (order.len() > 1).then(|| Self::of(of, order.len(), None))
    }

    fn of(of: Vec<Option<usize>>, count: usize, weights: Option<Vec<u64>>) -> Self {
        let mut members = vec![Vec::new(); count];
        for (endpoint, group) in of.iter().enumerate() {
            if let Some(group) = group.and_then(|group: usize| members.get_mut(group)) {
                group.push(endpoint);
            }
        }
        Self { of, members, weights }
    }

    /// The endpoints of each.
    pub fn members(&self) -> &[Vec<usize>] {
        &self.members
    }

    /// The one that an endpoint is in.
    pub fn group_of(&self, endpoint: usize) -> Option<usize> {
        self.of.get(endpoint).copied().flatten()
    }

    /// Which is to have the next request, given how many of each are not well, how often the request was at each, and
    /// a number that is drawn evenly from all. `None` where nobody is well.
    pub fn pick(
        &self,
        unwell: impl Fn(usize) -> usize,
        tries: impl Fn(usize) -> usize,
        draw: u64,
    ) -> Option<usize> {
        let health: Vec<u64> = (self.members.iter().enumerate())
            .map(|(group, members)| {
                let (all, unwell) = (members.len() as u64, unwell(group) as u64);
                (OVERPROVISIONED * all.saturating_sub(unwell)).checked_div(all).unwrap_or_default().min(100)
            })
            .collect();
        let loads = match &self.weights {
            Some(weights) => weights.iter().zip(&health).map(|(weight, health)| weight * health).collect(),
            None => by_priority(&least_tried(health, tries)),
        };
        let sum: u64 = loads.iter().sum();
        let mut at = (u128::from(draw) * u128::from(sum)) >> 64;
        loads.iter().position(|load| {
            let load = u128::from(*load);
            let is_here = at < load;
            at = at.saturating_sub(load);
            is_here
        })
    }
}

/// Without those that were tried more often than another that is well: Envoy's `previous_priorities`.
fn least_tried(mut health: Vec<u64>, tries: impl Fn(usize) -> usize) -> Vec<u64> {
    let well = health.iter().enumerate().filter(|(_, health)| **health > 0);
    let fewest = well.map(|(group, _)| tries(group)).min().unwrap_or_default();
    for (group, health) in health.iter_mut().enumerate() {
        if tries(group) > fewest {
            *health = 0;
        }
    }
    health
}

/// What percentage each gets of those that come one after the other, given how well they are: Envoy's priorities.
fn by_priority(health: &[u64]) -> Vec<u64> {
    let whole = health.iter().sum::<u64>().min(100);
    let mut left = if whole == 0 { 0 } else { 100 };
    let mut loads: Vec<u64> = (health.iter())
        .map(|health| {
            let load = (health * 100).checked_div(whole).unwrap_or_default().min(left);
            left -= load;
            load
        })
        .collect();
    // What is lost by rounding is the first one's.
    if let Some(first) = loads.iter_mut().find(|load| **load > 0) {
        *first += left;
    }
    loads
}

/// The lower comes first: by `failoverPriority`, then by how far it is.
fn rank(setting: &LocalityBalancing, here: Whereabouts<'_>, of: Whereabouts<'_>) -> (usize, usize) {
    let labels = &setting.priority;
    let differs = labels.iter().position(|(label, value)| {
        let wanted = value.as_deref().unwrap_or_else(|| here.label(label));
        wanted != of.label(label)
    });
    let by_labels = differs.map_or(0, |at| labels.len() - at);
    if !labels.is_empty() && setting.failover.is_empty() {
        return (by_labels, 0);
    }
    let (own, there) = (here.locality, of.locality);
    let distance = match () {
        () if own.region != there.region => {
            let from = |(from, _): &&(String, String)| own.region.as_deref() == Some(from);
            let to = setting.failover.iter().find(from).map(|(_, to)| to.as_str());
            if to.is_none_or(|to| there.region.as_deref() == Some(to)) { 3 } else { 4 }
        }
        () if own.zone != there.zone => 2,
        () if own.subzone != there.subzone => 1,
        () => 0,
    };
    (by_labels, distance)
}

impl<'a> Whereabouts<'a> {
    /// Of an endpoint.
    pub fn of(endpoint: &'a Endpoint, labels: Option<&'a Labels>) -> Self {
        let node = endpoint.workload.as_ref().map_or("", |workload| &workload.node);
        Self { locality: &endpoint.locality, node, labels }
    }

    /// The value of a label, with those that say where it is; empty without one.
    fn label(&self, name: &str) -> &'a str {
        let of_locality = match name {
            REGION => self.locality.region.as_deref(),
            ZONE => self.locality.zone.as_deref(),
            SUBZONE => self.locality.subzone.as_deref(),
            HOSTNAME => Some(self.node).filter(|node| !node.is_empty()),
            _ => None,
        };
        let labels = self.labels;
        of_locality.or_else(|| labels?.get(name).map(|value| &**value)).unwrap_or_default()
    }
}

impl LocalityPattern {
    fn includes(&self, locality: &Locality) -> bool {
        let all = [&locality.region, &locality.zone, &locality.subzone];
        self.0.iter().zip(all).all(|(wanted, is)| {
            wanted.as_deref().is_none_or(|wanted| is.as_deref().unwrap_or_default() == wanted)
        })
    }
}
