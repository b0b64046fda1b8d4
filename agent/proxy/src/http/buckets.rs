//! The token buckets of limits, which all workers share.

use std::{
    collections::{BTreeSet, HashMap, hash_map::RandomState},
    hash::BuildHasher as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use orlop_model::{
    NamespacedName,
    http::{Bucket, Counted, Limit},
    world::{self, Counting},
};

/// Of one limit: only requests whose keys share one wait for each other, for the time of a look into a table.
const SHARDS: usize = 16;
/// Buckets of one limit. Past it, keys that are new share a bucket, so that whoever makes up keys takes from others
/// who are new, and lets nobody have more than the limit.
const MAX_KEYS: usize = 64 << 10;
/// Between two looks for buckets that are full again.
const SWEEP: Duration = Duration::from_millis(100);

/// All limits' buckets.
#[derive(Debug)]
pub(crate) struct Buckets {
    start: Instant,
    /// Nobody outside can make two keys that are alike here.
    hasher: RandomState,
    tables: ArcSwap<HashMap<Id, Table>>,
}

type Id = (NamespacedName, String);

/// A limit's.
#[derive(Clone, Debug)]
struct Table {
    of: Arc<world::Limit>,
    buckets: Arc<Keyed>,
}

impl Default for Buckets {
    fn default() -> Self {
        Self { start: Instant::now(), hasher: RandomState::new(), tables: ArcSwap::default() }
    }
}

impl Buckets {
    /// Makes room for these limits. One that stays as it is goes on with the buckets that it has.
    pub(super) fn keep<'l>(&self, limits: impl Iterator<Item = &'l Arc<Limit>>) {
        let before = self.tables.load();
        let mut seen = BTreeSet::new();
        let mut tables = HashMap::new();
        for limit in limits.filter(|limit| seen.insert((&limit.resource, &limit.of.name))) {
            let Counting::Local(rate) = limit.of.counting else { continue };
            let id = id(limit);
            let same = before.get(&id).filter(|table| table.of == limit.of).cloned();
            let new = || Table { of: Arc::clone(&limit.of), buckets: Arc::new(Keyed::new(rate.into())) };
            tables.insert(id, same.unwrap_or_else(new));
        }
        self.tables.store(Arc::new(tables));
    }

    /// Takes a token of each limit that is counted here, or of none. `Err` says which limit has none left, and for how long. Counts in
    /// `folded` where a bucket is shared by keys for which there is no room.
    pub(super) fn take<'c>(
        &self,
        counted: &'c [Counted],
        folded: impl Fn(),
    ) -> Result<Taken, (&'c Counted, Duration)> {
        let now = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let tables = self.tables.load();
        let mut taken = Vec::with_capacity(counted.len());
        for of in counted {
            // It has gone meanwhile.
            let Some(table) = tables.get(&id(&of.limit)) else { continue };
            let buckets = Arc::clone(&table.buckets);
            let key = (!of.key.is_empty()).then(|| self.hasher.hash_one(&of.key));
            match buckets.take(key, now) {
                Ok(place) => {
                    if place == Place::Folded {
                        folded();
                    }
                    taken.push((buckets, key, place));
                }
                Err(wait) => {
                    Taken(taken).give_back();
                    return Err((of, wait));
                }
            }
        }
        Ok(Taken(taken))
    }
}

/// Tokens that were taken.
pub(super) struct Taken(Vec<(Arc<Keyed>, Option<u64>, Place)>);

impl Taken {
    /// They are as good as never taken.
    pub(super) fn give_back(self) {
        self.0.into_iter().for_each(|(buckets, key, place)| buckets.give_back(key, place));
    }
}

fn id(limit: &Limit) -> Id {
    (limit.resource.clone(), limit.of.name.clone())
}

/// Where a token was taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Own,
    Folded,
}

/// The buckets of one limit.
#[derive(Debug)]
struct Keyed {
    bucket: Bucket,
    /// Of a limit without keys.
    only: AtomicU64,
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Debug, Default)]
struct Shard {
    /// By the hash of the key.
    buckets: HashMap<u64, u64>,
    folded: u64,
    swept: u64,
}

impl Keyed {
    fn new(bucket: Bucket) -> Self {
        Self { bucket, only: AtomicU64::new(0), shards: Default::default() }
    }

