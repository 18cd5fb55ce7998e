//! Timestamps of records. They follow the clock of the database, never the clock of this machine.
//!
//! A broker refuses a record whose timestamp is too far from its own clock, and with it the whole
//! batch. The cause is a clock and never the event. The relay therefore reacts to each refusal with
//! other timestamps, step by step:
//!
//! ```text
//! OWN ──▶ SENDING ──▶ BEHIND 1 h ──▶ 2 h ──▶ 4 h … 7 days ──▶ the topic counts as unusable;
//! │       │           │                                       starts again with OWN
//! │       │           └ earlier than the time of sending: the broker is behind the database
//! │       └ the time of sending
//! └ the event's own time, at most a day old
//! ```
//!
//! The header `ce_time` contains the event's own time in every case.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Maximum age of a record's timestamp. Kafka deletes records by their timestamp (after a week by
/// default), so an event that waited through a long outage must not arrive expired.
const OLDEST: Duration = Duration::from_secs(24 * 3_600);

/// The first and the last step back. By default brokers accept timestamps that are ahead of their
/// own clock by the first one.
const BEHIND: (Duration, Duration) = (
    Duration::from_secs(3_600),
    Duration::from_secs(7 * 24 * 3_600),
);

/// Clocks that differ by less than this agree.
pub(crate) const TOLERANCE: Duration = Duration::from_secs(60);

/// The time of the database, read once and advanced by this machine's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    millis: i64,
    read: Instant,
}

impl Clock {
    /// Starts from the time that the database has just returned, in milliseconds since the Unix
    /// epoch.
    pub(crate) fn showing(millis: i64) -> Self {
        Self {
            millis,
            read: Instant::now(),
        }
    }

    /// Returns the current time of the database, in milliseconds since the Unix epoch.
    pub(crate) fn now(&self) -> i64 {
        let since = i64::try_from(self.read.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.millis.saturating_add(since)
    }

    /// Returns the difference of this machine's clock, and whether it is ahead. Returns `None` if
    /// the two clocks agree.
    pub(crate) fn disagreement(&self) -> Option<(Duration, bool)> {
        let here = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| {
                i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
            });
        disagreement(here, self.now())
    }
}

/// Returns the difference of two clocks (milliseconds), and whether the first is ahead. Returns
/// `None` if they agree.
pub(crate) fn disagreement(first: i64, second: i64) -> Option<(Duration, bool)> {
    let by = Duration::from_millis(first.abs_diff(second));
    (by > TOLERANCE).then_some((by, first > second))
}

/// Source of the records' timestamps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stamping {
    /// The event's own time, limited to the range from [`OLDEST`] ago to now.
    #[default]
    Own,
    /// The time of sending.
    Sending,
    /// A time earlier than the time of sending by this duration.
    Behind(Duration),
}

impl Stamping {
    /// Returns a record's timestamp in milliseconds.
    pub(crate) fn stamp(self, occurred_at: i64, now: i64) -> i64 {
        let before =
            |by: Duration| now.saturating_sub(i64::try_from(by.as_millis()).unwrap_or(i64::MAX));
        match self {
            Self::Own => occurred_at.clamp(before(OLDEST), now),
            Self::Sending => now,
            Self::Behind(by) => before(by),
        }
    }

    /// Returns the next stamping to try after a broker has refused this one. Returns `None` if no
    /// other is left.
    pub(crate) fn after_refusal(self) -> Option<Self> {
        match self {
            Self::Own => Some(Self::Sending),
            Self::Sending => Some(Self::Behind(BEHIND.0)),
            Self::Behind(by) if by < BEHIND.1 => Some(Self::Behind((by * 2).min(BEHIND.1))),
            Self::Behind(_) => None,
        }
    }
}

// === impl Display ===

impl std::fmt::Display for Stamping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Own => f.write_str("with their events' times"),
            Self::Sending => f.write_str("with the time of sending by the database's clock"),
            Self::Behind(by) => write!(
                f,
                "with a time {} h before the time of sending by the database's clock",
                by.as_secs() / 3_600
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: i64 = 24 * 3_600_000;

    #[test]
    fn a_timestamp_is_the_events_own_unless_a_broker_would_refuse_or_expire_it() {
        let (now, own) = (1_700_000_000_000, Stamping::Own);
        assert_eq!(own.stamp(now - 5, now), now - 5);
        assert_eq!(own.stamp(now + 2 * 3_600_000, now), now);
        assert_eq!(own.stamp(now - 8 * DAY, now), now - DAY);
        assert_eq!(own.stamp(i64::MIN / 1000, now), now - DAY);
    }

    proptest! {
        #[test]
        fn a_broker_whose_clock_is_up_to_a_week_behind_takes_a_record_after_a_few_refusals(
            behind in 0..7 * DAY,
            occurred_at: i64,
            narrow: bool,
        ) {
            let now = 1_700_000_000_000;
            let (mut stamping, mut refusals) = (Stamping::Own, 0);
            // By default brokers accept timestamps up to an hour ahead and any timestamp in the
            // past. A topic setting can limit the latter.
            let (behind, before) = if narrow { (0, 1_000) } else { (behind, i64::MAX) };
            let taken = |stamp: i64| {
                stamp <= now - behind + 3_600_000 && stamp >= (now - behind).saturating_sub(before)
            };
            while !taken(stamping.stamp(occurred_at, now)) {
                stamping = stamping.after_refusal().expect("another stamping");
                refusals += 1;
            }
            prop_assert!(refusals <= 10);
        }

        #[test]
        fn no_clock_and_no_time_overflows(occurred_at: i64, now: i64) {
            let mut stamping = Some(Stamping::Own);
            while let Some(one) = stamping {
                prop_assert!(one.stamp(occurred_at, now) <= now);
                stamping = one.after_refusal();
            }
            disagreement(occurred_at, now);
        }
    }

    #[test]
    fn clocks_that_differ_are_told() {
        assert_eq!(disagreement(5_000, 64_000), None);
        assert_eq!(
            disagreement(2 * DAY, 0),
            Some((Duration::from_secs(2 * 24 * 3_600), true))
        );
        assert_eq!(disagreement(0, DAY).map(|(_, ahead)| ahead), Some(false));
        assert_eq!(
            Clock::showing(0).disagreement().map(|(_, ahead)| ahead),
            Some(true)
        );
    }
}
