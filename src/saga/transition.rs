//! One transition of a saga in a transaction: read, apply the input, store.

mod in_transaction;
mod other_code;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

pub(super) use in_transaction::InTransaction;
pub(super) use other_code::Elsewhere;

use super::definition::{Saga, SagaState};
use super::drive::{Effects, SagaInstance};
use super::machine::{Input, Shape};
use super::obstacle::Obstacle;
use super::progress::{Progress, SagaStatus, StepFailure};
use super::store::{Kept, Mine, Stored, Wake, Why};
use super::wakeup::Wakeup;
use crate::subscriber::{HandlerError, Meta, Tx};

/// Pause before a saga that waits for a lock is processed again. The release of the lock wakes the
/// saga; the pause covers a process that crashed before it could do so.
const LOCK_PAUSE: Duration = Duration::from_secs(30);

/// Effect of this transition on the operator's decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Done,
    Not,
}

/// A saga that this process runs.
pub(super) struct Engine<S> {
    pub(super) saga: Saga<S>,
    pub(super) shape: Shape,
    pub(super) wakeup: Arc<Wakeup>,
    /// The names of the saga's steps.
    steps: Vec<String>,
    here: OnceLock<Here>,
}

/// The subscriber that runs a saga.
struct Here {
    /// The subscriber's name.
    consumer: String,
    /// The names of all sagas of the subscriber.
    names: Vec<String>,
}

impl<S: SagaState> Engine<S> {
    pub(super) fn new(saga: Saga<S>) -> Self {
        saga.statistics.know_steps(saga.step_names());
        let steps = saga.step_names().map(str::to_owned).collect();
        Self {
            shape: saga.shape(),
            saga,
            wakeup: Arc::default(),
            steps,
            here: OnceLock::new(),
        }
    }

    /// Records the subscriber that runs the saga, and the names of all its sagas.
    pub(super) fn run_here(&self, consumer: &str, names: &[String]) {
        let _ = self.here.set(Here {
            consumer: consumer.to_owned(),
            names: names.to_vec(),
        });
    }

