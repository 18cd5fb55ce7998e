//! The input of layers and handlers.

use std::sync::Arc;

use super::{HandlerError, Meta, Tx, TxSlot};
use crate::kafka::Message;

/// One attempt to handle an event or a batch of events. It is the request type of layers.
#[derive(Clone, Debug)]
pub struct Delivery {
    messages: Messages,
    attempt: u32,
    slot: Option<TxSlot>,
}

/// One message without an extra allocation, or several messages.
#[derive(Clone, Debug)]
enum Messages {
    One(Arc<Message>),
    Many(Arc<[Arc<Message>]>),
}

impl Delivery {
    /// Creates a delivery of one event. `attempt` is counted since the subscriber read the event,
    /// starting with 1.
    pub(crate) fn one(message: Arc<Message>, attempt: u32) -> Self {
        Self {
            messages: Messages::One(message),
            attempt,
            slot: None,
        }
    }

    /// Creates a delivery of several events, which must not be empty.
    pub(crate) fn many(messages: Vec<Arc<Message>>, attempt: u32) -> Self {
        Self {
            messages: Messages::Many(messages.into()),
            attempt,
            slot: None,
        }
    }

    /// Returns the metadata of the event, or of the first event of the batch.
    pub fn meta(&self) -> Meta {
        Meta::new(self.first().clone(), self.attempt)
    }

    /// Returns the metadata of all events of the batch, or of the single event of an unbatched
    /// delivery.
    pub fn metas(&self) -> impl ExactSizeIterator<Item = Meta> {
        self.messages()
            .iter()
            .map(|message| Meta::new(message.clone(), self.attempt))
    }

    /// Returns the type of the event, for example `OrderPlaced`. All events of a batch have the
    /// same type.
    pub fn event_type(&self) -> &str {
        self.first().event_type()
    }

    /// Returns the number of this attempt, which is 1 for the first. Attempts while the event was
    /// parked, from retry topics and before a replay are counted too. For a batch, the count is
    /// that of its first event.
    pub fn attempt(&self) -> u32 {
        self.attempt.saturating_add(self.first().attempts_before())
    }

    /// Returns the number of events: 1, or the size of the batch.
    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.messages().len()
    }

    pub(crate) fn messages(&self) -> &[Arc<Message>] {
        match &self.messages {
            Messages::One(message) => std::slice::from_ref(message),
            Messages::Many(messages) => messages,
        }
    }

    /// Returns a copy with a transaction and, if `messages` is set, only these messages.
    pub(crate) fn within(&self, slot: TxSlot, messages: Option<Vec<Arc<Message>>>) -> Self {
        let messages = messages.map_or_else(
            || self.messages.clone(),
            |messages| Messages::Many(messages.into()),
        );
        Self {
            messages,
            attempt: self.attempt,
            slot: Some(slot),
        }
    }

    /// Returns a copy with only these messages.
    pub(crate) fn with_messages(&self, mut messages: Vec<Arc<Message>>) -> Self {
        let messages = match messages.pop() {
            Some(message) if messages.is_empty() => Messages::One(message),
            last => Messages::Many(messages.into_iter().chain(last).collect()),
        };
        Self {
            messages,
            attempt: self.attempt,
            slot: self.slot.clone(),
        }
    }

    /// Returns one delivery per event, all in the same transaction.
    pub(crate) fn singly(&self) -> impl Iterator<Item = Self> {
        let of = |message: &Arc<Message>| Self {
            messages: Messages::One(message.clone()),
            attempt: self.attempt,
            slot: self.slot.clone(),
        };
        self.messages().iter().map(of)
    }

    /// Lends the transaction to one argument.
    pub(crate) fn transaction(&self) -> Result<Tx, HandlerError> {
        let slot = self.slot.as_ref().ok_or_else(|| {
            HandlerError::dead_letter("the subscriber has no inbox, so there is no `Tx`")
        })?;
        slot.lend(self.meta())
    }

    pub(crate) fn first(&self) -> &Arc<Message> {
        &self.messages()[0]
    }
}
