//! Public interface of the outbox.

mod checks;
mod plan;

use std::borrow::Cow;
use std::sync::Arc;

use super::connection::Connection;
use super::insert::{Lock, Statements};
use super::{Draft, PublishError, Statement};
use crate::event::{AggregateId, DomainEvent, Envelope, EventId, Headers};
use crate::postgres::{SchemaName, SchemaNameError};
use crate::trace;

/// Publishes events in the caller's Postgres transaction. Cheap to clone: create one at startup and
/// share it.
///
/// # Examples
///
/// ```no_run
/// # use serde::{Deserialize, Serialize};
/// # use tidings::{DomainEvent, Outbox};
/// # #[derive(Serialize, Deserialize, DomainEvent)]
/// # #[event(aggregate = "order", id = "order_id")]
/// # struct OrderPlaced { order_id: i64 }
/// # async fn example(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
/// let outbox = Outbox::new().header("region", "eu-west-1");
///
/// let mut tx = pool.begin().await?;
/// outbox.publish(&mut tx, &OrderPlaced { order_id: 7 }).await?;
/// outbox
///     .event(&OrderPlaced { order_id: 8 })
///     .correlation_id("req-1")
///     .header("tenant", "acme")
///     .publish(&mut tx)
///     .await?;
/// outbox
///     .publish_all(&mut tx, &[OrderPlaced { order_id: 9 }, OrderPlaced { order_id: 10 }])
///     .await?;
/// tx.commit().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Outbox {
    statements: Result<Arc<Statements>, SchemaNameError>,
    lock: Lock,
    prepared: bool,
    max_event_bytes: usize,
    default_headers: Arc<Headers>,
    autocommit: bool,
}

impl Outbox {
    /// The default of [`max_event_bytes`](Self::max_event_bytes). With key and headers, such a
    /// record stays below the 1,048,588 bytes that Kafka's brokers accept by default
    /// (`message.max.bytes`).
    pub const MAX_EVENT_BYTES_DEFAULT: usize = 1_000_000;

    /// The maximum size of an event's headers, names and values together, in bytes. It is less than
    /// half of the 64 KiB of JSON that the table accepts, because JSON may need two bytes for one.
    pub const MAX_HEADER_BYTES: usize = 32_000;

    /// The maximum size of one call of [`publish_all`](Self::publish_all), in bytes. Postgres
    /// refuses a message of 1 GiB and holds several copies of a batch in memory.
    pub const MAX_BATCH_BYTES: usize = 256 * 1024 * 1024;

    /// The maximum number of aggregates that one call locks. A server with default settings has
    /// room for about 10,000 locks in all sessions together (`max_locks_per_transaction`). When
    /// they are used up, the statements of all sessions fail.
    pub const MAX_LOCKED_AGGREGATES: usize = 1_000;

    /// Creates an outbox for the schema `tidings`.
    pub fn new() -> Self {
        Self {
            statements: Ok(Arc::new(Statements::new(&SchemaName::default()))),
            lock: Lock::None,
            prepared: true,
            max_event_bytes: Self::MAX_EVENT_BYTES_DEFAULT,
            default_headers: Arc::default(),
            autocommit: false,
        }
    }

    /// Uses the outbox of another schema. Pass the name given to
    /// [`Migrations::schema`](crate::Migrations::schema).
    ///
    /// An invalid name is reported when an event is published.
    #[must_use]
    pub fn schema(mut self, name: impl AsRef<str>) -> Self {
        let prepared = self.prepared;
        self.statements = name
            .as_ref()
            .parse()
            .map(|schema| Arc::new(Statements::new(&schema).prepared(prepared)));
        self
    }

    /// Disables prepared statements, for a pooler that shares connections without support for them
    /// (PgBouncer in transaction mode before 1.21). The symptom is `prepared statement "sqlx_s_1"
    /// already exists`.
    ///
    /// Postgres then parses and plans the statement for each event. The application's own queries
    /// need `Query::persistent(false)` with such a pooler too.
    #[must_use]
    pub fn unprepared(mut self) -> Self {
        self.prepared = false;
        self.statements = self
            .statements
            .map(|statements| Arc::new(Arc::unwrap_or_clone(statements).prepared(false)));
        self
    }

