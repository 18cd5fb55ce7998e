//! How a saga becomes part of a subscriber, and how code starts one.

use std::sync::Arc;

use sqlx::PgConnection;
use uuid::Uuid;

use super::companion::Driver;
use super::definition::{Saga, SagaState};
use super::store::{Store, Wake};
use super::transition::Engine;
use crate::postgres::{SchemaName, SchemaNameError};
use crate::subscriber::{Delivery, HandlerError, InboxState, Subscriber};

/// Why a saga is not started. Nothing is stored; the caller's transaction can go on unless the database is the reason.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// It does not wait for what is locked.
    #[error("{resource} is held by saga {holder}")]
    Locked {
        /// The aggregate, as `type/id`.
        resource: String,
        /// The saga that holds it.
        holder: Uuid,
    },
    /// The state has no JSON form, or Postgres refused the insert.
    #[error("the saga cannot be stored: {0}")]
    Store(String),
}

impl<S: Send + Sync + 'static, G, I: InboxState> Subscriber<S, G, I> {
    /// Runs this saga: handles the events that start it and the replies it waits for, and looks after its timeouts. On as many replicas as one likes. It needs
    /// [`inbox`](Subscriber::inbox).
    ///
    /// ```no_run
    /// # use tidings::saga::Saga;
    /// # async fn run(bus: tidings::Bus, pool: sqlx::PgPool, place_order: Saga<()>, shutdown: tokio_util::sync::CancellationToken) -> Result<(), tidings::subscriber::RunError> {
    /// bus.subscriber("orders").saga(place_order).inbox(pool).run(shutdown).await
    /// # }
    /// ```
    pub fn saga<T: SagaState>(self, saga: Saga<T>) -> Subscriber<S, G, I::WhenNeeded> {
        let (faults, kinds) = (saga.faults(), saga.kinds());
        let engine = Arc::new(Engine::new(saga));
        let subscriptions = kinds.into_iter().map(|kind| (kind.aggregate, kind.types));
        let handling = engine.clone();
        let handle = move |delivery: Delivery| {
            let engine = handling.clone();
            async move {
                let meta = delivery.meta();
                engine.handle(delivery.transaction()?, &meta).await
            }
        };
        self.on_each(subscriptions, handle)
            .beside(Arc::new(Driver(engine)))
            .faulty(faults)
    }
}

impl<T: SagaState> Saga<T> {
    /// Starts a saga from code, in the transaction of `conn`: it begins once that commits, by a subscriber that runs it. Its id; or that of the one which
    /// has its key.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the saga may or may not be part of the transaction: roll it back.
    pub async fn start(&self, conn: &mut PgConnection, state: T) -> Result<Uuid, StartError> {
        self.start_in(SchemaName::default().as_str(), conn, state)
            .await
    }

    /// Starts a saga whose tables are in another schema, as given to [`Inbox::schema`](crate::subscriber::Inbox::schema).
    ///
    /// # Errors
    ///
    /// [`StartError`].
    ///
    /// # Cancel safety
    ///
    /// As [`start`](Self::start).
    pub async fn start_in(
        &self,
        schema: &str,
        conn: &mut PgConnection,
        state: T,
    ) -> Result<Uuid, StartError> {
        let failed = |error: HandlerError| StartError::Store(error.chain());
        let store = Store::new(
            schema
                .parse()
                .map_err(|error: SchemaNameError| StartError::Store(error.to_string()))?,
        );
        let engine = Engine::new(self.clone());
        let resources = self.resources(&state);
        let key = self.key.as_ref().map(|key| key(&state));
        let mut instance = engine.instance(String::new(), state, None);
        instance.key = key.unwrap_or_else(|| instance.id.to_string());
        if let Some(id) = store
            .id_of(conn, &self.name, &instance.key)
            .await
            .map_err(|error| failed(error.into()))?
        {
            return Ok(id);
        }
        if self.refuse_locked
            && let Some((resource, holder)) = store
                .holder(conn, &resources)
                .await
                .map_err(|error| failed(error.into()))?
        {
            return Err(StartError::Locked { resource, holder });
        }
        if store
            .insert(conn, self, &instance, Wake::Timers)
            .await
            .map_err(failed)?
            .is_none()
        {
            let id = store
                .id_of(conn, &self.name, &instance.key)
                .await
                .map_err(|error| failed(error.into()))?;
            return id.ok_or_else(|| {
                StartError::Store(format!(
                    "saga {} {} was deleted at this moment",
                    self.name, instance.key
                ))
            });
        }
        if !resources.is_empty() {
            store
                .queue(conn, instance.id, &resources)
                .await
                .map_err(|error| failed(error.into()))?;
        }
        Ok(instance.id)
    }
}
