//! Test handlers, and what follows from their events, without Kafka.
//!
//! A [`TestBus`] runs subscribers with the same lanes, batches, layers, retries and router as the real one. Events that handlers return go on to other subscribers until nothing is left
//! to do; pauses between attempts take no time.
//!
//! ```
//! # use serde::{Deserialize, Serialize};
//! # use tidings::DomainEvent;
//! # use tidings::subscriber::{Event, HandlerError};
//! use tidings::testing::TestBus;
//!
//! # #[derive(Serialize, Deserialize, DomainEvent)]
//! # #[event(aggregate = "order", id = "order_id")]
//! # struct OrderPlaced { order_id: i64 }
//! # #[derive(Serialize, Deserialize, DomainEvent)]
//! # #[event(aggregate = "stock", id = "order_id")]
//! # struct StockReserved { order_id: i64 }
//! async fn reserve(Event(order): Event<OrderPlaced>) -> Result<StockReserved, HandlerError> {
//!     Ok(StockReserved { order_id: order.order_id })
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let mut bus = TestBus::new();
//! bus.add(bus.subscriber("inventory").on(reserve)).await;
//! bus.publish(&OrderPlaced { order_id: 7 });
//! bus.settle().await;
//! bus.assert_published::<StockReserved>(|reserved| reserved.order_id == 7);
//! # }
//! ```
//!
//! A handler is a function, so a test may also just call it: [`meta`] makes its `Meta`, [`Tx::begin`](crate::subscriber::Tx::begin) its transaction.
//!
//! A saga is tested by itself, step by step and with a time of its own: [`Saga::given`](crate::saga::Saga::given).
//!
//! # Time
//!
//! Time is virtual: when all that is under way pauses, it passes to the end of the next pause, or to the next scheduled event. The amount is bounded:
//! [`TestBus::settle`] returns or panics with the reason, and [`TestBus::try_settle`] returns the reason. Time-outs of tower layers and of handlers are real.
//!
//! # Differences to production
//!
//! One suite of scenarios runs on this bus and on real services (`tests/it/testing/`), and its outcomes are the same. These differences are intended:
//!
//! - **Time** passes only while nothing else can happen. The time-outs of a saga that runs here do not pass; [`Saga::given`](crate::saga::Saga::given) has a time of its own for them.
//! - **The inbox**: handlers that return events need `.inbox(…)` in production. Here such a subscriber may do without one: it remembers and publishes in memory. Handlers
//!   that take `Tx` need a database, whose outbox and scheduled events the bus reads in place of a relay. What is in it when the subscriber is added is left alone.
//! - **Topics** need not exist. An event that names no topic is in the topic that each subscriber reads for its aggregate: the one of `.topic(…)`, the first of several, or the
//!   aggregate's name. So the relay's `topic` setting and `.topic(…)` cannot disagree here, and they must agree in production.
//! - **Partitions**: a topic has as many as the largest group has members, or [`partitions`](TestBus::partitions). A partition stays with its member: nothing is rebalanced,
//!   no member leaves, no offset is committed.
//! - **An event that is parked** waits in memory on its own lane. Later events of its aggregate wait behind it, and are not parked and not counted as `detoured`.
//! - **A type that only another member of the group handles** goes to that member at once, where a member with an inbox would hold it in production.
//! - **Retry topics and dead letters** are kept in memory, of any size. Messages of the broker do not fail. [`TestBus::dead_letters`] has the reasons.
//! - **What [`TestBus::publish`] refuses** (by a panic) is what an [`Outbox`](crate::Outbox) refuses, payloads of more than 1,000,000 bytes among it. A returned event of that size is a dead letter here and there.
//! - **A batch** holds the events that wait when it starts, up to `.batch(n)`. In production the first event of a burst may start alone.
//! - **A handler that never ends** is waited for, and reported after a minute of real time.

mod bus;
mod groups;
mod outboxes;
mod saga;
mod settle;

pub(crate) use bus::meta_of;
pub use bus::{TestBus, meta, tombstone};
pub use saga::SagaTest;
pub use settle::Unsettled;
