//! How a cluster's endpoints have answered: how many failures in a row, how long answers take, and who is ejected.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use orlop_model::world::routing::Outlier;

/// No ejection is longer, but for a longer `baseEjectionTime`: Envoy's default.
const LONGEST: Duration = Duration::from_secs(300);
/// Endpoints come and go; past so many more than there are, those that are gone are forgotten.
const MANY: usize = 64;
/// After this time an answer counts for a third in how long answers take.
const DECAY: Duration = Duration::from_secs(10);
/// How long an answer is thought to take before there was any.
const UNKNOWN: Duration = Duration::from_millis(30);

/// What is remembered of endpoints.
#[derive(Debug, Default)]
pub(super) struct Outliers {
    hosts: Mutex<HashMap<SocketAddr, Arc<Host>>>,
    /// Who is ejected and until when, sorted by address. Some may be back by now.
    ejected: ArcSwap<Vec<(SocketAddr, u64)>>,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The server's answer has this status.
    Answered(u16),
    /// There was none, and that is the endpoint's fault as far as anybody can tell.
    Failed,
}

impl Outcome {
    /// An answer of gRPC that is all head has its own status there. What comes in trailers is not waited for, as Envoy
    /// does not.
    pub(super) fn answered(status: u16, grpc: Option<u8>) -> Self {
        Self::Answered(grpc.filter(|_| status == 200).map_or(status, http_status))
    }
}

