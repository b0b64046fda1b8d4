//! Maps of which many states are kept at once.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::iter::FusedIterator;
use std::ops::Index;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};

/// Entries of a run at most; a change copies one run.
const LONGEST: usize = 64;

/// A sorted map whose clones share everything that is the same in both.
///
/// To clone it costs nothing; to change a clone costs one run of entries and the list of runs, a few hundredths of the
/// map. What differs between two states is found without looking at what they share: see
/// [`differences`](Self::differences). It is read like a [`BTreeMap`](std::collections::BTreeMap).
pub struct Map<K, T> {
    /// Sorted, none of them empty.
    runs: Arc<Vec<Run<K, T>>>,
    len: usize,
}

struct Run<K, T> {
    /// Not above any key of it, and above all of the run before.
    from: K,
    entries: Arc<Vec<(K, Arc<T>)>>,
}

/// What a key had and has now, of two states of a map.
pub type Difference<'a, K, T> = (&'a K, Option<&'a Arc<T>>, Option<&'a Arc<T>>);

impl<K: Ord, T> Map<K, T> {
    /// An empty one.
    pub fn new() -> Self {
        Self { runs: Arc::default(), len: 0 }
    }

    /// How many entries it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What the key has.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&Arc<T>>
    where
        K: Borrow<Q>,
    {
        let run = self.runs.get(self.run_of(key))?;
        let at = run.entries.binary_search_by(|(found, _)| found.borrow().cmp(key)).ok()?;
        run.entries.get(at).map(|(_, value)| value)
    }

    /// Whether the key has something.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }

    /// All entries, sorted by key.
    pub fn iter(&self) -> Iter<'_, K, T> {
        Iter { map: self, run: 0, entry: 0, left: self.len }
    }

    /// The entries whose keys are not below this one, sorted by key.
    pub fn starting_at<'a, Q: Ord + ?Sized>(
        &'a self,
        key: &Q,
    ) -> impl Iterator<Item = (&'a K, &'a Arc<T>)> + use<'a, K, T, Q>
    where
        K: Borrow<Q>,
    {
        let run = self.run_of(key);
        let below = |(found, _): &(K, Arc<T>)| found.borrow() < key;
        let entry = self.runs.get(run).map_or(0, |run| run.entries.partition_point(below));
        let runs = self.runs.iter().skip(run).map(|run| run.entries.as_slice());
        runs.flatten().skip(entry).map(|(key, value)| (key, value))
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &K> + Clone {
        self.iter().map(|(key, _)| key)
    }

    /// All values, sorted by key.
    pub fn values(&self) -> impl ExactSizeIterator<Item = &Arc<T>> + Clone {
        self.iter().map(|(_, value)| value)
    }

    /// Whether it is the very same map: one that was cloned, and not changed since.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.runs, &other.runs)
    }

    /// What this state and a later one do not share, sorted by key. Both may have equal values.
    pub fn differences<'a>(&'a self, later: &'a Self) -> impl Iterator<Item = Difference<'a, K, T>> {
        let (mut before, mut after) = (self.iter(), later.iter());
        if self.is_same(later) {
            (before.left, after.left) = (0, 0);
        }
        std::iter::from_fn(move || {
            loop {
                before.skip_shared(&mut after);
                let order = match (before.peek(), after.peek()) {
                    (None, None) => return None,
                    (Some(_), None) => Ordering::Less,
                    (None, Some(_)) => Ordering::Greater,
                    (Some((then, _)), Some((now, _))) => then.cmp(now),
                };
                let then = if order.is_le() { before.next() } else { None };
                let now = if order.is_ge() { after.next() } else { None };
                match (then, now) {
                    (Some((_, then)), Some((_, now))) if Arc::ptr_eq(then, now) => {}
                    (Some((key, then)), now) => return Some((key, Some(then), now.map(|(_, now)| now))),
                    (None, now) => return now.map(|(key, now)| (key, None, Some(now))),
                }
            }
        })
    }

    /// The run that has the key if any has.
    fn run_of<Q: Ord + ?Sized>(&self, key: &Q) -> usize
    where
        K: Borrow<Q>,
    {
        self.runs.partition_point(|run| run.from.borrow() <= key).saturating_sub(1)
    }
}

