//! What layers and handlers are given.

use std::sync::Arc;

use super::{HandlerError, Meta, Tx, TxSlot};
use crate::kafka::Message;

/// One attempt to handle an event, or a batch of events: the request that layers see.
#[derive(Clone, Debug)]
pub struct Delivery {
    messages: Messages,
    attempt: u32,
    slot: Option<TxSlot>,
}

/// One message without an allocation more, or several.
#[derive(Clone, Debug)]
enum Messages {
    One(Arc<Message>),
    Many(Arc<[Arc<Message>]>),
}

impl Delivery {
    /// One event; `attempt` counts from the first of this stay in the subscriber.
    pub(crate) fn one(message: Arc<Message>, attempt: u32) -> Self {
        Self {
            messages: Messages::One(message),
            attempt,
            slot: None,
        }
    }

    /// Several; at least one.
    pub(crate) fn many(messages: Vec<Arc<Message>>, attempt: u32) -> Self {
        Self {
            messages: Messages::Many(messages.into()),
            attempt,
            slot: None,
        }
    }

    /// The event, or the first of the batch.
    pub fn meta(&self) -> Meta {
        Meta::new(self.first().clone(), self.attempt)
    }

    /// Every event of the batch; one if it is none.
    pub fn metas(&self) -> impl ExactSizeIterator<Item = Meta> {
        self.messages()
            .iter()
            .map(|message| Meta::new(message.clone(), self.attempt))
    }

    /// What happened, e.g. `OrderPlaced`. All events of a batch are of one type.
    pub fn event_type(&self) -> &str {
        self.first().event_type()
    }

    /// How often the event was tried, this attempt included: 1 for the first. Attempts from the detour, from retry topics and before a replay count; of a batch, those of its first event.
    pub fn attempt(&self) -> u32 {
        self.attempt.saturating_add(self.first().attempts_before())
    }

    /// How many events it holds: 1, or those of a batch.
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

    /// The same with these messages only, and a transaction.
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

    /// The same with these messages only.
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

    /// Each event by itself, in the same transaction.
    pub(crate) fn singly(&self) -> impl Iterator<Item = Self> {
        let of = |message: &Arc<Message>| Self {
            messages: Messages::One(message.clone()),
            attempt: self.attempt,
            slot: self.slot.clone(),
        };
        self.messages().iter().map(of)
    }

    /// The transaction, lent to one argument.
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
