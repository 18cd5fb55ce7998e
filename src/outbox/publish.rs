//! Public interface of the outbox.

use std::collections::HashSet;
use std::sync::Arc;

use sqlx::{Connection as _, Executor as _, PgConnection};

use super::insert::{Lock, Statements};
use super::scheduled::{self, Terms};
use super::{Draft, PublishError};
use crate::event::{AggregateId, DomainEvent, Envelope, EventId, Headers};
use crate::postgres::{SchemaName, SchemaNameError, errors::cleaned};

/// SQLSTATE of a savepoint outside a transaction.
const NO_TRANSACTION: &str = "25P01";

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
            statements: Ok(Arc::new(Statements::new(SchemaName::default()))),
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
            .map(|schema| Arc::new(Statements::new(schema).prepared(prepared)));
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
    pub async fn publish<E: DomainEvent>(
        &self,
        conn: &mut PgConnection,
        event: &E,
    ) -> Result<EventId, PublishError> {
        self.publish_envelope(conn, &seal(event)?).await
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
    pub async fn publish_all<'e, E: DomainEvent>(
        &self,
        conn: &mut PgConnection,
        events: impl IntoIterator<Item = &'e E>,
    ) -> Result<Vec<EventId>, PublishError> {
        let envelopes = events
            .into_iter()
            .map(seal)
            .collect::<Result<Vec<_>, _>>()?;
        self.publish_envelopes(conn, &envelopes).await
    }

    /// Starts an event that needs more than its data: headers, a topic, or its own time.
    pub fn event<E: DomainEvent>(&self, event: &E) -> Draft<'_> {
        Draft::new(self, seal(event))
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
        Draft::new(self, envelope)
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
    pub async fn publish_envelope(
        &self,
        conn: &mut PgConnection,
        envelope: &Envelope,
    ) -> Result<EventId, PublishError> {
        let statements = self.statements.as_ref().map_err(Clone::clone)?;
        self.check(envelope)?;
        self.require_transaction(conn).await?;
        statements
            .insert(conn, envelope, &self.default_headers, self.lock)
            .await
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
    pub async fn publish_envelopes(
        &self,
        conn: &mut PgConnection,
        envelopes: &[Envelope],
    ) -> Result<Vec<EventId>, PublishError> {
        let statements = self.statements.as_ref().map_err(Clone::clone)?;
        envelopes
            .iter()
            .try_for_each(|envelope| self.check(envelope))?;
        let bytes = envelopes
            .iter()
            .map(|envelope| envelope.payload.len() + envelope.headers.byte_len())
            .sum();
        if bytes > Self::MAX_BATCH_BYTES {
            return Err(PublishError::BatchTooLarge {
                bytes,
                max: Self::MAX_BATCH_BYTES,
            });
        }
        if self.lock == Lock::Aggregate {
            check_aggregate_count(envelopes)?;
        }
        if !envelopes.is_empty() {
            self.require_transaction(conn).await?;
        }
        statements
            .insert_all(conn, envelopes, &self.default_headers, self.lock)
            .await
    }

    /// Stores an envelope for later publication.
    pub(super) async fn schedule(
        &self,
        conn: &mut PgConnection,
        envelope: &Envelope,
        terms: Terms,
    ) -> Result<EventId, PublishError> {
        let place = self.schema_and_preparation()?;
        self.check(envelope)?;
        self.require_transaction(conn).await?;
        scheduled::insert(conn, place, envelope, &self.default_headers, terms).await
    }

    pub(super) fn schema_and_preparation(&self) -> Result<(&SchemaName, bool), PublishError> {
        Ok(self
            .statements
            .as_ref()
            .map_err(Clone::clone)?
            .schema_and_preparation())
    }

    /// Refuses a connection that is not in a transaction. sqlx tracks the transactions that it has
    /// begun, so the check is free for them. To detect a transaction that was begun with SQL, this
    /// sets a savepoint, which the server refuses outside a transaction. It has no other effect.
    pub(super) async fn require_transaction(
        &self,
        conn: &mut PgConnection,
    ) -> Result<(), PublishError> {
        if self.autocommit || conn.is_in_transaction() {
            return Ok(());
        }
        match conn
            .execute("savepoint tidings_publish; release savepoint tidings_publish")
            .await
        {
            Ok(_) => Ok(()),
            Err(error)
                if error
                    .as_database_error()
                    .and_then(|error| error.code())
                    .as_deref()
                    == Some(NO_TRANSACTION) =>
            {
                Err(PublishError::NoTransaction)
            }
            Err(error) => Err(PublishError::Database(cleaned(error))),
        }
    }

    /// Refuses an event that could never be delivered.
    pub(crate) fn check(&self, envelope: &Envelope) -> Result<(), PublishError> {
        let event_type = || envelope.event_type.clone().into_owned();
        let invalid = |source| PublishError::Invalid {
            event_type: event_type(),
            source,
        };
        envelope.check().map_err(invalid)?;
        self.default_headers.check().map_err(invalid)?;
        let (bytes, max) = (envelope.payload.len(), self.max_event_bytes);
        if bytes > max {
            return Err(PublishError::PayloadTooLarge {
                event_type: event_type(),
                bytes,
                max,
            });
        }
        let (bytes, max) = (
            envelope.headers.byte_len() + self.default_headers.byte_len(),
            Self::MAX_HEADER_BYTES,
        );
        if bytes > max {
            return Err(PublishError::HeadersTooLarge {
                event_type: event_type(),
                bytes,
                max,
            });
        }
        Ok(())
    }
}

