//! An inbox and outbox without a database: what the in-memory bus has in place of `inbox` and `outbox`.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use super::Delivery;
use crate::event::Envelope;
use crate::kafka::Message;

/// What was handled and what was published, in memory.
#[derive(Debug, Default)]
pub(crate) struct MemoryInbox {
    handled: Mutex<HashSet<(String, String)>>,
    published: Mutex<Vec<Envelope>>,
}

impl MemoryInbox {
    /// The delivery's events that were not handled; `None` if all were.
    pub(super) fn new_of(&self, delivery: &Delivery) -> Option<Vec<Arc<Message>>> {
        let handled = self.handled.lock().unwrap_or_else(PoisonError::into_inner);
        let new: Vec<_> = delivery.messages().iter().filter(|message| !handled.contains(&identity(message))).cloned().collect();
        (!new.is_empty()).then_some(new)
    }

    /// Remembers events and publishes others, as one commit would.
    pub(super) fn commit(&self, messages: &[Arc<Message>], published: Vec<Envelope>) {
        self.handled.lock().unwrap_or_else(PoisonError::into_inner).extend(messages.iter().map(|message| identity(message)));
        self.published.lock().unwrap_or_else(PoisonError::into_inner).extend(published);
    }

    /// What was published since the last call.
    pub(crate) fn take_published(&self) -> Vec<Envelope> {
        std::mem::take(&mut self.published.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn identity(message: &Message) -> (String, String) {
    (message.source().into_owned(), message.id().into_owned())
}
