use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Configurations by whom they are for, at most `capacity`: the least recently used make room.
pub(crate) struct ConfigCache<K, C> {
    capacity: usize,
    state: Mutex<State<K, C>>,
}

struct State<K, C> {
    configs: HashMap<K, Slot<C>>,
    uses: u64,
}

struct Slot<C> {
    config: Arc<C>,
    last_use: u64,
}

impl<K: Hash + Eq + Clone, C> ConfigCache<K, C> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, state: Mutex::new(State { configs: HashMap::new(), uses: 0 }) }
    }

    /// The configuration for `key`, made if there is none.
    pub(crate) fn get_or_make<E>(&self, key: K, make: impl FnOnce() -> Result<C, E>) -> Result<Arc<C>, E> {
        let mut state = self.lock();
        match state.get(&key) {
            Some(config) => Ok(config),
            None => Ok(state.put(key, make()?, self.capacity)),
        }
    }

    /// The same, where making one takes long, so that nobody else waits for it. Where two make one at once, both get that
    /// which was there first.
    pub(crate) fn get_or_make_apart<E>(
        &self,
        key: K,
        make: impl FnOnce() -> Result<C, E>,
    ) -> Result<Arc<C>, E> {
        let found = self.lock().get(&key);
        if let Some(config) = found {
            return Ok(config);
        }
        let made = make()?;
        let mut state = self.lock();
        Ok(state.get(&key).unwrap_or_else(|| state.put(key, made, self.capacity)))
    }

    /// Drops the configurations whose key `keep` refuses. Connections that use one go on.
    pub(crate) fn retain(&self, mut keep: impl FnMut(&K) -> bool) {
        self.lock().configs.retain(|key, _| keep(key));
    }

    fn lock(&self) -> MutexGuard<'_, State<K, C>> {
        // Nothing that runs under the lock leaves the map half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq + Clone, C> State<K, C> {
    fn get(&mut self, key: &K) -> Option<Arc<C>> {
        self.uses += 1;
        let slot = self.configs.get_mut(key)?;
        slot.last_use = self.uses;
        Some(Arc::clone(&slot.config))
    }

    fn put(&mut self, key: K, config: C, capacity: usize) -> Arc<C> {
        if self.configs.len() >= capacity {
            self.make_room();
        }
        let config = Arc::new(config);
        self.configs.insert(key, Slot { config: Arc::clone(&config), last_use: self.uses });
        config
    }

    /// A quarter at a time, so that a full cache doesn't look for the oldest on every miss.
    fn make_room(&mut self) {
        let mut uses: Vec<u64> = self.configs.values().map(|slot| slot.last_use).collect();
        uses.sort_unstable();
        if let Some(&oldest_kept) = uses.get(uses.len().div_ceil(4)) {
            self.configs.retain(|_, slot| slot.last_use >= oldest_kept);
        } else {
            self.configs.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn get(cache: &ConfigCache<u32, u32>, key: u32) -> Arc<u32> {
        cache.get_or_make::<Infallible>(key, || Ok(key)).unwrap()
    }

    #[test]
    fn the_same_key_gets_the_same_configuration() {
        let cache = ConfigCache::new(4);
        assert!(Arc::ptr_eq(&get(&cache, 1), &get(&cache, 1)));
    }

    #[test]
    fn capacity_holds_and_the_recently_used_stay() {
        let cache = ConfigCache::new(8);
        let first = get(&cache, 0);
        for key in 1..1000 {
            get(&cache, key);
            assert!(Arc::ptr_eq(&first, &get(&cache, 0)), "evicted although just used");
            assert!(cache.lock().configs.len() <= 8);
        }
    }

    #[test]
    fn a_capacity_of_one_works() {
        let cache = ConfigCache::new(1);
        get(&cache, 1);
        get(&cache, 2);
        assert_eq!(cache.lock().configs.len(), 1);
    }

    #[test]
    fn what_is_made_apart_keeps_nobody_waiting_and_is_there_once() {
        let cache = ConfigCache::new(2);
        let mut other = None;
        let made = cache.get_or_make_apart::<Infallible>(1, || {
            other = Some(get(&cache, 1));
            Ok(1)
        });
        assert!(Arc::ptr_eq(&made.unwrap(), &other.unwrap()));
    }

    #[test]
    fn a_failure_is_not_remembered() {
        let cache = ConfigCache::<u32, u32>::new(1);
        assert!(cache.get_or_make(1, || Err(())).is_err());
        assert_eq!(*get(&cache, 1), 1);
    }
}
