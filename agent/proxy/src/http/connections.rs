//! How many connections a cluster has, and who waits for one.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use tokio::sync::{Notify, futures::Notified};

/// The connections to a cluster's endpoints, of all workers.
#[derive(Debug, Default)]
pub(super) struct Connections {
    open: AtomicUsize,
    /// Of these, how many wait for a request.
    idle: AtomicUsize,
    /// Requests that wait for a connection.
    pending: AtomicUsize,
    /// Of these, how many wait since there may be no more connections.
    blocked: AtomicUsize,
    /// Told when a connection has room, or is gone.
    freed: Notify,
    /// How many that are idle are to make room.
    unwanted: AtomicUsize,
    /// Told when there are such.
    crowded: Notify,
}

/// Counts a request as one that waits for a connection until it is dropped.
pub(super) struct Pending(Arc<Connections>);

/// Counts it as one that is blocked.
pub(super) struct Blocked(Arc<Connections>);

/// Counts a connection until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    connections: Arc<Connections>,
    is_idle: bool,
}

impl Connections {
    /// One more that waits, unless there are `limit` already.
    pub(super) fn pend(self: &Arc<Self>, limit: Option<u32>) -> Option<Pending> {
        let before = self.pending.fetch_add(1, SeqCst);
        let guard = Pending(Arc::clone(self));
        limit.is_none_or(|limit| before < limit as usize).then_some(guard)
    }

    /// One more connection, unless there are `limit` already.
    pub(super) fn open(self: &Arc<Self>, limit: Option<u32>) -> Option<Place> {
        let limit = limit.map_or(usize::MAX, |limit| limit as usize);
        let more = |open: usize| (open < limit).then_some(open + 1);
        self.open.fetch_update(SeqCst, SeqCst, more).ok()?;
        Some(Place { connections: Arc::clone(self), is_idle: false })
    }

    /// One more that waits for the place of another. It must look for one again before it waits: until here nobody
    /// wakes it.
    pub(super) fn block(self: &Arc<Self>) -> Blocked {
        self.blocked.fetch_add(1, SeqCst);
        Blocked(Arc::clone(self))
    }

    /// Whether somebody waits for a place.
    pub(super) fn is_waited_for(&self) -> bool {
        self.blocked.load(SeqCst) > 0
    }

    /// Until a connection has room or is gone. One waiter is woken for each.
    pub(super) fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }

    /// Wakes one who waits.
    pub(super) fn wake_one(&self) {
        if self.is_waited_for() {
            self.freed.notify_one();
        }
    }

    /// Asks for one of those that are idle to be closed.
    pub(super) fn ask_for_room(&self) {
        if self.idle.load(SeqCst) > 0 {
            let blocked = self.blocked.load(SeqCst);
            let more = |unwanted: usize| (unwanted < blocked).then_some(unwanted + 1);
            let _ = self.unwanted.fetch_update(SeqCst, SeqCst, more);
            self.crowded.notify_waiters();
        }
    }

    /// Until some that are idle are to make room.
    pub(super) fn crowded(&self) -> Notified<'_> {
        self.crowded.notified()
    }

    /// Whether one that is idle is to make room.
    pub(super) fn takes_room(&self) -> bool {
        let fewer = |unwanted: usize| unwanted.checked_sub(1);
        self.is_waited_for() && self.unwanted.fetch_update(SeqCst, SeqCst, fewer).is_ok()
    }
}

impl Place {
    /// Says whether the connection waits for a request.
    pub(super) fn set_idle(&mut self, idle: bool) {
        if idle != self.is_idle {
            self.is_idle = idle;
            match idle {
                true => self.connections.idle.fetch_add(1, SeqCst),
                false => self.connections.idle.fetch_sub(1, SeqCst),
            };
        }
    }

    pub(super) fn connections(&self) -> &Arc<Connections> {
        &self.connections
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, SeqCst);
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        self.0.blocked.fetch_sub(1, SeqCst);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.set_idle(false);
        self.connections.open.fetch_sub(1, SeqCst);
        self.connections.wake_one();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[test]
    fn there_are_no_more_than_the_limits() {
        let connections = Arc::new(Connections::default());
        let places: Vec<_> = (0..5).map_while(|_| connections.open(Some(3))).collect();
        assert_eq!(places.len(), 3);
        drop(places);
        assert!(connections.open(Some(1)).is_some());
        let pending: Vec<_> = (0..5).map_while(|_| connections.pend(Some(2))).collect();
        assert_eq!(pending.len(), 2);
        drop(pending);
        assert!(connections.pend(Some(1)).is_some());
    }

    #[tokio::test]
    async fn who_waits_is_woken_and_gets_the_place_of_one_that_is_idle() {
        let connections = Arc::new(Connections::default());
        let mut place = connections.open(Some(1)).unwrap();
        place.set_idle(true);
        let mut crowded = pin!(connections.crowded());
        crowded.as_mut().enable();
        assert!(!connections.takes_room());
        let _blocked = connections.block();
        let mut freed = pin!(connections.freed());
        freed.as_mut().enable();
        assert!(connections.open(Some(1)).is_none());
        connections.ask_for_room();
        crowded.await;
        assert!(connections.takes_room() && !connections.takes_room());
        drop(place);
        freed.await;
        assert!(connections.open(Some(1)).is_some());
    }
}
