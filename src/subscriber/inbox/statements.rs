//! The inbox as statements, for handlers that write with another driver than sqlx.

use std::sync::Arc;
use std::time::Duration;

use super::identity::Identity;
use crate::{
    outbox::{Parameter, Statement},
    postgres::{SchemaName, SchemaNameError},
    subscriber::{HandlerError, Meta},
};

/// The inbox of a subscriber whose handlers use another driver than sqlx.
///
/// Such a handler begins its own transaction, records the event in it first, and then writes. If
/// the event is recorded already, the handler returns without an effect.
///
/// ```
/// use tidings::outbox::Statement;
/// use tidings::subscriber::{Event, HandlerError, InboxStatements, Meta, State};
/// # use serde::{Deserialize, Serialize};
/// # use tidings::DomainEvent;
/// # #[derive(Serialize, Deserialize, DomainEvent)]
/// # #[event(aggregate = "order", id = "order_id")]
/// # struct OrderPlaced { order_id: i64 }
/// # #[derive(Clone)]
/// # struct Database { inbox: InboxStatements }
/// # struct Transaction;
/// # impl Database {
/// #     async fn begin(&self) -> Result<Transaction, std::io::Error> { Ok(Transaction) }
/// # }
/// # impl Transaction {
/// #     async fn execute(&mut self, _: &Statement<'_>) -> Result<u64, std::io::Error> { Ok(1) }
/// #     async fn reserve(&mut self, _: i64) -> Result<(), std::io::Error> { Ok(()) }
/// #     async fn commit(self) -> Result<(), std::io::Error> { Ok(()) }
/// # }
///
/// async fn reserve(
///     Event(order): Event<OrderPlaced>,
///     meta: Meta,
///     State(database): State<Database>,
/// ) -> Result<(), HandlerError> {
///     let mut tx = database.begin().await?;
///     let record = database.inbox.record(&meta)?;
///     let rows = tx.execute(&record.statement()).await?;
///     if record.is_new(rows)? {
///         tx.reserve(order.order_id).await?;
///         tx.commit().await?;
///     }
///     Ok(())
/// }
/// ```
///
/// The subscriber has no [`inbox`](crate::Subscriber::inbox) then, with the limits that
/// `docs/subscribing.md` states: events are not parked in the database, and the instances are not
/// listed. Run [`forget`](Self::forget) from time to time.
#[derive(Clone, Debug)]
pub struct InboxStatements {
    consumer: Arc<str>,
    record: Arc<str>,
    forget: Arc<str>,
}

/// The statement that records one event, and its meaning.
#[derive(Debug)]
pub struct InboxRecord {
    sql: Arc<str>,
    consumer: Arc<str>,
    identity: Identity,
}

/// Rows of the statement for each outcome.
mod rows {
    pub(super) const DUPLICATE: u64 = 0;
    pub(super) const NEW: u64 = 1;
    pub(super) const BUSY: u64 = 2;
    pub(super) const CONFLICTING: u64 = 3;
}

impl InboxStatements {
    /// Creates the statements for a consumer: the name of the subscriber.
    pub fn new(consumer: impl Into<Arc<str>>) -> Self {
        Self::of(consumer.into(), &SchemaName::default())
    }

    /// Uses the tables of another schema.
    ///
    /// # Errors
    ///
    /// Returns an error if the name is invalid.
    pub fn schema(self, name: impl AsRef<str>) -> Result<Self, SchemaNameError> {
        Ok(Self::of(self.consumer, &name.as_ref().parse()?))
    }

