//! An event that is not published yet: data plus what travels with it.

use std::{fmt::Display, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::scheduled::{Due, Terms};
use super::{Outbox, PublishError};
use crate::event::{Envelope, EventId, headers};

/// An event that is not published yet, from [`Outbox::event`] or [`Outbox::tombstone`].
///
/// A fault of the event itself (no id, no JSON form) is reported by [`publish`](Self::publish).
///
/// ```no_run
/// # use serde::{Deserialize, Serialize};
/// # use tidings::{DomainEvent, Outbox};
/// # #[derive(Serialize, Deserialize, DomainEvent)]
/// # #[event(aggregate = "order", id = "order_id")]
/// # struct OrderPlaced { order_id: i64 }
/// # async fn example(outbox: Outbox, mut tx: sqlx::PgTransaction<'_>) -> Result<(), tidings::PublishError> {
/// outbox
///     .event(&OrderPlaced { order_id: 7 })
///     .correlation_id("checkout-123")
///     .traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
///     .header("tenant", "acme")
///     .topic("orders-priority")
///     .publish(&mut tx)
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "nothing is published until `publish`, `publish_at` or `publish_after` is called"]
pub struct Draft<'o> {
    outbox: &'o Outbox,
    envelope: Result<Envelope, PublishError>,
    /// Its time was set.
    dated: bool,
}

impl<'o> Draft<'o> {
    pub(super) fn new(outbox: &'o Outbox, envelope: Result<Envelope, PublishError>) -> Self {
        Self {
            outbox,
            envelope,
            dated: false,
        }
    }

    /// Sets a header.
    pub fn header(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.with(|envelope| envelope.headers.insert(name, value))
    }

    /// Sets several headers.
    pub fn headers<N: Into<String>, V: Into<String>>(
        self,
        headers: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        self.with(|envelope| envelope.headers.extend(headers))
    }

    /// Which conversation the event belongs to: equal in everything that one request set off.
    pub fn correlation_id(self, id: impl Display) -> Self {
        self.header(headers::CORRELATION_ID, id.to_string())
    }

    /// The id of the event or command that caused this one.
    pub fn causation_id(self, id: impl Display) -> Self {
        self.header(headers::CAUSATION_ID, id.to_string())
    }

    /// Takes correlation, causation and trace from the event that caused this one, see [`Envelope::set_cause`].
    pub fn caused_by(self, cause: &Envelope) -> Self {
        self.with(|envelope| envelope.set_cause(cause))
    }

    /// The trace context, as W3C Trace Context writes it.
    pub fn traceparent(self, traceparent: impl Into<String>) -> Self {
        self.header(headers::TRACEPARENT, traceparent)
    }

    /// What tracing systems add to the trace context.
    pub fn tracestate(self, tracestate: impl Into<String>) -> Self {
        self.header(headers::TRACESTATE, tracestate)
    }

    /// Sends the event to this topic in place of the one the relay would choose.
    pub fn topic(self, topic: impl Into<String>) -> Self {
        self.with(|envelope| envelope.topic = Some(topic.into()))
    }

    /// When it happened, if not now (or, for a scheduled event, when it is due).
    pub fn occurred_at(mut self, time: DateTime<Utc>) -> Self {
        self.dated = true;
        self.with(|envelope| envelope.occurred_at = time)
    }

    /// An id of the caller's: publishing the same id twice fails the second time, for as long as the outbox keeps the first.
    pub fn id(self, id: impl Into<EventId>) -> Self {
        self.with(|envelope| envelope.id = id.into())
    }

    /// The event's name in place of its own, e.g. `CustomerErased` for a tombstone.
    pub fn event_type(self, name: impl Into<String>) -> Self {
        self.with(|envelope| envelope.event_type = name.into().into())
    }

    /// The envelope, for [`Outbox::publish_envelopes`].
    ///
    /// # Errors
    ///
    /// [`PublishError`] if the event cannot be encoded or its aggregate id cannot be a key.
    pub fn build(self) -> Result<Envelope, PublishError> {
        self.envelope
    }

    /// Publishes the event in the transaction of `conn`, as [`Outbox::publish`] does.
    ///
    /// # Errors
    ///
    /// [`PublishError`].
    ///
    /// # Cancel safety
    ///
    /// As [`Outbox::publish`].
    pub async fn publish(self, conn: &mut PgConnection) -> Result<EventId, PublishError> {
        self.outbox.publish_envelope(conn, &self.envelope?).await
    }

    /// Publishes the event at a later time, as [`Outbox::publish_at`] does.
    ///
    /// # Errors
    ///
    /// [`PublishError`].
    ///
    /// # Cancel safety
    ///
    /// As [`Outbox::publish`].
    pub async fn publish_at(
        self,
        conn: &mut PgConnection,
        when: DateTime<Utc>,
    ) -> Result<EventId, PublishError> {
        self.schedule(conn, Due::At(when)).await
    }

    /// Publishes the event after this much time, as [`Outbox::publish_after`] does.
    ///
    /// # Errors
    ///
    /// [`PublishError`].
    ///
    /// # Cancel safety
    ///
    /// As [`Outbox::publish`].
    pub async fn publish_after(
        self,
        conn: &mut PgConnection,
        delay: Duration,
    ) -> Result<EventId, PublishError> {
        self.schedule(conn, Due::After(delay)).await
    }

    async fn schedule(self, conn: &mut PgConnection, due: Due) -> Result<EventId, PublishError> {
        let envelope = self.envelope?;
        let occurred_at = self.dated.then_some(envelope.occurred_at);
        self.outbox
            .schedule(conn, &envelope, Terms { due, occurred_at })
            .await
    }

    fn with(mut self, change: impl FnOnce(&mut Envelope)) -> Self {
        if let Ok(envelope) = &mut self.envelope {
            change(envelope);
        }
        self
    }
}
