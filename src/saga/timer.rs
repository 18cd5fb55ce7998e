//! What happens because time has passed: timeouts, retries, and what a person has decided. Every replica looks; each saga is looked at by one at a time.

use std::time::Duration;

use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::definition::SagaState;
use super::store::Store;
use super::transition::{Engine, InTransaction};
use crate::postgres::SchemaName;
use crate::subscriber::{HandlerError, Tx};

/// How long the timer rests when nothing is due: also how late a timeout may be. It costs one look at an index.
const POLL: Duration = Duration::from_millis(500);

/// How long it rests when something did not work.
const PAUSE: Duration = Duration::from_secs(1);

/// How long a saga is left alone that cannot be gone on with: its state is not readable, or a local step broke the transaction.
const FAILED_PAUSE: Duration = Duration::from_secs(30);

/// How often ended sagas are forgotten.
const RETENTION_INTERVAL: Duration = Duration::from_secs(60);

/// How long its statements wait for a lock, and how long the server lets it sit idle within a transaction.
const TIMEOUTS: &str = "set local lock_timeout = 10000; set local idle_in_transaction_session_timeout = 120000";

/// The timer of one saga in one process.
pub(super) struct Timer<'e, S> {
    pub(super) engine: &'e Engine<S>,
    pub(super) pool: PgPool,
    pub(super) schema: SchemaName,
}

impl<S: SagaState> Timer<'_, S> {
    /// Looks until it is told to stop. What has begun is ended first.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut forgotten = tokio::time::Instant::now();
        loop {
            let pause = match self.turn().await {
                Ok(true) => Duration::ZERO,
                Ok(false) => POLL,
                Err(error) => {
                    tracing::warn!(saga = self.engine.saga.name, %error, "due sagas cannot be looked at yet");
                    PAUSE
                }
            };
            if forgotten.elapsed() > RETENTION_INTERVAL {
                forgotten = tokio::time::Instant::now();
                if let Err(error) = self.forget().await {
                    tracing::warn!(saga = self.engine.saga.name, %error, "ended sagas cannot be forgotten yet");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Goes on with one that is due; false if none is.
    async fn turn(&self) -> Result<bool, sqlx::Error> {
        let (engine, store) = (self.engine, Store::new(self.schema.clone()));
        let mut transaction = self.pool.begin().await?;
        sqlx::raw_sql(TIMEOUTS).execute(&mut *transaction).await?;
        let Some(stored) = store.lock_due(&mut transaction, &engine.saga.name, engine.saga.version).await? else {
            transaction.rollback().await?;
            return Ok(false);
        };
        let id = stored.id;
        let tx = Tx::of(transaction, &self.schema);
        let lent = tx.lent_again();
        let done = self.go_on(stored, tx).await;
        let transaction = lent.take().and_then(Tx::into_inner);
        match (done, transaction) {
            (Ok(()), Some(transaction)) => transaction.commit().await?,
            (Ok(()), None) => self.postpone(id, "a local step kept its `Tx`").await?,
            (Err(error), transaction) => {
                if let Some(transaction) = transaction {
                    let _ = transaction.rollback().await;
                }
                self.postpone(id, &error.chain()).await?;
            }
        }
        Ok(true)
    }

    async fn go_on(&self, stored: super::store::Stored, tx: Tx) -> Result<(), HandlerError> {
        let mut world = InTransaction::new(tx, None, &self.engine.saga)?;
        self.engine.due(stored, &mut world).await
    }

    async fn postpone(&self, id: Uuid, error: &str) -> Result<(), sqlx::Error> {
        tracing::warn!(saga = self.engine.saga.name, %id, error, "a saga cannot be gone on with yet");
        Store::new(self.schema.clone()).postpone(&mut *self.pool.acquire().await?, id, FAILED_PAUSE, Some(error)).await
    }

    async fn forget(&self) -> Result<(), sqlx::Error> {
        let (saga, mut conn) = (&self.engine.saga, self.pool.acquire().await?);
        Store::new(self.schema.clone()).forget(&mut conn, &saga.name, saga.keep).await
    }
}
