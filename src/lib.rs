//! An event bus for services that own a Postgres database: a transactional outbox, and a relay that moves committed events to Kafka.
//!
//! A service inserts its event by the transaction that changes its data. So the event exists if and only if the change does, whether
//! Kafka is up or not. A relay, `tidings relay`, sends each committed event to Kafka: exactly once for readers of committed
//! records, keyed by aggregate, each aggregate's events in order. It streams the write-ahead log, and reads the table while it is behind.
//!
//! # Publish
//!
//! ```no_run
//! # #[cfg(feature = "outbox")]
//! # mod shop {
//! use serde::{Deserialize, Serialize};
//! use sqlx::PgPool;
//! use tidings::{DomainEvent, Outbox};
//!
//! #[derive(Serialize, Deserialize, DomainEvent)]
//! #[event(aggregate = "order", id = "order_id")]
//! struct OrderCancelled {
//!     order_id: i64,
//! }
//!
//! async fn cancel(pool: &PgPool, outbox: &Outbox, order_id: i64) -> Result<(), Box<dyn std::error::Error>> {
//!     let mut tx = pool.begin().await?;
//!     // The update locks the order's row, so this order's events have the order of its changes.
//!     sqlx::query("update orders set cancelled = true where id = $1").bind(order_id).execute(&mut *tx).await?;
//!     outbox.publish(&mut tx, &OrderCancelled { order_id }).await?;
//!     tx.commit().await?;
//!     Ok(())
//! }
//!
//! async fn start() -> Result<(PgPool, Outbox), Box<dyn std::error::Error>> {
//!     let pool = PgPool::connect("postgres://localhost/shop").await?;
//!     tidings::migrate(&pool).await?; // creates the schema `tidings`; does nothing when it is there
//!     Ok((pool, Outbox::new()))
//! }
//! # }
//! ```
//!
//! [`DomainEvent`](trait@event::DomainEvent) names the event and its aggregate. The module `outbox` has the rest: several events by one statement, headers, topics,
//! tombstones, and the lock for aggregates without a row. Any other language publishes by an `insert`.
//!
//! # Relay
//!
//! The binary is the usual way to run one: `tidings relay`, beside each database, two of them for a quick take-over. As a library it is `relay::Relay`:
//!
//! ```no_run
//! # #[cfg(feature = "relay")]
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use tidings::relay::{Relay, RelayOptions};
//! use tidings::{kafka, postgres};
//! use tokio_util::sync::CancellationToken;
//!
//! let database = postgres::Settings::parse("postgres://relay@localhost/shop")?;
//! let brokers = kafka::Settings { brokers: "localhost:9092".into(), ..Default::default() };
//! let shutdown = CancellationToken::new(); // cancel it: the relay drains and returns
//! Relay::new(RelayOptions::new(database, brokers))?.run(shutdown).await?;
//! # Ok(()) }
//! ```
//!
//! # Subscribe
//!
//! ```no_run
//! # #[cfg(feature = "subscriber")]
//! # mod inventory {
//! # use serde::{Deserialize, Serialize};
//! use tidings::subscriber::{Event, HandlerError, Tx};
//! # use tidings::DomainEvent;
//! # #[derive(Serialize, Deserialize, DomainEvent)]
//! # #[event(aggregate = "order", id = "order_id")]
//! # struct OrderPlaced { order_id: i64 }
//!
//! async fn reserve(Event(order): Event<OrderPlaced>, mut tx: Tx) -> Result<(), HandlerError> {
//!     sqlx::query("insert into reservation (order_id) values ($1)").bind(order.order_id).execute(&mut *tx).await?;
//!     Ok(()) // effect, inbox row and published events commit together, once
//! }
//!
//! # async fn start(bus: tidings::Bus, pool: sqlx::PgPool, shutdown: tokio_util::sync::CancellationToken) -> Result<(), tidings::subscriber::RunError> {
//! bus.subscriber("inventory").on(reserve).inbox(pool).run(shutdown).await
//! # }
//! # }
//! ```
//!
//! # Features
//!
//! | feature | gives | needs to build |
//! |---|---|---|
//! | none | [`event`], [`DomainEvent`](trait@event::DomainEvent) | Rust |
//! | `outbox` | `outbox`, `postgres`, [`event`] | the same and a C compiler, for TLS to Postgres |
//! | `kafka` | `kafka` | a C and C++ compiler and make, for librdkafka |
//! | `resilience` (default) | `resilience` | Rust |
//! | `health` | `health` | Rust |
//! | `metrics` | metrics of `subscriber`, `saga` and `resilience` for `prometheus-client` | Rust |
//! | `relay` | `relay`, with `outbox` and `kafka` | the same |
//! | `subscriber` | `subscriber`, `saga`, `testing`, with `outbox` and `kafka` | the same |
//! | `cli` (default) | the binary, `admin`, with `relay` and `subscriber` | the same |
//! | `kafka-tls` (default) | TLS and SASL/SCRAM to Kafka | OpenSSL's headers and pkg-config |
//! | `kafka-tls-vendored` | the same, OpenSSL built from source | Perl and make |
//!
//! A service that only publishes: `tidings = { version = "0.1", default-features = false, features = ["outbox"] }`.
//!
//! # Modules, in reading order
//!
//! 1. [`event`]: what an event is. No I/O.
//! 2. `outbox`: publish in the caller's transaction.
//! 3. `postgres`: settings, migrations, the replication protocol.
//! 4. `kafka`: the only part that names librdkafka: settings, producer, envelopes, topics.
//! 5. `relay`: from the log to the topic.
//! 6. `subscriber`: from the topic to handlers, and their effect.
//! 7. `saga`: steps over several services, and how they are undone.
//! 8. `testing`: subscribers and sagas without Kafka.
//! 9. `resilience`: retry, circuit breaker, bulkhead and timeout around calls that can fail.
//! 10. `health`: is a service alive, is it ready; named checks, over HTTP.
//! 11. `admin`: a relay's health and metrics over HTTP.
//!
//! What is guaranteed, and by which test, is in `docs/guarantees.md`; records are described in `docs/wire-format.md`, running a relay in `docs/operating.md`.

