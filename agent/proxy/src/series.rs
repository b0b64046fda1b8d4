use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    hash::{Hash, Hasher},
    sync::{Arc, Mutex, PoisonError},
};

use orlop_model::{Identity, Service, Workload, http::Told};

use crate::metrics::{Direction, End, Labels, Metrics, Series};

/// Distinct label sets of connections, and as many of requests. Past it, they count under `unknown` names.
pub(crate) const MAX_SERIES: usize = 10_000;
/// Past this, the cache starts again: most of what it holds is then of earlier snapshots.
const MAX_ENTRIES: usize = 4096;

/// The label sets that there are by names of their own.
#[derive(Clone, Debug, Default)]
pub(crate) struct Admitted(Arc<Mutex<HashSet<Labels>>>);

impl Admitted {
    /// Whether this one is known already or there is room for one more.
    pub(crate) fn admit(&self, labels: &Labels) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.contains(labels) || (known.len() < MAX_SERIES && known.insert(labels.clone()))
    }
}

/// One worker's way to the series that it used before: looking one up by its labels takes longer than
/// everything else that a short connection asks of the proxy.
#[derive(Default)]
pub(crate) struct SeriesCache(RefCell<HashMap<SeriesKey, Series>>);

/// What the labels are made from. Workloads and services are compared by place: the same one of another
/// snapshot only costs another look-up.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct SeriesKey {
    pub(crate) direction: Direction,
    pub(crate) mutual_tls: bool,
    pub(crate) source: Place<Workload>,
    pub(crate) source_identity: Option<Identity>,
    pub(crate) destination: Place<Workload>,
    pub(crate) destination_identity: Option<Identity>,
    pub(crate) service: Place<Service>,
    pub(crate) told: Place<Told>,
    /// Of tags that Telemetries ask for.
    pub(crate) tags: Vec<String>,
}

/// Keeps what it points to, so that no other can come to be at the same place.
pub(crate) struct Place<T>(pub(crate) Option<Arc<T>>);

impl SeriesCache {
    pub(crate) fn get(&self, metrics: &Metrics, key: SeriesKey) -> Series {
        let mut cache = self.0.borrow_mut();
        if let Some(series) = cache.get(&key) {
            return series.clone();
        }
        if cache.len() >= MAX_ENTRIES {
            cache.clear();
        }
        let source = End { workload: key.source.0.as_deref(), identity: key.source_identity.as_ref() };
        let destination =
            End { workload: key.destination.0.as_deref(), identity: key.destination_identity.as_ref() };
        let service = key.service.0.as_deref();
        let told = key.told.0.as_deref().map(|told| (told, &key.tags[..]));
        let series = metrics.series(key.direction, key.mutual_tls, source, destination, service, told);
        cache.insert(key, series.clone());
        series
    }
}

impl<T> Place<T> {
    fn address(&self) -> Option<*const T> {
        self.0.as_ref().map(Arc::as_ptr)
    }
}

impl<T> Clone for Place<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> PartialEq for Place<T> {
    fn eq(&self, other: &Self) -> bool {
        self.address() == other.address()
    }
}

impl<T> Eq for Place<T> {}

impl<T> Hash for Place<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.address().hash(state);
    }
}
