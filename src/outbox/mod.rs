//! Publishing of events in the transaction that changes the aggregate.
//!
//! [`Outbox::publish`] inserts a row into the table `outbox` on the caller's connection. The event
//! therefore exists if and only if the transaction commits: no event without its change, no change
//! without its event, whether Kafka is available or not. A relay publishes the committed rows to
//! Kafka.
//!
//! ```no_run
//! use serde::{Deserialize, Serialize};
//! use tidings::{DomainEvent, Outbox};
//!
//! #[derive(Serialize, Deserialize, DomainEvent)]
//! #[event(aggregate = "order", id = "order_id")]
//! struct OrderPlaced { order_id: i64, total_cents: i64 }
//!
//! # async fn example(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
//! let outbox = Outbox::new();
//! let mut tx = pool.begin().await?;
//! sqlx::query("insert into orders (id, total_cents) values ($1, $2)")
//!     .bind(7_i64)
//!     .bind(1999_i64)
//!     .execute(&mut *tx)
//!     .await?;
//! outbox
//!     .publish(&mut tx, &OrderPlaced { order_id: 7, total_cents: 1999 })
//!     .await?;
//! tx.commit().await?;
//! # Ok(()) }
//! ```
//!
//! # A connection, never a pool
//!
//! All functions take `&mut PgConnection`. A reference to a transaction, a pooled connection or a
//! plain connection coerces to it. A pool does not, deliberately: it would run the insert on some
//! other connection, outside the caller's transaction, and the event would be published even if the
//! change is rolled back.
//!
//! For the same reason, a connection that is not in a transaction is refused
//! ([`PublishError::NoTransaction`]). This check is free for sqlx's own transactions. It takes one
//! round trip if the transaction was begun with SQL. [`Outbox::allow_autocommit`] disables it.
//!
//! # Order
//!
//! Events of one aggregate reach Kafka in the order of their transactions, provided that each
//! transaction *locks the aggregate, then publishes*. An `update` or a `select … for update` of
//! the aggregate's row is such a lock. If the aggregate has no row, use
//! [`Outbox::serialize_aggregates`].
//!
//! # Publishing from SQL
//!
//! The table is part of the interface. Any language, trigger or `psql` session can publish with one
//! insert:
//!
//! ```sql
//! insert into tidings.outbox (aggregatetype, aggregateid, type, payload)
//! values ('order', '7', 'OrderPlaced', '{"order_id": 7, "total_cents": 1999}');
//! ```
//!
//! All other columns have defaults: a UUIDv7 `id`, `version` 1, no `headers`, the current time as
//! `occurred_at`, no `topic`. The database assigns `seq` and `xid`. Set `payload_bytes` rather than
//! `payload` for Avro or Protobuf, or neither for a tombstone. Check constraints refuse empty and
//! oversized values. `docs/publishing.md` describes every column, the grants, and the lock to take
//! from SQL.

pub(crate) mod connection;
mod draft;
pub(crate) mod driver;
mod error;
mod insert;
mod publish;
#[cfg(feature = "subscriber")]
mod read;
mod scheduled;
mod statement;

pub use connection::Connection;
pub use draft::Draft;
pub use error::PublishError;
#[cfg(feature = "relay")]
pub(crate) use insert::COLUMNS;
pub use publish::Outbox;
#[cfg(feature = "subscriber")]
pub(crate) use publish::seal;
#[cfg(feature = "subscriber")]
pub(crate) use read::{Seen, move_scheduled, published_since, scheduled};
pub use statement::{Parameter, Statement};
