//! Fairness between the pods of a node: one that dials without pause may have all that nobody else needs. Once the
//! node is short of CPU, its new connections wait in the kernel's queue, and then whoever dials them does.

use std::{
    cell::Cell,
    fs::File,
    os::unix::fs::FileExt,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{task::yield_now, time::sleep_until};

use crate::{pod::Pod, worker::Worker};

/// A worker that waits for a processor this part of the time has one too few.
const SHORT: u32 = 10;
/// Between two looks at how long it waited.
const LOOK: Duration = Duration::from_millis(5);
/// A pod that has dialled within this wants its share.
const RECENT: Duration = Duration::from_secs(1);
/// How long a pod is held to its share. Each time it is let go it may bring the node to its limits again, for some tens
/// of milliseconds: far less than one of a hundred of the others' calls may meet that.
const HELD: Duration = Duration::from_secs(30);
/// Between two new connections of a pod, in the long run, when it is held to its share.
const SHARE: Duration = Duration::from_millis(2);
/// So much of its share may be taken at once, a hundred connections.
const AT_ONCE: Duration = Duration::from_millis(200);

/// How a worker takes what one pod dials, which it alone accepts.
#[derive(Default)]
pub(crate) struct Pace {
    /// When the next connection is due, had the pod but its share (the generic cell rate algorithm, ITU-T I.371). Never
    /// more than a share ahead: what it takes while it is not held is not made up for.
    due: Option<Instant>,
    /// Until when it is held: for [`HELD`] from when the worker was short of CPU and the pod took more than its share.
    held: Option<Instant>,
}

impl Pace {
    /// After a connection was accepted: returns when the next one may be, at most [`SHARE`] later. Whatever else is ready
    /// on this worker has its turn in any case.
    pub(crate) async fn next(&mut self, worker: &Worker, pod: &Pod) {
        let now = Instant::now();
        let others = worker.shared.diallers.note(pod.netns().cookie(), now);
        if let Some(due) = self.due(now, || others && worker.waiting.is_short(now)) {
            worker.shared.metrics.held().inc();
            sleep_until(due.into()).await;
        } else {
            yield_now().await;
        }
    }

    /// When the next connection is due, if the pod is held and that is later than `now`. `scarce` tells whether others
    /// need what the pod takes beyond its share.
    fn due(&mut self, now: Instant, scarce: impl FnOnce() -> bool) -> Option<Instant> {
        let earliest = now.checked_sub(AT_ONCE).unwrap_or(now);
        let due = self.due.map_or(earliest, |due| due.max(earliest)) + SHARE;
        self.due = Some(due.min(now + SHARE));
        if due <= now {
            return None;
        }
        if self.held.is_none_or(|until| until <= now) {
            self.held = scarce().then(|| now + HELD);
        }
        self.held.and(self.due)
    }
}

/// How long this thread waits for a processor while it could run, by the kernel's own count: the second figure of
/// `schedstat` (Documentation/scheduler/sched-stats.rst), in nanoseconds. Where there is none nobody is held.
pub(crate) struct Waiting {
    counted: Option<File>,
    last: Cell<Option<(Instant, u64)>>,
    short: Cell<bool>,
}

impl Waiting {
    pub(crate) fn of_this_thread() -> Self {
        let counted = File::open("/proc/thread-self/schedstat").ok();
        Self { counted, last: Cell::default(), short: Cell::default() }
    }

    /// Whether it waited for more than a tenth of the time lately.
    fn is_short(&self, now: Instant) -> bool {
        let last = self.last.get();
        let since = last.map_or(Duration::ZERO, |(at, _)| now.saturating_duration_since(at));
        if last.is_some() && since < LOOK {
            return self.short.get();
        }
        let waited = self.waited();
        self.last.set(waited.map(|waited| (now, waited)));
        // What was before the last second tells nothing of now.
        let waited = waited.zip(last).map_or(0, |(now, (_, before))| now.saturating_sub(before));
        self.short.set(since < RECENT && Duration::from_nanos(waited) > since / SHORT);
        self.short.get()
    }

    fn waited(&self) -> Option<u64> {
        let mut text = [0; 64];
        let read = self.counted.as_ref()?.read_at(&mut text, 0).ok()?;
        std::str::from_utf8(&text[..read]).ok()?.split(' ').nth(1)?.parse().ok()
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
    fn taken(pace: &mut Pace, start: Instant, time: Duration, scarce: bool) -> (u32, Duration) {
        let (mut now, mut taken, mut longest) = (start, 0, Duration::ZERO);
        while now < start + time {
            let work = Duration::from_micros(50);
            taken += 1;
            let next = pace.due(now + work, || scarce).unwrap_or(now + work);
            longest = longest.max(next - now);
            now = next;
        }
        (taken, longest)
    }

    #[test]
    fn a_pod_has_its_share_while_others_are_short_of_what_it_takes() {
        let start = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(taken(&mut pace, start, SECOND, false).0, 20_000, "nobody is short of anything");
        // However much it took before, it is not made up for.
        let (share, longest) = taken(&mut pace, start + SECOND, SECOND, true);
        assert!((498..=502).contains(&share) && longest <= SHARE * 2, "{share}, {longest:?}");
        let (share, _) = taken(&mut pace, start + SECOND * 2, SECOND, false);
        assert!((498..=502).contains(&share), "{share}: the others have enough since it is held");
        let (free, _) = taken(&mut pace, start + SECOND + HELD, SECOND, false);
        assert!(free > 19_000, "{free}: it is held no longer");
    }

    #[test]
    fn a_pod_below_its_share_never_waits() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        for n in 1..1000 {
            assert_eq!(pace.due(start + SHARE * n, || true), None, "{n}");
        }
        // Nor one that opens a hundred at once.
        let now = start + SHARE * 1000 + AT_ONCE;
        assert_eq!((0..100).find_map(|_| pace.due(now, || true)), None);
        assert!(pace.due(now, || true).is_some());
    }

    #[test]
    fn a_thread_that_has_a_processor_when_it_wants_one_is_not_short_of_any() {
        let waiting = Waiting::of_this_thread();
        assert!(waiting.waited().is_some(), "no kernel for Orlop leaves it out");
        let now = Instant::now();
        assert!(!waiting.is_short(now), "nothing is known yet");
        // Since then it could at most have waited for as long as it took.
        assert!(!waiting.is_short(now + SECOND / 10 * 9));
        waiting.last.set(Some((now, 0)));
        waiting.short.set(true);
        assert!(waiting.is_short(now + LOOK / 2), "as it was at the last look");
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