    /// Locks the aggregate until the end of the transaction, before its event is numbered.
    ///
    /// Use it for writers that do not lock the aggregate themselves, e.g. because it has no row.
    /// Two transactions that publish for one aggregate are then serialized, and their events are in
    /// commit order. The lock is a transaction-scoped advisory lock. The insert statement takes it,
    /// so it needs no additional round trip.
    ///
    /// [`publish_all`](Self::publish_all) locks its aggregates in a fixed order, and at most
    /// [`MAX_LOCKED_AGGREGATES`](Self::MAX_LOCKED_AGGREGATES). Several calls in one transaction
    /// lock in the order of the calls. Two such transactions with opposite orders deadlock, and
    /// Postgres ends one of them with an error (SQLSTATE 40P01) that is safe to retry.
    #[must_use]
    pub fn serialize_aggregates(mut self) -> Self {
        self.lock = Lock::Aggregate;
        self
    }

    /// Sets the maximum size of a payload in bytes. Defaults to
    /// [`MAX_EVENT_BYTES_DEFAULT`](Self::MAX_EVENT_BYTES_DEFAULT).
    ///
    /// Raise it together with the topic's `max.message.bytes`. The table refuses more than 16 MiB.
    #[must_use]
    pub fn max_event_bytes(mut self, bytes: usize) -> Self {
        self.max_event_bytes = bytes;
        self
    }

