//! Savepoints: parts of a handler's transaction that can be rolled back alone.

use std::ops::{Deref, DerefMut};

use sqlx::{PgConnection, PgTransaction};

use super::publisher::Publisher;
use crate::{
    event::{DomainEvent, EventId},
    outbox::{Draft, PublishError, driver},
};

/// A savepoint in a handler's transaction, created by [`Tx::savepoint`](super::Tx::savepoint). It
/// is rolled back when it is dropped.
///
/// Use it like a connection: `sqlx::query(…).execute(&mut *savepoint)`.
#[derive(Debug)]
#[must_use = "a savepoint is rolled back when it is dropped"]
pub struct Savepoint<'t> {
    savepoint: PgTransaction<'t>,
    publisher: Publisher,
}

impl<'t> Savepoint<'t> {
    pub(crate) fn new(savepoint: PgTransaction<'t>, publisher: Publisher) -> Self {
        Self {
            savepoint,
            publisher,
        }
    }

    /// Commits the changes since the savepoint began as part of the transaction.
    ///
    /// # Errors
    ///
    /// Returns the database's error, for example if a statement has failed.
    pub async fn commit(self) -> Result<(), sqlx::Error> {
        self.savepoint.commit().await
    }

    /// Rolls back the changes since the savepoint began. The transaction continues.
    ///
    /// # Errors
    ///
    /// Returns the database's error.
    pub async fn rollback(self) -> Result<(), sqlx::Error> {
        self.savepoint.rollback().await
    }

    /// Publishes an event within the savepoint, as [`Tx::publish`](super::Tx::publish) does.
    ///
    /// # Errors
    ///
    /// Returns [`PublishError`] if the event is invalid or cannot be stored.
    pub async fn publish<E: DomainEvent>(&mut self, event: &E) -> Result<EventId, PublishError> {
        self.event(event).publish(&mut self.savepoint).await
    }

    /// Publishes any number of events within the savepoint, as
    /// [`Tx::publish_all`](super::Tx::publish_all) does.
    ///
    /// # Errors
    ///
    /// Returns [`PublishError`]. Publishes all events or none.
    pub async fn publish_all<'e, E: DomainEvent>(
        &mut self,
        events: impl IntoIterator<Item = &'e E>,
    ) -> Result<Vec<EventId>, PublishError> {
        let publisher = self.publisher.clone();
        publisher.publish_all(&mut self.savepoint, events).await
    }

    /// Starts an event, as [`Tx::event`](super::Tx::event) does. Pass the savepoint to
    /// [`Draft::publish`].
    pub fn event<E: DomainEvent>(&self, event: &E) -> Draft<'static> {
        self.publisher.event(event)
    }
}

// === impl Savepoint ===

driver::answers_with_a_future!(&'c mut Savepoint<'_>, savepoint => driver::sqlx::Sqlx(savepoint));

impl Deref for Savepoint<'_> {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.savepoint
    }
}

impl DerefMut for Savepoint<'_> {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.savepoint
    }
}
