//! What a handler may take as an argument after its event.

use std::future::Future;

use super::{HandlerError, Need, Needed, NotNeeded, Tx};
use crate::subscriber::Delivery;

/// Makes a handler's argument from a delivery: implement it for extractors of your own.
///
/// # Examples
///
/// ```
/// use tidings::subscriber::{Delivery, FromDelivery, HandlerError};
///
/// struct Tenant(String);
///
/// impl<S: Sync> FromDelivery<S> for Tenant {
///     type Rejection = HandlerError;
///
///     async fn from_delivery(delivery: &Delivery, _: &S) -> Result<Self, HandlerError> {
///         let meta = delivery.meta();
///         let tenant = meta.header("tenant").ok_or_else(|| HandlerError::dead_letter("the event has no tenant"))?;
///         Ok(Self(tenant.to_owned()))
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be an argument of a handler",
    note = "after `Event<E>` come `Meta`, `State<T>`, `Tx` and types that implement `FromDelivery<S>`"
)]
pub trait FromDelivery<S>: Sized + Send {
    /// Why there is no such argument in this delivery.
    type Rejection: Into<HandlerError>;

    /// The argument.
    ///
    /// # Errors
    ///
    /// What becomes the handler's error: the handler is not called.
    fn from_delivery(
        delivery: &Delivery,
        state: &S,
    ) -> impl Future<Output = Result<Self, Self::Rejection>> + Send;
}

/// An argument of a handler after its event: whatever implements [`FromDelivery`], and [`Tx`].
///
/// `Via` tells the two apart; the compiler infers it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be an argument of a handler",
    label = "not an argument of a handler",
    note = "after `Event<E>` come `Meta`, `State<T>`, `Tx` and types that implement `FromDelivery<S>`"
)]
pub trait Argument<S, Via>: Sized + Send {
    /// Whether the subscriber must have an inbox.
    type Inbox: Need;

    /// The argument.
    ///
    /// # Errors
    ///
    /// What becomes the handler's error.
    fn take(
        delivery: &Delivery,
        state: &S,
    ) -> impl Future<Output = Result<Self, HandlerError>> + Send;
}

/// The argument is made by [`FromDelivery`].
#[derive(Clone, Copy, Debug)]
pub enum ViaDelivery {}

/// The argument is the transaction.
#[derive(Clone, Copy, Debug)]
pub enum ViaTransaction {}

impl<S: Sync, T: FromDelivery<S>> Argument<S, ViaDelivery> for T {
    type Inbox = NotNeeded;

    async fn take(delivery: &Delivery, state: &S) -> Result<Self, HandlerError> {
        T::from_delivery(delivery, state).await.map_err(Into::into)
    }
}

impl<S: Sync> Argument<S, ViaTransaction> for Tx {
    type Inbox = Needed;

    async fn take(delivery: &Delivery, _: &S) -> Result<Self, HandlerError> {
        delivery.transaction()
    }
}
