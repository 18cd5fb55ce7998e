//! Outcomes of an attempt to publish an event.

use super::Backpressure;
use crate::relay::error::Interruption;

/// Outcome of [`EventPublisher::publish`](super::EventPublisher::publish).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Published {
    /// The record is under way with this tag.
    Sent(u64),
    /// The event is parked. It is stored before the position passes it.
    Parked,
    /// The event would be parked, and the limit of parked events is reached.
    NoRoomToPark(u64),
}

/// Outcome of [`EventPublisher::deliver`](super::EventPublisher::deliver).
#[derive(Debug)]
pub(crate) enum Delivery {
    /// The record is under way with this tag.
    Sent(u64),
    /// The event cannot be delivered, for this reason.
    Undeliverable(String),
    /// This topic cannot be used at present, or other events wait for it already.
    TopicWaits(String),
}

/// Why an event was not published.
#[derive(Debug)]
pub(crate) enum Unsent {
    /// The event has to wait. The caller publishes it again afterwards.
    Waits(Backpressure),
    /// The session ends.
    Interrupted(Interruption),
}

impl From<Backpressure> for Unsent {
    fn from(hold: Backpressure) -> Self {
        Self::Waits(hold)
    }
}

impl From<Interruption> for Unsent {
    fn from(interruption: Interruption) -> Self {
        Self::Interrupted(interruption)
    }
}

/// Outcome of an attempt to send.
pub(super) enum Attempt {
    Sent(u64),
    Impossible(String),
    TopicWaits(String),
}
