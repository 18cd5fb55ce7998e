//! The transaction that a handler shares with the inbox.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::{Connection as _, PgConnection, PgTransaction};

use super::{HandlerError, Meta, Savepoint, publisher::Publisher};
use crate::{
    event::{DomainEvent, Envelope, EventId, Headers},
    outbox::{Draft, Outbox, PublishError, driver},
    postgres::{SchemaName, begin},
};

/// The Postgres transaction that also contains the event's inbox row. All changes that the handler
/// makes with it happen once.
///
/// Use it like a connection: `sqlx::query(…).execute(&mut *tx)`. It is committed if the handler
/// returns `Ok` and rolled back otherwise; there is no `commit` method. The subscriber must have an
/// [`inbox`](crate::subscriber::Subscriber::inbox).
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// # use tidings::DomainEvent;
/// # use tidings::subscriber::{Event, HandlerError, Tx};
/// # #[derive(Serialize, Deserialize, DomainEvent)]
/// # #[event(aggregate = "order", id = "order_id")]
/// # struct OrderPlaced { order_id: i64 }
/// async fn reserve(Event(order): Event<OrderPlaced>, mut tx: Tx) -> Result<(), HandlerError> {
///     sqlx::query("insert into reservation (order_id) values ($1)")
///         .bind(order.order_id)
///         .execute(&mut *tx)
///         .await?;
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct Tx {
    transaction: Option<PgTransaction<'static>>,
    slot: TxSlot,
    meta: Option<Meta>,
    /// Default headers of the events that are published with this transaction.
    carried: Headers,
    /// True if a savepoint could not begin and sqlx has rolled back the transaction.
    is_over: bool,
}

/// Holds the transaction while no handler has it.
#[derive(Clone, Debug)]
pub(crate) struct TxSlot {
    transaction: Arc<Mutex<Option<PgTransaction<'static>>>>,
    pub(crate) outbox: Outbox,
    schema: SchemaName,
    after_commit: AfterCommit,
}

/// Actions that run after the commit. They are dropped if the transaction is not committed.
#[derive(Clone, Default)]
struct AfterCommit(Arc<Mutex<Vec<Then>>>);

type Then = Box<dyn FnOnce() + Send>;

const HELD: &str = "set until the drop";
const OVER: &str = "the transaction is over, because a savepoint of it could not begin";

/// Takes a lent transaction back after the callee has dropped it.
#[derive(Debug)]
pub(crate) struct Lent(TxSlot, Option<Meta>);

impl Lent {
    /// Returns the transaction. Returns `None` if the callee kept it.
    pub(crate) fn take(&self) -> Option<Tx> {
        let transaction = self.0.take()?;
        Some(Tx {
            transaction: Some(transaction),
            slot: self.0.clone(),
            meta: self.1.clone(),
            carried: Headers::new(),
            is_over: false,
        })
    }

    /// Runs the actions that wait for the commit.
    pub(crate) fn committed(&self) {
        self.0.committed();
    }
}

impl TxSlot {
    pub(crate) fn new(
        transaction: PgTransaction<'static>,
        outbox: Outbox,
        schema: SchemaName,
    ) -> Self {
        let transaction = Arc::new(Mutex::new(Some(transaction)));
        Self {
            transaction,
            outbox,
            schema,
            after_commit: AfterCommit::default(),
        }
    }

    /// Lends the transaction to a handler.
    pub(crate) fn lend(&self, meta: Meta) -> Result<Tx, HandlerError> {
        let transaction = self.take().ok_or_else(|| {
            HandlerError::dead_letter("the handler takes two `Tx`, but there is one transaction")
        })?;
        Ok(Tx {
            transaction: Some(transaction),
            slot: self.clone(),
            meta: Some(meta),
            carried: Headers::new(),
            is_over: false,
        })
    }

