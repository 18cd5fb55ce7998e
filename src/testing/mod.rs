//! Tests of handlers and sagas, and of the events that follow, without Kafka.
//!
//! A [`TestBus`] runs subscribers with the same lanes, batches, layers, retries and router as the
//! real bus. Events that handlers return are delivered to the other subscribers until no event is
//! left. Pauses between attempts take no real time.
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
//! A handler is a function, so a test may also call it directly. [`meta`] creates its `Meta`, and
//! [`Tx::begin`](crate::subscriber::Tx::begin) creates its transaction.
//!
//! A saga is tested separately, step by step and with its own clock: see
//! [`Saga::given`](crate::saga::Saga::given).
//!
//! # Time
//!
//! Time is virtual. When all running events pause, the clock advances to the end of the next pause
//! or to the next scheduled event. The amount is bounded: [`TestBus::settle`] returns, or panics
//! with the reason, and [`TestBus::try_settle`] returns the reason. Timeouts of tower layers and of
//! handlers use real time.
//!
//! # Differences to production
//!
//! One suite of scenarios runs on this bus and on real services (`tests/it/testing/`), with the
//! same outcomes. These differences are intended:
//!
//! - **Time** advances only while nothing else can happen. The timeouts of a saga that runs on this
//!   bus never expire. [`Saga::given`](crate::saga::Saga::given) has its own clock for them.
//! - **The inbox**: in production, handlers that return events need `.inbox(…)`. Here such a
//!   subscriber may omit it; the bus then deduplicates and publishes in memory. Handlers that take
//!   `Tx` need a database. The bus reads its outbox and its scheduled events in place of a relay.
//!   Events that exist when the subscriber is added are ignored.
//! - **Topics** need not exist. An event that names no topic is in the topic that each subscriber
//!   reads for its aggregate: the topic set with `.topic(…)`, the first of several, or the
//!   aggregate's name. The relay's `topic` setting and `.topic(…)` therefore cannot disagree here,
//!   but they must agree in production.
//! - **Partitions**: each topic has as many partitions as the largest group has members, or the
//!   number set with [`partitions`](TestBus::partitions). A partition stays with its member: there
//!   is no rebalance, no member leaves, and no offset is committed.
//! - **A parked event** waits in memory on its own lane. Later events of its aggregate wait behind
//!   it; they are not parked and not counted as `parked`.
//! - **A type that only another member of the group handles** is delivered to that member at once.
//!   In production, a member with an inbox would hold the event.
//! - **Retry topics and dead letters** are kept in memory without a size limit. The simulated
//!   broker never fails. [`TestBus::dead_letters`] returns the reasons.
//! - **[`TestBus::publish`] refuses** (with a panic) what an [`Outbox`](crate::Outbox) refuses,
//!   including payloads of more than 1,000,000 bytes. A returned event of that size becomes a dead
//!   letter, as in production.
//! - **A batch** contains the events that wait when it starts, up to `.batch(n)`. In production,
//!   the first event of a burst may start alone.
//! - **A handler that never ends** is reported after a minute of real time.

mod bus;
mod groups;
mod outboxes;
mod saga;
mod settle;

pub(crate) use bus::meta_of;
pub use bus::{TestBus, meta, tombstone};
pub use saga::SagaTest;
pub use settle::Unsettled;
