//! Events without a handler that are skipped when they are read.

use super::PartitionTask;
use crate::{
    kafka::Message,
    subscriber::{Meta, deployment::instances::Claim, offsets::watermark::Ticket},
};

impl PartitionTask {
    /// Returns `true` if it is known that no other member has a handler for this event, and that no
    /// saga waits for it. While an operator pauses the subscriber, nothing is skipped: code with a
    /// handler may be deployed before it is resumed.
    pub(super) fn may_skip(&self, message: &Message) -> bool {
        let (registry, runner) = (&self.context.registry, &self.context.runner);
        registry
            .as_ref()
            .is_none_or(|registry| registry.known_claim(message.kind()) == Some(Claim::Free))
            && runner.companions.may_skip(Meta::correlation_of(message))
            && !runner.pause.is_held()
    }

    pub(super) fn skip(&mut self, ticket: Ticket, message: &Message) {
        self.context.runner.unknown(message);
        self.note(|watermark| watermark.finish(ticket));
    }
}
