//! The deletion of an aggregate.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use super::{EventArgument, HandlerError, Meta};
use crate::event::DomainEvent;
use crate::subscriber::Delivery;

/// A tombstone of an aggregate of `E`: a record with a key and a null value, which deletes the key
/// on a compacted topic. It is the first argument of a handler, instead of
/// [`Event<E>`](super::Event).
///
/// Every record with a null value in a topic of `E`'s aggregate is a tombstone, regardless of its
/// producer and its headers. Producers are, for example,
/// [`Outbox::tombstone`](crate::Outbox::tombstone), Debezium, or a producer that sets no headers.
/// If several aggregates share a topic, the header `ce_aggregatetype` determines the aggregate. In
/// such a topic, a tombstone without this header belongs to no aggregate.
///
/// A tombstone is handled like an event: in the order of its aggregate and, with an inbox, once. It
/// is retried, parked and sent to the dead letters like an event. Tombstones of an aggregate
/// without a handler are skipped and counted.
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// # use tidings::DomainEvent;
/// # use tidings::subscriber::{HandlerError, Tombstone, Tx};
/// # #[derive(Serialize, Deserialize, DomainEvent)]
/// # #[event(aggregate = "customer", id = "customer")]
/// # struct CustomerChanged { customer: String }
/// async fn forget(erased: Tombstone<CustomerChanged>, mut tx: Tx) -> Result<(), HandlerError> {
///     sqlx::query("delete from customer where id = $1")
///         .bind(&*erased.aggregate_id())
///         .execute(&mut *tx)
///         .await?;
///     Ok(())
/// }
/// ```
pub struct Tombstone<E> {
    meta: Meta,
    event: PhantomData<fn() -> E>,
}

impl<E: DomainEvent> Tombstone<E> {
    /// Creates a tombstone with this metadata. In tests, use
    /// [`testing::tombstone`](crate::testing::tombstone).
    pub fn new(meta: Meta) -> Self {
        Self {
            meta,
            event: PhantomData,
        }
    }

    /// Returns the id of the deleted aggregate, which is the key of the record.
    pub fn aggregate_id(&self) -> Cow<'_, str> {
        self.meta.aggregate_id()
    }

    /// Returns the topic that it was read from.
    pub fn topic(&self) -> &str {
        self.meta.topic()
    }

    /// Returns a header, see [`Meta::header`].
    pub fn header(&self, name: &str) -> Option<&str> {
        self.meta.header(name)
    }

    /// Returns the remaining metadata of the record. Its event type is `Tombstone` unless the
    /// publisher set another.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }
}

// === impl Tombstone ===

impl<E> Clone for Tombstone<E> {
    fn clone(&self) -> Self {
        Self {
            meta: self.meta.clone(),
            event: PhantomData,
        }
    }
}

impl<E> fmt::Debug for Tombstone<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tombstone")
            .field("meta", &self.meta)
            .finish()
    }
}

impl<E: DomainEvent> EventArgument for Tombstone<E> {
    type Event = E;
    const BATCH: bool = false;
    const TOMBSTONE: bool = true;

    fn decode(delivery: &Delivery) -> Result<Self, HandlerError> {
        Ok(Self::new(delivery.meta()))
    }
}