impl<K: Ord + Clone, T> Map<K, T> {
    /// Gives the key a value, and back what it had.
    pub fn insert(&mut self, key: K, value: impl Into<Arc<T>>) -> Option<Arc<T>> {
        let (index, value) = (self.run_of(&key), value.into());
        let runs = Arc::make_mut(&mut self.runs);
        let Some(run) = runs.get_mut(index) else {
            runs.push(Run { from: key.clone(), entries: Arc::new(vec![(key, value)]) });
            self.len = 1;
            return None;
        };
        let entries = Arc::make_mut(&mut run.entries);
        let at = match entries.binary_search_by(|(found, _)| found.cmp(&key)) {
            Ok(at) => return entries.get_mut(at).map(|(_, old)| std::mem::replace(old, value)),
            Err(at) => at,
        };
        self.len += 1;
        if key < run.from {
            run.from = key.clone();
        }
        if entries.len() < LONGEST {
            entries.insert(at, (key, value));
            return None;
        }
        // Of keys that come in order every run is full.
        let half = if at == LONGEST { LONGEST } else { LONGEST / 2 };
        let mut rest = entries.split_off(half);
        match at.checked_sub(half) {
            Some(at) => rest.insert(at, (key, value)),
            None => entries.insert(at, (key, value)),
        }
        if let Some((from, _)) = rest.first() {
            runs.insert(index + 1, Run { from: from.clone(), entries: Arc::new(rest) });
        }
        None
    }

    /// Removes the key, and gives back what it had.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<Arc<T>>
    where
        K: Borrow<Q>,
    {
        let index = self.run_of(key);
        let find = |(found, _): &(K, Arc<T>)| found.borrow().cmp(key);
        // What has no such key stays shared.
        let at = self.runs.get(index)?.entries.binary_search_by(find).ok()?;
        let runs = Arc::make_mut(&mut self.runs);
        let (_, value) = Arc::make_mut(&mut runs[index].entries).remove(at);
        self.len -= 1;
        let left = runs[index].entries.len();
        if left == 0 {
            runs.remove(index);
        } else if let Some(next) = runs.get(index + 1)
            && left + next.entries.len() <= LONGEST / 2
        {
            let next = runs.remove(index + 1);
            Arc::make_mut(&mut runs[index].entries).extend(next.entries.iter().cloned());
        }
        Some(value)
    }

    /// Keeps those entries of which `keep` says so.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &T) -> bool) {
        *self = self
            .iter()
            .filter(|(key, value)| keep(key, value))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
    }

    /// Removes everything.
    pub fn clear(&mut self) {
        *self = Self::new();
    }
}

impl<K: Ord + Clone, T: Clone> Map<K, T> {
    /// What the key has, to be changed: a copy of it, where it is shared.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut T>
    where
        K: Borrow<Q>,
    {
        let index = self.run_of(key);
        let run = Arc::make_mut(&mut self.runs).get_mut(index)?;
        let entries = Arc::make_mut(&mut run.entries);
        let at = entries.binary_search_by(|(found, _)| found.borrow().cmp(key)).ok()?;
        entries.get_mut(at).map(|(_, value)| Arc::make_mut(value))
    }

    /// All values, to be changed.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        let runs = Arc::make_mut(&mut self.runs).iter_mut();
        let entries = runs.flat_map(|run| Arc::make_mut(&mut run.entries));
        entries.map(|(_, value)| Arc::make_mut(value))
    }
}

/// The entries of a [`Map`], sorted by key.
pub struct Iter<'a, K, T> {
    map: &'a Map<K, T>,
    run: usize,
    entry: usize,
    left: usize,
}

impl<'a, K, T> Iter<'a, K, T> {
    fn peek(&self) -> Option<(&'a K, &'a Arc<T>)> {
        if self.left == 0 {
            return None;
        }
        self.map.runs.get(self.run)?.entries.get(self.entry).map(|(key, value)| (key, value))
    }

