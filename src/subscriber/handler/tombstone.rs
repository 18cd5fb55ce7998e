//! The deletion of an aggregate.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use super::{EventArgument, HandlerError, Meta};
use crate::event::DomainEvent;
use crate::subscriber::Delivery;

/// A tombstone of an aggregate of `E`: a record with a key and a null value, which deletes the key on a compacted topic. The first argument of a handler, in place of
/// [`Event<E>`](super::Event).
///
/// Every record with a null value in a topic of `E`'s aggregate is one, whoever wrote it and whatever its headers say: [`Outbox::tombstone`](crate::Outbox::tombstone), Debezium, a
/// producer without headers. A header `ce_aggregatetype` decides where several aggregates share a topic; without one, a tombstone of such a topic belongs to none.
///
/// It is handled like an event: in the order of its aggregate, once with an inbox, retried, parked and dead as events are. Tombstones of an aggregate without a
/// handler are skipped and counted.
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// # use tidings::DomainEvent;
/// # use tidings::subscriber::{HandlerError, Tombstone, Tx};
/// # #[derive(Serialize, Deserialize, DomainEvent)]
/// # #[event(aggregate = "customer", id = "customer")]
/// # struct CustomerChanged { customer: String }
/// async fn forget(erased: Tombstone<CustomerChanged>, mut tx: Tx) -> Result<(), HandlerError> {
///     sqlx::query("delete from customer where id = $1").bind(&*erased.aggregate_id()).execute(&mut *tx).await?;
///     Ok(())
/// }
/// ```
pub struct Tombstone<E> {
    meta: Meta,
    event: PhantomData<fn() -> E>,
}

impl<E: DomainEvent> Tombstone<E> {
    /// The tombstone that this travels beside. In a test [`testing::tombstone`](crate::testing::tombstone) makes one.
    pub fn new(meta: Meta) -> Self {
        Self {
            meta,
            event: PhantomData,
        }
    }

    /// The aggregate that is deleted: the record's key.
    pub fn aggregate_id(&self) -> Cow<'_, str> {
        self.meta.aggregate_id()
    }

    /// The topic it was read from.
    pub fn topic(&self) -> &str {
        self.meta.topic()
    }

    /// A header, as [`Meta::header`] finds it.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.meta.header(name)
    }

    /// The rest of what the record says. Its event type is `Tombstone` unless the publisher gave another.
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
