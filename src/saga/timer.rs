//! What happens because time has passed: timeouts, retries, and what a person has decided. Every replica looks; each saga is looked at by one at a time.
//!
//! ```text
//! look: how many are due, when is the next one? ──▶ a turn for each, some at once ──▶ rest until the next one is due
//!   ▲                                                 │ has gone on: there may be more        │ 0.5 s at most
//!   └─────────────────────────────────────────────────┴───────────────────────────────────────┘
//! ```
//!
//! What this process stores rings its [`Alarm`](super::alarm::Alarm) when it is due. What others have stored (other replicas, code that starts a saga, a person) is found by looking.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::definition::SagaState;
use super::store::{Store, Stored};
use super::transition::{Engine, InTransaction};
use crate::postgres::session_fault;
use crate::postgres::{SchemaName, errors::with_causes};
use crate::subscriber::{HandlerError, Tx};

/// The longest rest, and so how late what others have stored may be. A look costs two entries of an index.
const POLL: Duration = Duration::from_millis(500);

/// How long it rests when something did not work.
const PAUSE: Duration = Duration::from_secs(1);

/// How long a saga is left alone that cannot be gone on with: its state is not readable, or a local step broke the transaction.
const FAILED_PAUSE: Duration = Duration::from_secs(30);

/// How often ended sagas are forgotten.
const RETENTION_INTERVAL: Duration = Duration::from_secs(60);

/// How often it is looked up how sagas stand, if somebody asks.
const STANDING_INTERVAL: Duration = Duration::from_secs(15);

/// How long its statements wait for a lock, and how long the server lets it sit idle within a transaction.
const TIMEOUTS: &str = "set local lock_timeout = 10000; set local idle_in_transaction_session_timeout = 120000";

/// The timer of one saga in one process.
pub(super) struct Timer<S> {
    pub(super) engine: Arc<Engine<S>>,
    pub(super) pool: PgPool,
    pub(super) schema: SchemaName,
}

/// What came of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// A saga has gone on, or was put off.
    Taken,
    /// None was due, or others look at those that are.
    Nothing,
    /// The database is not available.
    Outage,
}

impl<S: SagaState> Timer<S> {
    /// Looks until it is told to stop. What has begun is ended first.
    pub(super) async fn run(self, stop: CancellationToken) {
        let timer = Arc::new(self);
        tokio::join!(timer.take_turns(&stop), timer.do_chores(&stop));
    }

    async fn take_turns(self: &Arc<Self>, stop: &CancellationToken) {
        let mut turns = JoinSet::new();
        while !stop.is_cancelled() {
            let rest = match self.start_turns(&mut turns).await {
                Ok(rest) => rest,
                Err(error) => self.rest_after(&error),
            };
            self.rest(&mut turns, Instant::now() + rest, stop).await;
        }
        while turns.join_next().await.is_some() {}
    }

