//! A task that ends with its owner.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::task::{JoinError, JoinHandle};

/// A running task. Dropping the value aborts the task, at the next point at which it waits.
#[derive(Debug)]
pub(crate) struct OwnedTask<T>(JoinHandle<T>);

impl<T: Send + 'static> OwnedTask<T> {
    /// Starts a task.
    ///
    /// # Panics
    ///
    /// Panics outside a tokio runtime.
    #[expect(
        clippy::disallowed_methods,
        reason = "the value that is returned owns the task"
    )]
    pub(crate) fn spawn(work: impl Future<Output = T> + Send + 'static) -> Self {
        Self(tokio::spawn(work))
    }

    /// Aborts the task, at the next point at which it waits.
    #[cfg(feature = "relay")]
    pub(crate) fn abort(&self) {
        self.0.abort();
    }

    /// Returns `true` if the task has ended.
    #[cfg(feature = "relay")]
    pub(crate) fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

// === impl Future, Drop ===

impl<T> Future for OwnedTask<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context)
    }
}

impl<T> Drop for OwnedTask<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn a_task_ends_with_its_owner() {
        let (kept, held) = (Arc::new(()), Arc::new(()));
        let seen = Arc::downgrade(&held);
        let task = OwnedTask::spawn(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        tokio::task::yield_now().await;
        assert!(seen.upgrade().is_some() && !task.is_finished());
        drop(task);
        tokio::task::yield_now().await;
        assert!(seen.upgrade().is_none(), "the task still runs");
        let answer = OwnedTask::spawn(async move { Arc::strong_count(&kept) }).await;
        assert!(answer.is_ok_and(|count| count == 1));
    }
}