    fn of(consumer: Arc<str>, schema: &SchemaName) -> Self {
        Self {
            consumer,
            record: record_statement(schema).into(),
            forget: format!(
                r#"with gone as (
                       delete from "{schema}".inbox where consumer = $1
                       and handled_at < pg_catalog.now() - pg_catalog.make_interval(secs => $2))
                   delete from "{schema}".inbox_collision where consumer = $1
                   and handled_at < pg_catalog.now() - pg_catalog.make_interval(secs => $2)"#
            )
            .into(),
        }
    }

    /// Returns the record of an event.
    ///
    /// # Errors
    ///
    /// Returns an error for an event whose id or source the inbox cannot store. Return it from the
    /// handler: the event becomes a dead letter.
    pub fn record(&self, meta: &Meta) -> Result<InboxRecord, HandlerError> {
        Ok(InboxRecord {
            sql: self.record.clone(),
            consumer: self.consumer.clone(),
            identity: Identity::of(meta.message(), &self.consumer)?,
        })
    }

    /// Returns the statement that deletes the records of events that were handled longer ago.
    /// Choose a time as for [`Inbox::keep`](super::Inbox::keep).
    pub fn forget(&self, older_than: Duration) -> Statement<'_> {
        let parameters = vec![
            Parameter::Text(Some((&*self.consumer).into())),
            Parameter::Float(Some(older_than.as_secs_f64())),
        ];
        Statement::new(&self.forget, parameters, true)
    }
}

impl InboxRecord {
    /// Returns the statement. Execute it before any other in the handler's transaction. If another
    /// member is handling the event, it waits for that member's transaction.
    pub fn statement(&self) -> Statement<'_> {
        let Identity {
            source,
            id,
            topic,
            fingerprint,
        } = &self.identity;
        let texts = [&*self.consumer, source, id, topic];
        let mut parameters: Vec<_> = texts.map(|text| Parameter::Text(Some(text.into()))).into();
        parameters.push(Parameter::BigInt(*fingerprint));
        Statement::new(&self.sql, parameters, true)
    }

    /// Returns `true` if the event is new and is now recorded, and `false` if it was handled
    /// before. `rows` is the number of rows that the driver reports for the statement.
    ///
    /// # Errors
    ///
    /// Returns an error if another member has just handled the event, or if an event with the same
    /// id but other data was handled. Roll back and return it from the handler: the first is tried
    /// again soon, and the second becomes a dead letter.
    pub fn is_new(self, rows: u64) -> Result<bool, HandlerError> {
        match rows {
            rows::NEW => Ok(true),
            rows::DUPLICATE => Ok(false),
            rows::BUSY => Err(HandlerError::snooze(
                Duration::from_millis(100),
                "another member has just handled this event",
            )),
            rows::CONFLICTING => Err(self.identity.conflicting()),
            other => Err(HandlerError::dead_letter(format!(
                "the statement of the inbox has {other} rows: pass the number that the driver \
                 reports for it"
            ))),
        }
    }
}

/// Returns the statement that records an event. The number of its rows is the outcome, because
/// that is what every driver reports. See `collision` for the two tables.
///
/// All parts see the tables as they were before the statement. A row that another member has just
/// committed is therefore in the way of the insert and cannot be read.
fn record_statement(schema: &SchemaName) -> String {
    let of = "consumer = $1 and source = $2 and event_id = $3";
    let columns = "(consumer, source, event_id, topic, fingerprint)";
    let (busy, conflicting) = (rows::BUSY, rows::CONFLICTING);
    format!(
        r#"with stored as (select topic, fingerprint from "{schema}".inbox where {of}),
           first as (
               insert into "{schema}".inbox {columns} values ($1, $2, $3, $4, $5)
               on conflict do nothing returning 1),
           other as (
               insert into "{schema}".inbox_collision {columns}
               select $1, $2, $3, $4, $5
               where exists (select from stored where topic <> $4)
                 and not exists (select from first)
               on conflict do nothing returning 1),
           kept as (
               update "{schema}".inbox set handled_at = pg_catalog.now()
               where {of} and exists (select from other)),
           here as (
               select fingerprint from stored where topic is null or topic = $4
               union all
               select fingerprint from "{schema}".inbox_collision where {of} and topic = $4)
           select 1 from first
           union all select 1 from other
           union all select 1 from pg_catalog.generate_series(1, case
               when exists (select from first) or exists (select from other) then 0
               when not exists (select from here) then {busy}
               when exists (select from here where fingerprint <> $5) then {conflicting}
               else 0 end)"#
    )
}
