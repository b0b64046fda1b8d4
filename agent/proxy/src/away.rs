use std::{cell::RefCell, collections::HashMap, net::SocketAddr, time::Duration};

use tokio::time::Instant;

/// For so long nobody goes to a waypoint that could not be reached while there is another.
const AWAY: Duration = Duration::from_secs(10);

/// The waypoints that one worker could not reach a moment ago.
#[derive(Default)]
pub(crate) struct Away(RefCell<HashMap<SocketAddr, Instant>>);

impl Away {
    pub(crate) fn add(&self, waypoint: SocketAddr) {
        let now = Instant::now();
        let mut away = self.0.borrow_mut();
        away.retain(|_, since| now - *since < AWAY);
        away.insert(waypoint, now);
    }

    /// It was reached.
    pub(crate) fn remove(&self, waypoint: SocketAddr) {
        let mut away = self.0.borrow_mut();
        if !away.is_empty() {
            away.remove(&waypoint);
        }
    }

    pub(crate) fn contains(&self, waypoint: SocketAddr) -> bool {
        self.0.borrow().get(&waypoint).is_some_and(|since| since.elapsed() < AWAY)
    }
}
