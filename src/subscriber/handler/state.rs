//! What the application hands to its handlers.

use std::convert::Infallible;

use super::{FromDelivery, HandlerError};
use crate::subscriber::Delivery;

/// A part of what [`Subscriber::state`](crate::subscriber::Subscriber::state) was given: all of it, or what [`FromRef`] makes of it.
///
/// ```
/// use tidings::Outbox;
/// use tidings::subscriber::{FromRef, State};
///
/// #[derive(Clone)]
/// struct App { outbox: Outbox, region: String }
///
/// impl FromRef<App> for Outbox {
///     fn from_ref(app: &App) -> Self {
///         app.outbox.clone()
///     }
/// }
///
/// // In a handler's arguments: State(outbox): State<Outbox>, or State(app): State<App>
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State<T>(pub T);

/// Takes a part out of the application's state.
#[diagnostic::on_unimplemented(
    message = "there is no `{Self}` in the state `{T}`",
    note = "give the subscriber `.state(…)` of this type, or implement `FromRef<{T}>` for `{Self}`"
)]
pub trait FromRef<T> {
    /// The part.
    fn from_ref(state: &T) -> Self;
}

impl<T: Clone> FromRef<T> for T {
    fn from_ref(state: &T) -> Self {
        state.clone()
    }
}

impl<S: Sync, T: FromRef<S> + Send> FromDelivery<S> for State<T> {
    type Rejection = Infallible;

    async fn from_delivery(_: &Delivery, state: &S) -> Result<Self, Infallible> {
        Ok(Self(T::from_ref(state)))
    }
}

impl From<Infallible> for HandlerError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}
