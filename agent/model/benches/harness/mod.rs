//! How the benches beside the pure parts time things. Criterion would tell more of the noise, and every check of the
//! workspace would have to compile it and all that it needs.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// How long each of so many runs took, sorted.
pub fn times(count: usize, mut run: impl FnMut(usize)) -> Vec<Duration> {
    let time = |number| {
        let start = Instant::now();
        run(number);
        start.elapsed()
    };
    let mut times: Vec<_> = (0..count).map(time).collect();
    times.sort();
    times
}

/// The same of what is too short to be timed by itself: a hundred runs at a time, each share of which counts. Takes what
/// a run gives as if somebody had use for it.
#[allow(dead_code, reason = "not every bench has any")]
pub fn shares<T>(count: usize, mut run: impl FnMut(usize) -> T) -> Vec<Duration> {
    const BATCH: usize = 100;
    let batch = |batch| (batch * BATCH..(batch + 1) * BATCH).for_each(|number| drop(black_box(run(number))));
    times(count / BATCH, batch).into_iter().map(|time| time / BATCH as u32).collect()
}

/// Of times in order.
#[allow(dead_code, reason = "not every bench has any")]
pub fn median(times: &[Duration]) -> Duration {
    times[times.len() / 2]
}

#[allow(dead_code, reason = "not every bench has any")]
pub fn report(what: &str, times: Vec<Duration>) {
    let at = |hundredth: usize| times[(times.len() * hundredth / 100).min(times.len() - 1)];
    println!("{what:30} p50 {:>10.1?}  p99 {:>10.1?}  worst {:>10.1?}", at(50), at(99), at(100));
}
