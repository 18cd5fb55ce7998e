//! Timer of a saga: timeouts, retries, and decisions of the operator. Every replica polls; one
//! replica at a time processes a saga.
//!
//! ```text
//! poll: due sagas, next due time ──▶ one turn per due saga ──▶ rest until the next due time,
//!   ▲                                  │ continued one:         │ at most 0.5 s
//!   │                                  │ there may be more      │
//!   └──────────────────────────────────┴────────────────────────┘
//! ```
//!
//! While an operator pauses the subscriber, no turn starts. Afterwards the timers wait until the
//! subscriber has handled the replies that arrived meanwhile (`replies`).
//!
//! Changes stored by this process set its [`Wakeup`](super::wakeup::Wakeup). Changes by others
//! (other replicas, code that starts a saga, an operator) are found by polling. A notification only
//! shortens the wait.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use sqlx::PgPool;
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::chores::Chores;
use super::definition::SagaState;
use super::notices::notice;
use super::registration::Registration;
use super::replies::Replies;
use super::store::{Due, Held, Store, Stored, Why};
use super::transition::{Engine, InTransaction};
use crate::postgres::{SchemaName, begin, errors::with_causes, session_fault};
use crate::subscriber::{Ground, HandlerError, Pause, Tx, panic_text};

/// Longest rest, and thus the longest delay before a change of another process is found. A poll
/// costs two index lookups.
const POLL: Duration = Duration::from_millis(500);

/// Rest after an error.
const PAUSE: Duration = Duration::from_secs(1);

/// Pause before a saga that failed to continue is processed again: its state is unreadable, or a
/// local step broke the transaction.
const FAILED_PAUSE: Duration = Duration::from_secs(30);

/// Limits for the wait for a lock, and for idle time in the transaction.
const TIMEOUTS: &str =
    "set local lock_timeout = 10000; set local idle_in_transaction_session_timeout = 120000";

/// Timer of one saga in one process.
pub(super) struct Timer<S> {
    engine: Arc<Engine<S>>,
    pool: PgPool,
    schema: SchemaName,
    consumer: String,
    /// `None` if no step has a reply.
    replies: Option<Arc<Replies>>,
    news: broadcast::Sender<String>,
    pause: Arc<Pause>,
    chores: Chores<S>,
}

/// Outcome of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// A saga was continued or postponed.
    Taken,
    /// No saga was due, or other transactions have locked the due ones.
    Nothing,
    /// The database is not available.
    Outage,
}

impl<S: SagaState> Timer<S> {
    pub(super) fn new(
        engine: Arc<Engine<S>>,
        ground: Arc<Ground>,
        registration: Registration,
    ) -> Self {
        let saga = &engine.saga;
        Self {
            pool: ground.pool.clone(),
            schema: ground.schema.clone(),
            consumer: ground.consumer.clone(),
            replies: Replies::new(
                &ground,
                &saga.statistics,
                &saga.reply_aggregates(),
                saga.wait_for_replies,
            )
            .map(Arc::new),
            news: ground.news.clone(),
            pause: ground.pause.clone(),
            chores: Chores::new(engine.clone(), ground, registration),
            engine,
        }
    }

    /// Runs until `stop` is cancelled. Turns that have started are completed first.
    pub(super) async fn run(self, stop: CancellationToken) {
        let timer = Arc::new(self);
        tokio::join!(timer.take_turns(&stop), timer.chores.run(&stop));
    }

    async fn take_turns(self: &Arc<Self>, stop: &CancellationToken) {
        let (mut turns, mut news) = (JoinSet::new(), self.news.subscribe());
        while !stop.is_cancelled() {
            if self.pause.is_held() {
                stop.run_until_cancelled(self.pause.released()).await;
                if let Some(replies) = &self.replies {
                    replies.restart();
                }
                continue;
            }
            let rest = match self.start_turns(&mut turns, stop).await {
                Ok(rest) => rest,
                Err(error) => self.rest_after(&error),
            };
            self.rest(&mut turns, &mut news, Instant::now() + rest, stop)
                .await;
        }
        while turns.join_next().await.is_some() {}
    }