    /// Returns the transaction. Returns `None` if it is lent out.
    pub(crate) fn take(&self) -> Option<PgTransaction<'static>> {
        self.transaction
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Runs the actions that wait for the commit.
    pub(crate) fn committed(&self) {
        let all = std::mem::take(
            &mut *self
                .after_commit
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        all.into_iter().for_each(|then| then());
    }
}

impl Tx {
    /// Begins a separate transaction, to call a handler in a test. It is rolled back when it is
    /// dropped.
    ///
    /// # Errors
    ///
    /// Returns the database's error if the transaction cannot begin.
    pub async fn begin(pool: &sqlx::PgPool) -> Result<Self, sqlx::Error> {
        Ok(Self::of(begin(pool).await?, &SchemaName::default()))
    }

    /// Creates a value for a transaction that belongs to no delivery.
    pub(crate) fn of(transaction: PgTransaction<'static>, schema: &SchemaName) -> Self {
        let outbox = Outbox::new().schema(schema.as_str());
        let (empty, after_commit) = Default::default();
        let slot = TxSlot {
            transaction: empty,
            outbox,
            schema: schema.clone(),
            after_commit,
        };
        Self {
            transaction: Some(transaction),
            slot,
            meta: None,
            carried: Headers::new(),
            is_over: false,
        }
    }

    /// Returns a handle with which the caller takes the transaction back after lending it to a
    /// callee.
    pub(crate) fn lent_again(&self) -> Lent {
        Lent(self.slot.clone(), self.meta.clone())
    }

    /// Returns the transaction itself.
    pub(crate) fn into_inner(mut self) -> Option<PgTransaction<'static>> {
        self.transaction.take()
    }

    /// Sets default headers for the events that are published with this transaction.
    pub(crate) fn carry(&mut self, headers: Headers) {
        self.carried = headers;
    }

