//! Scheduled events: the SQL of publishers that writes the table `scheduled`. A relay moves the
//! events to the outbox when they are due.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection};

use super::insert::{COLUMNS, bind};
use super::{Outbox, PublishError};
use crate::event::{DomainEvent, Envelope, EventId, Headers};
use crate::postgres::SchemaName;

/// Due time of an event.
#[derive(Clone, Copy, Debug)]
pub(super) enum Due {
    At(DateTime<Utc>),
    /// Delay from now on, by the server's clock.
    After(Duration),
}

/// Values of a row in addition to those of the envelope.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) due: Due,
    /// The time of the event, or `None` for the due time.
    pub(super) occurred_at: Option<DateTime<Utc>>,
}

impl Outbox {
    /// Publishes an event at a later time: a deadline, a reminder, the end of a trial.
    ///
    /// The event is stored in the transaction of `conn` and is scheduled if and only if that
    /// transaction commits. When it is due, a relay of this database moves it to the outbox exactly
    /// once, even if several relays run. From there it is delivered like any other event, with its
    /// id, headers and aggregate. It is published at `when` by the server's clock or a few
    /// milliseconds later, never earlier. The delay may reach one second if the event was scheduled
    /// less than a second before `when`. A `when` in the past means now. While no relay runs, the
    /// event waits.
    ///
    /// [`occurred_at`](Envelope::occurred_at) is `when` rather than the time of this call. Events
    /// with the same due time are published in the order of the calls that scheduled them. Events
    /// that the aggregate publishes in the meantime come before them. [`cancel`](Self::cancel)
    /// withdraws the event.
    ///
    /// [`serialize_aggregates`](Self::serialize_aggregates) takes no lock here, because no `seq` is
    /// assigned yet.
    ///
    /// # Errors
    ///
    /// Returns [`PublishError`], see [`publish`](Self::publish).
    ///
    /// # Cancel safety
    ///
    /// See [`publish`](Self::publish).
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
    /// # async fn example(
    /// #     outbox: Outbox,
    /// #     pool: sqlx::PgPool,
    /// #     paid: bool,
    /// # ) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut tx = pool.begin().await?;
    /// let overdue = PaymentOverdue { order_id: 7 };
    /// let delay = Duration::from_secs(15 * 60);
    /// let reminder = outbox.publish_after(&mut tx, &overdue, delay).await?;
    /// tx.commit().await?;
    ///
    /// // Later, when the payment has arrived. `false` means that the event was published first.
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

    /// Publishes an event after a delay, which starts with this call and is measured by the
    /// server's clock. See [`publish_at`](Self::publish_at).
    ///
    /// # Errors
    ///
    /// Returns [`PublishError`], see [`publish`](Self::publish).
    ///
    /// # Cancel safety
    ///
    /// See [`publish`](Self::publish).
    #[doc(alias = "delay")]
    pub async fn publish_after<E: DomainEvent>(
        &self,
        conn: &mut PgConnection,
        event: &E,
        delay: Duration,
    ) -> Result<EventId, PublishError> {
        self.event(event).publish_after(conn, delay).await
    }

    /// Withdraws a scheduled event in the transaction of `conn`. If the transaction is rolled back,
    /// the event stays scheduled.
    ///
    /// Returns `true` if the event will not be published. Returns `false` if it no longer exists in
    /// the schedule, because it was published, is being published, or was already cancelled. Until
    /// the transaction ends, a relay does not publish the event, even if it becomes due.
    ///
    /// # Errors
    ///
    /// Returns [`PublishError::NoTransaction`], [`PublishError::Database`] or
    /// [`PublishError::MissingTable`], or [`PublishError::Schema`] if the schema name is invalid.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the transaction may or may not cancel the event. Roll it back.
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

/// Inserts one scheduled event.
pub(super) async fn insert(
    conn: &mut PgConnection,
    (schema, prepared): (&SchemaName, bool),
    envelope: &Envelope,
    defaults: &Headers,
    terms: Terms,
) -> Result<EventId, PublishError> {
    let sql = format!(
        r#"insert into "{schema}".scheduled ({COLUMNS}, due_at)
           values ($1, $2, $3, $4, $5, $6::text::json, $7, $8::text::jsonb, $9, $10,
                   coalesce($11, pg_catalog.clock_timestamp()
                       + pg_catalog.make_interval(secs => $12)))"#
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
