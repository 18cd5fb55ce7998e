//! Outcomes of an attempt to publish an event.

use super::Backpressure;
use crate::relay::error::Interruption;

/// Outcome of [`EventPublisher::publish`](super::EventPublisher::publish).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Published {
    /// The record is in flight with this tag.
    Sent(u64),
    /// The event is parked. It is stored before the position passes it.
    Parked,
    /// The event must be parked, but the limit of parked events is reached.
    NoRoomToPark(u64),
}

/// Outcome of [`EventPublisher::deliver`](super::EventPublisher::deliver).
#[derive(Debug)]
pub(crate) enum Delivery {
    /// The record is in flight with this tag.
    Sent(u64),
    /// The event is undeliverable for this reason.
    Undeliverable(String),
    /// This topic is unusable at present, or other events already wait for it.
    TopicWaits(String),
}

/// The reason why an event was not published.
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

/// Outcome of an attempt to send one event.
pub(super) enum Attempt {
    Sent(u64),
    Impossible(String),
    TopicWaits(String),
}
