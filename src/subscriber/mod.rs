//! Subscribers: typed handlers that run in order and take effect once.
//!
//! ```text
//! Kafka ─▶ feed ─▶ lane ─▶ attempt ─▶ layers ─▶ inbox ─▶ router ─▶ handler
//!          │       │       │                    └─── one transaction ────┘
//!          │       │       └─▶ table `subscriber_parked`, retry topic or dead letter
//!          │       └─ one per aggregate
//!          └─ one per partition
//! finished records ─▶ watermark ─▶ commit
//! ```
//!
//! A [`Subscriber`] is built from a [`Bus`] and handlers. A handler is an async function; see
//! [`Handler`] and the extractors next to it.
//!
//! # Guarantees
//!
//! - **Order**: events of one aggregate are handled one at a time, in the order of their partition.
//!   Events of different aggregates run concurrently, up to
//!   [`concurrency`](Subscriber::concurrency). A lane is created for the first pending event of an
//!   aggregate and removed after the last, so no aggregate waits for another.
//! - **Once**: with [`inbox`](Subscriber::inbox), the event's id, the handler's effect and the
//!   events that the handler publishes are committed in one transaction.
//! - **No loss**: the offset of a partition is committed only up to the first unfinished event.
//!   Finished events beyond it are listed in the metadata of the commit, up to its size limit, so
//!   the next owner of the partition does not handle them again.
//! - **Isolation**: a failed event is retried while only its aggregate waits. After its last
//!   attempt, its aggregate is parked in the table `subscriber_parked`, or the event is sent to a
//!   retry topic
//!   or to the dead letters. If a dependency of all events is down, for example the database, the
//!   subscriber pauses and no event loses an attempt.
//!
//! # Limits
//!
//! Without an inbox, an event may be handled twice, because the process can crash between the end
//! of the handler and the commit of the offset. If a member is cut off from its group, two members
//! may briefly handle events of one aggregate at the same time. With an inbox, each event still
//! takes effect once.

// | folder | content |
// |---|---|
// | `startup` | the conditions for joining the group |
// | `consume` | the polling thread, partitions, lanes, work items |
// | `attempt` | one loop of attempts per event, pauses, the kill switch, escalation |
// | `handler` | handlers, their arguments, and the router that calls them |
// | `inbox` | the transaction that makes an effect happen once |
// | `offsets` | finished records and commits |
// | `failure` | parked events and dead letters |
// | `control` | decisions of operators: pauses, and marks on parked events |
// | `deployment` | instances of different versions in one group |
// | `telemetry` | statistics, metrics, log limits |
// | `options` | settings with their defaults |
// | `in_memory` | the same without Kafka, for `testing` |

mod attempt;
mod builder;
mod bus;
mod clock;
mod companion;
mod consume;
mod control;
mod deployment;
pub(crate) mod failure;
mod handler;
mod in_memory;
mod inbox;
pub(crate) mod offsets;
mod options;
mod run;
mod startup;
mod telemetry;

/// Values by event type. The keys come from code rather than from input, so they cannot be chosen
/// to collide and a fast hash is safe.
type ByType<T> =
    std::collections::HashMap<std::borrow::Cow<'static, str>, T, foldhash::fast::RandomState>;

pub(crate) use attempt::pause::Pause;
pub use builder::Subscriber;
pub use bus::{Bus, BusError};
pub(crate) use clock::VirtualClock;
pub(crate) use companion::{Companion, Ground, Interest, NotAdmitted, Task};
pub use failure::dead_letter::DeadLetters;
pub use handler::delivery::Delivery;
pub use handler::router::{Handled, HandlerService};
pub use handler::{
    Batch, Event, FromDelivery, FromRef, Handler, HandlerError, IntoEvents, Meta, Savepoint, State,
    Tombstone, Tx, Verdict,
};
pub(crate) use in_memory::inbox::MemoryInbox;
pub(crate) use in_memory::{Ended, InMemory};
pub use inbox::{Inbox, InboxRecord, InboxStatements, Isolation};
pub(crate) use offsets::catch_up::CatchUp;
pub use options::kill_switch::KillSwitch;
pub use options::retry::Retry;
pub use options::{Escalation, Order, TraceRelation};
pub use run::RunError;
pub(crate) use telemetry::counters::Times;
#[cfg(feature = "metrics")]
pub use telemetry::metrics::SubscriberMetrics;
pub use telemetry::statistics::{PartitionStatistics, Statistics, SubscriberState};
#[cfg(all(any(test, fuzzing), feature = "relay"))]
pub(crate) use {failure::redrive::fuzz_dead_letter, offsets::metadata::fuzz_offset_metadata};

/// Checks a handler at its definition. The compiler then names the argument that is invalid,
/// instead of reporting only that the function is not a handler.
///
/// The attribute changes nothing at run time. Add it while the compiler rejects `.on(handler)`,
/// then keep it or remove it. It supports free functions without generic parameters.
///
/// The state type is the `T` of the only `State<T>` argument. If handlers take parts of the state
/// (`FromRef`), name the type: `#[debug_handler(state = App)]`.
///
/// ```compile_fail
/// use tidings::subscriber::{Event, HandlerError, debug_handler};
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Serialize, Deserialize, tidings::DomainEvent)]
/// # #[event(aggregate = "order", id = "order_id")]
/// # struct OrderPlaced { order_id: i64 }
///
/// #[debug_handler]
/// async fn reserve(_: Event<OrderPlaced>, warehouse: String) -> Result<(), HandlerError> {
///     // error: `String` cannot be an argument of a handler
///     Ok(())
/// }
/// ```
pub use tidings_derive::debug_handler;

pub mod typestate {
    //! Type parameters of a [`Subscriber`](super::Subscriber): its state and its inbox.
    //!
    //! The compiler infers them. A function that returns a subscriber names them, for example
    //! `Subscriber<(), NoState, HasInbox>`, and a generic function bounds them with [`StateReady`]
    //! and [`InboxReady`].

    pub use super::handler::{
        HasInbox, HasState, InboxReady, InboxState, NoInbox, NoState, StateReady,
    };
    // Named by the compiler and by `debug_handler`, never by a service.
    #[doc(hidden)]
    pub use super::handler::{
        Argument, EventArgument, IntoOutcome, MissingInbox, Need, Needed, NotNeeded, ViaDelivery,
        ViaTransaction,
    };
}

pub(crate) use crate::event::panic_text;
pub use crate::kafka::Malformed;
