//! One transition of a saga in a transaction: read, let it happen, store.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use super::alarm::Alarm;
use super::definition::{Local, Saga, SagaState};
use super::drive::{Instance, World};
use super::machine::{CallFailed, Input, Shape};
use super::obstacle::Obstacle;
use super::progress::{Current, Progress, SagaStatus, StepFailure};
use super::registration::{LIVE_SECONDS, registered};
use super::signature::replies;
use super::store::{Kept, Mine, Store, Stored, Wake, Why};
use crate::event::Envelope;
use crate::outbox::PublishError;
use crate::postgres::errors::with_causes;
use crate::subscriber::{HandlerError, Meta, Tx, Verdict, panic_text};

/// How long a local step may run unless it says otherwise: its transaction keeps the saga's row locked.
const LOCAL_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a saga that waits for a lock is left alone. It is woken when the lock is free; this is for the case that nobody lived to do so.
const LOCK_PAUSE: Duration = Duration::from_secs(30);

/// How much later than here the server ends a statement of a local step: so that it is known here what has happened.
const SERVER_LATER: Duration = Duration::from_secs(1);

/// What a local step is rolled back to.
const SAVEPOINT: &str = "tidings_saga_step";

/// Whether what a person has decided is done by this transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decided {
    Done,
    Not,
}

/// Whether code other than this waits for an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Elsewhere {
    /// The correlation id is not that of a saga.
    NoSaga,
    /// A saga has the id, and no other code waits for the event.
    NotAwaited,
    /// Other code waits for it, for this reason.
    Awaited(String),
}

/// A saga that is run by this process.
pub(super) struct Engine<S> {
    pub(super) saga: Saga<S>,
    pub(super) shape: Shape,
    pub(super) alarm: Arc<Alarm>,
    /// The names of its steps.
    steps: Vec<String>,
    here: OnceLock<Here>,
}

/// Where a saga runs.
struct Here {
    /// The subscriber's name.
    consumer: String,
    /// All sagas of the subscriber.
    names: Vec<String>,
}

impl<S: SagaState> Engine<S> {
    pub(super) fn new(saga: Saga<S>) -> Self {
        saga.statistics.know_steps(saga.step_names());
        let steps = saga.step_names().map(str::to_owned).collect();
        Self { shape: saga.shape(), saga, alarm: Arc::default(), steps, here: OnceLock::new() }
    }

    /// A subscriber of this name runs it, beside the other sagas among `names`.
    pub(super) fn run_here(&self, consumer: &str, names: &[String]) {
        let _ = self.here.set(Here { consumer: consumer.to_owned(), names: names.to_vec() });
    }

