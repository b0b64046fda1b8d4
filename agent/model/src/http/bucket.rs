use std::time::Duration;

use crate::world::Rate;

/// A token bucket, as a pure function: all that is to be kept of one is a number.
///
/// That is the time, in nanoseconds since whatever start, at which the bucket will be full again (the virtual
/// scheduling form of ITU-T I.371's generic cell rate algorithm). 0 is that of a full one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    interval: u64,
    burst: u64,
}

impl Bucket {
    /// One token comes each `interval`, and up to `burst` are kept.
    pub fn new(interval: Duration, burst: u32) -> Self {
        Self { interval: u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX), burst: burst.into() }
    }

    /// Takes a token: what is to be kept then, or how long to wait for the next one.
    pub fn take(&self, full_at: u64, now: u64) -> Result<u64, Duration> {
        let taken = full_at.max(now).saturating_add(self.interval);
        let missing = (taken - now).saturating_sub(self.interval.saturating_mul(self.burst));
        if missing > 0 { Err(Duration::from_nanos(missing)) } else { Ok(taken) }
    }

    /// Gives a token back that was taken.
    pub fn give_back(&self, full_at: u64) -> u64 {
        full_at.saturating_sub(self.interval)
    }
}

impl From<Rate> for Bucket {
    fn from(rate: Rate) -> Self {
        Self::new(rate.interval(), rate.burst())
    }
}
