//! The outbox as its users see it.

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

/// Publishes events in the caller's Postgres transaction. Cheap to clone: make one at start and pass it around.
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
/// outbox.event(&OrderPlaced { order_id: 8 }).correlation_id("req-1").header("tenant", "acme").publish(&mut tx).await?;
/// outbox.publish_all(&mut tx, &[OrderPlaced { order_id: 9 }, OrderPlaced { order_id: 10 }]).await?;
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
    /// The largest payload unless [`max_event_bytes`](Self::max_event_bytes) says otherwise, in bytes. With key and headers it stays below the
    /// 1,048,588 that Kafka's brokers accept by default (`message.max.bytes`).
    pub const MAX_EVENT_BYTES_DEFAULT: usize = 1_000_000;

    /// The largest headers of one event, names and values together, in bytes. Less than half of the 64 KiB of JSON that the table accepts, since
    /// JSON may need two bytes for one.
    pub const MAX_HEADER_BYTES: usize = 32_000;

    /// The most one call of [`publish_all`](Self::publish_all) sends, in bytes. Postgres refuses a message of 1 GiB and holds a batch in memory
    /// several times over.
    pub const MAX_BATCH_BYTES: usize = 256 * 1024 * 1024;

    /// The most aggregates that one call locks. A server with default settings has room for some 10,000 locks, all sessions together
    /// (`max_locks_per_transaction`), and fails every session's when it is full.
    pub const MAX_LOCKED_AGGREGATES: usize = 1_000;

    /// The outbox in the schema `tidings`.
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

    /// Uses the outbox of another schema, as given to [`Migrations::schema`](crate::Migrations::schema).
    ///
    /// A name that is not usable is reported when something is published.
    #[must_use]
    pub fn schema(mut self, name: impl AsRef<str>) -> Self {
        let prepared = self.prepared;
        self.statements = name
            .as_ref()
            .parse()
            .map(|schema| Arc::new(Statements::new(schema).prepared(prepared)));
        self
    }

    /// Publishes by statements that are not kept prepared, for a pooler that shares connections and does not carry prepared statements over
    /// (PgBouncer in transaction mode before 1.21): `prepared statement "sqlx_s_1" already exists` is the symptom.
    ///
    /// Each event is then parsed and planned anew. The service's own queries need `Query::persistent(false)` there too.
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
    /// For writers that do not lock the aggregate themselves, e.g. because it has no row: two transactions that publish for one aggregate then follow
    /// each other, and their events have the order of their commits. The lock is a transaction-scoped advisory lock taken by the statement that
    /// inserts; it costs no round trip.
    ///
    /// [`publish_all`](Self::publish_all) locks its aggregates in one fixed order, and at most
    /// [`MAX_LOCKED_AGGREGATES`](Self::MAX_LOCKED_AGGREGATES). Several calls in one transaction lock in the order of the calls: two such
    /// transactions in opposite order deadlock, and Postgres ends one of them with an error (SQLSTATE 40P01) that is safe to retry.
    #[must_use]
    pub fn serialize_aggregates(mut self) -> Self {
        self.lock = Lock::Aggregate;
        self
    }

    /// Refuses payloads larger than this many bytes; [`MAX_EVENT_BYTES_DEFAULT`](Self::MAX_EVENT_BYTES_DEFAULT) otherwise.
    ///
    /// Raise it together with the topic's `max.message.bytes`. The table itself refuses more than 16 MiB.
    #[must_use]
    pub fn max_event_bytes(mut self, bytes: usize) -> Self {
        self.max_event_bytes = bytes;
        self
    }

    /// A header of every event published here, unless the event sets its own.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        Arc::make_mut(&mut self.default_headers).insert(name, value);
        self
    }

    /// Allows to publish, schedule and cancel on a connection that is in no transaction: each call then commits by itself.
    ///
    /// For an event that belongs to no change in this database. By default such a call is [`PublishError::NoTransaction`], because it is usually a
    /// connection that was passed where the transaction was meant.
    ///
    /// ```no_run
    /// # use serde::{Deserialize, Serialize};
    /// # use tidings::{DomainEvent, Outbox};
    /// # #[derive(Serialize, Deserialize, DomainEvent)]
    /// # #[event(aggregate = "night", id = "night")]
    /// # struct NightBegan { night: String }
    /// # async fn example(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
    /// let clock = Outbox::new().allow_autocommit();
    /// clock.publish(&mut *pool.acquire().await?, &NightBegan { night: "2026-01-02".into() }).await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn allow_autocommit(mut self) -> Self {
        self.autocommit = true;
        self
    }

    /// Publishes an event in the transaction of `conn`: it is published if and only if that commits.
    ///
    /// One round trip. `conn` is a transaction (`&mut tx`), or a connection on which one was begun by SQL, which costs a second round trip. See the
    /// [module](crate::outbox) for why it is never a pool.
    ///
    /// # Errors
    ///
    /// [`PublishError`]. What could never be delivered is refused before anything is sent, and the transaction can go on. Outside a transaction nothing is
    /// published ([`PublishError::NoTransaction`]).
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the event may or may not be part of the transaction: roll it back.
    pub async fn publish<E: DomainEvent>(
        &self,
        conn: &mut PgConnection,
        event: &E,
    ) -> Result<EventId, PublishError> {
        self.publish_envelope(conn, &seal(event)?).await
    }

    /// Publishes any number of events by one statement. Returns their ids in the order given, which is also the order of their `seq`.
    ///
    /// All or nothing, also with [`allow_autocommit`](Self::allow_autocommit). An empty iterator sends nothing.
    ///
    /// # Errors
    ///
    /// [`PublishError`]; beyond [`MAX_BATCH_BYTES`](Self::MAX_BATCH_BYTES) publish by several calls.
    ///
    /// # Cancel safety
    ///
    /// As [`publish`](Self::publish).
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

    /// Starts an event that needs more than its data: headers, a topic, a time of its own.
    pub fn event<E: DomainEvent>(&self, event: &E) -> Draft<'_> {
        Draft::new(self, seal(event))
    }

    /// Starts the tombstone of an aggregate of `E`: on a compacted topic it deletes what Kafka keeps for the aggregate.
    ///
    /// ```no_run
    /// # use serde::{Deserialize, Serialize};
    /// # use tidings::{DomainEvent, Outbox};
    /// # #[derive(Serialize, Deserialize, DomainEvent)]
    /// # #[event(aggregate = "customer", id = "customer")]
    /// # struct CustomerChanged { customer: String }
    /// # async fn example(outbox: Outbox, mut tx: sqlx::PgTransaction<'_>) -> Result<(), tidings::PublishError> {
    /// outbox.tombstone::<CustomerChanged>("c-7").publish(&mut tx).await?;
    /// # Ok(()) }
    /// ```
    pub fn tombstone<E: DomainEvent>(&self, aggregate_id: impl Into<String>) -> Draft<'_> {
        let envelope = AggregateId::new(aggregate_id)
            .map(|id| Envelope::tombstone(E::AGGREGATE, id))
            .map_err(|source| PublishError::invalid(Envelope::TOMBSTONE, source));
        Draft::new(self, envelope)
    }

    /// Publishes an envelope made by hand: a payload encoded elsewhere, names known only at run time.
    ///
    /// # Errors
    ///
    /// As [`publish`](Self::publish).
    ///
    /// # Cancel safety
    ///
    /// As [`publish`](Self::publish).
    ///
    /// ```no_run
    /// use tidings::event::{AggregateId, Envelope, Payload};
    /// # async fn example(outbox: tidings::Outbox, mut tx: sqlx::PgTransaction<'_>, avro: Vec<u8>) -> Result<(), Box<dyn std::error::Error>> {
    /// let envelope = Envelope::new("order", AggregateId::new("7")?, "OrderPlaced", Payload::Bytes(avro));
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

    /// Publishes any number of envelopes by one statement: of different types, with headers of their own.
    ///
    /// # Errors
    ///
    /// As [`publish_all`](Self::publish_all).
    ///
    /// # Cancel safety
    ///
    /// As [`publish`](Self::publish).
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

    /// Stores an envelope for later.
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

    /// Refuses a connection that is in no transaction. sqlx knows of those that it has begun, which costs nothing. Others begin by SQL, so the
    /// server is asked: it refuses a savepoint outside a transaction, and nothing else happens.
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

    /// Refuses what could never be delivered.
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
