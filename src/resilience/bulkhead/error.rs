//! Error of a call that got no slot.

use std::sync::Arc;
use std::time::Duration;

/// The bulkhead had no free slot, so the call was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BulkheadError {
    /// All slots and all places in the queue are taken.
    #[error("the bulkhead `{name}` is full: {concurrent_max} calls run and {queue_max} wait")]
    Full {
        /// Name of the bulkhead.
        name: Arc<str>,
        /// Maximum number of running calls.
        concurrent_max: usize,
        /// Maximum number of waiting calls.
        queue_max: usize,
    },
    /// The call waited for the maximum time.
    #[error("the bulkhead `{name}` had no free slot within {waited:?}: {concurrent_max} calls run")]
    Waited {
        /// Name of the bulkhead.
        name: Arc<str>,
        /// Maximum number of running calls.
        concurrent_max: usize,
        /// Time for which the call waited.
        waited: Duration,
    },
}
