//! What a caller gets when there is no place.

use std::sync::Arc;
use std::time::Duration;

/// There is no place: the call was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BulkheadError {
    /// As many run and as many wait as may.
    #[error("the bulkhead `{name}` is full: {concurrent_max} calls run and {queue_max} wait")]
    Full {
        /// The bulkhead's name.
        name: Arc<str>,
        /// How many may run.
        concurrent_max: usize,
        /// How many may wait.
        queue_max: usize,
    },
    /// It waited for as long as a call may.
    #[error("the bulkhead `{name}` had no place within {waited:?}: {concurrent_max} calls run")]
    Waited {
        /// The bulkhead's name.
        name: Arc<str>,
        /// How many may run.
        concurrent_max: usize,
        /// How long it waited.
        waited: Duration,
    },
}
