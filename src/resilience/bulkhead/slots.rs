//! The handle: the places, shared by all who call one dependency.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::{BulkheadError, BulkheadPolicy};

/// The places for the calls of one dependency; cheap to clone. Keep one for each dependency and share it between its clients.
#[derive(Clone)]
pub struct Bulkhead(Arc<Inner>);

struct Inner {
    name: Arc<str>,
    policy: BulkheadPolicy,
    running: Arc<Semaphore>,
    waiting: Semaphore,
    rejected: AtomicU64,
}

/// A place; free again when dropped.
#[derive(Debug)]
#[must_use = "a slot that is dropped at once holds no place"]
pub struct Slot {
    _permit: OwnedSemaphorePermit,
}

impl Bulkhead {
    /// All places free. The name is for errors and metrics: the dependency's.
    pub fn new(name: impl Into<Arc<str>>, policy: BulkheadPolicy) -> Self {
        let policy = BulkheadPolicy {
            concurrent_max: policy.concurrent_max.clamp(1, Semaphore::MAX_PERMITS),
            queue_max: policy.queue_max.min(Semaphore::MAX_PERMITS),
            ..policy
        };
        let (running, waiting) = (
            Arc::new(Semaphore::new(policy.concurrent_max)),
            Semaphore::new(policy.queue_max),
        );
        Self(Arc::new(Inner {
            name: name.into(),
            policy,
            running,
            waiting,
            rejected: AtomicU64::new(0),
        }))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// How many calls run now.
    pub fn running(&self) -> usize {
        self.0.policy.concurrent_max
            - self
                .0
                .running
                .available_permits()
                .min(self.0.policy.concurrent_max)
    }

    /// How many wait now.
    pub fn waiting(&self) -> usize {
        self.0.policy.queue_max
            - self
                .0
                .waiting
                .available_permits()
                .min(self.0.policy.queue_max)
    }

    /// How many were turned away so far.
    pub fn rejected(&self) -> u64 {
        self.0.rejected.load(Ordering::Relaxed)
    }

    /// Takes a place, for what is not a tower service; waits for one if it may.
    ///
    /// # Errors
    ///
    /// [`BulkheadError::Full`] at once if the queue is full too, [`BulkheadError::Waited`] after the longest wait.
    ///
    /// # Cancel safety
    ///
    /// A dropped future leaves the queue.
    pub async fn enter(&self) -> Result<Slot, BulkheadError> {
        let Inner {
            name,
            policy,
            running,
            waiting,
            ..
        } = &*self.0;
        let (concurrent_max, queue_max, wait_max) =
            (policy.concurrent_max, policy.queue_max, policy.wait_max);
        // Whoever waits comes first: a place that becomes free is theirs before it is there to be taken.
        if let Ok(permit) = running.clone().try_acquire_owned() {
            return Ok(Slot { _permit: permit });
        }
        let Ok(_queued) = waiting.try_acquire() else {
            self.0.rejected.fetch_add(1, Ordering::Relaxed);
            return Err(BulkheadError::Full {
                name: name.clone(),
                concurrent_max,
                queue_max,
            });
        };
        let Ok(turn) = timeout(wait_max, running.clone().acquire_owned()).await else {
            self.0.rejected.fetch_add(1, Ordering::Relaxed);
            return Err(BulkheadError::Waited {
                name: name.clone(),
                concurrent_max,
                waited: wait_max,
            });
        };
        Ok(Slot {
            _permit: turn.expect("the semaphore is never closed"),
        })
    }
}

// === impl Debug ===

impl fmt::Debug for Bulkhead {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (running, waiting) = (self.running(), self.waiting());
        formatter
            .debug_struct("Bulkhead")
            .field("name", &self.name())
            .field("running", &running)
            .field("waiting", &waiting)
            .finish()
    }
}
