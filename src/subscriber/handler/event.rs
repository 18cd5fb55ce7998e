//! The event as an argument of a handler.

use std::ops::Deref;

use super::HandlerError;
use super::meta::decode;
use crate::event::DomainEvent;
use crate::subscriber::Delivery;

/// A decoded event, as the first argument of a handler.
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// # use tidings::DomainEvent;
/// # use tidings::subscriber::{Event, HandlerError};
/// # #[derive(Serialize, Deserialize, DomainEvent)]
/// # #[event(aggregate = "order", id = "order_id")]
/// # struct OrderPlaced { order_id: i64 }
/// async fn greet(Event(order): Event<OrderPlaced>) -> Result<(), HandlerError> {
///     println!("order {} is placed", order.order_id);
///     Ok(())
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<E>(pub E);

/// The first argument of a handler: [`Event<E>`](Event), [`Batch<E>`](super::Batch) or
/// [`Tombstone<E>`](super::Tombstone).
#[diagnostic::on_unimplemented(
    message = "the first argument of a handler is its event, and `{Self}` is none",
    label = "expected `Event<E>`, `Batch<E>` or `Tombstone<E>`"
)]
pub trait EventArgument: Sized + Send {
    /// The type of the event.
    type Event: DomainEvent;
    /// True if the argument contains several events.
    const BATCH: bool;
    /// True if the argument is a deletion of `Event`'s aggregate instead of an event.
    const TOMBSTONE: bool = false;

    /// Decodes the events of the delivery.
    ///
    /// # Errors
    ///
    /// Returns an error if a payload is not such an event, or if its version is newer than this
    /// code supports.
    fn decode(delivery: &Delivery) -> Result<Self, HandlerError>;
}

impl<E: DomainEvent> EventArgument for Event<E> {
    type Event = E;
    const BATCH: bool = false;

    fn decode(delivery: &Delivery) -> Result<Self, HandlerError> {
        decode(delivery.first()).map(Self)
    }
}

impl<E> Deref for Event<E> {
    type Target = E;

    fn deref(&self) -> &E {
        &self.0
    }
}
