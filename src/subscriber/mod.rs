//! Subscribe: typed handlers whose effect happens once, in order.
//!
//! ```text
//! Kafka ─▶ feed a partition ─▶ lane an aggregate ─▶ retry ─▶ your layers ─▶ inbox ─▶ router ─▶ handler
//!          kafka::consumer     lanes, partition     attempt                 └──────── one transaction ─┘
//!                                   │                  └─▶ detour, retry topic, dead letter
//!                              watermark ─▶ commit
//! ```
//!
//! A [`Subscriber`] is put together from a [`Bus`] and handlers. A handler is an async function; see [`Handler`] and the extractors beside it.
//!
//! # What it does
//!
//! - **Order**: events of one aggregate are handled one at a time, in the order of their partition. Others run beside them, up to
//!   [`concurrency`](Subscriber::concurrency). A lane is made when an aggregate's first event comes and gone with its last, so no aggregate waits for another.
//! - **Once**: with [`inbox`](Subscriber::inbox) the event's id, the handler's effect and the events it publishes are one transaction.
//! - **No loss**: a partition's offset is committed only up to the first event that is not finished. What is finished beyond it is written into the commit's metadata, so that
//!   the next owner of the partition does not handle it again.
//! - **Isolation**: an event that fails is tried again, while only its aggregate waits; then its aggregate is set aside in the table `detour`, or it is sent to a retry topic
//!   or the dead letters. What every event needs, the database say, is another matter: the subscriber pauses, and no event loses an attempt.
//!
//! # What it does not do
//!
//! Without an inbox an event may be handled twice: its process can die between the handler's end and the commit of the offset. And two members may handle events of one
//! aggregate at once for a moment if one of them was cut off from the group; with an inbox each event still has its effect once.

mod attempt;
mod awaiting;
mod beginning;
mod builder;
mod bus;
mod catch_up;
mod clock;
mod collision;
mod companion;
mod counters;
pub(crate) mod dead_letters;
mod delivery;
mod detour;
mod escalate;
mod examine;
mod failure_log;
pub(crate) mod finished;
mod gate;
mod handler;
mod identity;
mod in_memory;
mod inbox;
mod kill_switch;
mod lanes;
mod left_behind;
mod literal;
mod log_limit;
mod memory;
#[cfg(feature = "metrics")]
mod metrics;
mod missing;
mod options;
mod outage;
mod owner;
mod partition;
mod probe;
mod pulse;
#[cfg_attr(not(feature = "cli"), allow(dead_code))]
pub(crate) mod redrive;
mod register;
mod registry;
mod retry;
mod roster;
mod router;
mod run;
mod sessions;
mod simulation;
mod source;
mod spare;
mod start;
mod statistics;
mod tenure;
mod turn;
mod unhandled;
mod unit;
mod unknown_types;
mod watermark;

/// Something of each event type. Whose names they are the code says, so that nobody chooses them to collide.
type ByType<T> = std::collections::HashMap<std::borrow::Cow<'static, str>, T, foldhash::fast::RandomState>;

pub use builder::Subscriber;
pub use bus::{Bus, BusError};
pub(crate) use catch_up::CatchUp;
pub(crate) use clock::VirtualClock;
pub(crate) use companion::{Companion, Ground, Interest, NotAdmitted, Task};
pub(crate) use counters::Times;
pub use dead_letters::DeadLetters;
pub use delivery::Delivery;
pub use handler::{
    Argument, Batch, Event, EventArgument, FromDelivery, FromRef, Handler, HandlerError, HasInbox, HasState, InboxReady, InboxState,
    IntoEvents, IntoOutcome, Meta, MissingInbox, Need, Needed, NoInbox, NoState, NotNeeded, Savepoint, State, StateReady, Tombstone, Tx,
    Verdict, ViaDelivery, ViaTransaction,
};
pub(crate) use in_memory::{Ended, InMemory};
pub use inbox::{Inbox, Isolation};
pub use kill_switch::KillSwitch;
pub(crate) use memory::MemoryInbox;
#[cfg(feature = "metrics")]
pub use metrics::SubscriberMetrics;
pub use options::{Escalation, Order};
pub use retry::Retry;
pub use router::{Handled, HandlerService};
pub use run::RunError;
pub use statistics::{PartitionStatistics, Statistics, SubscriberState};
#[cfg(all(any(test, fuzzing), feature = "relay"))]
pub(crate) use {finished::fuzz_offset_metadata, redrive::fuzz_dead_letter};

/// Checks a handler where it is written: the compiler then says which argument is none, and not only that the function is no handler.
///
/// It changes nothing: put it on while the compiler refuses `.on(handler)`, and leave it or take it off. For free functions without generic types.
///
/// The state is the `T` of the only `State<T>`; if handlers take parts of it (`FromRef`), say it: `#[debug_handler(state = App)]`.
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
///     //                                             ^^^^^^ `String` cannot be an argument of a handler
///     Ok(())
/// }
/// ```
pub use tidings_derive::debug_handler;

pub(crate) use crate::event::panic_text;
pub use crate::kafka::Malformed;
