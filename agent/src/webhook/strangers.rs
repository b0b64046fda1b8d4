use std::{
    collections::{HashMap, VecDeque},
    future::pending,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};

/// How many there are at once: whoever comes then takes the place of one of the address that has most of them, of that
/// which has been there for longest.
const MAX: usize = 256;
/// How long one may stay. An API server asks as soon as it is connected.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connections of those who have not shown yet that they know where reviews are asked for.
#[derive(Debug, Default)]
pub(super) struct Strangers(Mutex<VecDeque<Weak<Stranger>>>);

/// One who may be known by now.
#[derive(Debug)]
pub(super) struct Stranger {
    address: IpAddr,
    known: AtomicBool,
    evicted: Notify,
}

impl Strangers {
    pub fn enter(&self, address: IpAddr) -> Arc<Stranger> {
        let stranger = Arc::new(Stranger { address, known: AtomicBool::new(false), evicted: Notify::new() });
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|other| other.upgrade().is_some_and(|other| !other.is_known()));
        if all.len() >= MAX {
            let mut counts = HashMap::<_, usize>::new();
            let addresses: Vec<_> =
                all.iter().map(|other| other.upgrade().map(|other| other.address)).collect();
            addresses.iter().for_each(|address| *counts.entry(address).or_default() += 1);
            let most = counts.values().max();
            let first = addresses.iter().position(|address| counts.get(address) == most);
            if let Some(first) = first.and_then(|first| all.remove(first)?.upgrade()) {
                first.evicted.notify_one();
            }
        }
        all.push_back(Arc::downgrade(&stranger));
        stranger
    }
}

impl Stranger {
    /// It asks where reviews are asked for.
    pub fn is_known_now(&self) {
        self.known.store(true, Ordering::Relaxed);
    }

    fn is_known(&self) -> bool {
        self.known.load(Ordering::Relaxed)
    }

    /// Waits until it has to go, which is never once it is known.
    pub async fn must_go(&self) {
        let _ = timeout(PATIENCE, self.evicted.notified()).await;
        if self.is_known() {
            pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_stays_unknown_goes_and_makes_place_where_most_are() {
        let (many, one) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        let strangers = Strangers::default();
        let alone = strangers.enter(one);
        let all: Vec<_> = (0..MAX).map(|_| strangers.enter(many)).collect();
        let start = tokio::time::Instant::now();
        all[0].must_go().await;
        assert_eq!(start.elapsed(), Duration::ZERO, "it had to make place");
        all[1].is_known_now();
        alone.must_go().await;
        assert!(start.elapsed() >= PATIENCE);
        assert!(timeout(10 * PATIENCE, all[1].must_go()).await.is_err(), "it is known");
    }
}
