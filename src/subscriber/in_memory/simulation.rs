//! Simulation of the database and of crashes for a subscriber on the in-memory bus.

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

/// Replaces the database of a subscriber on the in-memory bus.
pub(crate) struct Simulation {
    consumer: String,
    memory: Arc<MemoryInbox>,
    /// True if the subscriber has an inbox in production, so that handled events are recorded.
    remembers: bool,
    /// Rejects the same events as an outbox in a database.
    outbox: Outbox,
    /// Returns `true` if the process crashes between the end of the handler and the commit.
    dies: Box<dyn Fn() -> bool + Send + Sync>,
    /// The last error of each event that has no outcome yet.
    failed: Mutex<Errors>,
}

/// Errors by topic, partition and offset of the record.
type Errors = HashMap<(Arc<str>, i32, i64), String>;

/// Error of a delivery during which the process "crashes".
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

    /// Returns the events of the delivery that have not been handled. Returns `None` if all of them
    /// have been.
    ///
    /// # Errors
    ///
    /// Returns an error if an event cannot be stored or shares its identity with another one.
    pub(crate) fn new_of(
        &self,
        delivery: &Delivery,
    ) -> Result<Option<Vec<Arc<Message>>>, HandlerError> {
        match self.remembers {
            true => self.memory.new_of(&self.consumer, delivery),
            false => Ok(Some(delivery.messages().to_vec())),
        }
    }

    /// Records handled events and published events, like one commit.
    ///
    /// # Errors
    ///
    /// Returns an error if an outbox would reject an event.
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

    /// Simulates a crash, if it is due.
    ///
    /// # Errors
    ///
    /// Returns an error if the process "crashes" here.
    pub(crate) fn may_die(&self) -> Result<(), HandlerError> {
        if (self.dies)() {
            Err(HandlerError::snooze(Duration::ZERO, DIED))
        } else {
            Ok(())
        }
    }

    /// Records a failed attempt.
    pub(crate) fn failed(&self, message: &Message, error: &HandlerError) {
        self.errors().insert(place(message), error.chain());
    }

    /// Removes the error of an event that has an outcome.
    pub(crate) fn ended(&self, message: &Message) {
        self.errors().remove(&place(message));
    }

    /// Returns the error of an event's last attempt.
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
