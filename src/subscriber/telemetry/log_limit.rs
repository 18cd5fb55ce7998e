//! A rate limit for log messages that other services can trigger at any rate.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Minimum time between two messages. Six messages per minute are enough to be noticed and do not
/// fill a disk.
const INTERVAL: Duration = Duration::from_secs(10);

/// Admits one message per interval and counts the others.
#[derive(Debug, Default)]
pub(crate) struct LogLimit(Mutex<Admitted>);

#[derive(Debug, Default)]
struct Admitted {
    last: Option<Instant>,
    suppressed: u64,
}

impl LogLimit {
    /// Returns the number of messages that were suppressed since the last admitted one. Returns
    /// `None` if this one is suppressed too.
    pub(crate) fn admit(&self, now: Instant) -> Option<u64> {
        let mut admitted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if admitted
            .last
            .is_some_and(|last| now.saturating_duration_since(last) < INTERVAL)
        {
            admitted.suppressed += 1;
            return None;
        }
        admitted.last = Some(now);
        Some(std::mem::take(&mut admitted.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_message_per_interval_is_logged_with_the_number_of_the_others() {
        let (limit, start) = (LogLimit::default(), Instant::now());
        assert_eq!(limit.admit(start), Some(0));
        let suppressed = (1..400)
            .filter(|n| limit.admit(start + Duration::from_millis(*n)).is_none())
            .count();
        assert_eq!(suppressed, 399);
        assert_eq!(limit.admit(start + INTERVAL), Some(399));
        assert_eq!(limit.admit(start + 2 * INTERVAL), Some(0));
    }
}
