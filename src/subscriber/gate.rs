//! Whether records may start: closed while something that all of them need is down.

use tokio::sync::watch;

/// Whether records may start. What runs already goes on, and tries until it is open again.
pub(super) struct Gate(watch::Sender<bool>);

impl Gate {
    pub(super) fn open() -> Self {
        Self(watch::Sender::new(true))
    }

    /// Something is down.
    pub(super) fn shut(&self, subscriber: &str, reason: &str) {
        if self.0.send_replace(false) {
            tracing::warn!(subscriber, reason, "the subscriber pauses");
        }
    }

    /// It works again.
    pub(super) fn reopen(&self, subscriber: &str) {
        if !*self.0.borrow() {
            self.0.send_replace(true);
            tracing::info!(subscriber, "the subscriber goes on");
        }
    }

    pub(super) fn is_open(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until it is open.
    pub(super) async fn opened(&self) {
        let mut state = self.0.subscribe();
        // The sender is here, so it does not end.
        let _ = state.wait_for(|open| *open).await;
    }
}