    /// Runs `then` after the transaction is committed, and never if it is not committed.
    pub(crate) fn after_commit(&self, then: impl FnOnce() + Send + 'static) {
        self.slot
            .after_commit
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Box::new(then));
    }

    /// Returns the schema of the inbox and the outbox.
    pub(crate) fn schema(&self) -> &SchemaName {
        &self.slot.schema
    }

    /// Publishes an envelope without changing it.
    pub(crate) async fn publish_as_it_is(
        &mut self,
        envelope: &Envelope,
    ) -> Result<EventId, PublishError> {
        let outbox = self.slot.outbox.clone();
        outbox.publish_envelope(self, envelope).await
    }

    /// Publishes an event in this transaction, with the handled event as its cause. It has the same
    /// effect as returning the event. Use it if the order of several events matters or if their ids
    /// are needed.
    ///
    /// # Errors
    ///
    /// Returns [`PublishError`] if the event is invalid or cannot be stored.
    pub async fn publish<E: DomainEvent>(&mut self, event: &E) -> Result<EventId, PublishError> {
        self.event(event).publish(self).await
    }

    /// Publishes any number of events with one statement, in this order. See
    /// [`publish`](Self::publish).
    ///
    /// # Errors
    ///
    /// Returns [`PublishError`]. Publishes all events or none.
    pub async fn publish_all<'e, E: DomainEvent>(
        &mut self,
        events: impl IntoIterator<Item = &'e E>,
    ) -> Result<Vec<EventId>, PublishError> {
        let publisher = self.publisher();
        publisher.publish_all(self, events).await
    }

    /// Starts an event that needs more than its data: headers, a topic, a time, or a later
    /// publication. Its correlation, causation and trace headers are set from the handled event.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use serde::{Deserialize, Serialize};
    /// # use tidings::DomainEvent;
    /// # use tidings::subscriber::{Event, HandlerError, Tx};
    /// # #[derive(Serialize, Deserialize, DomainEvent)]
    /// # #[event(aggregate = "order", id = "order_id")]
    /// # struct OrderPlaced { order_id: i64 }
    /// # #[derive(Serialize, Deserialize, DomainEvent)]
    /// # #[event(aggregate = "order", id = "order_id")]
    /// # struct PaymentOverdue { order_id: i64 }
    /// async fn remind(Event(order): Event<OrderPlaced>, mut tx: Tx) -> Result<(), HandlerError> {
    ///     let overdue = PaymentOverdue { order_id: order.order_id };
    ///     tx.event(&overdue)
    ///         .header("tenant", "acme")
    ///         .publish_after(&mut tx, Duration::from_secs(15 * 60))
    ///         .await?;
    ///     Ok(())
    /// }
    /// ```
    pub fn event<E: DomainEvent>(&self, event: &E) -> Draft<'static> {
        self.publisher().event(event)
    }

    /// Publishes an event after a delay, with the handled event as its cause. See
    /// [`Outbox::publish_after`].
    ///
    /// # Errors
    ///
    /// Returns [`PublishError`] if the event is invalid or cannot be stored.
    pub async fn publish_after<E: DomainEvent>(
        &mut self,
        event: &E,
        delay: Duration,
    ) -> Result<EventId, PublishError> {
        self.event(event).publish_after(self, delay).await
    }

    /// Withdraws a scheduled event. See [`Outbox::cancel`].
    ///
    /// # Errors
    ///
    /// Returns [`PublishError`] if the database refuses.
    pub async fn cancel(&mut self, id: EventId) -> Result<bool, PublishError> {
        let outbox = self.slot.outbox.clone();
        outbox.cancel(self, id).await
    }

    /// Begins a savepoint. The changes made with it can be rolled back without the rest of the
    /// transaction.
    ///
    /// [`Savepoint::commit`] keeps the changes. If the savepoint is dropped, they are rolled back.
    /// Use a savepoint around a statement that may fail: after a statement has failed outside of a
    /// savepoint, Postgres does not commit the transaction.
    ///
    /// ```
    /// # use serde::{Deserialize, Serialize};
    /// # use tidings::DomainEvent;
    /// # use tidings::subscriber::{Event, HandlerError, Tx};
    /// # #[derive(Serialize, Deserialize, DomainEvent)]
    /// # #[event(aggregate = "order", id = "order_id")]
    /// # struct OrderPlaced { order_id: i64 }
    /// async fn reserve(Event(order): Event<OrderPlaced>, mut tx: Tx) -> Result<(), HandlerError> {
    ///     let mut savepoint = tx.savepoint().await?;
    ///     let first = sqlx::query("insert into reservation (order_id) values ($1)")
    ///         .bind(order.order_id)
    ///         .execute(&mut *savepoint)
    ///         .await;
    ///     match first {
    ///         Ok(_) => savepoint.commit().await?,
    ///         Err(_) => savepoint.rollback().await?,
    ///     }
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// Returns the database's error, for example if the transaction has failed already. The
    /// transaction is over then, and using it again panics, which is a failed attempt. Without the
    /// panic, later statements would be committed one by one.
    pub async fn savepoint(&mut self) -> Result<Savepoint<'_>, sqlx::Error> {
        let publisher = self.publisher();
        // If this fails or is cancelled, sqlx rolls back the whole transaction.
        self.is_over = true;
        let savepoint = self.transaction.as_mut().expect(HELD).begin().await?;
        self.is_over = false;
        Ok(Savepoint::new(savepoint, publisher))
    }

    fn publisher(&self) -> Publisher {
        let outbox = self.slot.outbox.clone();
        Publisher::new(outbox, self.carried.clone(), self.meta.clone())
    }
}

// === impl Tx ===

driver::answers_with_a_future!(&'c mut Tx, tx => driver::sqlx::Sqlx(tx));

impl Deref for Tx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        assert!(!self.is_over, "{OVER}");
        self.transaction.as_ref().expect(HELD)
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        assert!(!self.is_over, "{OVER}");
        self.transaction.as_mut().expect(HELD)
    }
}

impl std::fmt::Debug for AfterCommit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AfterCommit")
    }
}

impl Drop for Tx {
    /// Returns the transaction to its slot, for the next handler or the commit.
    fn drop(&mut self) {
        *self
            .slot
            .transaction
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = self.transaction.take();
    }
}
