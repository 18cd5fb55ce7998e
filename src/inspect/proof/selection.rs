//! Selection of the events that a round verifies. Pure.

use chrono::{DateTime, Utc};

use crate::relay::position::{Position, Snapshot};

/// Time of an event. Times before 1970 are verified as one.
const TIME: &str = "greatest(occurred_at, to_timestamp(0))";

/// Selection of events.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Selection<'p> {
    All,
    Since(&'p Since),
    /// Events that this position does not contain.
    Beyond(&'p Position),
}

/// The beginning of a verified range.
#[derive(Clone, Debug)]
pub(crate) struct Since {
    /// Events that occurred at this time or later belong to the range.
    pub(crate) time: DateTime<Utc>,
    /// The transactions that an earlier round has seen. Events of others belong to the range
    /// whatever their time is, because a transaction may end long after it has inserted an event.
    pub(crate) seen: Option<Snapshot>,
}

impl Selection<'_> {
    /// Returns the SQL condition. Its parameter `$1` is [`since`](Self::since).
    pub(crate) fn condition(self) -> String {
        match self {
            Self::All => "$1::timestamptz is null".into(),
            Self::Since(Since { seen: None, .. }) => format!("{TIME} >= $1::timestamptz"),
            Self::Since(Since {
                seen: Some(seen), ..
            }) => format!(
                "({TIME} >= $1::timestamptz
                  or not pg_visible_in_snapshot(xid, '{seen}'::pg_snapshot))"
            ),
            Self::Beyond(settled) => format!(
                "$1::timestamptz is null and xid >= '{}'::xid8",
                settled.snapshot.xmin()
            ),
        }
    }

    /// Returns the time from which all events are selected.
    pub(crate) fn since(self) -> Option<DateTime<Utc>> {
        match self {
            Self::Since(since) => Some(since.time),
            Self::All | Self::Beyond(_) => None,
        }
    }
}

impl Since {
    /// Returns `true` if the range begins after an event with this time and transaction.
    pub(crate) fn is_after(&self, time: DateTime<Utc>, xid: u64) -> bool {
        let is_seen = self.seen.as_ref().is_none_or(|seen| seen.sees(xid));
        time < self.time && is_seen
    }
}

/// Returns the earlier of two times.
pub(crate) fn earliest(
    one: Option<DateTime<Utc>>,
    other: Option<DateTime<Utc>>,
) -> Option<DateTime<Utc>> {
    one.into_iter().chain(other).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_a_transaction_that_ended_late_belongs_to_the_range() {
        let at = |seconds| DateTime::from_timestamp(seconds, 0).expect("a time");
        let since = Since {
            time: at(100),
            seen: Some("10:20:15".parse().expect("a snapshot")),
        };
        assert!(since.is_after(at(99), 14));
        assert!(!since.is_after(at(99), 15) && !since.is_after(at(99), 20));
        assert!(!since.is_after(at(100), 14));
        let time = Since {
            seen: None,
            ..since
        };
        assert!(time.is_after(at(99), 15) && !time.is_after(at(100), 15));
    }
}
