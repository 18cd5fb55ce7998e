//! Event bus for services that own a Postgres database: a transactional outbox, a relay that
//! publishes committed events to Kafka, and subscribers that handle them.
//!
//! A service inserts its event in the transaction that changes its data, so the event exists if and
//! only if the change does, whether or not Kafka is available. A relay (`tidings relay`) publishes
//! each committed event to Kafka. Readers of committed records see each event exactly once. The
//! record key is the aggregate's id, and the events of one aggregate keep their order. The relay
//! streams the write-ahead log, and reads the table while it lags behind.
//!
//! # Publish
//!
//! ```no_run
//! # #[cfg(feature = "sqlx")]
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
//! async fn cancel(
//!     pool: &PgPool,
//!     outbox: &Outbox,
//!     order_id: i64,
//! ) -> Result<(), Box<dyn std::error::Error>> {
//!     let mut tx = pool.begin().await?;
//!     // The update locks the order's row, so its events are in the order of its changes.
//!     sqlx::query("update orders set cancelled = true where id = $1")
//!         .bind(order_id)
//!         .execute(&mut *tx)
//!         .await?;
//!     outbox.publish(&mut tx, &OrderCancelled { order_id }).await?;
//!     tx.commit().await?;
//!     Ok(())
//! }
//!
//! async fn start() -> Result<(PgPool, Outbox), Box<dyn std::error::Error>> {
//!     let pool = PgPool::connect("postgres://localhost/shop").await?;
//!     tidings::migrate(&pool).await?; // creates the schema `tidings` unless it exists
//!     Ok((pool, Outbox::new()))
//! }
//! # }
//! ```
//!
//! [`DomainEvent`](trait@event::DomainEvent) defines the type of the event and its aggregate. The
//! module `outbox` documents the rest: several events in one statement, headers, topics,
//! tombstones, and the lock for aggregates without a row. Programs in other languages publish with
//! an `insert`.
//!
//! # Relay
//!
//! The usual way to run a relay is the binary: `tidings relay` for each database, in two instances
//! for a quick failover. As a library, use `relay::Relay`:
//!
//! ```no_run
//! # #[cfg(feature = "relay")]
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use tidings::relay::{Relay, RelayOptions};
//! use tidings::{kafka, postgres};
//! use tokio_util::sync::CancellationToken;
//!
//! let database = postgres::DatabaseSettings::parse("postgres://relay@localhost/shop")?;
//! let brokers = kafka::Settings { brokers: "localhost:9092".into(), ..Default::default() };
//! let shutdown = CancellationToken::new(); // when it is cancelled, the relay drains and returns
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
//!     sqlx::query("insert into reservation (order_id) values ($1)")
//!         .bind(order.order_id)
//!         .execute(&mut *tx)
//!         .await?;
//!     Ok(()) // the effect, the inbox row and published events commit together, once
//! }
//!
//! # async fn start(
//! #     bus: tidings::Bus,
//! #     pool: sqlx::PgPool,
//! #     shutdown: tokio_util::sync::CancellationToken,
//! # ) -> Result<(), tidings::subscriber::RunError> {
//! bus.subscriber("inventory").on(reserve).inbox(pool).run(shutdown).await
//! # }
//! # }
//! ```
//!
//! # Features
//!
//! | feature | provides | build requirements |
//! |---|---|---|
//! | none | [`event`], [`DomainEvent`](trait@event::DomainEvent) | Rust |
//! | `outbox` | `outbox`, which makes statements for any driver | Rust |
//! | `sqlx` | `outbox` on sqlx, `postgres`, migrations | Rust and a C compiler, for TLS |
//! | `tokio-postgres`, `diesel-async` | `outbox` on that driver | Rust |
//! | `diesel`, `sea-orm` | `outbox` on that driver | those of the driver |
//! | `kafka` | `kafka` | a C and C++ compiler and make, for librdkafka |
//! | `resilience` (default) | `resilience` | Rust |
//! | `health` | `health` | Rust |
//! | `metrics` | metrics for `prometheus-client` (1) | Rust |
//! | `relay` | `relay`, with `sqlx` and `kafka` | those of `sqlx` and `kafka` |
//! | `subscriber` | `subscriber`, `saga`, `testing` (2) | those of `sqlx` and `kafka` |
//! | `otel` | traces of OpenTelemetry through publishers, relay and handlers | Rust |
//! | `cli` (default) | the binary, `admin` (3) | those of `sqlx` and `kafka` |
//! | `otlp` | the relay of the binary exports spans | those of `cli` |
//! | `try` (default) | `tidings try`; it includes `cli` | those of `cli` |
//! | `kafka-tls` (default) | TLS and SASL/SCRAM to Kafka | OpenSSL's headers and pkg-config |
//! | `kafka-tls-vendored` | the same, with OpenSSL built from source | Perl and make |
//!
//! 1. Metrics of `subscriber`, `saga` and `resilience`.
//! 2. It includes `sqlx` and `kafka`.
//! 3. It includes `relay`, `subscriber`, `health` and `metrics`.
//!
//! A service that only publishes needs
//! `tidings = { version = "0.1", default-features = false, features = ["sqlx"] }`.
//!
//! # Modules
//!
//! In reading order:
//!
//! 1. [`event`]: events and their encoding. No I/O.
//! 2. `outbox`: publishing in the caller's transaction.
//! 3. `postgres`: settings, migrations and the replication protocol.
//! 4. `kafka`: settings, producer, envelopes and topics. The only module that uses librdkafka.
//! 5. `relay`: the path of events from the write-ahead log to the topics.
//! 6. `subscriber`: the path of events from the topics to the handlers and their effects.
//! 7. `saga`: processes of several steps across services, and their compensation.
//! 8. `testing`: tests of subscribers and sagas without Kafka.
//! 9. `resilience`: retry, circuit breaker, bulkhead and timeout for calls that can fail.
//! 10. `health`: liveness and readiness over HTTP, from named checks.
//! 11. `admin`: health and metrics of a relay over HTTP.
//!
//! `docs/guarantees.md` lists the guarantees and the tests that prove them. `docs/wire-format.md`
//! describes the records, and `docs/operating.md` the operation of a relay.

