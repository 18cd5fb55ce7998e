//! The wait of a member for its first partitions.

use std::time::{Duration, Instant};

/// Time after which a member without partitions reports that it waits. A rebalance without a failed
/// member is shorter.
const REPORT_AFTER: Duration = Duration::from_secs(3);

/// Tracks the time for which a member has no partitions.
#[derive(Debug, Default)]
pub(crate) struct Awaiting {
    since: Option<Instant>,
    is_reported: bool,
}

impl Awaiting {
    /// Returns `true` once per wait, when the wait is long enough to be reported.
    pub(crate) fn is_to_report(&mut self, has_partitions: bool, now: Instant) -> bool {
        if has_partitions {
            *self = Self::default();
            return false;
        }
        let waits = now.duration_since(*self.since.get_or_insert(now));
        waits >= REPORT_AFTER && !std::mem::replace(&mut self.is_reported, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wait_that_takes_long_is_reported_once() {
        let (mut awaiting, begin) = (Awaiting::default(), Instant::now());
        let mut report = |seconds, has_partitions| {
            awaiting.is_to_report(has_partitions, begin + Duration::from_secs(seconds))
        };
        assert!(!report(0, false));
        assert!(report(4, false));
        assert!(!report(60, false));
        assert!(!report(61, true));
        assert!(!report(62, false));
        assert!(report(66, false));
    }
}
