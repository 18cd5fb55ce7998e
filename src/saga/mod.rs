//! Sagas: changes that span several services, executed step by step and undone in reverse if a step
//! fails.
//!
//! ```text
//!   command ─▶ outbox ─▶ relay ─▶ Kafka ─▶ another service
//!      ▲                                        │ its handler publishes a reply
//!   machine ◀── state, inbox row ◀── Kafka ◀────┘
//!      │              one transaction: inbox row, state and progress, commands
//!      └─▶ timer: timeouts and retries, by the row's `due_at`
//! ```
//!
//! A [`Saga`] is a typed state and named steps. A step sends a command, or calls a function with a
//! [`Tx`](crate::subscriber::Tx). It may name the replies that it waits for, and a compensation. A
//! [`Subscriber`](crate::Subscriber) runs the saga: see
//! [`Subscriber::saga`](crate::Subscriber::saga).
//!
//! # What it does
//!
//! - **Atomic**: the state, the inbox row and the published events commit together. A saga
//!   therefore survives a crash of its process at any point, and any number of replicas can run it.
//! - **Undone in reverse**: when a step fails, the completed steps before it are compensated, the
//!   last one first. A failed compensation is retried, then recorded, and the remaining
//!   compensations still run. A step that did not reply may have taken effect, so it is compensated
//!   too.
//! - **Forward only after the pivot**: see [`Saga::pivot`].
//! - **Observable**: a saga ends as completed, compensated or failed. It publishes [`SagaEnded`];
//!   [`Sagas`] and `tidings sagas` show its state.
//! - **Tolerant of duplicate replies**: a reply is accepted if the current step waits for its type
//!   and the command of another step did not cause it. Late and repeated replies are ignored.
//! - **Deployable**: a run keeps the list of step names that it started with; see [`Saga::version`]
//!   and [`Saga::retired`].
//!
//! # What it does not do
//!
//! There is no isolation: other transactions see the effects of the first steps before the last
//! step completes. [`Saga::locks`] keeps other sagas away from an aggregate, but no other code. A
//! reply must carry the correlation id of its command. Handlers of Tidings set it automatically;
//! other services must copy the header `correlationid` (`ce_correlationid` in Kafka).

// | file | content |
// |---|---|
// | `definition`, `progress` | what a service defines; what is stored beside the state |
// | `machine` | the decisions. Pure |
// | `transition`, `drive`, `store` | one step in a transaction: its order, its effects, its SQL |
// | `subscribe`, `timer` | the two inputs: replies, and everything that is due |
// | `replies` | a timer waits until replies that may be in Kafka are handled |
// | `wakeup`, `notices` | the time of the next poll, and hints from other processes |
// | `registration`, `signature`, `obstacle` | versions of the code |
// | `companion`, `chores` | a saga within a subscriber, and its background work |
// | `sagas`, `statistics`, `metrics`, `ended` | the view from outside |

mod chores;
mod companion;
mod definition;
mod drive;
mod ended;
mod machine;
#[cfg(feature = "metrics")]
mod metrics;
mod notices;
mod obstacle;
mod progress;
mod registration;
mod replies;
mod sagas;
mod signature;
mod statistics;
mod store;
mod subscribe;
mod timer;
mod transition;
mod wakeup;

pub(crate) use definition::Local;
pub use definition::{Saga, SagaState};
pub(crate) use drive::{Effects, SagaInstance, Unpublishable};
pub use ended::SagaEnded;
pub(crate) use machine::{CallFailed, Input, Shape};
#[cfg(feature = "metrics")]
pub use metrics::SagaMetrics;
pub use progress::{SagaStatus, StepFailure, UnknownSagaStatus};
#[cfg(feature = "cli")]
pub(crate) use registration::LIVE_SECONDS;
pub use sagas::{Decision, SagaCommand, SagaRun, Sagas};
pub use statistics::{SagaStanding, SagaStatistics};
pub use subscribe::StartError;