/// What a status of gRPC would be as one of HTTP: Envoy's `Grpc::Utility::grpcToHttpStatus`.
fn http_status(grpc: u8) -> u16 {
    match grpc {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

/// Of one endpoint. Times are in milliseconds since the waypoint's start.
#[derive(Debug, Default)]
struct Host {
    server_errors: AtomicU32,
    gateway_errors: AtomicU32,
    local_failures: AtomicU32,
    /// How often in a row it was ejected.
    times: AtomicU32,
    until: AtomicU64,
    /// How long answers take, in microseconds plus 1; 0 before there was any.
    latency: AtomicU64,
    /// When that was last seen.
    seen: AtomicU64,
}

impl Outliers {
    /// Whether nobody is ejected.
    pub(super) fn is_empty(&self) -> bool {
        self.ejected.load().is_empty()
    }

    pub(super) fn is_ejected(&self, host: SocketAddr, now: u64) -> bool {
        let ejected = self.ejected.load();
        let found = ejected.binary_search_by_key(&host, |(address, _)| *address);
        found.is_ok_and(|index| ejected[index].1 > now)
    }

    /// How many of those for which `is_one` holds are ejected.
    pub(super) fn ejected(&self, now: u64, is_one: impl Fn(SocketAddr) -> bool) -> usize {
        let ejected = self.ejected.load();
        ejected.iter().filter(|(address, until)| *until > now && is_one(*address)).count()
    }

    /// Takes into account how an endpoint has answered. Says whether that ejects it.
    ///
    /// `endpoints` are all that the cluster has: of these, no more than `max_percent` are ejected at a time, but
    /// always one unless it is 0.
    pub(super) fn answered(
        &self,
        policy: &Outlier,
        host: SocketAddr,
        outcome: Outcome,
        endpoints: impl Iterator<Item = SocketAddr> + Clone,
        now: u64,
    ) -> bool {
        let state = self.host(host, &endpoints);
        let count = |counter: &AtomicU32, failed: bool, limit: u32| {
            if !failed {
                counter.store(0, Relaxed);
                return false;
            }
            counter.fetch_add(1, Relaxed) + 1 >= limit && limit > 0
        };
        let fails = match (outcome, policy.local_failures) {
            (Outcome::Failed, Some(limit)) => count(&state.local_failures, true, limit),
            (outcome, _) => {
                let status = if let Outcome::Answered(status) = outcome { status } else { 503 };
                count(&state.local_failures, false, 0);
                let server = count(&state.server_errors, status >= 500, policy.server_errors);
                let gateway =
                    count(&state.gateway_errors, matches!(status, 502..=504), policy.gateway_errors);
                server || gateway
            }
        };
        fails && self.eject(policy, host, &state, endpoints, now)
    }

    fn eject(
        &self,
        policy: &Outlier,
        host: SocketAddr,
        state: &Host,
        endpoints: impl Iterator<Item = SocketAddr>,
        now: u64,
    ) -> bool {
        // Who ejects holds the lock, so that several at once don't eject more than may be.
        let hosts = self.hosts();
        let until = state.until.load(Relaxed);
        if until > now {
            return false;
        }
        let (mut all, mut remaining) = (0, Vec::new());
        for endpoint in endpoints {
            all += 1;
            let until = hosts.get(&endpoint).map_or(0, |state| state.until.load(Relaxed));
            if until > now {
                remaining.push((endpoint, until));
            }
        }
        let most = all * policy.max_percent as usize;
        if most == 0 || (!remaining.is_empty() && (remaining.len() + 1) * 100 > most) {
            return false;
        }
        // One that has been well for as many intervals as it was ejected times starts anew.
        let well = now.saturating_sub(until) / milliseconds(policy.interval).max(1);
        let before = u64::from(state.times.load(Relaxed)).saturating_sub(well);
        let times = before.saturating_add(1);
        let base = milliseconds(policy.base);
        let time = base.saturating_mul(times).min(base.max(milliseconds(LONGEST)));
        let until = now.saturating_add(time);
        state.times.store(u32::try_from(times).unwrap_or(u32::MAX), Relaxed);
        state.until.store(until, Relaxed);
        for counter in [&state.server_errors, &state.gateway_errors, &state.local_failures] {
            counter.store(0, Relaxed);
        }
        remaining.push((host, until));
        remaining.sort_unstable();
        remaining.dedup_by_key(|(address, _)| *address);
        self.ejected.store(Arc::new(remaining));
        true
    }

    /// Takes into account how long an endpoint took to answer: longer at once, shorter by and by.
    pub(super) fn took(
        &self,
        host: SocketAddr,
        time: Duration,
        endpoints: impl Iterator<Item = SocketAddr> + Clone,
        now: u64,
    ) {
        let state = self.host(host, &endpoints);
        let time = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).saturating_add(1);
        let (known, seen) = (state.latency.load(Relaxed), state.seen.swap(now, Relaxed));
        let latency = if time >= known {
            time
        } else {
            let weight = (-(now.saturating_sub(seen).max(1) as f64) / DECAY.as_millis() as f64).exp();
            (known as f64 * weight + time as f64 * (1.0 - weight)) as u64
        };
        state.latency.store(latency.max(1), Relaxed);
    }

    /// How long an endpoint's answers take. Of one that nobody has asked for a while that is less and less certain, so
    /// that it is asked again.
    pub(super) fn latency(&self, host: SocketAddr, now: u64) -> Duration {
        let state = self.hosts().get(&host).cloned();
        let known = state.map(|state| (state.latency.load(Relaxed), state.seen.load(Relaxed)));
        match known {
            Some((latency, seen)) if latency > 0 => {
                let weight = (-(now.saturating_sub(seen) as f64) / DECAY.as_millis() as f64).exp();
                Duration::from_micros((latency as f64 * weight) as u64)
            }
            _ => UNKNOWN,
        }
    }

    fn host(&self, host: SocketAddr, endpoints: &(impl Iterator<Item = SocketAddr> + Clone)) -> Arc<Host> {
        let mut hosts = self.hosts();
        if let Some(state) = hosts.get(&host) {
            return Arc::clone(state);
        }
        if hosts.len() >= MANY && hosts.len() >= 2 * endpoints.clone().count() {
            let there: std::collections::HashSet<_> = endpoints.clone().collect();
            hosts.retain(|address, _| there.contains(address));
        }
        Arc::clone(hosts.entry(host).or_default())
    }

    fn hosts(&self) -> MutexGuard<'_, HashMap<SocketAddr, Arc<Host>>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(n: u8) -> SocketAddr {
        ([10, 0, 0, n], 80).into()
    }

    fn outcomes(state: &Outliers, policy: &Outlier, from: u8, outcomes: &[Outcome], now: u64) -> bool {
        let all = || (1..=3).map(host);
        outcomes.iter().any(|outcome| state.answered(policy, host(from), *outcome, all(), now))
    }

    fn answers(state: &Outliers, policy: &Outlier, from: u8, statuses: &[u16], now: u64) -> bool {
        let answered: Vec<_> = statuses.iter().map(|status| Outcome::Answered(*status)).collect();
        outcomes(state, policy, from, &answered, now)
    }

    #[test]
    fn five_errors_in_a_row_eject_an_endpoint_and_it_comes_back() {
        let (state, policy) = (Outliers::default(), Outlier::default());
        assert!(!answers(&state, &policy, 1, &[500, 500, 500, 500, 200, 500, 500, 500, 500], 0));
        assert!(answers(&state, &policy, 1, &[503], 0));
        assert!(state.is_ejected(host(1), 29_999) && !state.is_ejected(host(1), 30_000));
        assert_eq!((state.ejected(0, |_| true), state.ejected(30_000, |_| true)), (1, 0));
        // Again, and for twice as long.
        assert!(answers(&state, &policy, 1, &[500; 5], 30_000));
        assert!(state.is_ejected(host(1), 89_999) && !state.is_ejected(host(1), 90_000));
        // It was well for long enough.
        assert!(answers(&state, &policy, 1, &[500; 5], 200_000));
        assert!(!state.is_ejected(host(1), 230_000));
    }

    #[test]
    fn no_more_than_a_share_is_ejected_but_always_one() {
        let state = Outliers::default();
        let policy = Outlier { max_percent: 50, ..Outlier::default() };
        assert!(answers(&state, &policy, 1, &[500; 5], 0));
        assert!(!answers(&state, &policy, 2, &[500; 10], 0), "two of three are more than half");
        let none = Outlier { max_percent: 0, ..Outlier::default() };
        assert!(!answers(&Outliers::default(), &none, 1, &[500; 50], 0));
        let policy = Outlier { max_percent: 70, ..policy };
        assert!(answers(&state, &policy, 2, &[500; 5], 0));
        assert!(state.is_ejected(host(1), 0) && state.is_ejected(host(2), 0));
    }

    #[test]
    fn gateway_errors_are_counted_by_themselves() {
        let state = Outliers::default();
        let policy = Outlier { server_errors: 0, gateway_errors: 2, ..Outlier::default() };
        assert!(!answers(&state, &policy, 1, &[502, 500, 502, 500, 500], 0));
        assert!(answers(&state, &policy, 1, &[504, 503], 0));
    }

    #[test]
    fn no_answer_is_a_gateways_error_unless_it_is_split() {
        use Outcome::{Answered, Failed};
        let policy = Outlier { server_errors: 2, ..Outlier::default() };
        assert!(outcomes(&Outliers::default(), &policy, 1, &[Answered(500), Failed], 0));
        let policy = Outlier { local_failures: Some(2), ..policy };
        let state = Outliers::default();
        assert!(!outcomes(&state, &policy, 1, &[Answered(500), Failed, Answered(200), Failed], 0));
        assert!(outcomes(&state, &policy, 1, &[Failed], 0));
        let never = Outlier { local_failures: Some(0), ..policy };
        assert!(!outcomes(&Outliers::default(), &never, 1, &[Failed; 20], 0));
    }

    #[test]
    fn a_call_of_grpc_has_failed_as_its_own_status_says() {
        for (status, grpc, counted) in [
            (200, Some(0), 200),
            (200, Some(14), 503),
            (200, Some(4), 504),
            (200, Some(13), 500),
            (200, Some(2), 500),
            (200, Some(99), 500),
            (200, Some(7), 403),
            (200, Some(8), 429),
            (200, None, 200),
            // What is no answer of the server's counts as it is.
            (502, Some(0), 502),
        ] {
            assert_eq!(Outcome::answered(status, grpc), Outcome::Answered(counted), "{status} {grpc:?}");
        }
    }

    #[test]
    fn latency_rises_at_once_and_falls_by_and_by() {
        let (state, all) = (Outliers::default(), || (1..=3).map(host));
        assert_eq!(state.latency(host(1), 0), UNKNOWN);
        state.took(host(1), Duration::from_millis(2), all(), 0);
        state.took(host(1), Duration::from_millis(500), all(), 1);
        assert!(state.latency(host(1), 1) >= Duration::from_millis(499));
        state.took(host(1), Duration::from_millis(2), all(), 2);
        assert!(state.latency(host(1), 2) >= Duration::from_millis(400));
        state.took(host(1), Duration::from_millis(2), all(), 60_000);
        assert!(state.latency(host(1), 60_000) <= Duration::from_millis(10));
    }

    #[test]
    fn endpoints_that_are_gone_are_forgotten() {
        let (state, policy) = (Outliers::default(), Outlier::default());
        for n in 0..10_000_u32 {
            let here: SocketAddr = (std::net::Ipv4Addr::from(n), 80).into();
            state.answered(&policy, here, Outcome::Answered(200), std::iter::once(here), 0);
        }
        assert!(state.hosts().len() <= MANY);
    }
}
