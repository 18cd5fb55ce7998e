//! Handle of a bulkhead: the slots, shared by all callers of one dependency.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::{BulkheadError, BulkheadPolicy};

/// Slots for the calls of one dependency. Cheap to clone. Create one for each dependency and share
/// it between its clients.
#[derive(Clone)]
pub struct Bulkhead(Arc<Inner>);

struct Inner {
    name: Arc<str>,
    policy: BulkheadPolicy,
    running: Arc<Semaphore>,
    waiting: Semaphore,
    rejected: AtomicU64,
}

/// Slot of a running call, released when dropped.
#[derive(Debug)]
#[must_use = "a slot that is dropped at once limits nothing"]
pub struct Slot {
    _permit: OwnedSemaphorePermit,
}

impl Bulkhead {
    /// Creates a bulkhead with all slots free. `name` appears in errors and metrics; use the name
    /// of the dependency.
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

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Returns the number of running calls.
    pub fn running(&self) -> usize {
        self.0.policy.concurrent_max
            - self
                .0
                .running
                .available_permits()
                .min(self.0.policy.concurrent_max)
    }

    /// Returns the number of waiting calls.
    pub fn waiting(&self) -> usize {
        self.0.policy.queue_max
            - self
                .0
                .waiting
                .available_permits()
                .min(self.0.policy.queue_max)
    }

    /// Returns the number of rejected calls so far.
    pub fn rejected(&self) -> u64 {
        self.0.rejected.load(Ordering::Relaxed)
    }

    /// Takes a slot, for code that is not a tower service. Waits for a slot if the policy allows
    /// it.
    ///
    /// # Errors
    ///
    /// Returns [`BulkheadError::Full`] at once if the queue is full too, and
    /// [`BulkheadError::Waited`] after the maximum wait.
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
        // Waiting calls come first: a released slot goes to the first of them before `try_acquire`
        // can take it.
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
