//! The tripped kill switch: pauses the subscriber and tries one event at a time.

use std::sync::Arc;
use std::time::Duration;

use super::{Runner, Settled, permit::HandlerPermit};
use crate::{
    kafka::Message,
    subscriber::{Delivery, handler::Verdict},
};

impl Runner {
    /// Records an event that is about to be given up. Returns `true` if the kill switch trips or
    /// has tripped already.
    pub(super) fn trips(&self) -> bool {
        let switch = self.options.kill_switch.as_ref();
        switch.is_some_and(|switch| self.pause.given_up(self.clock.instant(), switch))
    }

    /// Tries one event at a time until one is handled. Returns `None` if this event must be tried
    /// as usual, because the switch is closed again or because the event waits for other code.
    pub(crate) async fn probe(
        &self,
        message: &Arc<Message>,
        permit: &mut HandlerPermit<'_>,
    ) -> Option<Settled> {
        let _probing = self.pause.probing();
        let pause = self
            .options
            .kill_switch
            .as_ref()
            .map_or(Duration::ZERO, |switch| switch.pause);
        loop {
            permit.give_back();
            let _alone = tokio::select! {
                () = permit.given_up() => return Some(Settled::Abandoned),
                alone = self.pause.probe_alone() => alone,
            };
            if !self.pause.is_tripped() {
                return (!permit.pause(Duration::ZERO).await).then_some(Settled::Abandoned);
            }
            if !permit.pause(pause).await || !permit.while_held(&self.pause).await {
                return Some(Settled::Abandoned);
            }
            match self.attempt(Delivery::one(message.clone(), 1)).await {
                Ok(handled) => {
                    self.pause.handlers_work();
                    self.handled(handled, message.kind(), 1);
                    return Some(Settled::Finished);
                }
                // A handler that can decide to skip an event works.
                Err(error) if error.verdict() == Verdict::Skip => {
                    self.pause.handlers_work();
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
}
