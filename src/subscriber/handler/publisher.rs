//! Events that a handler publishes: the handled event is their cause.

use std::borrow::Cow;

use sqlx::PgConnection;

use super::Meta;
use crate::{
    event::{DomainEvent, EventId, Headers},
    outbox::{Draft, Outbox, PublishError, seal},
};

/// Publishes events for a handler, with the handled event as their cause.
#[derive(Clone, Debug)]
pub(crate) struct Publisher {
    outbox: Outbox,
    /// Headers of an event that does not set them itself.
    carried: Headers,
    meta: Option<Meta>,
}

impl Publisher {
    pub(super) fn new(outbox: Outbox, carried: Headers, meta: Option<Meta>) -> Self {
        Self {
            outbox,
            carried,
            meta,
        }
    }

    /// Starts an event that the handled event has caused.
    pub(crate) fn event<E: DomainEvent>(&self, event: &E) -> Draft<'static> {
        let envelope = seal(event).map(|mut envelope| {
            for (name, value) in self.carried.iter() {
                if envelope.headers.get(name).is_none() {
                    envelope.headers.insert(name, value);
                }
            }
            if let Some(meta) = &self.meta {
                meta.cause(&mut envelope);
            }
            envelope
        });
        Draft::new(Cow::Owned(self.outbox.clone()), envelope)
    }

    pub(crate) async fn publish_all<'e, E: DomainEvent>(
        &self,
        connection: &mut PgConnection,
        events: impl IntoIterator<Item = &'e E>,
    ) -> Result<Vec<EventId>, PublishError> {
        let envelopes = events.into_iter().map(|event| self.event(event).build());
        let envelopes = envelopes.collect::<Result<Vec<_>, _>>()?;
        self.outbox.publish_envelopes(connection, &envelopes).await
    }
}
