//! Retry policy: number of attempts and waits between them. Pure.

use std::ops::Range;
use std::time::Duration;

use super::super::Class;
use crate::backoff::Backoff;

/// Upper bound of a wait, because a tokio timer is limited to about two years.
const WAIT_MAX: Duration = Duration::from_secs(86_400);

/// Number of attempts of a call, and the waits between them.
///
/// | | default | reason |
/// |---|---|---|
/// | attempts | 3 | a failure that survives two retries is an outage: use a circuit breaker |
/// | first wait | 1 s | longer than a reconnect, a leader election or a garbage collection |
/// | longest wait | 10 s | the doubling ends there; few callers wait longer |
/// | jitter | half | callers that failed together do not return together |
/// | within | unbounded | only the caller knows its limit |
///
/// With jitter of one half, a wait is between half of its full length and the full length.
///
/// A wait that a rate limit requests is used as requested, plus up to half of the backoff, if it is
/// no longer than the longest wait. Otherwise the retry gives up at once, because a retry within
/// the longest wait would be refused.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tidings::resilience::RetryPolicy;
///
/// // Five attempts with waits of 50, 100, 200 and 400 ms, each shortened by up to a half.
/// // No wait ends later than 2 s after the call began.
/// let retry = RetryPolicy::exponential(5, Duration::from_millis(50)..Duration::from_secs(5))
///     .within(Duration::from_secs(2));
/// assert_eq!(retry.attempts(), 5);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    attempts: u32,
    backoff: Backoff,
    within: Option<Duration>,
}

/// Decision after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The attempt succeeded.
    Done,
    /// Retry after this wait.
    Again(Duration),
    /// Return the outcome of the last attempt.
    GiveUp(Why),
}

/// Reason for giving up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    Permanent,
    Rejected,
    Attempts,
    /// The wait would end after the deadline.
    Deadline,
    /// The dependency requests a wait that exceeds the longest wait.
    RateLimit,
    Budget,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::exponential(3, Duration::from_secs(1)..Duration::from_secs(10))
    }
}

impl RetryPolicy {
    /// Creates a policy with `attempts` attempts, including the first one (0 counts as 1). The
    /// first wait is `waits.start`. Each further wait is twice as long, up to `waits.end`.
    pub fn exponential(attempts: u32, waits: Range<Duration>) -> Self {
        Self {
            attempts: attempts.max(1),
            backoff: Backoff::new(waits.start..waits.end.min(WAIT_MAX)),
            within: None,
        }
    }

    /// Sets the random part of a wait, from 0 (none, for tests) to 1 (the whole wait, "full
    /// jitter"). Defaults to 0.5.
    #[must_use]
    pub fn jitter(self, part: f64) -> Self {
        Self {
            backoff: self.backoff.jitter(part),
            ..self
        }
    }

    /// Starts no wait that would end later than `limit` after the call began. It does not interrupt
    /// an attempt; use a [timeout](super::super::timeout) for that.
    #[must_use]
    #[doc(alias = "deadline")]
    pub fn within(self, limit: Duration) -> Self {
        Self {
            within: Some(limit),
            ..self
        }
    }

    /// Returns the maximum number of attempts of a call.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Returns the time after the start of a call within which a wait must end.
    pub(super) fn limit(&self) -> Option<Duration> {
        self.within
    }

