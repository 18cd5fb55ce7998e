//! How many at once, and how many may wait.

use std::time::Duration;

/// How many at once, and how many may wait for how long.
///
/// | | default | why |
/// |---|---|---|
/// | `concurrent_max` | 10 | ten calls of 50 ms are 200 a second: enough for most, and a share that a service can lose |
/// | `queue_max` | 10 | as many as run, so that a full queue means a wait of about one call |
/// | `wait_max` | 1 s | who has waited for so long had better hear no than wait more |
///
/// Measure, then change: the number of calls at once is their rate times their duration (Little's law).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BulkheadPolicy {
    /// How many calls may run at once. 0 counts as 1.
    pub concurrent_max: usize,
    /// How many may wait. 0: none, a call that finds no place is turned away.
    pub queue_max: usize,
    /// How long each may wait.
    pub wait_max: Duration,
}

impl Default for BulkheadPolicy {
    fn default() -> Self {
        Self {
            concurrent_max: 10,
            queue_max: 10,
            wait_max: Duration::from_secs(1),
        }
    }
}
