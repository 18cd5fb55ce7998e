//! Scheduled events, which wait in the table `scheduled`. A relay moves them to the outbox when
//! they are due.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::connection::{Connection, Operation};
use super::{Outbox, PublishError, Statement};
use crate::event::{DomainEvent, Envelope, EventId};

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
    pub fn publish_at<'c, E: DomainEvent, C: Connection<'c>>(
        &self,
        conn: C,
        event: &E,
        when: DateTime<Utc>,
    ) -> C::Answer<EventId> {
        self.event(event).publish_at(conn, when)
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
    pub fn publish_after<'c, E: DomainEvent, C: Connection<'c>>(
        &self,
        conn: C,
        event: &E,
        delay: Duration,
    ) -> C::Answer<EventId> {
        self.event(event).publish_after(conn, delay)
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
    pub fn cancel<'c, C: Connection<'c>>(&self, conn: C, id: EventId) -> C::Answer<bool> {
        let is_cancelled = |_, rows| rows > 0;
        conn.run(self.cancel_statement(id).and_then(|statement| {
            Ok(Operation {
                table: self.statements()?.scheduled.clone(),
                result: is_cancelled,
                ..self.operation(Some(statement), false)?
            })
        }))
    }

    /// Returns the statement that inserts a scheduled event, for a driver that the crate does not
    /// support. See [`statement`](Self::statement).
    ///
    /// # Errors
    ///
    /// Returns [`PublishError`] if the event could never be delivered.
    pub fn statement_at<'e>(
        &self,
        envelope: &'e Envelope,
        when: DateTime<Utc>,
    ) -> Result<Statement<'e>, PublishError> {
        let terms = Terms {
            due: Due::At(when),
            occurred_at: None,
        };
        self.schedule_statement(envelope, terms)
    }

    /// Returns the statement that withdraws a scheduled event, for a driver that the crate does not
    /// support. No row means that the event is no longer scheduled.
    ///
    /// # Errors
    ///
    /// Returns [`PublishError::Schema`] if the schema name is invalid.
    pub fn cancel_statement(&self, id: EventId) -> Result<Statement<'static>, PublishError> {
        Ok(self.statements()?.cancel(id))
    }

    pub(super) fn schedule_statement<'e>(
        &self,
        envelope: &'e Envelope,
        terms: Terms,
    ) -> Result<Statement<'e>, PublishError> {
        let statements = self.statements()?;
        self.check(envelope)?;
        Ok(statements.schedule(envelope, self.default_headers(), terms))
    }
}
