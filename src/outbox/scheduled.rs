//! Events for later: all SQL that writes the table `scheduled`. A relay moves them to the outbox when they are due.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection};

use super::insert::{COLUMNS, bind};
use super::{Outbox, PublishError};
use crate::event::{DomainEvent, Envelope, EventId, Headers};
use crate::postgres::SchemaName;

/// When an event is due.
#[derive(Clone, Copy, Debug)]
pub(super) enum Due {
    At(DateTime<Utc>),
    /// From now on, by the server's clock.
    After(Duration),
}

/// What is put into the table beside the envelope's columns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) due: Due,
    /// When it happened, if not when it is due.
    pub(super) occurred_at: Option<DateTime<Utc>>,
}

impl Outbox {
    /// Publishes an event at a later time: a deadline, a reminder, the end of a trial.
    ///
    /// The event is stored in the transaction of `conn`, and is scheduled if and only if that commits. When it is due, a relay of this
    /// database moves it to the outbox, once, however many relays there are; from there it goes its way like any other, with its id, its
    /// headers and its aggregate. Not before `when`, by the server's clock, and a few milliseconds after it; up to a second if it was scheduled
    /// less than a second before. A `when` that has passed is now. While no relay runs, it waits.
    ///
    /// [`occurred_at`](Envelope::occurred_at) is `when`, and not the time of this call. Events that are due at the same time are published in
    /// the order in which they were scheduled; what an aggregate publishes meanwhile is before them. [`cancel`](Self::cancel) takes the event back.
    ///
    /// [`serialize_aggregates`](Self::serialize_aggregates) locks nothing here: nothing is numbered yet.
    ///
    /// # Errors
    ///
    /// [`PublishError`], as [`publish`](Self::publish).
    ///
    /// # Cancel safety
    ///
    /// As [`publish`](Self::publish).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use serde::{Deserialize, Serialize};
    /// # use tidings::{DomainEvent, Outbox};
    /// # #[derive(Serialize, Deserialize, DomainEvent)]
    /// # #[event(aggregate = "order", id = "order_id")]
    /// # struct PaymentOverdue { order_id: i64 }
    /// # async fn example(outbox: Outbox, pool: sqlx::PgPool, paid: bool) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut tx = pool.begin().await?;
    /// let reminder = outbox.publish_after(&mut tx, &PaymentOverdue { order_id: 7 }, Duration::from_secs(15 * 60)).await?;
    /// tx.commit().await?;
    ///
    /// // Later: the payment is here. False would mean that the event was quicker.
    /// let mut tx = pool.begin().await?;
    /// let in_time = outbox.cancel(&mut tx, reminder).await?;
    /// tx.commit().await?;
    /// # Ok(()) }
    /// ```
    #[doc(alias = "schedule")]
    pub async fn publish_at<E: DomainEvent>(
        &self,
        conn: &mut PgConnection,
        event: &E,
        when: DateTime<Utc>,
    ) -> Result<EventId, PublishError> {
        self.event(event).publish_at(conn, when).await
    }

    /// Publishes an event after this much time, counted by the server's clock from the moment of this call: [`publish_at`](Self::publish_at).
    ///
    /// # Errors
    ///
    /// [`PublishError`], as [`publish`](Self::publish).
    ///
    /// # Cancel safety
    ///
    /// As [`publish`](Self::publish).
    #[doc(alias = "delay")]
    pub async fn publish_after<E: DomainEvent>(
        &self,
        conn: &mut PgConnection,
        event: &E,
        delay: Duration,
    ) -> Result<EventId, PublishError> {
        self.event(event).publish_after(conn, delay).await
    }

    /// Takes a scheduled event back, in the transaction of `conn`. If that is rolled back, the event is still scheduled.
    ///
    /// True if the event will not be published; false if there is no such event any more: it is published, on its way, or cancelled already.
    /// Until the transaction ends a relay leaves the event alone, even if it becomes due meanwhile.
    ///
    /// # Errors
    ///
    /// [`PublishError::NoTransaction`], [`PublishError::Database`] or [`PublishError::MissingTable`].
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the event may or may not be cancelled by the transaction: roll it back.
    pub async fn cancel(&self, conn: &mut PgConnection, id: EventId) -> Result<bool, PublishError> {
        let (schema, prepared) = self.schema_and_preparation()?;
        self.require_transaction(conn).await?;
        let sql = format!(r#"delete from "{schema}".scheduled where id = $1"#);
        let deleted = sqlx::query(AssertSqlSafe(sql))
            .persistent(prepared)
            .bind(id.as_uuid())
            .execute(conn)
            .await;
        let deleted =
            deleted.map_err(|error| PublishError::database(schema.as_str(), "scheduled", error))?;
        Ok(deleted.rows_affected() > 0)
    }
}

/// Inserts one event that is due later.
pub(super) async fn insert(
    conn: &mut PgConnection,
    (schema, prepared): (&SchemaName, bool),
    envelope: &Envelope,
    defaults: &Headers,
    terms: Terms,
) -> Result<EventId, PublishError> {
    let sql = format!(
        r#"insert into "{schema}".scheduled ({COLUMNS}, due_at)
           values ($1, $2, $3, $4, $5, $6::text::json, $7, $8::text::jsonb, $9, $10, coalesce($11, pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $12)))"#
    );
    let (at, after) = match terms.due {
        Due::At(when) => (Some(when), None),
        Due::After(delay) => (None, Some(delay.as_secs_f64())),
    };
    bind(
        sqlx::query(AssertSqlSafe(sql)).persistent(prepared),
        envelope,
        defaults,
        terms.occurred_at,
    )
    .bind(at)
    .bind(after)
    .execute(conn)
    .await
    .map_err(|error| PublishError::database(schema.as_str(), "scheduled", error))?;
    Ok(envelope.id)
}
