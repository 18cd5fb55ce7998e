//! Progress of a partition, shared by its task and the polling thread.

use std::sync::atomic::AtomicUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::subscriber::offsets::watermark::Watermark;

/// Progress of a partition, shared by its task and the polling thread.
pub(crate) struct Progress {
    watermark: Mutex<Watermark>,
    /// Number of the partition's aggregates that are parked.
    pub(crate) parked: AtomicUsize,
}

impl Progress {
    pub(crate) fn new(watermark: Watermark) -> Self {
        Self {
            watermark: Mutex::new(watermark),
            parked: AtomicUsize::new(0),
        }
    }

    /// Locks the watermark. The lock is held for nanoseconds only.
    pub(crate) fn watermark(&self) -> MutexGuard<'_, Watermark> {
        self.watermark
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
