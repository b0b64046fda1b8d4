//! What is remembered of clusters, which are ports of services and of their subsets: how many requests they have, and
//! how their endpoints fare.

use std::{
    cell::RefCell,
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Instant,
};

use orlop_model::{NamespacedName, ServiceKind, http::Target, world::routing::RetryBudget};

use super::{balance::Memory, connections::Connections, outlier::Outliers};

/// Past this, what is idle is forgotten: servers come and go for as long as the waypoint runs.
const MANY: usize = 4096;

/// What all workers share.
#[derive(Debug)]
pub(crate) struct Hosts {
    since: Instant,
    clusters: Mutex<Clusters>,
}

/// One worker's way there.
#[derive(Default)]
pub(crate) struct HostCache(RefCell<Clusters>);

/// By the service's host name.
type Clusters = HashMap<String, Vec<Arc<ClusterState>>>;

/// Of a port of a service or of a subset, for the clients that one rule is for.
#[derive(Debug, Default)]
pub(super) struct ClusterState {
    service: (ServiceKind, NamespacedName),
    port: u16,
    subset: Option<String>,
    level: String,
    requests: AtomicUsize,
    retries: AtomicUsize,
    pub(super) connections: Arc<Connections>,
    pub(super) outliers: Outliers,
    pub(super) memory: Memory,
}

impl Default for Hosts {
    fn default() -> Self {
        Self { since: Instant::now(), clusters: Mutex::default() }
    }
}

impl Hosts {
    /// In milliseconds since the waypoint's start.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl HostCache {
    pub(super) fn cluster(&self, hosts: &Hosts, target: &Target<'_>) -> Arc<ClusterState> {
        let mut cache = self.0.borrow_mut();
        if let Some(cluster) = known(&cache, target) {
            return Arc::clone(cluster);
        }
        if cache.values().map(Vec::len).sum::<usize>() >= MANY {
            cache.clear();
        }
        let mut shared = hosts.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        let cluster = match known(&shared, target) {
            Some(cluster) => Arc::clone(cluster),
            None => {
                if shared.values().map(Vec::len).sum::<usize>() >= MANY {
                    shared.retain(|_, clusters| {
                        clusters.retain(|cluster| Arc::strong_count(cluster) > 1);
                        !clusters.is_empty()
                    });
                }
                let cluster = Arc::new(ClusterState::new(target));
                let of_service = shared.entry(target.service.hostname.clone()).or_default();
                of_service.push(Arc::clone(&cluster));
                cluster
            }
        };
        cache.entry(target.service.hostname.clone()).or_default().push(Arc::clone(&cluster));
        cluster
    }
}

fn known<'c>(clusters: &'c Clusters, target: &Target<'_>) -> Option<&'c Arc<ClusterState>> {
    let mut of_service = clusters.get(&target.service.hostname)?.iter();
    of_service.find(|of| of.is_of(target))
}

/// Counts a request of a cluster until it is dropped.
pub(super) struct RequestGuard(Arc<ClusterState>);

/// Counts a retry until it is dropped.
pub(super) struct RetryGuard(Arc<ClusterState>);

impl ClusterState {
    fn new(target: &Target<'_>) -> Self {
        Self {
            service: (target.service.kind, target.service.name.clone()),
            port: target.port.number,
            subset: target.subset.map(str::to_owned),
            level: target.level.to_owned(),
            ..Self::default()
        }
    }

    fn is_of(&self, target: &Target<'_>) -> bool {
        let (kind, name) = &self.service;
        self.port == target.port.number
            && self.subset.as_deref() == target.subset
            && self.level == target.level
            && (*kind, name) == (target.service.kind, &target.service.name)
    }

    /// One request more, unless there are `limit` already.
    pub(super) fn enter(self: &Arc<Self>, limit: Option<u32>) -> Option<RequestGuard> {
        let before = self.requests.fetch_add(1, Relaxed);
        let guard = RequestGuard(Arc::clone(self));
        limit.is_none_or(|limit| before < limit as usize).then_some(guard)
    }

    /// One retry more, as far as the budget allows, or else the limit. Without either there is Envoy's default budget.
    pub(super) fn retry(
        self: &Arc<Self>,
        budget: Option<RetryBudget>,
        limit: Option<u32>,
    ) -> Option<RetryGuard> {
        let limit = match (budget, limit) {
            (None, Some(limit)) => limit as usize,
            (budget, _) => budget.unwrap_or_default().of(self.requests.load(Relaxed)),
        };
        let before = self.retries.fetch_add(1, Relaxed);
        let guard = RetryGuard(Arc::clone(self));
        (before < limit).then_some(guard)
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Relaxed);
    }
}

impl Drop for RetryGuard {
    fn drop(&mut self) {
        self.0.retries.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_have_a_budget() {
        let cluster = Arc::new(ClusterState::default());
        let few: Vec<_> = (0..5).map_while(|_| cluster.retry(None, None)).collect();
        assert_eq!(few.len(), 3);
        drop(few);
        let _requests: Vec<_> = (0..50).map_while(|_| cluster.enter(None)).collect();
        let count =
            |budget, limit| (0..50).map_while(|_| cluster.retry(budget, limit)).collect::<Vec<_>>().len();
        assert_eq!((count(None, None), count(None, Some(1))), (10, 1));
        let half = RetryBudget { thousandths: 50_000, at_least: 0 };
        assert_eq!((count(Some(half), None), count(Some(half), Some(1))), (25, 25));
        assert!(cluster.enter(Some(50)).is_none());
        assert!(cluster.enter(Some(51)).is_some());
    }
}