// === impl Outbox ===

impl Default for Outbox {
    fn default() -> Self {
        Self::new()
    }
}

fn seal<E: DomainEvent>(event: &E) -> Result<Envelope, PublishError> {
    Envelope::of(event).map_err(|error| PublishError::envelope(event.event_type(), error))
}

fn check_aggregate_count(envelopes: &[Envelope]) -> Result<(), PublishError> {
    let aggregates: HashSet<_> = envelopes
        .iter()
        .map(|envelope| (&envelope.aggregate_type, &envelope.aggregate_id))
        .collect();
    let (count, max) = (aggregates.len(), Outbox::MAX_LOCKED_AGGREGATES);
    if count > max {
        return Err(PublishError::TooManyAggregates { count, max });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{InvalidEvent, Payload};

    fn envelope(payload: Payload) -> Envelope {
        Envelope::new(
            "order",
            AggregateId::new("7").expect("a valid id"),
            "OrderPlaced",
            payload,
        )
    }

    #[test]
    fn an_event_larger_than_a_record_may_be_is_refused() {
        let outbox = Outbox::new().max_event_bytes(3);
        assert!(outbox.check(&envelope(Payload::Bytes(vec![0; 3]))).is_ok());
        let error = outbox
            .check(&envelope(Payload::Bytes(vec![0; 4])))
            .expect_err("four bytes of three");
        assert!(
            matches!(
                error,
                PublishError::PayloadTooLarge {
                    bytes: 4,
                    max: 3,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn headers_are_counted_together_with_the_outboxs_own() {
        let outbox = Outbox::new().header("h", "x".repeat(Outbox::MAX_HEADER_BYTES / 2));
        let mut event = envelope(Payload::Tombstone);
        assert!(outbox.check(&event).is_ok());
        event
            .headers
            .insert("i", "x".repeat(Outbox::MAX_HEADER_BYTES / 2));
        assert!(matches!(
            outbox.check(&event),
            Err(PublishError::HeadersTooLarge { .. })
        ));
    }

    #[test]
    fn a_default_header_is_checked_like_the_events_own() {
        let error = Outbox::new()
            .header("ce_id", "")
            .check(&envelope(Payload::Tombstone))
            .expect_err("a reserved name");
        assert!(
            matches!(
                error,
                PublishError::Invalid {
                    source: InvalidEvent::ReservedHeader { .. },
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn locks_are_counted_by_aggregate_and_not_by_event() {
        let of = |count: usize| {
            let id = |n: usize| AggregateId::new(n.to_string()).expect("a valid id");
            (0..2 * count)
                .map(|n| Envelope::tombstone("order", id(n % count)))
                .collect::<Vec<_>>()
        };
        assert!(check_aggregate_count(&of(Outbox::MAX_LOCKED_AGGREGATES)).is_ok());
        let error = check_aggregate_count(&of(Outbox::MAX_LOCKED_AGGREGATES + 1))
            .expect_err("one too many");
        assert!(
            matches!(error, PublishError::TooManyAggregates { count: 1_001, .. }),
            "{error}"
        );
    }
}
