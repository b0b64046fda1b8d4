//! Fairness between the pods of a node: one that dials without pause may have all that nobody else needs. Once the
//! node is short of CPU, its new connections wait in the kernel's queue, and then whoever dials them does.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{task::yield_now, time::sleep_until};

use crate::{pod::Pod, shared::Shared};

/// A worker that comes back to a listener after more than this was not running, or had too much to do.
const LATE: Duration = Duration::from_millis(1);
/// A pod that has dialled within this wants its share.
const RECENT: Duration = Duration::from_secs(1);
/// How long a pod is held to its share. Each time it is let go it may bring the node to its limits again, for some tens
/// of milliseconds: less than one of a hundred of the others' calls may meet that.
const HELD: Duration = Duration::from_secs(10);
/// Between two new connections of a pod on one worker, in the long run, when it is held to its share.
const SHARE: Duration = Duration::from_millis(2);
/// So much of its share may be taken at once, a hundred connections.
const AT_ONCE: Duration = Duration::from_millis(200);

/// How one worker takes what one pod dials.
#[derive(Default)]
pub(crate) struct Pace(Option<Hold>);

/// From the moment that a worker was late.
struct Hold {
    until: Instant,
    /// When the next connection is due (the generic cell rate algorithm, ITU-T I.371). Never more than a share ahead,
    /// as it is waited for.
    due: Instant,
}

impl Pace {
    /// After a connection was accepted: returns when the next one may be, at most [`SHARE`] later. Whatever else is ready
    /// on this worker has its turn in any case.
    pub(crate) async fn next(&mut self, shared: &Shared, pod: &Pod) {
        let before = Instant::now();
        let others = shared.diallers.note(pod.netns().cookie(), before);
        yield_now().await;
        let now = Instant::now();
        if let Some(due) = self.due(now - before, now, others) {
            shared.metrics.held().inc();
            sleep_until(due.into()).await;
        }
    }

    /// When the next connection is due, if that is later than `now`. The worker came back after `delay`, and `others` have
    /// dialled lately.
    fn due(&mut self, delay: Duration, now: Instant, others: bool) -> Option<Instant> {
        let earliest = now.checked_sub(AT_ONCE).unwrap_or(now);
        if self.0.as_ref().is_some_and(|hold| hold.until <= now) {
            self.0 = None;
        }
        if delay > LATE && others {
            self.0.get_or_insert(Hold { until: now, due: earliest }).until = now + HELD;
        }
        let hold = self.0.as_mut()?;
        hold.due = hold.due.max(earliest) + SHARE;
        (hold.due > now).then_some(hold.due)
    }
}

/// Which pods of the node have dialled last.
#[derive(Debug, Default)]
pub(crate) struct Diallers(Mutex<Option<Last>>);

#[derive(Clone, Copy, Debug)]
struct Last {
    pod: u64,
    at: Instant,
    /// When one other than `pod` has.
    another: Option<Instant>,
}

impl Diallers {
    /// That the pod of this netns dials now. Whether another one has, lately.
    fn note(&self, pod: u64, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let another = match *last {
            Some(last) if last.pod == pod => last.another,
            Some(last) => Some(last.at),
            None => None,
        };
        *last = Some(Last { pod, at: now, another });
        another.is_some_and(|at| now.saturating_duration_since(at) < RECENT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Connections that are taken from `start` on within `time`, if as many as can be are waiting, and the longest time
    /// between two.
    fn taken(pace: &mut Pace, start: Instant, time: Duration, late: bool, others: bool) -> (u32, Duration) {
        let (mut now, mut taken, mut longest) = (start, 0, Duration::ZERO);
        while now < start + time {
            let work = if late { LATE + Duration::from_micros(50) } else { Duration::from_micros(50) };
            taken += 1;
            let next = pace.due(work, now + work, others).unwrap_or(now + work).max(now + work);
            longest = longest.max(next - now);
            now = next;
        }
        (taken, longest)
    }

    #[test]
    fn a_pod_has_its_share_while_the_worker_is_late_and_others_dial() {
        let start = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(taken(&mut pace, start, SECOND, false, true).0, 20_000, "nobody is late");
        let (share, longest) = taken(&mut pace, start + SECOND, SECOND, true, true);
        assert!((595..=605).contains(&share), "{share}: what it may take at once, and 500 a second");
        // However much it took before, it is not made up for.
        assert!(longest <= SHARE * 2, "{longest:?}");
        let (share, longest) = taken(&mut pace, start + SECOND * 2, SECOND, false, true);
        assert!((495..=505).contains(&share) && longest <= SHARE * 2, "{share}, {longest:?}");
        let (free, _) = taken(&mut pace, start + SECOND * 2 + HELD, SECOND, false, true);
        assert_eq!(free, 20_000, "it is held no longer");
    }

    #[test]
    fn a_pod_that_dials_alone_is_never_held() {
        let mut pace = Pace::default();
        let (taken, _) = taken(&mut pace, Instant::now(), SECOND, true, false);
        assert!(taken > 900, "{taken}");
        assert!(pace.0.is_none());
    }

    #[test]
    fn a_pod_below_its_share_never_waits() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        for n in 1..1000 {
            assert_eq!(pace.due(LATE * 2, start + SHARE * n, true), None, "{n}");
        }
        // Nor one that opens a hundred at once.
        let now = start + SHARE * 1000 + AT_ONCE;
        assert_eq!((0..100).find_map(|_| pace.due(LATE * 2, now, true)), None);
        assert!(pace.due(LATE * 2, now, true).is_some());
    }

    #[test]
    fn others_are_pods_that_have_dialled_lately() {
        let (start, diallers) = (Instant::now(), Diallers::default());
        assert!(!diallers.note(1, start));
        assert!(!diallers.note(1, start + SECOND / 4), "it is alone");
        assert!(diallers.note(2, start + SECOND / 2));
        assert!(diallers.note(1, start + SECOND));
        assert!(diallers.note(1, start + SECOND / 4 * 5));
        assert!(!diallers.note(1, start + SECOND * 2), "the other one has stopped");
        assert!(!diallers.note(2, start + SECOND * 4), "both had");
    }
}