    /// Skips the runs that both have, where both are at the start of one.
    fn skip_shared(&mut self, other: &mut Self) {
        while self.entry == 0
            && other.entry == 0
            && let Some((own, others)) = self.map.runs.get(self.run).zip(other.map.runs.get(other.run))
            && Arc::ptr_eq(&own.entries, &others.entries)
        {
            let len = own.entries.len();
            for iter in [&mut *self, &mut *other] {
                iter.run += 1;
                iter.left = iter.left.saturating_sub(len);
            }
        }
    }
}

impl<'a, K, T> Iterator for Iter<'a, K, T> {
    type Item = (&'a K, &'a Arc<T>);

    fn next(&mut self) -> Option<Self::Item> {
        let found = self.peek()?;
        self.left -= 1;
        self.entry += 1;
        if self.map.runs.get(self.run).is_some_and(|run| self.entry >= run.entries.len()) {
            (self.run, self.entry) = (self.run + 1, 0);
        }
        Some(found)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<K, T> ExactSizeIterator for Iter<'_, K, T> {}

impl<K, T> FusedIterator for Iter<'_, K, T> {}

impl<K, T> Clone for Iter<'_, K, T> {
    fn clone(&self) -> Self {
        Self { ..*self }
    }
}

impl<'a, K: Ord, T> IntoIterator for &'a Map<K, T> {
    type Item = (&'a K, &'a Arc<T>);
    type IntoIter = Iter<'a, K, T>;

    fn into_iter(self) -> Iter<'a, K, T> {
        self.iter()
    }
}

impl<K: Ord + Clone, T> IntoIterator for Map<K, T> {
    type Item = (K, Arc<T>);
    type IntoIter = std::vec::IntoIter<(K, Arc<T>)>;

    fn into_iter(self) -> Self::IntoIter {
        let entries: Vec<_> = self.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        entries.into_iter()
    }
}

impl<K: Ord + Clone, T, V: Into<Arc<T>>> FromIterator<(K, V)> for Map<K, T> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut sorted: Vec<(K, Arc<T>)> =
            entries.into_iter().map(|(key, value)| (key, value.into())).collect();
        // Of several values of a key the last counts.
        sorted.reverse();
        sorted.sort_by(|(one, _), (other, _)| one.cmp(other));
        sorted.dedup_by(|(one, _), (other, _)| one == other);
        let len = sorted.len();
        let mut sorted = sorted.into_iter();
        let run = || {
            let entries: Vec<_> = sorted.by_ref().take(LONGEST).collect();
            let from = entries.first()?.0.clone();
            Some(Run { from, entries: Arc::new(entries) })
        };
        Self { runs: Arc::new(std::iter::from_fn(run).collect()), len }
    }
}

impl<K: Ord + Clone, T, V: Into<Arc<T>>> Extend<(K, V)> for Map<K, T> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        entries.into_iter().for_each(|(key, value)| drop(self.insert(key, value)));
    }
}

impl<K: Ord + Clone, T, V: Into<Arc<T>>, const N: usize> From<[(K, V); N]> for Map<K, T> {
    fn from(entries: [(K, V); N]) -> Self {
        entries.into_iter().collect()
    }
}

impl<K, T> Clone for Map<K, T> {
    fn clone(&self) -> Self {
        Self { runs: Arc::clone(&self.runs), len: self.len }
    }
}

impl<K: Clone, T> Clone for Run<K, T> {
    fn clone(&self) -> Self {
        Self { from: self.from.clone(), entries: Arc::clone(&self.entries) }
    }
}

impl<K: Ord, T> Default for Map<K, T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Ord, T: PartialEq> PartialEq for Map<K, T> {
    fn eq(&self, other: &Self) -> bool {
        let equal = |(_, then, now): Difference<'_, K, T>| then.is_some() && then == now;
        self.len == other.len && self.differences(other).all(equal)
    }
}

impl<K: Ord, T: Eq> Eq for Map<K, T> {}

impl<K: Ord + fmt::Debug, T: fmt::Debug> fmt::Debug for Map<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Ord + Borrow<Q>, Q: Ord + ?Sized, T> Index<&Q> for Map<K, T> {
    type Output = Arc<T>;

    /// Panics where the key has nothing.
    fn index(&self, key: &Q) -> &Arc<T> {
        match self.get(key) {
            Some(value) => value,
            None => panic!("no entry for this key"),
        }
    }
}

