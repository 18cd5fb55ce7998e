//! Handlers: plain async functions whose arguments declare their inputs.
//!
//! The first argument is the event: [`Event<E>`](Event), a [`Batch<E>`](Batch) of events, or a
//! [`Tombstone<E>`](Tombstone). It determines the records that are routed to the handler. The other
//! arguments are *extractors*: [`Meta`], [`State<T>`](State), [`Tx`], and types that implement
//! [`FromDelivery`]. A handler returns `Result<(), E>`, or `Result<impl IntoEvents, E>` to publish
//! events.
//!
//! The requirements of a handler are part of its type. `Tx` and returned events need an inbox
//! ([`Needed`]): a subscriber without one does not compile.

// One file per argument: `event`, `batch`, `tombstone`, `meta`, `state`, `tx` (with `savepoint`).
// `extract` has the traits of arguments, `outcome` that of return values, `call` turns a function
// into a handler, `router` calls the handlers of an event within its transaction, `delivery` is
// their input, `error` their verdict, and `typestate` their requirements.

mod batch;
mod call;
pub(crate) mod delivery;
mod error;
mod event;
mod extract;
mod meta;
mod outcome;
mod publisher;
pub(crate) mod router;
mod savepoint;
mod state;
mod tombstone;
mod tx;
mod typestate;

pub use batch::Batch;
pub use call::Handler;
pub(crate) use call::{BoundHandler, Called, ErasedHandler, Plain, erase};
pub(crate) use error::CODE_PAUSE;
pub use error::{HandlerError, Verdict};
pub use event::{Event, EventArgument};
pub use extract::{Argument, FromDelivery, ViaDelivery, ViaTransaction};
pub use meta::Meta;
pub use outcome::{IntoEvents, IntoOutcome};
pub use savepoint::Savepoint;
pub use state::{FromRef, State};
pub use tombstone::Tombstone;
pub use tx::Tx;
pub(crate) use tx::TxSlot;
pub use typestate::{
    HasInbox, HasState, InboxReady, InboxState, MissingInbox, Need, Needed, NoInbox, NoState,
    NotNeeded, StateReady,
};
