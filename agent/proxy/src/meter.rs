use std::cell::{Cell, OnceCell};

use prometheus_client::metrics::counter::Counter;

/// Counts the bytes of one direction, for the connection's record and, live, for its metric.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    total: Cell<u64>,
    counter: OnceCell<Counter>,
}

impl Meter {
    /// From now on `counter` counts too.
    pub(crate) fn feed(&self, counter: &Counter) {
        let _ = self.counter.set(counter.clone());
    }

    /// What was counted elsewhere, before.
    pub(crate) fn since(total: u64) -> Self {
        Self { total: Cell::new(total), counter: OnceCell::new() }
    }

    pub(crate) fn add(&self, bytes: usize) {
        self.total.set(self.total.get() + bytes as u64);
        if let Some(counter) = self.counter.get() {
            counter.inc_by(bytes as u64);
        }
    }

    pub(crate) fn total(&self) -> u64 {
        self.total.get()
    }
}
