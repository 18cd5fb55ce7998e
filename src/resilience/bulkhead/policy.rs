//! Limits of a bulkhead.

use std::time::Duration;

/// Limits of a bulkhead.
///
/// | | default | reason |
/// |---|---|---|
/// | `concurrent_max` | 10 | enough for most: ten calls of 50 ms each are 200 per second |
/// | `queue_max` | 10 | equal to `concurrent_max`, so a full queue means a wait of about one call |
/// | `wait_max` | 1 s | after this time, an error is more useful than a longer wait |
///
/// Measure before you change them: the number of concurrent calls is their rate times their
/// duration (Little's law).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BulkheadPolicy {
    /// Maximum number of running calls. 0 counts as 1.
    pub concurrent_max: usize,
    /// Maximum number of waiting calls. With 0, a call without a free slot is rejected at once.
    pub queue_max: usize,
    /// Maximum time that a call may wait.
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
