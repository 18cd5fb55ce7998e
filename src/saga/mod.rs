//! Sagas: a change that spans several services, step by step, and undone step by step if it cannot be finished.
//!
//! ```text
//!   command ─▶ outbox ─▶ relay ─▶ Kafka ─▶ another service
//!      ▲                                        │ its handler publishes a reply
//!   machine ◀── state, inbox row ◀── Kafka ◀────┘
//!      │              one transaction: what comes, where the saga stands, what it sends
//!      └─▶ timer: timeouts and retries, by the row's `due_at`
//! ```
//!
//! A [`Saga`] is a typed state and named steps. A step sends a command, or calls a function with a [`Tx`](crate::subscriber::Tx); it may name the replies that it waits for, and a
//! compensation. A [`Subscriber`](crate::Subscriber) runs it: [`Subscriber::saga`](crate::Subscriber::saga).
//!
//! # What it does
//!
//! - **Atomic**: state, inbox row and the events that are sent commit together. So a saga survives the end of its process at any point, and any number of replicas run it.
//! - **Undone in reverse**: when a step fails, the steps done before it are compensated, the last first. A compensation that fails is tried again, then recorded, and the others still
//!   run. A step that gave no answer may have taken effect, so it is compensated too.
//! - **Forward only behind a pivot**: see [`Saga::pivot`].
//! - **Told**: it ends as completed, compensated or failed; [`SagaEnded`] is published, [`Sagas`] and `tidings sagas` show it.
//! - **Harmless replies**: a reply is taken if the present step waits for its type and it was not caused by another step's command. Late and repeated ones are left out.
//! - **Deployable**: a run keeps the list of steps that it began with, by name; see [`Saga::version`] and [`Saga::retired`].
//!
//! # What it does not do
//!
//! There is no isolation: others see what the first steps did before the last one is done. [`Saga::locks`] keeps other sagas away from an aggregate, nobody else. A reply must carry the
//! correlation id of its command: handlers of Tidings do so by themselves, others copy the header `correlationid` (`ce_correlationid` in Kafka).

mod alarm;
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

pub(crate) use definition::Local;
pub use definition::{Saga, SagaState};
pub(crate) use drive::{Instance, World};
pub use ended::SagaEnded;
pub(crate) use machine::{CallFailed, Input, Shape};
#[cfg(feature = "metrics")]
pub use metrics::SagaMetrics;
pub use progress::{SagaStatus, StepFailure, UnknownSagaStatus};
#[cfg(feature = "cli")]
pub(crate) use registration::LIVE_SECONDS;
pub use sagas::{Decision, SagaRun, Sagas};
pub use statistics::{SagaStanding, SagaStatistics};
pub use subscribe::StartError;
