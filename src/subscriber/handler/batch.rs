//! Batches: several events in one call of a handler.

use super::{EventArgument, HandlerError, Meta};
use crate::event::DomainEvent;
use crate::subscriber::Delivery;

/// Up to [`Subscriber::batch`](crate::subscriber::Subscriber::batch) events of one partition, each
/// with its [`Meta`]. Events of one aggregate are in order.
///
/// With an inbox, all events of a batch take effect in one transaction. If the handler fails, the
/// events are handled again one by one, so that one bad event does not affect the others.
/// Duplicates are removed from the batch before the handler runs.
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// # use tidings::DomainEvent;
/// # use tidings::subscriber::{Batch, HandlerError, Tx};
/// # #[derive(Serialize, Deserialize, DomainEvent)]
/// # #[event(aggregate = "order", id = "order_id")]
/// # struct OrderPlaced { order_id: i64, total_cents: i64 }
/// async fn count(orders: Batch<OrderPlaced>, mut tx: Tx) -> Result<(), HandlerError> {
///     let cents: i64 = orders.iter().map(|order| order.total_cents).sum();
///     sqlx::query("update turnover set cents = cents + $1").bind(cents).execute(&mut *tx).await?;
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Batch<E>(Vec<(E, Meta)>);

impl<E> Batch<E> {
    /// Creates a batch, for example to call a handler in a test.
    pub fn new(events: impl IntoIterator<Item = (E, Meta)>) -> Self {
        Self(events.into_iter().collect())
    }

    /// Returns the events.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &E> {
        self.0.iter().map(|(event, _)| event)
    }

    /// Returns the events with their metadata.
    pub fn with_meta(&self) -> impl ExactSizeIterator<Item = (&E, &Meta)> {
        self.0.iter().map(|(event, meta)| (event, meta))
    }

    /// Returns the number of events, which is at least one in a handler.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns `true` if the batch is empty, which never happens in a handler.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

// === impl Batch ===

impl<E> IntoIterator for Batch<E> {
    type Item = (E, Meta);
    type IntoIter = std::vec::IntoIter<(E, Meta)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<E: DomainEvent> EventArgument for Batch<E> {
    type Event = E;
    const BATCH: bool = true;

    fn decode(delivery: &Delivery) -> Result<Self, HandlerError> {
        delivery
            .metas()
            .map(|meta| Ok((meta.decode()?, meta)))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}