    /// Adds a header to all events of this outbox. An event can override it.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        Arc::make_mut(&mut self.default_headers).insert(name, value);
        self
    }

    /// Allows publishing, scheduling and cancelling on a connection that is not in a transaction.
    /// Each call then commits by itself.
    ///
    /// Use it for an event that belongs to no change in this database. By default, such a call
    /// returns [`PublishError::NoTransaction`], because the caller usually meant to pass the
    /// transaction.
    ///
    /// ```no_run
    /// # use serde::{Deserialize, Serialize};
    /// # use tidings::{DomainEvent, Outbox};
    /// # #[derive(Serialize, Deserialize, DomainEvent)]
    /// # #[event(aggregate = "night", id = "night")]
    /// # struct NightBegan { night: String }
    /// # async fn example(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
    /// let clock = Outbox::new().allow_autocommit();
    /// let night = NightBegan { night: "2026-01-02".into() };
    /// clock.publish(&mut *pool.acquire().await?, &night).await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn allow_autocommit(mut self) -> Self {
        self.autocommit = true;
        self
    }

    /// Publishes an event in the transaction of `conn`. The event is published if and only if the
    /// transaction commits.
    ///
    /// Takes one round trip. `conn` is a transaction (`&mut tx`), or a connection with a
    /// transaction that was begun with SQL, which takes a second round trip. See the
    /// [module](crate::outbox) for why it is never a pool.
    ///
    /// # Errors
    ///
    /// Returns [`PublishError`]. An event that could never be delivered is refused before anything
    /// is sent, and the transaction can continue. Outside a transaction nothing is published
    /// ([`PublishError::NoTransaction`]).
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the event may or may not be part of the transaction. Roll it back.
    pub fn publish<'c, E: DomainEvent, C: Connection<'c>>(
        &self,
        conn: C,
        event: &E,
    ) -> C::Answer<EventId> {
        self.event(event).publish(conn)
    }

    /// Publishes any number of events with one statement. Returns their ids in the given order,
    /// which is also the order of their `seq`.
    ///
    /// Publishes all events or none, also with [`allow_autocommit`](Self::allow_autocommit). Sends
    /// nothing if the iterator is empty.
    ///
    /// # Errors
    ///
    /// Returns [`PublishError`]. Above [`MAX_BATCH_BYTES`](Self::MAX_BATCH_BYTES), split the events
    /// into several calls.
    ///
    /// # Cancel safety
    ///
    /// See [`publish`](Self::publish).
    pub fn publish_all<'c, 'e, E: DomainEvent, C: Connection<'c>>(
        &self,
        conn: C,
        events: impl IntoIterator<Item = &'e E>,
    ) -> C::Answer<Vec<EventId>> {
        let envelopes = events.into_iter().map(seal).collect::<Result<Vec<_>, _>>();
        conn.run(envelopes.and_then(|envelopes| self.insertions(&envelopes, Statement::into_owned)))
    }

    /// Starts an event that needs more than its data: headers, a topic, or its own time.
    pub fn event<E: DomainEvent>(&self, event: &E) -> Draft<'_> {
        Draft::new(Cow::Borrowed(self), seal(event))
    }

    /// Starts the tombstone of an aggregate of `E`. On a compacted topic, it deletes the records of
    /// the aggregate.
    ///
    /// ```no_run
    /// # use serde::{Deserialize, Serialize};
    /// # use tidings::{DomainEvent, Outbox};
    /// # #[derive(Serialize, Deserialize, DomainEvent)]
    /// # #[event(aggregate = "customer", id = "customer")]
    /// # struct CustomerChanged { customer: String }
    /// # async fn example(
    /// #     outbox: Outbox,
    /// #     mut tx: sqlx::PgTransaction<'_>,
    /// # ) -> Result<(), tidings::PublishError> {
    /// outbox.tombstone::<CustomerChanged>("c-7").publish(&mut tx).await?;
    /// # Ok(()) }
    /// ```
    pub fn tombstone<E: DomainEvent>(&self, aggregate_id: impl Into<String>) -> Draft<'_> {
        let envelope = AggregateId::new(aggregate_id)
            .map(|id| Envelope::tombstone(E::AGGREGATE, id))
            .map_err(|source| PublishError::invalid(Envelope::TOMBSTONE, source));
        Draft::new(Cow::Borrowed(self), envelope)
    }

    /// Publishes an envelope: a payload that was encoded elsewhere, or names that are known only at
    /// run time.
    ///
    /// # Errors
    ///
    /// See [`publish`](Self::publish).
    ///
    /// # Cancel safety
    ///
    /// See [`publish`](Self::publish).
    ///
    /// ```no_run
    /// use tidings::event::{AggregateId, Envelope, Payload};
    /// # async fn example(
    /// #     outbox: tidings::Outbox,
    /// #     mut tx: sqlx::PgTransaction<'_>,
    /// #     avro: Vec<u8>,
    /// # ) -> Result<(), Box<dyn std::error::Error>> {
    /// let id = AggregateId::new("7")?;
    /// let envelope = Envelope::new("order", id, "OrderPlaced", Payload::Bytes(avro));
    /// outbox.publish_envelope(&mut tx, &envelope).await?;
    /// # Ok(()) }
    /// ```
    pub fn publish_envelope<'c, C: Connection<'c>>(
        &self,
        conn: C,
        envelope: &'c Envelope,
    ) -> C::Answer<EventId> {
        conn.run(self.insertion(envelope, |statement| statement))
    }

    /// Publishes any number of envelopes with one statement. They may differ in type and headers.
    ///
    /// # Errors
    ///
    /// See [`publish_all`](Self::publish_all).
    ///
    /// # Cancel safety
    ///
    /// See [`publish`](Self::publish).
    pub fn publish_envelopes<'c, C: Connection<'c>>(
        &self,
        conn: C,
        envelopes: &'c [Envelope],
    ) -> C::Answer<Vec<EventId>> {
        conn.run(self.insertions(envelopes, |statement| statement))
    }
}

// === impl Outbox ===

impl Default for Outbox {
    fn default() -> Self {
        Self::new()
    }
}

pub(crate) fn seal<E: DomainEvent>(event: &E) -> Result<Envelope, PublishError> {
    let mut envelope =
        Envelope::of(event).map_err(|error| PublishError::envelope(event.event_type(), error))?;
    trace::inject(&mut envelope.headers);
    Ok(envelope)
}
