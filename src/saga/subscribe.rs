//! Registration of a saga with a subscriber, and the start of a saga from code.

use std::sync::Arc;

use sqlx::PgConnection;
use uuid::Uuid;

use super::companion::Driver;
use super::definition::{Saga, SagaState};
use super::store::{Store, Wake};
use super::transition::Engine;
use crate::postgres::{SchemaName, SchemaNameError};
use crate::subscriber::{Delivery, HandlerError, Subscriber, typestate::InboxState};

/// Error of starting a saga. Nothing is stored. The caller's transaction remains usable unless the
/// database reported the error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The saga refuses locked resources, and another saga holds one of them.
    #[error("{resource} is held by saga {holder}")]
    Locked {
        /// The aggregate, as `type/id`.
        resource: String,
        /// The saga that holds it.
        holder: Uuid,
    },
    /// The state cannot be serialized as JSON, the schema name is invalid, or Postgres rejected a
    /// statement.
    #[error("the saga cannot be stored: {0}")]
    Store(String),
}

impl<S: Send + Sync + 'static, G, I: InboxState> Subscriber<S, G, I> {
    /// Runs this saga: handles the events that start it and the replies that it waits for, and
    /// processes its timeouts. Any number of replicas may run it. Requires
    /// [`inbox`](Subscriber::inbox).
    ///
    /// ```no_run
    /// # use tidings::saga::Saga;
    /// # async fn run(
    /// #     bus: tidings::Bus,
    /// #     pool: sqlx::PgPool,
    /// #     place_order: Saga<()>,
    /// #     shutdown: tokio_util::sync::CancellationToken,
    /// # ) -> Result<(), tidings::subscriber::RunError> {
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
    /// Starts a saga from code, in the transaction of `conn`. A subscriber that runs the saga
    /// begins it after the transaction commits. Returns the id of the new saga, or the id of the
    /// existing saga with the same key.
    ///
    /// # Errors
    ///
    /// Returns [`StartError`] if the saga is refused a lock or cannot be stored.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the saga may or may not be part of the transaction: roll it back.
    pub async fn start(&self, conn: &mut PgConnection, state: T) -> Result<Uuid, StartError> {
        self.start_in(SchemaName::default().as_str(), conn, state)
            .await
    }

    /// Starts a saga whose tables are in another schema, as given to
    /// [`Inbox::schema`](crate::subscriber::Inbox::schema).
    ///
    /// # Errors
    ///
    /// Returns [`StartError`] if the saga is refused a lock or cannot be stored.
    ///
    /// # Cancel safety
    ///
    /// See [`start`](Self::start).
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
                    "saga {} {} was deleted concurrently; start it again",
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
