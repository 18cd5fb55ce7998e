//! Conversion of async functions into handlers.

use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;

use tokio_util::sync::ReusableBoxFuture;

use super::{Argument, EventArgument, HandlerError, IntoOutcome, Need};
use crate::{
    event::{DomainEvent, Envelope},
    subscriber::Delivery,
};

/// An async function that handles events. It is implemented for functions with up to eight
/// arguments; do not implement it for other types.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler of events",
    label = "not a handler",
    note = "a handler is an async function; its first argument is `Event<E>`, `Batch<E>` or \
            `Tombstone<E>`, the others are `Meta`, `State<T>`, `Tx` or yours (`FromDelivery`)",
    note = "it returns `Result<(), E>`, or `Result<impl IntoEvents, E>` to publish, where \
            `E: Into<HandlerError>`; its future must be `Send`"
)]
pub trait Handler<Args, S>: Clone + Send + Sync + 'static {
    /// The type of the events.
    type Event: DomainEvent;
    /// Requirement for an inbox.
    type Inbox: Need;
    /// True if the handler takes several events at once.
    const BATCH: bool;
    /// True if the handler takes tombstones of `Event`'s aggregate instead of events.
    const TOMBSTONE: bool;

    /// Extracts the arguments from the delivery and calls the function. Returns the events to
    /// publish.
    ///
    /// # Errors
    ///
    /// Returns the error of an argument or of the function, or an error if an event cannot be
    /// encoded.
    fn call(
        self,
        delivery: Delivery,
        state: &Arc<S>,
    ) -> impl Future<Output = Result<Vec<Envelope>, HandlerError>> + Send + 'static;
}

macro_rules! or {
    ($Last:ty) => { $Last };
    ($First:ty, $($Rest:ty),+) => { <$First as Need>::Or<or!($($Rest),+)> };
}

/// Returns the state for the arguments after the event. Without such arguments the state is not
/// cloned, because all threads would update its reference count for each event.
macro_rules! state {
    ($state:ident) => {
        ()
    };
    ($state:ident, $($A:ident),+) => {
        $state.clone()
    };
}

macro_rules! functions {
    ($($A:ident $V:ident),*) => {
        #[allow(non_snake_case, reason = "a variable for each type")]
        impl<F, Fut, R, S, A0, $($A, $V,)*> Handler<(A0, $($A, $V,)*), S> for F
        where
            F: FnOnce(A0, $($A,)*) -> Fut + Clone + Send + Sync + 'static,
            Fut: Future<Output = R> + Send + 'static,
            R: IntoOutcome + 'static,
            A0: EventArgument + 'static,
            S: Send + Sync + 'static,
            $($A: Argument<S, $V> + 'static, $V: 'static,)*
        {
            type Event = A0::Event;
            type Inbox = or!($($A::Inbox,)* R::Inbox);
            const BATCH: bool = A0::BATCH;
            const TOMBSTONE: bool = A0::TOMBSTONE;

            fn call(
                self,
                delivery: Delivery,
                _state: &Arc<S>,
            ) -> impl Future<Output = Result<Vec<Envelope>, HandlerError>> + Send + 'static {
                let _state = state!(_state $(, $A)*);
                async move {
                    let event = A0::decode(&delivery)?;
                    $(let $A = $A::take(&delivery, &_state).await?;)*
                    self(event, $($A,)*).await.into_outcome()
                }
            }
        }
    };
}

functions!();
functions!(A1 V1);
functions!(A1 V1, A2 V2);
functions!(A1 V1, A2 V2, A3 V3);
functions!(A1 V1, A2 V2, A3 V3, A4 V4);
functions!(A1 V1, A2 V2, A3 V3, A4 V4, A5 V5);
functions!(A1 V1, A2 V2, A3 V3, A4 V4, A5 V5, A6 V6);
functions!(A1 V1, A2 V2, A3 V3, A4 V4, A5 V5, A6 V6, A7 V7);

/// The future of a handler, with its type erased.
pub(crate) type Called = ReusableBoxFuture<'static, Result<Vec<Envelope>, HandlerError>>;

/// A handler with the types of its arguments erased. It still needs the state.
pub(crate) trait ErasedHandler<S>: Send + Sync {
    fn call(&self, delivery: Delivery, state: &Arc<S>, pool: Option<Called>) -> Called;

    fn name(&self) -> &'static str;
}

/// A handler with its state.
pub(crate) trait BoundHandler: Send + Sync {
    /// Calls the handler. `pool` is the future of a call that has ended; its allocation is reused
    /// if it is large enough.
    fn call(&self, delivery: Delivery, pool: Option<Called>) -> Called;

    /// Returns the path of the function, for logs.
    fn name(&self) -> &'static str;
}

struct Erased<H, Args>(H, PhantomData<fn() -> Args>);

/// A function that takes deliveries and publishes events itself.
pub(crate) struct Plain<F>(pub(crate) F);

impl<F, Fut, S> ErasedHandler<S> for Plain<Arc<F>>
where
    F: Fn(Delivery) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    S: Send + Sync + 'static,
{
    fn call(&self, delivery: Delivery, _: &Arc<S>, pool: Option<Called>) -> Called {
        let called = (self.0)(delivery);
        within(pool, async move { called.await.map(|()| Vec::new()) })
    }

    fn name(&self) -> &'static str {
        std::any::type_name::<F>()
    }
}

/// Erases the types of a handler's arguments.
pub(crate) fn erase<H, Args, S>(handler: H) -> Box<dyn ErasedHandler<S>>
where
    H: Handler<Args, S>,
    Args: 'static,
    S: Send + Sync + 'static,
{
    Box::new(Erased(handler, PhantomData::<fn() -> Args>))
}

impl<H: Handler<Args, S>, Args, S: Send + Sync + 'static> ErasedHandler<S> for Erased<H, Args> {
    fn call(&self, delivery: Delivery, state: &Arc<S>, pool: Option<Called>) -> Called {
        within(pool, self.0.clone().call(delivery, state))
    }

    fn name(&self) -> &'static str {
        std::any::type_name::<H>()
    }
}

/// Stores the future in the allocation of the pool one, if there is one.
fn within<F>(pool: Option<Called>, future: F) -> Called
where
    F: Future<Output = Result<Vec<Envelope>, HandlerError>> + Send + 'static,
{
    match pool {
        Some(mut called) => {
            called.set(future);
            called
        }
        None => Called::new(future),
    }
}

impl<S: Send + Sync> BoundHandler for (Box<dyn ErasedHandler<S>>, Arc<S>) {
    fn call(&self, delivery: Delivery, pool: Option<Called>) -> Called {
        self.0.call(delivery, &self.1, pool)
    }

    fn name(&self) -> &'static str {
        self.0.name()
    }
}
