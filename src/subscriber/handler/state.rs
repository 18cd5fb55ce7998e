//! State of the application that handlers can access.

use std::convert::Infallible;

use super::{FromDelivery, HandlerError};
use crate::subscriber::Delivery;

/// The value that was passed to [`Subscriber::state`](crate::subscriber::Subscriber::state), or a
/// part of it that [`FromRef`] returns.
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

/// Extracts a part of the application's state.
#[diagnostic::on_unimplemented(
    message = "there is no `{Self}` in the state `{T}`",
    note = "give the subscriber `.state(…)` of this type, or implement `FromRef<{T}>` for `{Self}`"
)]
pub trait FromRef<T> {
    /// Returns the part.
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
