//! Schedule of in-place attempts. Pure.

use std::ops::Range;
use std::time::Duration;

use crate::backoff::Backoff;

/// Number and pauses of the in-place attempts to handle an event. While an event waits for its next
/// attempt, its aggregate waits too; other aggregates do not.
///
/// ```
/// use std::time::Duration;
/// use tidings::subscriber::Retry;
///
/// let retry = Retry::exponential(5, Duration::from_millis(50)..Duration::from_secs(5));
/// assert_eq!(retry.attempts(), 5);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    attempts: u32,
    pauses: Range<Duration>,
}

/// The step after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Try again after this time.
    After(Duration),
    /// All attempts are used up.
    GiveUp,
}

impl Retry {
    /// Allows up to `attempts` attempts, including the first. The pauses between them double from
    /// the start of the range to its end. Each pause is shortened by up to a half at random, so
    /// that events that failed together are not retried together.
    pub fn exponential(attempts: u32, pauses: Range<Duration>) -> Self {
        Self {
            attempts: attempts.max(1),
            pauses,
        }
    }

    /// Allows a single attempt.
    pub fn never() -> Self {
        Self::exponential(1, Duration::ZERO..Duration::ZERO)
    }

    /// Returns the maximum number of attempts, including the first.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Returns the step after `failed` failed attempts. `random` is from 0 to 1 and shortens the
    /// pause.
    pub(crate) fn after(&self, failed: u32, random: f64) -> Next {
        if failed >= self.attempts {
            return Next::GiveUp;
        }
        Next::After(self.pause(failed, random))
    }

    /// Returns the pause after `failed` failed attempts, regardless of the maximum.
    pub(crate) fn pause(&self, failed: u32, random: f64) -> Duration {
        Backoff::new(self.pauses.clone()).wait(failed, random)
    }
}

// === impl Retry ===

impl Default for Retry {
    /// Five attempts with pauses from 50 ms to 5 s. This covers a deadlock, a restart or a short
    /// stall in less than a second.
    fn default() -> Self {
        Self::exponential(5, Duration::from_millis(50)..Duration::from_secs(5))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pauses_grow_within_the_range_and_end_after_the_last_attempt(
            attempts in 1..50u32,
            start in 1..1_000u64,
            length in 0..100_000u64,
            random in 0.0..1.0f64,
        ) {
            let (start, end) =
                (Duration::from_millis(start), Duration::from_millis(start + length));
            let retry = Retry::exponential(attempts, start..end);
            let mut last = Duration::ZERO;
            for failed in 1..attempts {
                let Next::After(pause) = retry.after(failed, 0.0) else {
                    panic!("attempt {failed} of {attempts} is not the last")
                };
                prop_assert!(pause >= last && pause >= start && pause <= end);
                last = pause;
                let Next::After(jittered) = retry.after(failed, random) else {
                    panic!("attempt {failed} of {attempts} is not the last")
                };
                prop_assert!(jittered <= pause && jittered >= pause.mul_f64(0.49));
            }
            prop_assert_eq!(retry.after(attempts, random), Next::GiveUp);
        }
    }
}