    fn take(&self, key: Option<u64>, now: u64) -> Result<Place, Duration> {
        let Some(key) = key else {
            let mut wait = Duration::ZERO;
            let taken = self.only.fetch_update(Relaxed, Relaxed, |full_at| {
                self.bucket.take(full_at, now).inspect_err(|missing| wait = *missing).ok()
            });
            return taken.map(|_| Place::Own).map_err(|_| wait);
        };
        let mut shard = self.shard(key).lock().unwrap_or_else(PoisonError::into_inner);
        if !shard.buckets.contains_key(&key) && shard.is_crowded(now) {
            shard.folded = self.bucket.take(shard.folded, now)?;
            return Ok(Place::Folded);
        }
        let full_at = shard.buckets.entry(key).or_default();
        *full_at = self.bucket.take(*full_at, now)?;
        Ok(Place::Own)
    }

    fn give_back(&self, key: Option<u64>, place: Place) {
        let Some(key) = key else {
            let _ = self.only.fetch_update(Relaxed, Relaxed, |full_at| Some(self.bucket.give_back(full_at)));
            return;
        };
        let mut shard = self.shard(key).lock().unwrap_or_else(PoisonError::into_inner);
        match place {
            Place::Folded => shard.folded = self.bucket.give_back(shard.folded),
            Place::Own => {
                if let Some(full_at) = shard.buckets.get_mut(&key) {
                    *full_at = self.bucket.give_back(*full_at);
                }
            }
        }
    }

    fn shard(&self, key: u64) -> &Mutex<Shard> {
        // Tables go by the other bits.
        &self.shards[(key >> 32) as usize % SHARDS]
    }
}

impl Shard {
    /// Whether there is no room for one more key, also without those whose buckets are full again: they are as good
    /// as none.
    fn is_crowded(&mut self, now: u64) -> bool {
        if self.buckets.len() < MAX_KEYS / SHARDS {
            return false;
        }
        if now >= self.swept {
            self.swept = now.saturating_add(SWEEP.as_nanos() as u64);
            self.buckets.retain(|_, full_at| *full_at > now);
        }
        self.buckets.len() >= MAX_KEYS / SHARDS
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const HOUR: u64 = 3_600_000_000_000;

    fn hourly(burst: u32) -> Keyed {
        Keyed::new(Bucket::new(Duration::from_nanos(HOUR), burst))
    }

    fn lock(keyed: &Keyed, shard: usize) -> std::sync::MutexGuard<'_, Shard> {
        keyed.shards[shard].lock().unwrap()
    }

    #[test]
    fn keys_without_end_take_no_more_memory_and_get_no_more_requests() {
        let keyed = hourly(2);
        let keys = || (0..4 * MAX_KEYS as u64).map(|n| n << 32);
        let taken = |now| keys().filter_map(|key| keyed.take(Some(key), now).ok()).collect::<Vec<_>>();
        let first = taken(0);
        let held = || keyed.shards.iter().map(|shard| shard.lock().unwrap().buckets.len()).sum::<usize>();
        assert_eq!(held(), MAX_KEYS);
        let folded = first.iter().filter(|place| **place == Place::Folded).count();
        assert_eq!((first.len() - folded, folded), (MAX_KEYS, 2 * SHARDS));
        // Those that have a bucket are as well off as before.
        assert_eq!(keyed.take(Some(0), 0), Ok(Place::Own));
        assert!(keyed.take(Some(0), 0).is_err());
        // Once buckets are full again, their places are free.
        assert_eq!(keyed.take(Some(1 << 60 | 7), 3 * HOUR), Ok(Place::Own));
        assert!(lock(&keyed, (((1_u64 << 60) | 7) >> 32) as usize % SHARDS).buckets.len() < 4);
        assert!(held() < MAX_KEYS);
    }

    #[test]
    fn tokens_come_back_in_their_time_and_no_more_than_the_burst_wait() {
        for key in [None, Some(5)] {
            let keyed = hourly(3);
            let taken = |now| (0..10).filter(|_| keyed.take(key, now).is_ok()).count();
            assert_eq!((taken(0), taken(HOUR - 1)), (3, 0));
            assert_eq!((taken(HOUR), taken(3 * HOUR)), (1, 2));
            // However long nobody asks.
            assert_eq!(taken(100 * HOUR), 3);
        }
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        for key in [None, Some(5)] {
            let keyed = hourly(1);
            let place = keyed.take(key, 0).unwrap();
            assert_eq!(keyed.take(key, 0), Err(Duration::from_nanos(HOUR)));
            keyed.give_back(key, place);
            assert!(keyed.take(key, 0).is_ok());
        }
    }

    #[test]
    fn many_at_once_get_no_more_than_one_after_the_other() {
        for key in [None, Some(5)] {
            let keyed = hourly(1000);
            let take = || (0..1000).filter(|_| keyed.take(key, 0).is_ok()).count();
            let taken: usize = thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            assert_eq!(taken, 1000);
        }
    }
}
