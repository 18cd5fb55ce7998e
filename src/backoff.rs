//! Exponential backoff with jitter. Pure: the caller passes the random number.
//!
//! The only rule for the waits between attempts: of a relay's sessions, of a subscriber's handlers
//! and of calls with a retry layer. Waits double from the first to the longest (backon's schedule).
//! Each is shortened at random, so that callers that failed together do not return together. The
//! random part is not backon's, which lengthens waits and cannot be reproduced in a test.

use std::{
    hash::{BuildHasher, RandomState},
    ops::Range,
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};

/// The part of a wait that is random.
const JITTER: f64 = 0.5;

/// Upper bound of a wait, about 136 years. Arithmetic with it cannot overflow.
const WAIT_MAX: Duration = Duration::from_secs(u32::MAX as u64);

/// The waits between attempts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    jitter: f64,
}

impl Backoff {
    /// Creates waits that double from the start of the range to its end. Up to a half of each is
    /// random.
    pub(crate) fn new(waits: Range<Duration>) -> Self {
        let longest = waits.end.min(WAIT_MAX);
        Self {
            first: waits.start.min(longest),
            longest,
            jitter: JITTER,
        }
    }

    /// Sets the part of a wait that is random, from 0 (none) to 1 (the whole wait).
    #[cfg(feature = "resilience")]
    pub(crate) fn jitter(self, part: f64) -> Self {
        Self {
            jitter: if part.is_nan() {
                0.0
            } else {
                part.clamp(0.0, 1.0)
            },
            ..self
        }
    }

    /// Returns the longest wait.
    #[cfg(feature = "resilience")]
    pub(crate) fn longest(&self) -> Duration {
        self.longest
    }

    /// Returns the wait after `failed` failed attempts. `random` is from 0 (the full wait) to 1 (as
    /// short as the jitter permits).
    pub(crate) fn wait(&self, failed: u32, random: f64) -> Duration {
        self.full(failed) - self.random_part(failed, random)
    }

    /// Returns the random part of the wait after `failed` failed attempts.
    pub(crate) fn random_part(&self, failed: u32, random: f64) -> Duration {
        self.full(failed)
            .mul_f64(self.jitter * random.clamp(0.0, 1.0))
    }

    /// Returns the wait after `failed` failed attempts, without jitter.
    pub(crate) fn full(&self, failed: u32) -> Duration {
        let mut waits = ExponentialBuilder::default()
            .with_min_delay(self.first)
            .with_max_delay(self.longest)
            .with_factor(2.0)
            .without_max_times()
            .build();
        // No wait doubles more often before it reaches the longest.
        let before = failed.saturating_sub(1).min(64);
        waits
            .nth(before as usize)
            .map_or(self.longest, |wait| rounded(wait).min(self.longest))
    }
}

/// Removes the error of backon's arithmetic, which uses numbers of 32 bits.
fn rounded(wait: Duration) -> Duration {
    let unit = match wait.as_secs() {
        0 => Duration::from_micros(1),
        1..3_600 => Duration::from_millis(1),
        _ => return wait,
    };
    let units = (wait + unit / 2).as_nanos() / unit.as_nanos();
    unit.saturating_mul(u32::try_from(units).unwrap_or(u32::MAX))
}

/// Returns a random number from 0 to 1, which spreads waits. It is not secret.
pub(crate) fn random() -> f64 {
    let bits = RandomState::new().hash_one(0u8) >> 11;
    bits as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn random_numbers_are_between_zero_and_one_and_differ() {
        let some: Vec<f64> = (0..10).map(|_| random()).collect();
        assert!(some.iter().all(|number| (0.0..1.0).contains(number)));
        assert!(some.windows(2).any(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let backoff = Backoff::new(Duration::from_secs(1)..Duration::from_secs(10));
        let waits: Vec<u64> = (0..8)
            .map(|failed| backoff.full(failed).as_secs())
            .collect();
        assert_eq!(waits, [1, 1, 2, 4, 8, 10, 10, 10]);
        let backoff = Backoff::new(Duration::from_millis(100)..Duration::from_mins(1));
        let waits: Vec<u128> = (1..12)
            .map(|failed| backoff.full(failed).as_nanos() / 1_000)
            .collect();
        let doubled = (0..10).map(|n| 100_000 << n).chain([60_000_000]);
        assert_eq!(waits, doubled.collect::<Vec<u128>>());
    }

    #[test]
    fn extreme_waits_are_bounded() {
        let longest = Backoff::new(Duration::MAX..Duration::MAX);
        assert_eq!(longest.wait(u32::MAX, 0.0), WAIT_MAX);
        let reversed = Backoff::new(Duration::from_secs(5)..Duration::from_secs(1));
        assert_eq!(reversed.full(1), Duration::from_secs(1));
        assert_eq!(
            Backoff::new(Duration::ZERO..Duration::ZERO).wait(9, 0.5),
            Duration::ZERO
        );
    }

    proptest! {
        #[test]
        fn a_wait_is_shortened_by_up_to_a_half(
            first in 0u64..5_000,
            longest in 0u64..20_000,
            failed in 0u32..40,
            random in 0.0..1.0f64,
        ) {
            let backoff =
                Backoff::new(Duration::from_millis(first)..Duration::from_millis(longest));
            let (full, wait) = (backoff.full(failed), backoff.wait(failed, random));
            prop_assert!(full <= Duration::from_millis(longest));
            prop_assert!(wait <= full);
            prop_assert!(wait.as_secs_f64() >= full.as_secs_f64() / 2.0 - 1e-6);
            prop_assert!(backoff.full(failed + 1) >= full);
        }
    }
}
