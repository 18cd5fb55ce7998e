//! The kill switch at work: pauses the subscriber, and tries one event at a time.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::attempt::{Runner, Settled};
use super::turn::Turn;
use super::{Delivery, SubscriberState};
use crate::kafka::Message;

impl Runner {
    /// Whether an event that is to be given up is one too many.
    pub(super) fn trips(&self) -> bool {
        let Some(switch) = &self.options.kill_switch else { return false };
        self.tallying.store(true, Ordering::Relaxed);
        let now = tokio::time::Instant::now().into_std();
        let trips = self.tally.lock().unwrap_or_else(PoisonError::into_inner).given_up(now, switch);
        if trips && !self.tripped.swap(true, Ordering::AcqRel) {
            self.shut(SubscriberState::PausedByKillSwitch, "too many events fail: the kill switch has tripped, and one at a time is tried");
        }
        trips || self.tripped.load(Ordering::Acquire)
    }

    /// Tries one event at a time until one is handled. `None` when the switch is closed again and this event shall be tried as usual.
    pub(super) async fn probe(&self, message: &Arc<Message>, turn: &mut Turn<'_>) -> Option<Settled> {
        let pause = self.options.kill_switch.as_ref().map_or(Duration::ZERO, |switch| switch.pause);
        loop {
            turn.give_back();
            let _probing = tokio::select! {
                () = turn.given_up() => return Some(Settled::Abandoned),
                probing = self.probe.lock() => probing,
            };
            if !self.tripped.load(Ordering::Acquire) {
                return (!turn.pause(Duration::ZERO).await).then_some(Settled::Abandoned);
            }
            if !turn.pause(pause).await {
                return Some(Settled::Abandoned);
            }
            if let Ok(handled) = self.attempt(Delivery::one(message.clone(), 1)).await {
                self.tally.lock().unwrap_or_else(PoisonError::into_inner).reset();
                self.tallying.store(false, Ordering::Relaxed);
                self.tripped.store(false, Ordering::Release);
                self.reopen();
                self.handled(handled, message.event_type(), 1);
                return Some(Settled::Finished);
            }
        }
    }
}
