//! Builder of an event before it is published: data and metadata.

use std::{borrow::Cow, fmt::Display, time::Duration};

use chrono::{DateTime, Utc};

use super::connection::{Connection, Operation, Planned};
use super::scheduled::{Due, Terms};
use super::{Outbox, PublishError, Statement};
use crate::event::{Envelope, EventId, headers};

/// An event that is not published yet, from [`Outbox::event`] or [`Outbox::tombstone`].
///
/// An error of the event itself (no id, no JSON representation) is returned by
/// [`publish`](Self::publish).
///
/// ```no_run
/// # use serde::{Deserialize, Serialize};
/// # use tidings::{DomainEvent, Outbox};
/// # #[derive(Serialize, Deserialize, DomainEvent)]
/// # #[event(aggregate = "order", id = "order_id")]
/// # struct OrderPlaced { order_id: i64 }
/// # async fn example(
/// #     outbox: Outbox,
/// #     mut tx: sqlx::PgTransaction<'_>,
/// # ) -> Result<(), tidings::PublishError> {
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
    outbox: Cow<'o, Outbox>,
    envelope: Result<Envelope, PublishError>,
    /// `occurred_at` was set explicitly.
    dated: bool,
}

impl Outbox {
    /// Starts the publication of an envelope, which may be scheduled.
    #[cfg(feature = "cli")]
    pub(crate) fn draft(&self, envelope: Envelope) -> Draft<'_> {
        Draft::new(Cow::Borrowed(self), Ok(envelope))
    }
}

impl<'o> Draft<'o> {
    pub(crate) fn new(outbox: Cow<'o, Outbox>, envelope: Result<Envelope, PublishError>) -> Self {
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

    /// Sets the correlation id. All events that result from one request have the same.
    pub fn correlation_id(self, id: impl Display) -> Self {
        self.header(headers::CORRELATION_ID, id.to_string())
    }

    /// Sets the id of the event or command that caused this one.
    pub fn causation_id(self, id: impl Display) -> Self {
        self.header(headers::CAUSATION_ID, id.to_string())
    }

    /// Sets correlation, causation and trace headers from the event that caused this one. See
    /// [`Envelope::set_cause`].
    pub fn caused_by(self, cause: &Envelope) -> Self {
        self.with(|envelope| envelope.set_cause(cause))
    }

    /// Sets the trace context, in the format of W3C Trace Context.
    pub fn traceparent(self, traceparent: impl Into<String>) -> Self {
        self.header(headers::TRACEPARENT, traceparent)
    }

    /// Sets the vendor-specific part of the trace context.
    pub fn tracestate(self, tracestate: impl Into<String>) -> Self {
        self.header(headers::TRACESTATE, tracestate)
    }

    /// Publishes the event to this topic rather than the one that the relay derives.
    pub fn topic(self, topic: impl Into<String>) -> Self {
        self.with(|envelope| envelope.topic = Some(topic.into()))
    }

    /// Sets the time of the event. Defaults to now, or to the due time of a scheduled event.
    pub fn occurred_at(mut self, time: DateTime<Utc>) -> Self {
        self.dated = true;
        self.with(|envelope| envelope.occurred_at = time)
    }

    /// Sets the event id. While the outbox keeps the first event, publishing the same id again
    /// fails.
    pub fn id(self, id: impl Into<EventId>) -> Self {
        self.with(|envelope| envelope.id = id.into())
    }

    /// Sets the event type, e.g. `CustomerErased` for a tombstone.
    pub fn event_type(self, name: impl Into<String>) -> Self {
        self.with(|envelope| envelope.event_type = name.into().into())
    }

    /// Returns the envelope, for [`Outbox::publish_envelopes`].
    ///
    /// # Errors
    ///
    /// Returns [`PublishError`] if the event cannot be encoded or its aggregate id cannot be a key.
    pub fn build(self) -> Result<Envelope, PublishError> {
        self.envelope
    }

    /// Publishes the event in the transaction of `conn`. See [`Outbox::publish`].
    ///
    /// # Errors
    ///
    /// Returns [`PublishError`] if the event is not published.
    ///
    /// # Cancel safety
    ///
    /// See [`Outbox::publish`].
    pub fn publish<'c, C: Connection<'c>>(self, conn: C) -> C::Answer<EventId> {
        let outbox = self.outbox;
        conn.run(
            self.envelope
                .and_then(|envelope| outbox.insertion(&envelope, Statement::into_owned)),
        )
    }

    /// Publishes the event at a later time. See [`Outbox::publish_at`].
    ///
    /// # Errors
    ///
    /// Returns [`PublishError`] if the event is not scheduled.
    ///
    /// # Cancel safety
    ///
    /// See [`Outbox::publish`].
    pub fn publish_at<'c, C: Connection<'c>>(
        self,
        conn: C,
        when: DateTime<Utc>,
    ) -> C::Answer<EventId> {
        conn.run(self.schedule(Due::At(when)))
    }

    /// Publishes the event after a delay. See [`Outbox::publish_after`].
    ///
    /// # Errors
    ///
    /// Returns [`PublishError`] if the event is not scheduled.
    ///
    /// # Cancel safety
    ///
    /// See [`Outbox::publish`].
    pub fn publish_after<'c, C: Connection<'c>>(
        self,
        conn: C,
        delay: Duration,
    ) -> C::Answer<EventId> {
        conn.run(self.schedule(Due::After(delay)))
    }

    fn schedule(self, due: Due) -> Planned<'static, EventId> {
        let envelope = self.envelope?;
        let occurred_at = self.dated.then_some(envelope.occurred_at);
        let terms = Terms { due, occurred_at };
        let statement = self.outbox.schedule_statement(&envelope, terms)?;
        Ok(Operation {
            table: self.outbox.statements()?.scheduled.clone(),
            ..self
                .outbox
                .operation(Some(statement.into_owned()), envelope.id)?
        })
    }

    fn with(mut self, change: impl FnOnce(&mut Envelope)) -> Self {
        if let Ok(envelope) = &mut self.envelope {
            change(envelope);
        }
        self
    }
}