// `cli/output.rs` and `cli/stderr.rs` write without panics and delays. No other module writes to
// the standard streams.
#![deny(clippy::print_stdout, clippy::print_stderr)]
// Labels of features on docs.rs.
#![cfg_attr(docsrs, feature(doc_cfg))]
// The runtime of a test owns its tasks, and ends with the test.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

#[cfg(feature = "cli")]
pub mod admin;
#[cfg(any(feature = "relay", feature = "subscriber", feature = "resilience"))]
mod backoff;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
#[cfg(feature = "cli")]
mod console;
#[cfg(feature = "cli")]
mod escape;
pub mod event;
#[cfg(any(feature = "relay", feature = "subscriber"))]
mod failpoint;
#[cfg(feature = "kafka")]
mod fnv;
#[cfg(feature = "health")]
pub mod health;
#[cfg(feature = "cli")]
mod inspect;
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
#[cfg(any(feature = "relay", feature = "subscriber"))]
mod task;
#[cfg(feature = "subscriber")]
pub mod testing;
#[cfg(feature = "outbox")]
mod trace;

/// The comparison of `tidings verify`, for programs that read their records themselves.
#[cfg(feature = "cli")]
#[doc(hidden)]
pub use inspect::proof::history as verification;

pub use event::DomainEvent;
#[cfg(feature = "outbox")]
pub use outbox::{Outbox, PublishError};
#[cfg(feature = "sqlx")]
pub use postgres::{MigrateError, Migrations, migrate};
#[cfg(feature = "subscriber")]
pub use subscriber::{Bus, Subscriber, debug_handler};

#[cfg(all(any(test, fuzzing), feature = "relay"))]
#[doc(hidden)]
pub mod fuzzing;

// The derive macro refers to the crate by this path, also within the crate itself.
extern crate self as tidings;

/// Compiles the README's examples.
#[cfg(all(doctest, feature = "subscriber"))]
#[doc = include_str!("../README.md")]
struct Readme;
