//! Extractors: the arguments of a handler after its event.

use std::future::Future;

use super::{HandlerError, Need, Needed, NotNeeded, Tx};
use crate::subscriber::Delivery;

/// Extracts an argument of a handler from a delivery. Implement it for your own extractors.
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
///         let tenant = meta
///             .header("tenant")
///             .ok_or_else(|| HandlerError::dead_letter("the event has no tenant"))?;
///         Ok(Self(tenant.to_owned()))
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be an argument of a handler",
    note = "after `Event<E>` come `Meta`, `State<T>`, `Tx` and types that implement \
            `FromDelivery<S>`"
)]
pub trait FromDelivery<S>: Sized + Send {
    /// Error if the argument cannot be extracted from a delivery.
    type Rejection: Into<HandlerError>;

    /// Extracts the argument.
    ///
    /// # Errors
    ///
    /// Returns an error that becomes the handler's error. The handler is not called then.
    fn from_delivery(
        delivery: &Delivery,
        state: &S,
    ) -> impl Future<Output = Result<Self, Self::Rejection>> + Send;
}

/// An argument of a handler after its event: a type that implements [`FromDelivery`], or [`Tx`].
///
/// `Via` distinguishes the two cases and is inferred.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be an argument of a handler",
    label = "not an argument of a handler",
    note = "after `Event<E>` come `Meta`, `State<T>`, `Tx` and types that implement \
            `FromDelivery<S>`"
)]
pub trait Argument<S, Via>: Sized + Send {
    /// Requirement for an inbox.
    type Inbox: Need;

    /// Extracts the argument.
    ///
    /// # Errors
    ///
    /// Returns an error that becomes the handler's error. The handler is not called then.
    fn take(
        delivery: &Delivery,
        state: &S,
    ) -> impl Future<Output = Result<Self, HandlerError>> + Send;
}

/// The argument is extracted with [`FromDelivery`].
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
