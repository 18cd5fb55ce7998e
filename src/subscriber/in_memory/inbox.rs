//! An inbox and an outbox without a database, for the in-memory bus.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::{
    event::Envelope,
    kafka::Message,
    subscriber::{Delivery, handler::HandlerError, inbox::identity::Identity},
};

/// Handled events and published events, in memory.
#[derive(Debug, Default)]
pub(crate) struct MemoryInbox {
    /// Fingerprints by topic, source and id.
    handled: Mutex<HashMap<(String, String, String), i64>>,
    published: Mutex<Vec<Envelope>>,
}

impl MemoryInbox {
    /// Returns the events of the delivery that have not been handled. Returns `None` if all of them
    /// have been.
    ///
    /// # Errors
    ///
    /// Returns an error if an event cannot be stored or shares its identity with another one.
    pub(crate) fn new_of(
        &self,
        consumer: &str,
        delivery: &Delivery,
    ) -> Result<Option<Vec<Arc<Message>>>, HandlerError> {
        let handled = self.handled.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new = Vec::new();
        for message in delivery.messages() {
            let identity = Identity::of(message, consumer)?;
            match handled.get(&key(&identity)) {
                None => new.push(message.clone()),
                Some(fingerprint) if *fingerprint == identity.fingerprint => {}
                Some(_) => return Err(identity.conflicting()),
            }
        }
        Ok((!new.is_empty()).then_some(new))
    }

    /// Records handled events and published events, like one commit.
    pub(crate) fn commit(
        &self,
        consumer: &str,
        messages: &[Arc<Message>],
        published: Vec<Envelope>,
    ) {
        let identities = messages
            .iter()
            .filter_map(|message| Identity::of(message, consumer).ok());
        let handled = identities.map(|identity| (key(&identity), identity.fingerprint));
        self.handled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(handled);
        self.published
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(published);
    }

    /// Returns the events that were published since the last call.
    pub(crate) fn take_published(&self) -> Vec<Envelope> {
        std::mem::take(
            &mut self
                .published
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

fn key(identity: &Identity) -> (String, String, String) {
    (
        identity.topic.clone(),
        identity.source.clone(),
        identity.id.clone(),
    )
}
