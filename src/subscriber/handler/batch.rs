//! Several events at once.

use super::{EventArgument, HandlerError, Meta};
use crate::event::DomainEvent;
use crate::subscriber::Delivery;

/// Up to [`Subscriber::batch`](crate::subscriber::Subscriber::batch) events of one partition, each with its [`Meta`]; events of one aggregate in their order.
///
/// With an inbox all of them take effect by one transaction. If the handler fails, they are handled again one by one, so that one bad event costs only itself.
/// Duplicates are taken out before.
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
    /// A batch of these, e.g. to call a handler in a test.
    pub fn new(events: impl IntoIterator<Item = (E, Meta)>) -> Self {
        Self(events.into_iter().collect())
    }

    /// The events.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &E> {
        self.0.iter().map(|(event, _)| event)
    }

    /// The events with what travels beside them.
    pub fn with_meta(&self) -> impl ExactSizeIterator<Item = (&E, &Meta)> {
        self.0.iter().map(|(event, meta)| (event, meta))
    }

    /// How many there are: at least one.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if there is none, which a handler never sees.
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
