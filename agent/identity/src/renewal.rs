//! When to renew and when to try again: pure, the randomness comes in.

use std::time::{Duration, SystemTime};

/// Around half of what is left at `now`, 5 % either way, so that certificates made together are not
/// renewed together. `jitter` is from 0 to 1.
pub(crate) fn renew_at(now: SystemTime, not_after: SystemTime, jitter: f64) -> SystemTime {
    let left = not_after.duration_since(now).unwrap_or_default();
    now + left.mul_f64(0.475 + 0.05 * jitter.clamp(0.0, 1.0))
}

/// After the `failures`th failure in a row: 1 s, doubled each time, half of it by chance; up to 5 min while a
/// certificate is `in_hand`, and 15 s while connections are refused for want of one.
pub(crate) fn retry_after(failures: u32, in_hand: bool, jitter: f64) -> Duration {
    let last = if in_hand { LAST_RETRY } else { LAST_RETRY_WITHOUT };
    let full = FIRST_RETRY.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(last);
    full.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
}

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(300);
const LAST_RETRY_WITHOUT: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    #[test]
    fn renewal_is_around_half_life() {
        let after = UNIX_EPOCH + Duration::from_secs(1000);
        for (jitter, seconds) in [(0.0, 475), (0.5, 500), (1.0, 525)] {
            assert_eq!(renew_at(UNIX_EPOCH, after, jitter), UNIX_EPOCH + Duration::from_secs(seconds));
        }
    }

    #[test]
    fn renewal_of_the_expired_is_now() {
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        assert_eq!(renew_at(now, UNIX_EPOCH, 0.5), now);
    }

    #[test]
    fn retries_double_up_to_five_minutes() {
        let seconds = |failures| retry_after(failures, true, 1.0).as_secs();
        assert_eq!([1, 2, 3, 9, 10, u32::MAX].map(seconds), [1, 2, 4, 256, 300, 300]);
        assert_eq!(retry_after(1, true, 0.0), Duration::from_millis(500));
    }

    #[test]
    fn what_has_no_certificate_is_tried_every_fifteen_seconds() {
        let seconds = |failures| retry_after(failures, false, 1.0).as_secs();
        assert_eq!([1, 4, 5, u32::MAX].map(seconds), [1, 8, 15, 15]);
    }
}