    /// Starts a turn for each that is due, as far as there is room; how long to rest then.
    async fn start_turns(self: &Arc<Self>, turns: &mut JoinSet<Result<Turn, sqlx::Error>>) -> Result<Duration, sqlx::Error> {
        let saga = &self.engine.saga;
        let room = saga.concurrency.saturating_sub(turns.len());
        if room == 0 {
            return Ok(POLL);
        }
        let mut conn = self.pool.acquire().await?;
        let (due, next) = self.store().count_due(&mut conn, &saga.name, saga.version, room).await?;
        for _ in 0..due {
            let timer = self.clone();
            turns.spawn(async move { timer.turn().await });
        }
        Ok(next.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).map_or(POLL, |next| next.min(POLL)))
    }

    /// Waits until there is a reason to look again.
    async fn rest(&self, turns: &mut JoinSet<Result<Turn, sqlx::Error>>, mut until: Instant, stop: &CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.engine.alarm.ring(until) => return,
                Some(ended) = turns.join_next() => match ended {
                    Ok(Ok(Turn::Taken)) => return,
                    Ok(Ok(Turn::Nothing)) => {}
                    Ok(Ok(Turn::Outage)) => until = Instant::now() + PAUSE,
                    Ok(Err(error)) => until = Instant::now() + self.rest_after(&error),
                    Err(error) => until = Instant::now() + self.rest_after(&error),
                },
            }
        }
    }

    fn rest_after(&self, error: &(dyn std::error::Error + 'static)) -> Duration {
        session_fault::close_after(error, &self.pool);
        tracing::warn!(saga = self.engine.saga.name, error = with_causes(error), "due sagas cannot be looked at yet");
        PAUSE
    }

    /// Goes on with one that is due.
    async fn turn(&self) -> Result<Turn, sqlx::Error> {
        let (saga, store) = (&self.engine.saga, self.store());
        let mut transaction = self.pool.begin().await?;
        sqlx::raw_sql(TIMEOUTS).execute(&mut *transaction).await?;
        let Some(stored) = store.lock_due(&mut transaction, &saga.name, saga.version).await? else {
            transaction.rollback().await?;
            return Ok(Turn::Nothing);
        };
        let id = stored.id;
        let tx = Tx::of(transaction, &self.schema);
        let lent = tx.lent_again();
        let done = self.go_on(stored, tx).await;
        let transaction = lent.take().and_then(Tx::into_inner);
        match (done, transaction) {
            (Ok(()), Some(transaction)) => {
                transaction.commit().await?;
                lent.committed();
            }
            (Ok(()), None) => self.postpone(id, "a local step kept its `Tx`").await?,
            (Err(error), transaction) if error.ends_session() => {
                tracing::warn!(saga = saga.name, %id, error = error.chain(), "a saga waits until the database is available");
                if let Some(transaction) = transaction {
                    session_fault::close(transaction, &self.pool).await;
                }
                return Ok(Turn::Outage);
            }
            (Err(error), transaction) => {
                if let Some(transaction) = transaction {
                    let _ = transaction.rollback().await;
                }
                self.postpone(id, &error.chain()).await?;
            }
        }
        Ok(Turn::Taken)
    }

    async fn go_on(&self, stored: Stored, tx: Tx) -> Result<(), HandlerError> {
        self.engine.due(stored, &mut InTransaction::new(tx, &self.engine.saga)).await
    }

    async fn postpone(&self, id: Uuid, error: &str) -> Result<(), sqlx::Error> {
        tracing::warn!(saga = self.engine.saga.name, %id, error, "a saga cannot be gone on with yet");
        self.store().postpone(&mut *self.pool.acquire().await?, id, FAILED_PAUSE, Some(error)).await
    }

    /// What has to be done now and then, beside the turns.
    async fn do_chores(&self, stop: &CancellationToken) {
        let (mut retention, mut standing) = (tokio::time::interval(RETENTION_INTERVAL), tokio::time::interval(STANDING_INTERVAL));
        let saga = &self.engine.saga;
        loop {
            let (what, done) = tokio::select! {
                () = stop.cancelled() => return,
                _ = retention.tick() => ("ended sagas cannot be forgotten yet", self.forget().await),
                _ = standing.tick() => ("it cannot be looked up how sagas stand", self.look_up_standing().await),
            };
            if let Err(error) = done {
                session_fault::close_after(&error, &self.pool);
                tracing::warn!(saga = saga.name, error = with_causes(&error), "{what}");
            }
        }
    }

    async fn forget(&self) -> Result<(), sqlx::Error> {
        let (saga, mut conn) = (&self.engine.saga, self.pool.acquire().await?);
        self.store().forget(&mut conn, &saga.name, saga.keep).await
    }

    async fn look_up_standing(&self) -> Result<(), sqlx::Error> {
        let saga = &self.engine.saga;
        if saga.statistics.is_watched() {
            let standing = self.store().standing(&mut *self.pool.acquire().await?, &saga.name).await?;
            saga.statistics.stand(standing);
        }
        Ok(())
    }

    fn store(&self) -> Store {
        Store::new(self.schema.clone())
    }
}
