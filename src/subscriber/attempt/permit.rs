//! The permission to run: one of as many as handlers may run at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::Runner;
use crate::subscriber::clock::Clock;

/// The permission to run, given back during pauses.
pub(crate) struct Turn<'r> {
    permits: &'r Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
    drain: &'r CancellationToken,
    clock: Clock,
}

impl<'r> Turn<'r> {
    pub(crate) fn new(
        runner: &'r Runner,
        permit: OwnedSemaphorePermit,
        drain: &'r CancellationToken,
    ) -> Self {
        Self {
            permits: &runner.permits,
            permit: Some(permit),
            drain,
            clock: runner.clock.clone(),
        }
    }

    /// Lets others run until the next pause is over.
    pub(crate) fn give_back(&mut self) {
        self.permit = None;
    }

    /// Done when the partition is given up.
    pub(crate) async fn given_up(&self) {
        self.drain.cancelled().await;
    }

    /// Lets others run for this long; false if the partition is given up meanwhile.
    pub(crate) async fn pause(&mut self, time: Duration) -> bool {
        self.permit = None;
        tokio::select! {
            () = self.drain.cancelled() => return false,
            () = self.clock.sleep(time) => {}
        }
        tokio::select! {
            () = self.drain.cancelled() => false,
            permit = self.permits.clone().acquire_owned() => {
                self.permit = permit.ok();
                self.permit.is_some()
            }
        }
    }
}