impl<K: Ord + Serialize, T: Serialize> Serialize for Map<K, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de, K: Ord + Clone + Deserialize<'de>, T: Deserialize<'de>> Deserialize<'de> for Map<K, T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::collections::BTreeMap::<K, Arc<T>>::deserialize(deserializer).map(Self::from_iter)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// A key given a value, or removed.
    fn changes(keys: u16) -> impl Strategy<Value = Vec<(u16, Option<u8>)>> {
        prop::collection::vec((0..keys, prop::option::weighted(0.6, any::<u8>())), 0..400)
    }

    fn apply(map: &mut Map<u16, u8>, reference: &mut BTreeMap<u16, u8>, changes: &[(u16, Option<u8>)]) {
        for &(key, value) in changes {
            let (old, want) = match value {
                Some(value) => (map.insert(key, value), reference.insert(key, value)),
                None => (map.remove(&key), reference.remove(&key)),
            };
            assert_eq!(old.as_deref(), want.as_ref());
        }
    }

    fn entries(map: &Map<u16, u8>) -> Vec<(u16, u8)> {
        map.iter().map(|(key, value)| (*key, **value)).collect()
    }

    proptest! {
        #[test]
        fn it_holds_what_a_btree_map_holds(
            first in changes(500), second in changes(500), keys in prop::collection::vec(0..500u16, 20),
        ) {
            let (mut map, mut reference) = (Map::new(), BTreeMap::new());
            apply(&mut map, &mut reference, &first);
            let (before, unchanged) = (map.clone(), reference.clone());
            apply(&mut map, &mut reference, &second);
            for (map, reference) in [(&map, &reference), (&before, &unchanged)] {
                prop_assert_eq!(entries(map), Vec::from_iter(reference.clone()));
                prop_assert_eq!(map.len(), reference.len());
                prop_assert_eq!(map, &reference.clone().into_iter().collect());
                for key in &keys {
                    prop_assert_eq!(map.get(key).map(|value| **value), reference.get(key).copied());
                    let from: Vec<_> = map.starting_at(key).map(|(key, value)| (*key, **value)).collect();
                    prop_assert_eq!(from, reference.range(key..).map(|(k, v)| (*k, *v)).collect::<Vec<_>>());
                }
            }
        }

        #[test]
        fn the_differences_are_those_of_two_btree_maps(
            first in changes(500), second in prop::collection::vec((0..500u16, prop::option::of(any::<u8>())), 0..20),
        ) {
            let (mut map, mut reference) = (Map::new(), BTreeMap::new());
            apply(&mut map, &mut reference, &first);
            let (before, then) = (map.clone(), reference.clone());
            apply(&mut map, &mut reference, &second);
            let value = |value: Option<&Arc<u8>>| value.map(|value| **value);
            let found: Vec<_> = before
                .differences(&map)
                .map(|(key, then, now)| (*key, value(then), value(now)))
                .filter(|(_, then, now)| then != now)
                .collect();
            let want: Vec<_> = (0..500u16)
                .map(|key| (key, then.get(&key).copied(), reference.get(&key).copied()))
                .filter(|(_, then, now)| then != now)
                .collect();
            prop_assert_eq!(found, want);
            prop_assert_eq!(before == map, then == reference);
        }
    }

    #[test]
    fn what_two_states_share_is_not_looked_at() {
        let map: Map<u32, u32> = (0..100_000).map(|number| (number, number)).collect();
        let mut later = map.clone();
        assert_eq!(map.differences(&later).count(), 0);
        later.insert(50_000, 1);
        let shared = map.runs.iter().zip(later.runs.iter());
        assert_eq!(shared.filter(|(a, b)| !Arc::ptr_eq(&a.entries, &b.entries)).count(), 1);
        assert_eq!(map.differences(&later).map(|(key, ..)| *key).collect::<Vec<_>>(), [50_000]);
    }

    #[test]
    fn keys_that_come_in_order_fill_their_runs() {
        let mut map = Map::new();
        (0..1000).for_each(|number| drop(map.insert(number, number)));
        assert!(map.runs.len() <= 1000 / LONGEST + 1, "{}", map.runs.len());
    }
}
