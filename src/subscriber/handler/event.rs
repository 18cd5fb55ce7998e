//! The event a handler is for.

use std::ops::Deref;

use super::HandlerError;
use super::meta::decode;
use crate::event::DomainEvent;
use crate::subscriber::Delivery;

/// The event, decoded: the first argument of a handler.
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

/// The first argument of a handler: [`Event<E>`](Event), [`Batch<E>`](super::Batch) or [`Tombstone<E>`](super::Tombstone).
#[diagnostic::on_unimplemented(
    message = "the first argument of a handler is its event, and `{Self}` is none",
    label = "expected `Event<E>`, `Batch<E>` or `Tombstone<E>`"
)]
pub trait EventArgument: Sized + Send {
    /// What it holds.
    type Event: DomainEvent;
    /// Whether it holds several.
    const BATCH: bool;
    /// Whether it is a deletion of `Event`'s aggregate in place of an event.
    const TOMBSTONE: bool = false;

    /// The events of the delivery, decoded.
    ///
    /// # Errors
    ///
    /// A payload that is no such event, or of a version that this code does not know.
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
