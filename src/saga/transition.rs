//! One transition of a saga in a transaction: read, let it happen, store.

use std::time::Duration;

use uuid::Uuid;

use super::definition::{Local, Saga, SagaState};
use super::drive::{Instance, World};
use super::machine::{CallFailed, Input, Shape};
use super::progress::{SagaStatus, StepFailure};
use super::store::{Store, Stored};
use crate::event::Envelope;
use crate::subscriber::{HandlerError, Meta, Tx, Verdict};

/// How long a local step may run unless it says otherwise: its transaction keeps the saga's row locked.
const LOCAL_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a saga that waits for a lock is left alone. It is woken when the lock is free; this is for the case that nobody lived to do so.
const LOCK_PAUSE: Duration = Duration::from_secs(30);

/// How long a reply waits for newer code.
const NEWER_PAUSE: Duration = Duration::from_secs(1);

/// A saga that is run by this process.
pub(super) struct Engine<S> {
    pub(super) saga: Saga<S>,
    pub(super) shape: Shape,
}

impl<S: SagaState> Engine<S> {
    pub(super) fn new(saga: Saga<S>) -> Self {
        Self { shape: saga.shape(), saga }
    }

    /// An event comes: a reply, or one that starts a saga.
    pub(super) async fn handle(&self, tx: Tx, meta: &Meta) -> Result<(), HandlerError> {
        let mut world = InTransaction::new(tx, Some(meta.clone()), &self.saga)?;
        let id = meta.correlation_id().and_then(|id| id.parse::<Uuid>().ok());
        let store = world.store.clone();
        if let Some(id) = id
            && let Some(stored) = store.lock(world.tx()?, &self.saga.name, id).await?
            && self.reply(stored, meta, &mut world).await?
        {
            return Ok(());
        }
        let start = self.saga.starts.iter().find(|start| start.kind.types.contains(&meta.event_type()));
        let Some(start) = start else { return Ok(()) };
        let state = (start.begin)(meta)?;
        let key = self.saga.key.as_ref().map_or_else(|| meta.event_id().into_owned(), |key| key(&state));
        let instance = self.instance(key, state, meta.correlation_id().map(str::to_owned));
        self.start(instance, &mut world).await
    }

    /// A saga that has not begun.
    pub(super) fn instance(&self, key: String, state: S, correlation_id: Option<String>) -> Instance<S> {
        Instance { id: Uuid::now_v7(), key, state, progress: self.shape.plan(), correlation_id }
    }

    /// A reply comes; false if the saga does not wait for it.
    async fn reply(&self, stored: Stored, meta: &Meta, world: &mut InTransaction<'_, S>) -> Result<bool, HandlerError> {
        if stored.version.cast_unsigned() > self.saga.version {
            return Err(HandlerError::snooze(NEWER_PAUSE, format!("saga {} was written by newer code", stored.id)));
        }
        if !stored.progress.status.is_end() && !self.shape.knows(&stored.progress) {
            return Err(HandlerError::retry(format!("saga {} stands at a step that this code does not know", stored.id)));
        }
        let cause = meta.causation_id().and_then(|id| id.parse().ok());
        if !self.shape.awaits(&stored.progress, meta.event_type(), cause) {
            tracing::debug!(saga = self.saga.name, id = %stored.id, event_type = meta.event_type(), "a late or repeated reply is left out");
            return Ok(false);
        }
        let (now, mut instance) = (stored.now, stored.instance(&self.saga)?);
        let input = self.saga.take(&mut instance, meta)?;
        self.saga.drive(&self.shape, &mut instance, input, now, world).await?;
        self.keep(&instance, world).await.map(|()| true)
    }

    async fn start(&self, mut instance: Instance<S>, world: &mut InTransaction<'_, S>) -> Result<(), HandlerError> {
        let (store, resources) = (world.store.clone(), self.saga.resources(&instance.state));
        let Some(now) = store.insert(world.tx()?, &self.saga, &instance).await? else { return Ok(()) };
        if !resources.is_empty() {
            store.queue(world.tx()?, instance.id, &resources).await?;
        }
        match store.blocked(world.tx()?, instance.id).await? {
            Some((resource, holder)) if self.saga.refuse_locked => {
                let error = format!("{resource} is held by saga {holder}");
                instance.progress.failure = Some(StepFailure { step: String::new(), error });
                self.saga.drive(&self.shape, &mut instance, Input::Abort, now, world).await?;
                self.keep(&instance, world).await
            }
            Some(_) => Ok(store.postpone(world.tx()?, instance.id, LOCK_PAUSE, None).await?),
            None => {
                self.saga.drive(&self.shape, &mut instance, Input::Start, now, world).await?;
                self.keep(&instance, world).await
            }
        }
    }

