//! Whether records may start: closed while something that all of them need is down.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

/// Whether records may start. What runs already goes on, and tries until it is open again.
pub(crate) struct Gate {
    state: watch::Sender<bool>,
    /// The same, to be asked for each record by every thread: looking at `state` takes a lock, and so its cache line.
    open: AtomicBool,
}

impl Gate {
    pub(crate) fn open() -> Self {
        Self {
            state: watch::Sender::new(true),
            open: AtomicBool::new(true),
        }
    }

    /// Something is down.
    pub(crate) fn shut(&self, subscriber: &str, reason: &str) {
        if self.set(false) {
            tracing::warn!(subscriber, reason, "the subscriber pauses");
        }
    }

    /// It works again.
    pub(crate) fn reopen(&self, subscriber: &str) {
        if !self.is_open() && !self.set(true) {
            tracing::info!(subscriber, "the subscriber goes on");
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Waits until it is open.
    pub(crate) async fn opened(&self) {
        let mut state = self.state.subscribe();
        // The sender is here, so it does not end.
        let _ = state.wait_for(|open| *open).await;
    }

    /// What it was before. Both are written under the lock of `state`, so that they cannot come to differ.
    fn set(&self, open: bool) -> bool {
        let mut before = open;
        self.state.send_modify(|state| {
            before = std::mem::replace(state, open);
            self.open.store(open, Ordering::Release);
        });
        before
    }
}
