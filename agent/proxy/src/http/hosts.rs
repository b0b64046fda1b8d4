//! What is remembered of servers: how many requests they have, how many errors in a row, and who is ejected.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use orlop_model::world::routing::Outlier;

/// Retries at one time that are always allowed, and above that, of how many requests there may be one: Envoy's
/// budget of a fifth.
const FEW_RETRIES: usize = 3;
const REQUESTS_PER_RETRY: usize = 5;
/// Past this, what is idle is forgotten: servers come and go for as long as the waypoint runs.
const MANY: usize = 4096;

/// What all workers share.
#[derive(Debug)]
pub(crate) struct Hosts {
    since: Instant,
    services: Mutex<HashMap<String, Arc<ServiceState>>>,
}

/// One worker's way there.
#[derive(Default)]
pub(crate) struct HostCache {
    services: RefCell<HashMap<String, Arc<ServiceState>>>,
}

/// Of a service.
#[derive(Debug, Default)]
pub(super) struct ServiceState {
    pub(super) requests: AtomicUsize,
    retries: AtomicUsize,
    /// For round robin.
    pub(super) turn: AtomicUsize,
    hosts: Mutex<HashMap<SocketAddr, Arc<HostState>>>,
    /// How many have been ejected at any time: as long as it is none, nobody is looked up.
    ejections: AtomicU32,
}

/// Of one of its endpoints.
#[derive(Debug, Default)]
pub(super) struct HostState {
    server_errors: AtomicU32,
    gateway_errors: AtomicU32,
    /// How often in a row it was ejected.
    times: AtomicU32,
    /// In milliseconds since the waypoint's start.
    until: AtomicU64,
}

impl Default for Hosts {
    fn default() -> Self {
        Self { since: Instant::now(), services: Mutex::default() }
    }
}

impl Hosts {
    /// In milliseconds since the waypoint's start.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl HostCache {
    pub(super) fn service(&self, hosts: &Hosts, name: &str) -> Arc<ServiceState> {
        let mut cache = self.services.borrow_mut();
        if let Some(state) = cache.get(name) {
            return Arc::clone(state);
        }
        if cache.len() >= MANY {
            cache.clear();
        }
        let mut services = hosts.services.lock().unwrap_or_else(PoisonError::into_inner);
        if services.len() >= MANY {
            services.retain(|_, state| Arc::strong_count(state) > 1);
        }
        let state = Arc::clone(services.entry(name.to_owned()).or_default());
        cache.insert(name.to_owned(), Arc::clone(&state));
        state
    }
}

/// Counts a request of a service until it is dropped.
pub(super) struct RequestGuard(Arc<ServiceState>);

/// Counts a retry until it is dropped.
pub(super) struct RetryGuard(Arc<ServiceState>);

impl ServiceState {
    /// One request more, unless there are `limit` already.
    pub(super) fn enter(self: &Arc<Self>, limit: Option<u32>) -> Option<RequestGuard> {
        let before = self.requests.fetch_add(1, Relaxed);
        let guard = RequestGuard(Arc::clone(self));
        limit.is_none_or(|limit| before < limit as usize).then_some(guard)
    }

    /// One retry more, as far as the limit or the budget allows.
    pub(super) fn retry(self: &Arc<Self>, limit: Option<u32>) -> Option<RetryGuard> {
        let budget = (self.requests.load(Relaxed) / REQUESTS_PER_RETRY).max(FEW_RETRIES);
        let limit = limit.map_or(budget, |limit| limit as usize);
        let before = self.retries.fetch_add(1, Relaxed);
        let guard = RetryGuard(Arc::clone(self));
        (before < limit).then_some(guard)
    }

    /// Whether anybody is ejected at all.
    pub(super) fn has_ejected(&self) -> bool {
        self.ejections.load(Relaxed) > 0
    }

    pub(super) fn is_ejected(&self, host: SocketAddr, now: u64) -> bool {
        self.hosts().get(&host).is_some_and(|state| state.until.load(Relaxed) > now)
    }