    /// Returns the decision after attempt number `made` with the outcome `class`. `left` is the
    /// time to the deadline, `random` is in `0..1`.
    pub(super) fn next(
        &self,
        made: u32,
        class: Class,
        left: Option<Duration>,
        random: f64,
    ) -> Next {
        let wait = match class {
            Class::Success => return Next::Done,
            Class::Permanent => return Next::GiveUp(Why::Permanent),
            Class::Rejected => return Next::GiveUp(Why::Rejected),
            _ if made >= self.attempts => return Next::GiveUp(Why::Attempts),
            Class::Transient => self.backoff.wait(made, random),
            Class::RateLimited { retry_after } if retry_after > self.backoff.longest() => {
                return Next::GiveUp(Why::RateLimit);
            }
            Class::RateLimited { retry_after } => {
                // Many callers may have received the same request, so the wait is spread too.
                let spread = self.backoff.random_part(made, random) / 2;
                retry_after.max(self.backoff.wait(made, random)) + spread
            }
        };
        if left.is_some_and(|left| wait > left) {
            Next::GiveUp(Why::Deadline)
        } else {
            Next::Again(wait)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn class() -> impl Strategy<Value = Class> {
        let limited = (0u64..20_000).prop_map(|millis| Class::RateLimited {
            retry_after: Duration::from_millis(millis),
        });
        prop_oneof![
            Just(Class::Success),
            Just(Class::Transient),
            Just(Class::Permanent),
            Just(Class::Rejected),
            limited
        ]
    }

    #[test]
    fn by_default_there_are_three_attempts_with_waits_that_double_from_one_second_to_ten() {
        let retry = RetryPolicy::default().jitter(0.0);
        let next = |made| retry.next(made, Class::Transient, None, 0.9);
        assert_eq!(
            (next(1), next(2), next(3)),
            (
                Next::Again(SECOND),
                Next::Again(2 * SECOND),
                Next::GiveUp(Why::Attempts)
            )
        );
        let patient = RetryPolicy::exponential(10, SECOND..10 * SECOND).jitter(0.0);
        let waits: Vec<_> = (1..8)
            .map(|made| patient.backoff.full(made).as_secs())
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 10, 10, 10]);
    }

    #[test]
    fn what_is_done_follows_from_the_class() {
        let retry = RetryPolicy::default();
        let limited = |seconds| Class::RateLimited {
            retry_after: seconds * SECOND,
        };
        let next = |class| retry.next(1, class, None, 0.0);
        assert_eq!(next(Class::Success), Next::Done);
        assert_eq!(next(Class::Permanent), Next::GiveUp(Why::Permanent));
        assert_eq!(next(Class::Rejected), Next::GiveUp(Why::Rejected));
        assert_eq!(next(limited(7)), Next::Again(7 * SECOND));
        assert_eq!(next(limited(11)), Next::GiveUp(Why::RateLimit));
    }

    #[test]
    fn extreme_settings_are_bounded() {
        let retry = RetryPolicy::exponential(0, Duration::MAX..Duration::MAX);
        assert_eq!(
            (retry.attempts(), retry.backoff.full(u32::MAX)),
            (1, WAIT_MAX)
        );
        let reversed = RetryPolicy::exponential(u32::MAX, 5 * SECOND..SECOND).jitter(f64::NAN);
        assert_eq!(
            reversed.next(9, Class::Transient, None, f64::INFINITY),
            Next::Again(SECOND)
        );
    }

    proptest! {
        #[test]
        fn a_wait_is_within_its_bounds_and_ends_before_the_deadline(
            attempts in 1u32..20,
            first in 1u64..5_000,
            longest in 5_000u64..20_000,
            jitter in 0.0..=1.0f64,
            made in 1u32..40,
            class in class(),
            left in proptest::option::of(0u64..30_000),
            random in 0.0..1.0f64,
        ) {
            let (first, longest, left) = (
                Duration::from_millis(first),
                Duration::from_millis(longest),
                left.map(Duration::from_millis),
            );
            let next = RetryPolicy::exponential(attempts, first..longest)
                .jitter(jitter)
                .next(made, class, left, random);
            if let Next::Again(wait) = next {
                prop_assert!(made < attempts);
                prop_assert!(left.is_none_or(|left| wait <= left));
                let full = first.as_secs_f64() * 2f64.powi(made as i32 - 1);
                let backoff_max = full.min(longest.as_secs_f64());
                match class {
                    Class::Transient => {
                        prop_assert!(wait.as_secs_f64() <= backoff_max + 1e-6);
                        prop_assert!(wait.as_secs_f64() >= backoff_max * (1.0 - jitter) - 1e-6);
                    }
                    Class::RateLimited { retry_after } => {
                        prop_assert!(wait >= retry_after);
                        prop_assert!(
                            wait.as_secs_f64()
                                <= retry_after.as_secs_f64().max(backoff_max)
                                    + backoff_max / 2.0
                                    + 1e-6
                        );
                    }
                    other => prop_assert!(false, "{other:?} is retried"),
                }
            }
        }
    }
}
