//! Publish events in the transaction that changes the aggregate.
//!
//! [`Outbox::publish`] inserts a row into the table `outbox` on the caller's own connection. So the event exists if and only if the transaction
//! commits: no event without its change, no change without its event, whether Kafka is up or not. A relay moves committed rows to Kafka later.
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
//! sqlx::query("insert into orders (id, total_cents) values ($1, $2)").bind(7_i64).bind(1999_i64).execute(&mut *tx).await?;
//! outbox.publish(&mut tx, &OrderPlaced { order_id: 7, total_cents: 1999 }).await?;
//! tx.commit().await?;
//! # Ok(()) }
//! ```
//!
//! # A connection, never a pool
//!
//! Every function here takes `&mut PgConnection`. A transaction, a pooled connection and a plain connection all turn into one by `&mut`. A pool
//! does not, on purpose: it would run the insert on some other connection, outside the caller's transaction, and the event would be
//! published even if the change is rolled back.
//!
//! For the same reason a connection that is in no transaction is refused ([`PublishError::NoTransaction`]). For sqlx's own transactions this costs
//! nothing; on a connection where a transaction was begun by SQL it costs a round trip. [`Outbox::allow_autocommit`] allows it.
//!
//! # Order
//!
//! Events of one aggregate reach Kafka in the order in which their transactions took effect, provided that each *locks the aggregate, then
//! publishes*. An `update` or `select … for update` of the aggregate's row is such a lock. Where there is no such row,
//! [`Outbox::serialize_aggregates`] takes a lock for you.
//!
//! # From SQL
//!
//! The table is the interface. Any language, trigger or `psql` publishes by one insert:
//!
//! ```sql
//! insert into tidings.outbox (aggregatetype, aggregateid, type, payload)
//! values ('order', '7', 'OrderPlaced', '{"order_id": 7, "total_cents": 1999}');
//! ```
//!
//! Everything else has a default: a UUIDv7 `id`, `version` 1, no `headers`, the present as `occurred_at`, no `topic`. `seq` and `xid` are
//! the database's to fill. Set `payload_bytes` in place of `payload` for Avro or Protobuf, or neither for a tombstone. The table's checks refuse what
//! is empty or too large. `docs/publishing.md` has every column, the grants, and the lock to take from SQL.

mod draft;
mod error;
mod insert;
mod publish;
#[cfg(feature = "subscriber")]
mod read;
mod scheduled;

pub use draft::Draft;
pub use error::PublishError;
#[cfg(feature = "relay")]
pub(crate) use insert::COLUMNS;
pub use publish::Outbox;
#[cfg(feature = "subscriber")]
pub(crate) use read::{Seen, move_scheduled, published_since, scheduled};