    /// The sagas that this code can continue.
    pub(super) fn mine(&self) -> Mine<'_> {
        Mine { name: &self.saga.name, version: self.saga.version, steps: &self.steps }
    }

    /// Why this code cannot continue a saga of its name.
    pub(super) fn obstacle(&self, stored: &Stored) -> Option<Obstacle> {
        self.read(stored).err()
    }

    /// A saga of this name, as far as this code can continue it.
    fn read(&self, stored: &Stored) -> Result<Instance<S>, Obstacle> {
        let instance = stored.instance(&self.saga, stored.progress()?)?;
        self.unknown(&instance.progress).map_or(Ok(instance), Err)
    }

    fn unknown(&self, progress: &Progress) -> Option<Obstacle> {
        self.shape.unknown(progress).map(|unknown| Obstacle::Unknown { unknown, version: self.saga.version })
    }

    /// An event comes: a reply, or one that starts a saga.
    pub(super) async fn handle(&self, tx: Tx, meta: &Meta) -> Result<(), HandlerError> {
        let mut world = InTransaction::new(tx, &self.saga);
        let id = meta.correlation_id().and_then(|id| id.parse::<Uuid>().ok());
        let store = world.store.clone();
        if let Some(id) = id {
            match store.lock(world.tx()?, &self.saga.name, id).await? {
                Some(stored) => {
                    if self.reply(stored, meta, &mut world).await? {
                        return Ok(());
                    }
                }
                None => {
                    if let Elsewhere::Awaited(reason) = self.awaited_elsewhere(&store, world.tx()?, id, meta).await? {
                        return Err(HandlerError::wait_for_code(reason));
                    }
                }
            }
        }
        let start = self.saga.starts.iter().find(|start| start.kind.types.contains(&meta.event_type()));
        let Some(start) = start else { return Ok(()) };
        let state = (start.begin)(meta)?;
        let key = self.saga.key.as_ref().map_or_else(|| meta.event_id().into_owned(), |key| key(&state));
        // An event that belongs to no conversation begins one, as for any handler.
        let conversation = meta.correlation_id().map_or_else(|| meta.event_id().into_owned(), str::to_owned);
        let mut instance = self.instance(key, state, Some(conversation));
        instance.progress.cause.moved_by(meta);
        self.start(instance, &mut world).await
    }

    /// A saga that has not begun.
    pub(super) fn instance(&self, key: String, state: S, correlation_id: Option<String>) -> Instance<S> {
        Instance { id: Uuid::now_v7(), key, state, progress: self.shape.plan(), correlation_id }
    }

    /// A reply comes; false if the saga does not wait for it.
    async fn reply(&self, stored: Stored, meta: &Meta, world: &mut InTransaction<'_, S>) -> Result<bool, HandlerError> {
        let (id, name) = (stored.id, &self.saga.name);
        if stored.version.cast_unsigned() > self.saga.version {
            let reason = format!("saga {name} {id} was written by version {}, and this is version {}", stored.version, self.saga.version);
            return Err(HandlerError::wait_for_code(reason));
        }
        let waits = |obstacle: &Obstacle| HandlerError::wait_for_code(format!("saga {name} {id} waits: {obstacle}"));
        let progress = stored.progress().map_err(|obstacle| waits(&obstacle))?;
        let cause = meta.causation_id().and_then(|id| id.parse().ok());
        if !self.shape.awaits(&progress, meta.event_type(), cause) {
            let store = world.store.clone();
            if self.answers_other_code(&store, world.tx()?, &stored, &progress, meta).await? {
                let error = format!("`{}` answers saga {name} {id} by another version of its definition", meta.event_type());
                return Err(self.unknown(&progress).map_or_else(|| HandlerError::wait_for_code(error), |obstacle| waits(&obstacle)));
            }
            tracing::debug!(saga = name, %id, event_type = meta.event_type(), "a late or repeated reply is left out");
            return Ok(false);
        }
        let (now, mut instance) = (stored.now, stored.instance(&self.saga, progress).map_err(|obstacle| waits(&obstacle))?);
        instance.progress.cause.moved_by(meta);
        let input = self.saga.take(&mut instance, meta)?;
        self.saga.drive(&self.shape, &mut instance, input, now, world).await?;
        self.keep(instance, Decided::Not, now, world).await.map(|()| true)
    }

    /// Checks whether other code waits for an event: an open saga of this name at a step that this code does not have, or an
    /// open saga of a name that this subscriber no longer runs. Locks nothing.
    ///
    /// # Errors
    ///
    /// Returns the server's error.
    pub(super) async fn awaited_elsewhere(
        &self,
        store: &Store,
        conn: &mut PgConnection,
        id: Uuid,
        meta: &Meta,
    ) -> Result<Elsewhere, sqlx::Error> {
        let Some(here) = self.here.get() else { return Ok(Elsewhere::NotAwaited) };
        let Some(stored) = store.read(conn, id).await? else { return Ok(Elsewhere::NoSaga) };
        let is_mine = stored.name == self.saga.name;
        if !is_mine && here.names.contains(&stored.name) {
            return Ok(Elsewhere::NotAwaited);
        }
        if !is_mine {
            let code = registered(conn, store.schema(), &stored.name).await?;
            let was_here = code.iter().any(|code| code.consumer == here.consumer);
            let is_run = code.iter().any(|code| code.consumer != here.consumer && code.seen_seconds < LIVE_SECONDS);
            if !was_here || is_run {
                return Ok(Elsewhere::NotAwaited);
            }
        }
        let name = &stored.name;
        let waits = |obstacle: Obstacle| Elsewhere::Awaited(format!("saga {name} {id} waits: {obstacle}"));
        let progress = match stored.progress() {
            Ok(progress) => progress,
            Err(obstacle) => return Ok(waits(obstacle)),
        };
        if !self.answers_other_code(store, conn, &stored, &progress, meta).await? {
            return Ok(Elsewhere::NotAwaited);
        }
        let reason = || format!("`{}` answers saga {name} {id}, which this code does not run", meta.event_type());
        let unknown = self.unknown(&progress).filter(|_| is_mine);
        Ok(unknown.map_or_else(|| Elsewhere::Awaited(reason()), waits))
    }

    /// Whether an event for which this code does not wait answers the present step by another definition of the saga.
    async fn answers_other_code(
        &self,
        store: &Store,
        conn: &mut PgConnection,
        stored: &Stored,
        progress: &Progress,
        meta: &Meta,
    ) -> Result<bool, sqlx::Error> {
        let cause = meta.causation_id().and_then(|id| id.parse().ok());
        let Some(current) = progress.current.as_ref().filter(|_| !progress.status.is_end()) else { return Ok(false) };
        if progress.is_of_another_step(cause) || self.is_reply_here(stored, current, meta.event_type()) {
            return Ok(false);
        }
        let code = registered(conn, store.schema(), &stored.name).await?;
        // Code that registered nothing ran before this version of the library: what answers it is unknown.
        let is_known = stored.name == self.saga.name && self.shape.knows(progress);
        Ok(replies(&code, &current.step, current.back).map_or(!is_known, |types| types.iter().any(|one| one == meta.event_type())))
    }

    /// Whether this code takes such an event as a reply to the present step: then it decides alone.
    fn is_reply_here(&self, stored: &Stored, current: &Current, event_type: &str) -> bool {
        let action = self.saga.action(&current.step, current.back);
        stored.name == self.saga.name && action.is_some_and(|action| action.takes(event_type))
    }

    async fn start(&self, mut instance: Instance<S>, world: &mut InTransaction<'_, S>) -> Result<(), HandlerError> {
        let (store, resources) = (world.store.clone(), self.saga.resources(&instance.state));
        let Some(now) = store.insert(world.tx()?, &self.saga, &instance, Wake::Nobody).await? else { return Ok(()) };
        if !resources.is_empty() {
            store.queue(world.tx()?, instance.id, &resources).await?;
        }
        match store.blocked(world.tx()?, instance.id).await? {
            Some((resource, holder)) if self.saga.refuse_locked => {
                let error = format!("{resource} is held by saga {holder}");
                instance.progress.failure = Some(StepFailure { step: String::new(), error });
                self.saga.drive(&self.shape, &mut instance, Input::Abort, now, world).await?;
                self.keep(instance, Decided::Not, now, world).await
            }
            Some(_) => Ok(store.postpone(world.tx()?, instance.id, LOCK_PAUSE, Why::Lock).await?),
            None => {
                self.saga.drive(&self.shape, &mut instance, Input::Start, now, world).await?;
                self.keep(instance, Decided::Not, now, world).await
            }
        }
    }

    /// Its time has come.
    pub(super) async fn due(&self, stored: Stored, world: &mut InTransaction<'_, S>) -> Result<(), HandlerError> {
        let (now, mut input) = (stored.now, stored.input());
        let mut instance = match self.read(&stored) {
            Ok(instance) => instance,
            Err(_) if input == Input::End => return self.end_as_it_is(stored, world).await,
            Err(obstacle) => return Err(HandlerError::wait_for_code(obstacle.to_string())),
        };
        let decided = if stored.action.is_some() { Decided::Done } else { Decided::Not };
        if instance.progress.status == SagaStatus::Waiting && matches!(input, Input::Due | Input::Retry) {
            let store = world.store.clone();
            if store.blocked(world.tx()?, instance.id).await?.is_some() {
                return Ok(store.postpone(world.tx()?, instance.id, LOCK_PAUSE, Why::Lock).await?);
            }
            input = Input::Start;
        }
        let let_go = input == Input::End;
        self.saga.drive(&self.shape, &mut instance, input, now, world).await?;
        if let_go {
            let store = world.store.clone();
            store.release(world.tx()?, instance.id).await?;
        }
        self.keep(instance, decided, now, world).await
    }

    /// A person ends a saga that this code cannot read or does not know. Its state stays as it is.
    async fn end_as_it_is(&self, stored: Stored, world: &mut InTransaction<'_, S>) -> Result<(), HandlerError> {
        let (read, store) = (stored.progress(), world.store.clone());
        let is_readable = read.is_ok();
        let mut progress = read.unwrap_or_else(|_| self.shape.plan());
        self.shape.next(&mut progress, Input::End, stored.now);
        let correlation = stored.correlation_id.clone().unwrap_or_else(|| stored.id.to_string());
        let ended = self.saga.ended(stored.id, &stored.key, correlation, &progress)?;
        world.send(ended).await?.map_err(HandlerError::dead_letter)?;
        store.release(world.tx()?, stored.id).await?;
        let stored_progress = if is_readable { serde_json::to_string(&progress)? } else { stored.progress };
        let kept = Kept { id: stored.id, state: stored.state, progress: &progress, stored_progress, due: None, obstacle: None };
        // By the version that wrote it, since its state is still of that version.
        store.save(world.tx()?, stored.version.cast_unsigned(), &kept, Decided::Done).await
    }

    /// Stores how far it has come, and tells once that is committed.
    async fn keep(
        &self,
        mut instance: Instance<S>,
        decided: Decided,
        now: DateTime<Utc>,
        world: &mut InTransaction<'_, S>,
    ) -> Result<(), HandlerError> {
        let (store, happened) = (world.store.clone(), std::mem::take(&mut instance.progress.happened));
        let progress = &instance.progress;
        let mut wake = None;
        if matches!(progress.status, SagaStatus::Completed | SagaStatus::Compensated) && store.release(world.tx()?, instance.id).await? {
            wake = Some(Duration::ZERO);
        }
        if progress.status == SagaStatus::Failed {
            let (saga, id, error) = (&self.saga.name, instance.id, progress.error().unwrap_or_default());
            tracing::error!(saga, %id, error, "a saga has failed: look with `tidings sagas show`, then retry or end it");
        }
        let now = now + world.elapsed();
        let due = self.shape.due_at(progress, now);
        let kept = Kept::of(&instance, due, self.unknown(progress))?;
        store.save(world.tx()?, self.saga.version, &kept, decided).await?;
        let wake = wake.or(due.map(|due| (due - now).to_std().unwrap_or_default()));
        let (alarm, statistics) = (self.alarm.clone(), self.saga.statistics.clone());
        world.tx()?.after_commit(move || {
            statistics.count(&happened);
            if let Some(time) = wake {
                alarm.set(tokio::time::Instant::now() + time);
            }
        });
        Ok(())
    }
}

