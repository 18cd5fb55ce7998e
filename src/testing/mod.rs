//! Test handlers, and what follows from their events, without Kafka.
//!
//! A [`TestBus`] runs subscribers with the same lanes, layers, retries and router as the real one. Events that handlers return go on to other subscribers until nothing is left to do;
//! pauses between attempts take no time. Without `.inbox(…)` it remembers and publishes in memory; with one, effect and events are in that Postgres.
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
//! What it does not do: partitions, rebalances, commits of offsets. An event that is parked waits in memory. `Tx` needs `.inbox(pool)` with a real database, whose outbox the bus reads in
//! place of a relay. The timeouts of a saga that is run here do not pass.

mod bus;
mod saga;

pub(crate) use bus::meta_of;
pub use bus::{TestBus, meta, tombstone};
pub use saga::SagaTest;
