//! Timestamps of records: by the clock of the database, whatever the clock of this machine shows.
//!
//! A broker refuses a record whose timestamp is too far from its own clock, and with it the whole batch. That is a fault of a
//! clock and never of an event. So the relay answers a refusal by other timestamps, step by step:
//!
//! ```text
//! OWN ──▶ SENDING ──▶ BEHIND 1 h ──▶ 2 h ──▶ 4 h … 7 days ──▶ the topic's events are set aside; begins again
//! the event's own,    the time of     the same, earlier: the broker is behind the database
//! a day old at most   its sending
//! ```
//!
//! The event's own time is in `ce_time` in any case.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// How far a record's timestamp may lie in the past. Kafka deletes by it (a week by default), so an event that waited out a
/// long outage must not arrive expired.
const OLDEST: Duration = Duration::from_secs(24 * 3_600);

/// The first step back, which is how far ahead of its own clock a broker takes a record by default; and the last one.
const BEHIND: (Duration, Duration) = (Duration::from_secs(3_600), Duration::from_secs(7 * 24 * 3_600));

/// Clocks that differ by less are in order.
pub(crate) const TOLERANCE: Duration = Duration::from_secs(60);

/// The time of the database, read at some moment and counted on from there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    millis: i64,
    read: Instant,
}

impl Clock {
    /// The database's clock has just shown this: milliseconds since the Unix epoch.
    pub(super) fn showing(millis: i64) -> Self {
        Self { millis, read: Instant::now() }
    }

    /// What it shows now.
    pub(super) fn now(&self) -> i64 {
        let since = i64::try_from(self.read.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.millis.saturating_add(since)
    }

    /// By how much this machine's clock differs, and whether it is ahead; `None` if the two agree.
    pub(super) fn disagreement(&self) -> Option<(Duration, bool)> {
        let here = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
        disagreement(here, self.now())
    }
}

/// By how much two clocks (milliseconds) differ, and whether the first is ahead; `None` if they agree.
pub(crate) fn disagreement(first: i64, second: i64) -> Option<(Duration, bool)> {
    let by = Duration::from_millis(first.abs_diff(second));
    (by > TOLERANCE).then_some((by, first > second))
}

/// How records are stamped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stamping {
    /// With the event's own time, if that is not of the future and not too old.
    #[default]
    Own,
    /// With the time of its sending.
    Sending,
    /// With a time so long before its sending.
    Behind(Duration),
}

impl Stamping {
    /// A record's timestamp, milliseconds.
    pub(super) fn stamp(self, occurred_at: i64, now: i64) -> i64 {
        let before = |by: Duration| now.saturating_sub(i64::try_from(by.as_millis()).unwrap_or(i64::MAX));
        match self {
            Self::Own => occurred_at.clamp(before(OLDEST), now),
            Self::Sending => now,
            Self::Behind(by) => before(by),
        }
    }

    /// What to try after a broker has refused these timestamps; `None` if nothing is left.
    pub(super) fn after_refusal(self) -> Option<Self> {
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
            Self::Sending => f.write_str("with the time of their sending by the database's clock"),
            Self::Behind(by) => write!(f, "with a time {} h before their sending by the database's clock", by.as_secs() / 3_600),
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
        fn a_broker_whose_clock_is_up_to_a_week_behind_takes_a_record_after_a_few_refusals(behind in 0..7 * DAY, occurred_at: i64, narrow: bool) {
            let now = 1_700_000_000_000;
            let (mut stamping, mut refusals) = (Stamping::Own, 0);
            // An hour ahead is taken by default, and anything of the past unless the topic is told otherwise.
            let (behind, before) = if narrow { (0, 1_000) } else { (behind, i64::MAX) };
            let taken = |stamp: i64| stamp <= now - behind + 3_600_000 && stamp >= (now - behind).saturating_sub(before);
            while !taken(stamping.stamp(occurred_at, now)) {
                stamping = stamping.after_refusal().expect("something is left");
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
        assert_eq!(disagreement(2 * DAY, 0), Some((Duration::from_secs(2 * 24 * 3_600), true)));
        assert_eq!(disagreement(0, DAY).map(|(_, ahead)| ahead), Some(false));
        assert_eq!(Clock::showing(0).disagreement().map(|(_, ahead)| ahead), Some(true));
    }
}