    /// Its time has come.
    pub(super) async fn due(&self, stored: Stored, world: &mut InTransaction<'_, S>) -> Result<(), HandlerError> {
        let (now, mut input, mut instance) = (stored.now, stored.input(), stored.instance(&self.saga)?);
        if instance.progress.status == SagaStatus::Waiting && matches!(input, Input::Due | Input::Retry) {
            let store = world.store.clone();
            if store.blocked(world.tx()?, instance.id).await?.is_some() {
                return Ok(store.postpone(world.tx()?, instance.id, LOCK_PAUSE, None).await?);
            }
            input = Input::Start;
        }
        let let_go = input == Input::End;
        self.saga.drive(&self.shape, &mut instance, input, now, world).await?;
        if let_go {
            let store = world.store.clone();
            store.release(world.tx()?, instance.id).await?;
        }
        self.keep(&instance, world).await
    }

    /// Stores how far it has come.
    async fn keep(&self, instance: &Instance<S>, world: &mut InTransaction<'_, S>) -> Result<(), HandlerError> {
        let (store, progress) = (world.store.clone(), &instance.progress);
        if matches!(progress.status, SagaStatus::Completed | SagaStatus::Compensated) {
            store.release(world.tx()?, instance.id).await?;
        }
        if progress.status == SagaStatus::Failed {
            let (saga, id, error) = (&self.saga.name, instance.id, progress.error().unwrap_or_default());
            tracing::error!(saga, %id, error, "a saga has failed: look with `tidings sagas show`, then retry or end it");
        }
        store.save(world.tx()?, &self.saga, instance, progress.due()).await
    }
}

/// The transaction of a delivery or of the timer.
pub(super) struct InTransaction<'s, S> {
    tx: Option<Tx>,
    meta: Option<Meta>,
    saga: &'s Saga<S>,
    pub(super) store: Store,
}

impl<'s, S> InTransaction<'s, S> {
    pub(super) fn new(tx: Tx, meta: Option<Meta>, saga: &'s Saga<S>) -> Result<Self, HandlerError> {
        Ok(Self { store: Store::new(tx.schema().clone()), tx: Some(tx), meta, saga })
    }

    pub(super) fn tx(&mut self) -> Result<&mut Tx, HandlerError> {
        self.tx.as_mut().ok_or_else(kept)
    }

    async fn execute(&mut self, sql: &'static str) -> Result<(), HandlerError> {
        sqlx::raw_sql(sql).execute(&mut **self.tx()?).await?;
        Ok(())
    }
}

fn kept() -> HandlerError {
    HandlerError::dead_letter("a local step kept its `Tx` beyond its end: nothing can be committed")
}

impl<S: SagaState> World<S> for InTransaction<'_, S> {
    async fn send(&mut self, mut envelope: Envelope) -> Result<(), HandlerError> {
        if let Some(meta) = &self.meta {
            meta.cause(&mut envelope);
        }
        self.tx()?.publish_as_it_is(&envelope).await?;
        Ok(())
    }

    async fn call(&mut self, step: &str, _: bool, local: &Local<S>, state: S) -> Result<Result<S, CallFailed>, HandlerError> {
        self.execute("savepoint tidings_saga_step").await?;
        let tx = self.tx.take().ok_or_else(kept)?;
        let lent = tx.lent_again();
        let timeout = self.saga.timeout_of(step).unwrap_or(LOCAL_TIMEOUT);
        let result = tokio::time::timeout(timeout, local(state, tx)).await;
        self.tx = lent.take();
        let failed = match result {
            Ok(Ok(state)) => {
                self.execute("release savepoint tidings_saga_step").await?;
                return Ok(Ok(state));
            }
            // The database is away: that is not the step's fault.
            Ok(Err(error)) if error.verdict() == Verdict::Unavailable => return Err(error),
            Ok(Err(error)) => CallFailed { last: error.verdict() == Verdict::DeadLetter, error: error.chain() },
            Err(_) => CallFailed { last: false, error: format!("it had not ended after {timeout:?}") },
        };
        self.execute("rollback to savepoint tidings_saga_step; release savepoint tidings_saga_step").await?;
        Ok(Err(failed))
    }
}
