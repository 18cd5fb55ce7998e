//! An inbox and outbox without a database: what the in-memory bus has in place of `inbox` and `outbox`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::{
    event::Envelope,
    kafka::Message,
    subscriber::{Delivery, handler::HandlerError, inbox::identity::Identity},
};

/// What was handled and what was published, in memory.
#[derive(Debug, Default)]
pub(crate) struct MemoryInbox {
    /// Fingerprints by topic, source and id.
    handled: Mutex<HashMap<(String, String, String), i64>>,
    published: Mutex<Vec<Envelope>>,
}

impl MemoryInbox {
    /// The delivery's events that were not handled; `None` if all were.
    ///
    /// # Errors
    /// An event that cannot be stored, or that shares its identity with another one.
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

    /// Remembers events and publishes others, as one commit would.
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

    /// What was published since the last call.
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