// `cli/output.rs` and `cli/stderr.rs` write without panics and delays; nothing else writes to the standard streams.
#![deny(clippy::print_stdout, clippy::print_stderr)]

#[cfg(feature = "cli")]
pub mod admin;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
pub mod event;
#[cfg(any(feature = "relay", feature = "subscriber"))]
mod failpoint;
#[cfg(feature = "health")]
pub mod health;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "cli")]
mod operator;
#[cfg(feature = "outbox")]
pub mod outbox;
#[cfg(feature = "outbox")]
pub mod postgres;
#[cfg(feature = "relay")]
pub mod relay;
#[cfg(feature = "resilience")]
pub mod resilience;
#[cfg(feature = "subscriber")]
pub mod saga;
#[cfg(feature = "subscriber")]
pub mod subscriber;
#[cfg(feature = "subscriber")]
pub mod testing;

pub use event::DomainEvent;
#[cfg(feature = "outbox")]
pub use outbox::{Outbox, PublishError};
#[cfg(feature = "outbox")]
pub use postgres::{MigrateError, Migrations, migrate};
#[cfg(feature = "subscriber")]
pub use subscriber::{Bus, Subscriber, debug_handler};

#[cfg(all(any(test, fuzzing), feature = "relay"))]
#[doc(hidden)]
pub mod fuzzing;

// The derive macro names the crate by this path, inside it too.
extern crate self as tidings;

/// Compiles the README's examples.
#[cfg(all(doctest, feature = "subscriber"))]
#[doc = include_str!("../README.md")]
struct Readme;