    /// Starts a turn for each due saga, up to the concurrency limit. Returns the time to rest
    /// afterwards.
    async fn start_turns(
        self: &Arc<Self>,
        turns: &mut JoinSet<Result<Turn, sqlx::Error>>,
        stop: &CancellationToken,
    ) -> Result<Duration, sqlx::Error> {
        let saga = &self.engine.saga;
        let room = saga.concurrency.saturating_sub(turns.len());
        if room == 0 {
            return Ok(POLL);
        }
        let mut conn = self.pool.acquire().await?;
        let Due {
            due,
            held,
            next,
            now,
        } = self
            .store()
            .count_due(&mut conn, &self.engine.mine(), &self.held(), room)
            .await?;
        if let Some(replies) = self.replies.as_ref().filter(|_| held) {
            replies.want(now, &self.engine.wakeup, stop);
        }
        for _ in 0..due {
            let timer = self.clone();
            turns.spawn(async move { timer.turn().await });
        }
        Ok(next
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .map_or(POLL, |next| next.min(POLL)))
    }

    /// Returns the timers that wait for replies.
    fn held(&self) -> Held<'_> {
        Held {
            hold: self.replies.as_ref().map(|replies| replies.hold()),
            consumer: &self.consumer,
        }
    }

    /// Waits until there is a reason to poll again.
    async fn rest(
        &self,
        turns: &mut JoinSet<Result<Turn, sqlx::Error>>,
        news: &mut broadcast::Receiver<String>,
        mut until: Instant,
        stop: &CancellationToken,
    ) {
        let own = notice(&self.schema, &self.engine.saga.name);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.engine.wakeup.ring(until) => return,
                heard = news.recv() => match heard {
                    Ok(other) if !other.is_empty() && other != own => {}
                    // An error means that notifications were lost, and they may have concerned this
                    // saga.
                    Ok(_) | Err(_) => return,
                },
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
        tracing::warn!(
            saga = self.engine.saga.name,
            error = with_causes(error),
            "cannot process due sagas yet; retrying later"
        );
        PAUSE
    }

    /// Processes one due saga.
    async fn turn(&self) -> Result<Turn, sqlx::Error> {
        let (saga, store) = (&self.engine.saga, self.store());
        let mut transaction = begin(&self.pool).await?;
        sqlx::raw_sql(TIMEOUTS).execute(&mut *transaction).await?;
        let Some(stored) = store
            .lock_due(&mut transaction, &self.engine.mine(), &self.held())
            .await?
        else {
            transaction.rollback().await?;
            return Ok(Turn::Nothing);
        };
        let id = stored.id;
        let tx = Tx::of(transaction, &self.schema);
        let lent = tx.lent_again();
        // The functions of a definition may panic. A panic must not stop the processing of other
        // sagas.
        let done = AssertUnwindSafe(self.go_on(stored, tx))
            .catch_unwind()
            .await;
        let done = done.unwrap_or_else(|panic| {
            Err(HandlerError::retry(format!(
                "it panicked: {}",
                panic_text(&*panic)
            )))
        });
        let transaction = lent.take().and_then(Tx::into_inner);
        match (done, transaction) {
            (Ok(()), Some(transaction)) => {
                transaction.commit().await?;
                lent.committed();
            }
            (Ok(()), None) => {
                self.postpone(id, Why::Error("a local step kept its `Tx`"))
                    .await?
            }
            (Err(error), transaction) if error.ends_session() => {
                tracing::warn!(
                    saga = saga.name,
                    %id,
                    error = error.chain(),
                    "a saga waits until the database is available"
                );
                if let Some(transaction) = transaction {
                    session_fault::close(transaction, &self.pool).await;
                }
                return Ok(Turn::Outage);
            }
            (Err(error), transaction) => {
                if let Some(transaction) = transaction {
                    let _ = transaction.rollback().await;
                }
                let text = error.chain();
                self.postpone(
                    id,
                    if error.waits_for_code() {
                        Why::Obstacle(&text)
                    } else {
                        Why::Error(&text)
                    },
                )
                .await?;
            }
        }
        Ok(Turn::Taken)
    }

    async fn go_on(&self, stored: Stored, tx: Tx) -> Result<(), HandlerError> {
        self.engine
            .due(stored, &mut InTransaction::new(tx, &self.engine.saga))
            .await
    }

    async fn postpone(&self, id: Uuid, why: Why<'_>) -> Result<(), sqlx::Error> {
        tracing::warn!(
            saga = self.engine.saga.name,
            %id,
            ?why,
            "a saga cannot continue yet; retrying later"
        );
        self.store()
            .postpone(&mut *self.pool.acquire().await?, id, FAILED_PAUSE, why)
            .await
    }

    fn store(&self) -> Store {
        Store::new(self.schema.clone())
    }
}