/// The transaction of a delivery or of the timer.
pub(super) struct InTransaction<'s, S> {
    tx: Option<Tx>,
    saga: &'s Saga<S>,
    store: Store,
    began: Instant,
}

impl<'s, S> InTransaction<'s, S> {
    pub(super) fn new(tx: Tx, saga: &'s Saga<S>) -> Self {
        Self { store: Store::new(tx.schema().clone()), tx: Some(tx), saga, began: Instant::now() }
    }

    fn tx(&mut self) -> Result<&mut Tx, HandlerError> {
        self.tx.as_mut().ok_or_else(kept)
    }

    async fn execute(&mut self, sql: String) -> Result<(), HandlerError> {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut **self.tx()?).await?;
        Ok(())
    }
}

fn kept() -> HandlerError {
    HandlerError::dead_letter("a local step kept its `Tx` beyond its end: nothing can be committed")
}

impl<S: SagaState> World<S> for InTransaction<'_, S> {
    async fn send(&mut self, envelope: Envelope) -> Result<Result<(), String>, HandlerError> {
        match self.tx()?.publish_as_it_is(&envelope).await {
            Ok(_) => Ok(Ok(())),
            Err(error @ (PublishError::Database(_) | PublishError::MissingTable { .. } | PublishError::Schema(_))) => Err(error.into()),
            // Found before a statement was sent, so the transaction can continue.
            Err(error) => Ok(Err(with_causes(&error))),
        }
    }

    async fn call(&mut self, run: &Instance<S>, step: &str, _: bool, local: &Local<S>) -> Result<Result<S, CallFailed>, HandlerError> {
        let timeout = self.saga.timeout_of(step).unwrap_or(LOCAL_TIMEOUT);
        // Nothing can be rolled back before the server has ended what the step has asked for.
        let millis = (timeout + SERVER_LATER).as_millis().min(i32::MAX as u128);
        self.execute(format!("savepoint {SAVEPOINT}; set local statement_timeout = {millis}")).await?;
        let mut tx = self.tx.take().ok_or_else(kept)?;
        tx.carry(run.headers());
        let (lent, state) = (tx.lent_again(), run.state.clone());
        let called = AssertUnwindSafe(async { local(state, tx).await }).catch_unwind();
        let result = tokio::time::timeout(timeout, called).await;
        self.tx = lent.take();
        let failed = match result {
            Ok(Ok(Ok(state))) => {
                self.execute(format!("release savepoint {SAVEPOINT}; set local statement_timeout to default")).await?;
                return Ok(Ok(state));
            }
            // The database is away: that is not the step's fault.
            Ok(Ok(Err(error))) if error.verdict() == Verdict::Unavailable => return Err(error),
            Ok(Ok(Err(error))) => CallFailed { last: error.verdict() == Verdict::DeadLetter, error: error.chain(), late: false },
            Ok(Err(panic)) => CallFailed { last: false, error: format!("it panicked: {}", panic_text(&*panic)), late: false },
            Err(_) => CallFailed { last: false, error: format!("it had not ended after {timeout:?}"), late: true },
        };
        let roll_back = format!("rollback to savepoint {SAVEPOINT}");
        if failed.late {
            // The first answer that is read is the one to the statement that was left alone: that it was ended.
            let _ = self.execute(roll_back.clone()).await;
        }
        self.execute(format!("{roll_back}; release savepoint {SAVEPOINT}")).await?;
        Ok(Err(failed))
    }

    fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}