    /// Takes into account how a server has answered; a server that gave no answer has failed as a gateway does. Says
    /// whether that ejects it.
    ///
    /// `endpoints` are all that the service has: of these, no more than `max_percent` are ejected at a time, but
    /// always one.
    pub(super) fn answered(
        &self,
        policy: &Outlier,
        host: SocketAddr,
        status: Option<u16>,
        endpoints: impl Iterator<Item = SocketAddr>,
        now: u64,
    ) -> bool {
        let state = Arc::clone(self.hosts().entry(host).or_default());
        let count = |counter: &AtomicU32, failed: bool, limit: u32| {
            if !failed {
                counter.store(0, Relaxed);
                return false;
            }
            counter.fetch_add(1, Relaxed) + 1 >= limit && limit > 0
        };
        let status = status.unwrap_or(503);
        let server = count(&state.server_errors, status >= 500, policy.server_errors);
        let gateway = count(&state.gateway_errors, matches!(status, 502..=504), policy.gateway_errors);
        let until = state.until.load(Relaxed);
        if !(server || gateway) || until > now {
            return false;
        }
        let (mut all, mut ejected) = (0, 0);
        for endpoint in endpoints {
            all += 1;
            ejected += usize::from(self.is_ejected(endpoint, now));
        }
        if ejected > 0 && (ejected + 1) * 100 > all * policy.max_percent as usize {
            return false;
        }
        // One that has been well for as many intervals as it was ejected times starts anew.
        let well = now.saturating_sub(until) / milliseconds(policy.interval).max(1);
        let before = u64::from(state.times.load(Relaxed)).saturating_sub(well);
        let times = before.saturating_add(1);
        state.times.store(u32::try_from(times).unwrap_or(u32::MAX), Relaxed);
        state.until.store(now.saturating_add(milliseconds(policy.base).saturating_mul(times)), Relaxed);
        state.server_errors.store(0, Relaxed);
        state.gateway_errors.store(0, Relaxed);
        self.ejections.fetch_add(1, Relaxed);
        true
    }

    fn hosts(&self) -> std::sync::MutexGuard<'_, HashMap<SocketAddr, Arc<HostState>>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
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

    fn host(n: u8) -> SocketAddr {
        ([10, 0, 0, n], 80).into()
    }

    fn answers(state: &ServiceState, policy: &Outlier, from: u8, statuses: &[u16], now: u64) -> bool {
        let all = || (1..=3).map(host);
        statuses.iter().any(|status| state.answered(policy, host(from), Some(*status), all(), now))
    }

    #[test]
    fn five_errors_in_a_row_eject_an_endpoint_and_it_comes_back() {
        let (state, policy) = (ServiceState::default(), Outlier::default());
        assert!(!answers(&state, &policy, 1, &[500, 500, 500, 500, 200, 500, 500, 500, 500], 0));
        assert!(answers(&state, &policy, 1, &[503], 0));
        assert!(state.is_ejected(host(1), 29_999) && !state.is_ejected(host(1), 30_000));
        // Again, and for twice as long.
        assert!(answers(&state, &policy, 1, &[500; 5], 30_000));
        assert!(state.is_ejected(host(1), 89_999) && !state.is_ejected(host(1), 90_000));
        // It was well for long enough.
        assert!(answers(&state, &policy, 1, &[500; 5], 200_000));
        assert!(!state.is_ejected(host(1), 230_000));
    }

    #[test]
    fn no_more_than_a_share_is_ejected_but_always_one() {
        let state = ServiceState::default();
        let policy = Outlier { max_percent: 50, ..Outlier::default() };
        assert!(answers(&state, &policy, 1, &[500; 5], 0));
        assert!(!answers(&state, &policy, 2, &[500; 10], 0), "two of three are more than half");
        let policy = Outlier { max_percent: 70, ..policy };
        assert!(answers(&state, &policy, 2, &[500; 5], 0));
    }

    #[test]
    fn gateway_errors_are_counted_by_themselves() {
        let state = ServiceState::default();
        let policy = Outlier { server_errors: 0, gateway_errors: 2, ..Outlier::default() };
        assert!(!answers(&state, &policy, 1, &[502, 500, 502, 500, 500], 0));
        assert!(answers(&state, &policy, 1, &[504, 503], 0));
    }

    #[test]
    fn retries_have_a_budget() {
        let state = Arc::new(ServiceState::default());
        let few: Vec<_> = (0..5).map_while(|_| state.retry(None)).collect();
        assert_eq!(few.len(), 3);
        drop(few);
        let _requests: Vec<_> = (0..50).map_while(|_| state.enter(None)).collect();
        assert_eq!((0..50).map_while(|_| state.retry(None)).collect::<Vec<_>>().len(), 10);
        assert_eq!((0..50).map_while(|_| state.retry(Some(1))).collect::<Vec<_>>().len(), 1);
        assert!(state.enter(Some(50)).is_none());
        assert!(state.enter(Some(51)).is_some());
    }
}
