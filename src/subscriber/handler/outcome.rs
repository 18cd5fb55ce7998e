//! Return types of handlers.

use super::{HandlerError, Need, Needed, NotNeeded};
use crate::event::{DomainEvent, Envelope, EnvelopeError};

/// Events that a handler publishes by returning them: `()`, one event, an `Option`, a `Vec`, or a
/// tuple of these.
///
/// The events are inserted into the outbox in the handler's transaction. The handled event is
/// recorded as their cause, so correlation, causation and trace context continue automatically.
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// # use tidings::DomainEvent;
/// # use tidings::subscriber::{Event, HandlerError, IntoEvents};
/// # #[derive(Serialize, Deserialize, DomainEvent)]
/// # #[event(aggregate = "order", id = "order_id")]
/// # struct OrderPlaced { order_id: i64 }
/// # #[derive(Serialize, Deserialize, DomainEvent)]
/// # #[event(aggregate = "stock", id = "order_id")]
/// # struct StockReserved { order_id: i64 }
/// async fn reserve(Event(order): Event<OrderPlaced>) -> Result<StockReserved, HandlerError> {
///     Ok(StockReserved { order_id: order.order_id })
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not something to publish",
    label = "a handler returns `()`, an event, or an `Option`, `Vec` or tuple of events",
    note = "an event is a type with `#[derive(tidings::DomainEvent)]`"
)]
pub trait IntoEvents: Send {
    /// Requirement for an inbox. Events need the outbox of the handler's transaction; `()` does
    /// not.
    type Inbox: Need;

    /// Appends the envelopes of these events.
    ///
    /// # Errors
    ///
    /// Returns an error if an event cannot be encoded or has no usable id.
    fn append_to(self, envelopes: &mut Vec<Envelope>) -> Result<(), EnvelopeError>;
}

impl IntoEvents for () {
    type Inbox = NotNeeded;

    fn append_to(self, _: &mut Vec<Envelope>) -> Result<(), EnvelopeError> {
        Ok(())
    }
}

impl<E: DomainEvent> IntoEvents for E {
    type Inbox = Needed;

    fn append_to(self, envelopes: &mut Vec<Envelope>) -> Result<(), EnvelopeError> {
        envelopes.push(Envelope::of(&self)?);
        Ok(())
    }
}

impl<T: IntoEvents> IntoEvents for Option<T> {
    type Inbox = Needed;

    fn append_to(self, envelopes: &mut Vec<Envelope>) -> Result<(), EnvelopeError> {
        self.map_or(Ok(()), |events| events.append_to(envelopes))
    }
}

impl<T: IntoEvents> IntoEvents for Vec<T> {
    type Inbox = Needed;

    fn append_to(self, envelopes: &mut Vec<Envelope>) -> Result<(), EnvelopeError> {
        self.into_iter()
            .try_for_each(|events| events.append_to(envelopes))
    }
}

macro_rules! tuples {
    ($($T:ident),+) => {
        impl<$($T: IntoEvents),+> IntoEvents for ($($T,)+) {
            type Inbox = Needed;

            fn append_to(self, envelopes: &mut Vec<Envelope>) -> Result<(), EnvelopeError> {
                #[allow(non_snake_case, reason = "a variable for each type")]
                let ($($T,)+) = self;
                $($T.append_to(envelopes)?;)+
                Ok(())
            }
        }
    };
}

tuples!(A, B);
tuples!(A, B, C);
tuples!(A, B, C, D);

/// The return type of a handler: `Result<T, E>`, where `T` implements [`IntoEvents`] and `E`
/// converts into a [`HandlerError`].
#[diagnostic::on_unimplemented(
    message = "a handler cannot return `{Self}`",
    label = "expected `Result<(), E>` or `Result<impl IntoEvents, E>`",
    note = "`E` is `HandlerError` or what can become one by `Into<HandlerError>`"
)]
pub trait IntoOutcome: Send {
    /// Requirement for an inbox.
    type Inbox: Need;

    /// Converts the result into the events to publish.
    ///
    /// # Errors
    ///
    /// Returns the handler's error, or an error if an event cannot be encoded.
    fn into_outcome(self) -> Result<Vec<Envelope>, HandlerError>;
}

impl<T: IntoEvents, E: Into<HandlerError> + Send> IntoOutcome for Result<T, E> {
    type Inbox = T::Inbox;

    fn into_outcome(self) -> Result<Vec<Envelope>, HandlerError> {
        let mut envelopes = Vec::new();
        self.map_err(Into::into)?.append_to(&mut envelopes)?;
        Ok(envelopes)
    }
}
