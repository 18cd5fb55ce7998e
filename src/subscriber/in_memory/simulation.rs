//! What a subscriber of the in-memory bus has in place of a database, and what is observed of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::inbox::MemoryInbox;
use crate::{
    event::Envelope,
    kafka::Message,
    outbox::Outbox,
    subscriber::{Delivery, handler::HandlerError},
};

/// What a subscriber of the in-memory bus has in place of a database.
pub(crate) struct Simulation {
    consumer: String,
    memory: Arc<MemoryInbox>,
    /// It would have an inbox in production, which remembers.
    remembers: bool,
    /// Refuses what an outbox would.
    outbox: Outbox,
    /// Whether the process dies here: between the handler's end and the commit.
    dies: Box<dyn Fn() -> bool + Send + Sync>,
    /// The last error of each event that has not ended.
    failed: Mutex<Errors>,
}

/// Errors by topic, partition and offset of their records.
type Errors = HashMap<(Arc<str>, i32, i64), String>;

/// The error of a delivery whose process "dies".
const DIED: &str = "the process died between the handler and the commit";

impl Simulation {
    pub(crate) fn new(
        consumer: &str,
        memory: Arc<MemoryInbox>,
        remembers: bool,
        dies: Box<dyn Fn() -> bool + Send + Sync>,
    ) -> Self {
        Self {
            consumer: consumer.to_owned(),
            memory,
            remembers,
            outbox: Outbox::new(),
            dies,
            failed: Mutex::default(),
        }
    }

    /// The delivery's events that were not handled; `None` if all were.
    ///
    /// # Errors
    /// An event that cannot be stored, or that shares its identity with another one.
    pub(crate) fn new_of(
        &self,
        delivery: &Delivery,
    ) -> Result<Option<Vec<Arc<Message>>>, HandlerError> {
        match self.remembers {
            true => self.memory.new_of(&self.consumer, delivery),
            false => Ok(Some(delivery.messages().to_vec())),
        }
    }

    /// Remembers events and publishes others, as one commit would.
    ///
    /// # Errors
    /// An event that no outbox would take.
    pub(crate) fn commit(
        &self,
        messages: &[Arc<Message>],
        published: Vec<Envelope>,
    ) -> Result<(), HandlerError> {
        published
            .iter()
            .try_for_each(|envelope| self.outbox.check(envelope))?;
        self.memory.commit(&self.consumer, messages, published);
        Ok(())
    }

    /// # Errors
    /// If the process "dies" here.
    pub(crate) fn may_die(&self) -> Result<(), HandlerError> {
        if (self.dies)() {
            Err(HandlerError::snooze(Duration::ZERO, DIED))
        } else {
            Ok(())
        }
    }

    /// An attempt has failed.
    pub(crate) fn failed(&self, message: &Message, error: &HandlerError) {
        self.errors().insert(place(message), error.chain());
    }

    /// An event has ended.
    pub(crate) fn ended(&self, message: &Message) {
        self.errors().remove(&place(message));
    }

    /// The error of an event's last attempt.
    pub(crate) fn last_error(&self, message: &Message) -> Option<String> {
        self.errors().get(&place(message)).cloned()
    }

    fn errors(&self) -> MutexGuard<'_, Errors> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn place(message: &Message) -> (Arc<str>, i32, i64) {
    let record = message.as_it_came();
    (record.topic.clone(), record.partition, record.offset)
}