    /// Returns the filter for the sagas that this code can continue.
    pub(super) fn mine(&self) -> Mine<'_> {
        Mine {
            name: &self.saga.name,
            version: self.saga.version,
            steps: &self.steps,
        }
    }

    /// Returns the reason why this code cannot continue a saga of its name, if any.
    pub(super) fn obstacle(&self, stored: &Stored) -> Option<Obstacle> {
        self.read(stored).err()
    }

    /// Reads a saga of this name, if this code can continue it.
    fn read(&self, stored: &Stored) -> Result<SagaInstance<S>, Obstacle> {
        let instance = stored.instance(&self.saga, stored.progress()?)?;
        self.unknown(&instance.progress).map_or(Ok(instance), Err)
    }

    fn unknown(&self, progress: &Progress) -> Option<Obstacle> {
        self.shape
            .unknown(progress)
            .map(|unknown| Obstacle::Unknown {
                unknown,
                version: self.saga.version,
            })
    }

    /// Handles an event: a reply, or an event that starts a saga.
    pub(super) async fn handle(&self, tx: Tx, meta: &Meta) -> Result<(), HandlerError> {
        let mut effects = InTransaction::new(tx, &self.saga);
        let id = meta.correlation_id().and_then(|id| id.parse::<Uuid>().ok());
        let store = effects.store.clone();
        if let Some(id) = id {
            match store.lock(effects.tx()?, &self.saga.name, id).await? {
                Some(stored) => {
                    if self.reply(stored, meta, &mut effects).await? {
                        return Ok(());
                    }
                }
                None => {
                    if let Elsewhere::Awaited(reason) = self
                        .awaited_elsewhere(&store, effects.tx()?, id, meta)
                        .await?
                    {
                        return Err(HandlerError::wait_for_code(reason));
                    }
                }
            }
        }
        let start = self
            .saga
            .starts
            .iter()
            .find(|start| start.kind.types.contains(&meta.event_type()));
        let Some(start) = start else { return Ok(()) };
        let state = (start.begin)(meta)?;
        let key = self
            .saga
            .key
            .as_ref()
            .map_or_else(|| meta.event_id().into_owned(), |key| key(&state));
        // An event without a correlation id starts a new conversation, as for any handler.
        let conversation = meta
            .correlation_id()
            .map_or_else(|| meta.event_id().into_owned(), str::to_owned);
        let mut instance = self.instance(key, state, Some(conversation));
        instance.progress.cause.moved_by(meta);
        self.start(instance, &mut effects).await
    }

    /// Creates a saga that has not begun.
    pub(super) fn instance(
        &self,
        key: String,
        state: S,
        correlation_id: Option<String>,
    ) -> SagaInstance<S> {
        SagaInstance {
            id: Uuid::now_v7(),
            key,
            state,
            progress: self.shape.plan(),
            correlation_id,
        }
    }

    /// Handles a reply. Returns `false` if the saga does not wait for it.
    async fn reply(
        &self,
        stored: Stored,
        meta: &Meta,
        effects: &mut InTransaction<'_, S>,
    ) -> Result<bool, HandlerError> {
        let (id, name) = (stored.id, &self.saga.name);
        if stored.version.cast_unsigned() > self.saga.version {
            let reason = format!(
                "saga {name} {id} was written by version {}, and this is version {}",
                stored.version, self.saga.version
            );
            return Err(HandlerError::wait_for_code(reason));
        }
        let waits = |obstacle: &Obstacle| {
            HandlerError::wait_for_code(format!("saga {name} {id} waits: {obstacle}"))
        };
        let progress = stored.progress().map_err(|obstacle| waits(&obstacle))?;
        let cause = meta.causation_id().and_then(|id| id.parse().ok());
        if !self.shape.awaits(&progress, meta.event_type(), cause) {
            let store = effects.store.clone();
            if self
                .answers_other_code(&store, effects.tx()?, &stored, &progress, meta)
                .await?
            {
                let error = format!(
                    "`{}` is a reply to saga {name} {id} in another version of its definition",
                    meta.event_type()
                );
                return Err(self.unknown(&progress).map_or_else(
                    || HandlerError::wait_for_code(error),
                    |obstacle| waits(&obstacle),
                ));
            }
            tracing::debug!(
                saga = name,
                %id,
                event_type = meta.event_type(),
                "a late or repeated reply is ignored"
            );
            return Ok(false);
        }
        let (now, mut instance) = (
            stored.now,
            stored
                .instance(&self.saga, progress)
                .map_err(|obstacle| waits(&obstacle))?,
        );
        instance.progress.cause.moved_by(meta);
        let input = self.saga.take(&mut instance, meta)?;
        self.saga
            .drive(&self.shape, &mut instance, input, now, effects)
            .await?;
        self.keep(instance, Decision::Not, now, effects)
            .await
            .map(|()| true)
    }

    async fn start(
        &self,
        mut instance: SagaInstance<S>,
        effects: &mut InTransaction<'_, S>,
    ) -> Result<(), HandlerError> {
        let (store, resources) = (effects.store.clone(), self.saga.resources(&instance.state));
        let Some(now) = store
            .insert(effects.tx()?, &self.saga, &instance, Wake::Nobody)
            .await?
        else {
            return Ok(());
        };
        if !resources.is_empty() {
            store.queue(effects.tx()?, instance.id, &resources).await?;
        }
        match store.blocked(effects.tx()?, instance.id).await? {
            Some((resource, holder)) if self.saga.refuse_locked => {
                let error = format!("{resource} is held by saga {holder}");
                instance.progress.failure = Some(StepFailure {
                    step: String::new(),
                    error,
                });
                self.saga
                    .drive(&self.shape, &mut instance, Input::Abort, now, effects)
                    .await?;
                self.keep(instance, Decision::Not, now, effects).await
            }
            Some(_) => Ok(store
                .postpone(effects.tx()?, instance.id, LOCK_PAUSE, Why::Lock)
                .await?),
            None => {
                self.saga
                    .drive(&self.shape, &mut instance, Input::Start, now, effects)
                    .await?;
                self.keep(instance, Decision::Not, now, effects).await
            }
        }
    }

    /// Processes a due saga.
    pub(super) async fn due(
        &self,
        stored: Stored,
        effects: &mut InTransaction<'_, S>,
    ) -> Result<(), HandlerError> {
        let (now, mut input) = (stored.now, stored.input());
        let mut instance = match self.read(&stored) {
            Ok(instance) => instance,
            Err(_) if input == Input::End => return self.end_as_it_is(stored, effects).await,
            Err(obstacle) => return Err(HandlerError::wait_for_code(obstacle.to_string())),
        };
        let decision = if stored.action.is_some() {
            Decision::Done
        } else {
            Decision::Not
        };
        if instance.progress.status == SagaStatus::Waiting
            && matches!(input, Input::Due | Input::Retry)
        {
            let store = effects.store.clone();
            if store.blocked(effects.tx()?, instance.id).await?.is_some() {
                return Ok(store
                    .postpone(effects.tx()?, instance.id, LOCK_PAUSE, Why::Lock)
                    .await?);
            }
            input = Input::Start;
        }
        let let_go = input == Input::End;
        self.saga
            .drive(&self.shape, &mut instance, input, now, effects)
            .await?;
        if let_go {
            let store = effects.store.clone();
            store.release(effects.tx()?, instance.id).await?;
        }
        self.keep(instance, decision, now, effects).await
    }

    /// Ends a saga that this code cannot read or continue, on an operator's decision. Its state is
    /// left unchanged.
    async fn end_as_it_is(
        &self,
        stored: Stored,
        effects: &mut InTransaction<'_, S>,
    ) -> Result<(), HandlerError> {
        let (read, store) = (stored.progress(), effects.store.clone());
        let is_readable = read.is_ok();
        let mut progress = read.unwrap_or_else(|_| self.shape.plan());
        self.shape.next(&mut progress, Input::End, stored.now);
        let correlation = stored
            .correlation_id
            .clone()
            .unwrap_or_else(|| stored.id.to_string());
        let ended = self
            .saga
            .ended(stored.id, &stored.key, correlation, &progress)?;
        effects
            .send(ended)
            .await?
            .map_err(HandlerError::dead_letter)?;
        store.release(effects.tx()?, stored.id).await?;
        let (stored_progress, ascii_progress) = if is_readable {
            let json = serde_json::to_string(&progress)?;
            let ascii = progress.ascii_json(&json)?;
            (json, ascii)
        } else {
            (stored.progress, None)
        };
        let kept = Kept {
            id: stored.id,
            state: stored.state,
            progress: &progress,
            stored_progress,
            ascii_progress,
            due: None,
            obstacle: None,
        };
        // The version is left unchanged, since the state still has the format of that version.
        store
            .save(
                effects.tx()?,
                stored.version.cast_unsigned(),
                &kept,
                Decision::Done,
            )
            .await
    }

    /// Stores the progress. Updates the statistics and the wakeup when the transaction commits.
    async fn keep(
        &self,
        mut instance: SagaInstance<S>,
        decision: Decision,
        now: DateTime<Utc>,
        effects: &mut InTransaction<'_, S>,
    ) -> Result<(), HandlerError> {
        let (store, happened) = (
            effects.store.clone(),
            std::mem::take(&mut instance.progress.happened),
        );
        let progress = &instance.progress;
        let mut wake = None;
        if matches!(
            progress.status,
            SagaStatus::Completed | SagaStatus::Compensated
        ) && store.release(effects.tx()?, instance.id).await?
        {
            wake = Some(Duration::ZERO);
        }
        if progress.status == SagaStatus::Failed {
            let (saga, id, error) = (
                &self.saga.name,
                instance.id,
                progress.error().unwrap_or_default(),
            );
            tracing::error!(
                saga,
                %id,
                error,
                "a saga has failed; inspect it with `tidings sagas show`, then retry or end it"
            );
        }
        let now = now + effects.elapsed();
        let due = self.shape.due_at(progress, now);
        let kept = Kept::of(&instance, due, self.unknown(progress))?;
        store
            .save(effects.tx()?, self.saga.version, &kept, decision)
            .await?;
        let wake = wake.or(due.map(|due| (due - now).to_std().unwrap_or_default()));
        let (wakeup, statistics) = (self.wakeup.clone(), self.saga.statistics.clone());
        effects.tx()?.after_commit(move || {
            statistics.count(&happened);
            if let Some(time) = wake {
                wakeup.set(tokio::time::Instant::now() + time);
            }
        });
        Ok(())
    }
}
