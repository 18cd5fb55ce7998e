//! The permission to run a handler, limited by the concurrency of the subscriber.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{Runner, pause::Pause};
use crate::subscriber::clock::Clock;

/// A permission to run a handler, which is released during pauses.
pub(crate) struct HandlerPermit<'r> {
    permits: &'r Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
    drain: &'r CancellationToken,
    clock: Clock,
}

impl<'r> HandlerPermit<'r> {
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

    /// Releases the permit until the next pause is over.
    pub(crate) fn give_back(&mut self) {
        self.permit = None;
    }

    /// Waits until the partition is revoked or the subscriber stops.
    pub(crate) async fn given_up(&self) {
        self.drain.cancelled().await;
    }

    /// Waits while an operator pauses the subscriber, without the permit. Returns `false` if the
    /// partition is revoked or the subscriber stops in the meantime.
    pub(crate) async fn while_held(&mut self, pause: &Pause) -> bool {
        while pause.is_held() {
            self.permit = None;
            tokio::select! {
                () = self.drain.cancelled() => return false,
                () = pause.released() => {}
            }
            if !self.pause(Duration::ZERO).await {
                return false;
            }
        }
        true
    }

    /// Releases the permit, waits, and acquires a permit again. Returns `false` if the partition is
    /// revoked or the subscriber stops in the meantime.
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
