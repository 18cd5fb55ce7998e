//! The tripped kill switch: pauses the subscriber and tries one event at a time.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::{Runner, Settled, permit::Turn};
use crate::{
    kafka::Message,
    subscriber::{Delivery, SubscriberState, handler::Verdict},
};

impl Runner {
    /// Records an event that is about to be given up. Returns `true` if the kill switch trips or
    /// has tripped already.
    pub(crate) fn trips(&self) -> bool {
        let Some(switch) = &self.options.kill_switch else {
            return false;
        };
        self.tallying.store(true, Ordering::Relaxed);
        let now = self.clock.instant();
        let trips = self
            .tally
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .given_up(now, switch);
        if trips {
            self.tripped.store(true, Ordering::Release);
            self.shut(
                SubscriberState::PausedByKillSwitch,
                "too many events fail: the kill switch has tripped, and one event at a time is \
                 tried",
            );
        }
        trips || self.tripped.load(Ordering::Acquire)
    }

    /// Tries one event at a time until one is handled. Returns `None` if this event must be tried
    /// as usual, because the switch is closed again or because the event waits for other code.
    pub(crate) async fn probe(
        &self,
        message: &Arc<Message>,
        turn: &mut Turn<'_>,
    ) -> Option<Settled> {
        let _probing = Probing::new(self);
        let pause = self
            .options
            .kill_switch
            .as_ref()
            .map_or(Duration::ZERO, |switch| switch.pause);
        loop {
            turn.give_back();
            let _alone = tokio::select! {
                () = turn.given_up() => return Some(Settled::Abandoned),
                alone = self.probe.lock() => alone,
            };
            if !self.tripped.load(Ordering::Acquire) {
                return (!turn.pause(Duration::ZERO).await).then_some(Settled::Abandoned);
            }
            if !turn.pause(pause).await {
                return Some(Settled::Abandoned);
            }
            match self.attempt(Delivery::one(message.clone(), 1)).await {
                Ok(handled) => {
                    self.works_again();
                    self.handled(handled, message.kind(), 1);
                    return Some(Settled::Finished);
                }
                // A handler that can decide to skip an event works.
                Err(error) if error.verdict() == Verdict::Skip => {
                    self.works_again();
                    self.skipped(message, &error);
                    return Some(Settled::Finished);
                }
                // Waiting for other code is neither a failure of the handlers nor a proof that they
                // work again.
                Err(error) if error.waits_for_code() => return None,
                Err(_) => {}
            }
        }
    }

    fn works_again(&self) {
        self.tally
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .reset();
        self.tallying.store(false, Ordering::Relaxed);
        self.tripped.store(false, Ordering::Release);
        self.reopen();
    }
}

/// An event that probes or waits to probe.
///
/// The last one closes the switch when it ends, even if it ends because its partition is revoked.
/// Otherwise no event would be left to detect that the handlers work again. If they do not, the
/// next event that is about to be given up trips the switch again.
struct Probing<'r>(&'r Runner);

impl<'r> Probing<'r> {
    fn new(runner: &'r Runner) -> Self {
        runner.probing.fetch_add(1, Ordering::AcqRel);
        Self(runner)
    }
}

// === impl Drop ===

impl Drop for Probing<'_> {
    fn drop(&mut self) {
        if self.0.probing.fetch_sub(1, Ordering::AcqRel) == 1
            && self.0.tripped.swap(false, Ordering::AcqRel)
        {
            self.0.reopen();
        }
    }
}
