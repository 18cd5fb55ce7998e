//! The gate that keeps records from starting while a dependency of all of them is down.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

/// The gate. Records start only while it is open. Records that already run continue, and retry
/// until it is open again.
pub(crate) struct Gate {
    state: watch::Sender<bool>,
    /// The same value for checks by every thread on every record. Reading `state` takes a lock and
    /// contends for its cache line.
    open: AtomicBool,
}

impl Gate {
    pub(crate) fn open() -> Self {
        Self {
            state: watch::Sender::new(true),
            open: AtomicBool::new(true),
        }
    }

    /// Shuts the gate, because a dependency is down.
    pub(crate) fn shut(&self, subscriber: &str, reason: &str) {
        if self.set(false) {
            tracing::warn!(subscriber, reason, "the subscriber pauses");
        }
    }

    /// Opens the gate, because the dependency works again.
    pub(crate) fn reopen(&self, subscriber: &str) {
        if !self.is_open() && !self.set(true) {
            tracing::info!(subscriber, "the subscriber continues");
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Waits until the gate is open.
    pub(crate) async fn opened(&self) {
        let mut state = self.state.subscribe();
        // `self` holds the sender, so the channel is not closed.
        let _ = state.wait_for(|open| *open).await;
    }

    /// Sets the state and returns the previous one. Both fields are written under the lock of
    /// `state`, so that they cannot differ.
    fn set(&self, open: bool) -> bool {
        let mut before = open;
        self.state.send_modify(|state| {
            before = std::mem::replace(state, open);
            self.open.store(open, Ordering::Release);
        });
        before
    }
}
