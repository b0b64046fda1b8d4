//! Fairness between the pods of a node: one that dials without pause may have all that nobody else needs. Once the
//! node is short of CPU, its new connections wait in the kernel's queue, and then whoever dials them does.

use std::time::{Duration, Instant};

use tokio::{task::yield_now, time::sleep_until};

use crate::{pod::Pod, shared::Shared};

/// A worker that comes back to a listener after more than this was not running, or had too much to do.
const LATE: Duration = Duration::from_millis(1);
/// How long a pod is held to its share after that. Each time it is let go it may bring the node to its limits again, for
/// some tens of milliseconds: less than one of a hundred of the others' calls may meet that.
const HELD: Duration = Duration::from_secs(10);
/// Between two new connections of a pod on one worker, in the long run, when it is held to its share.
const SHARE: Duration = Duration::from_millis(2);
/// So much of its share may be taken at once.
const AT_ONCE: Duration = Duration::from_millis(16);

/// How one worker takes what one pod dials.
pub(crate) struct Pace {
    held_until: Instant,
    /// When the next connection is due (the generic cell rate algorithm, ITU-T I.371).
    due: Instant,
}

impl Pace {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self { held_until: now, due: now }
    }

    /// After a connection was accepted: returns when the next one may be. Whatever else is ready on this worker has its
    /// turn in any case.
    pub(crate) async fn next(&mut self, shared: &Shared, pod: &Pod) {
        let before = Instant::now();
        yield_now().await;
        let now = Instant::now();
        let others = || shared.live.count() > pod.live().count();
        if self.is_held(now - before, now, others) {
            shared.metrics.held().inc();
            sleep_until(self.due.into()).await;
        }
    }

    /// Whether the next connection must wait until it is due.
    fn is_held(&mut self, delay: Duration, now: Instant, others: impl FnOnce() -> bool) -> bool {
        if delay > LATE && others() {
            self.held_until = now + HELD;
        }
        let earliest = now.checked_sub(AT_ONCE).unwrap_or(now);
        self.due = self.due.max(earliest) + SHARE;
        now < self.held_until && now < self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Connections that are taken within `time`, if as many as can be are waiting.
    fn taken(pace: &mut Pace, start: Instant, time: Duration, delay: Duration, others: bool) -> u32 {
        let (mut now, mut taken) = (start, 0);
        while now < start + time {
            taken += 1;
            now += Duration::from_micros(50) + delay;
            if pace.is_held(delay, now, || others) {
                now = now.max(pace.due);
            }
        }
        taken
    }

    #[test]
    fn a_pod_has_its_share_when_the_worker_is_late_and_others_are_there() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let late = LATE + Duration::from_micros(1);
        let mut pace = Pace { held_until: start, due: start };
        assert_eq!(taken(&mut pace, start, second, Duration::ZERO, true), 20_000, "nobody is late");
        let mut pace = Pace { held_until: start, due: start };
        assert!(pace.is_held(late, start + AT_ONCE, || true) || pace.held_until > start);
        let share = taken(&mut pace, start + AT_ONCE, second, Duration::ZERO, true);
        assert!((500..=510).contains(&share), "{share}");
        let after = taken(&mut pace, start + AT_ONCE + HELD, second, Duration::ZERO, true);
        assert!(after > 19_900, "{after}: it is held no longer");
    }

    #[test]
    fn a_pod_that_is_alone_is_never_held() {
        let start = Instant::now();
        let mut pace = Pace { held_until: start, due: start };
        for n in 1..10_000 {
            assert!(!pace.is_held(LATE * 2, start + Duration::from_micros(n), || false));
        }
    }

    #[test]
    fn a_pod_below_its_share_never_waits() {
        let start = Instant::now();
        let mut pace = Pace { held_until: start, due: start };
        for n in 1..1000 {
            assert!(!pace.is_held(LATE * 2, start + SHARE * n, || true), "{n}");
        }
    }
}
