//! Effects of a transition: events and local steps, in the transaction that stores the saga.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use sqlx::AssertSqlSafe;

use crate::event::Envelope;
use crate::outbox::PublishError;
use crate::postgres::errors::with_causes;
use crate::saga::definition::{Local, Saga, SagaState};
use crate::saga::drive::{Effects, SagaInstance};
use crate::saga::machine::CallFailed;
use crate::saga::store::Store;
use crate::subscriber::{HandlerError, Tx, Verdict, panic_text};

/// Default time limit of a local step. Its transaction keeps the saga's row locked.
const LOCAL_TIMEOUT: Duration = Duration::from_secs(60);

/// Additional time after which the server cancels a statement of a local step. The limit of this
/// process expires first, so the process knows that the step timed out.
const SERVER_LATER: Duration = Duration::from_secs(1);

/// Savepoint for the rollback of a failed local step.
const SAVEPOINT: &str = "tidings_saga_step";

/// Transaction of a delivery or of the timer.
pub(in crate::saga) struct InTransaction<'s, S> {
    tx: Option<Tx>,
    saga: &'s Saga<S>,
    pub(super) store: Store,
    began: Instant,
}

impl<'s, S> InTransaction<'s, S> {
    pub(in crate::saga) fn new(tx: Tx, saga: &'s Saga<S>) -> Self {
        Self {
            store: Store::new(tx.schema().clone()),
            tx: Some(tx),
            saga,
            began: Instant::now(),
        }
    }

    pub(super) fn tx(&mut self) -> Result<&mut Tx, HandlerError> {
        self.tx.as_mut().ok_or_else(kept)
    }

    async fn execute(&mut self, sql: String) -> Result<(), HandlerError> {
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut **self.tx()?)
            .await?;
        Ok(())
    }
}

fn kept() -> HandlerError {
    HandlerError::dead_letter(
        "a local step kept its `Tx` after it returned, so nothing can be committed",
    )
}

impl<S: SagaState> Effects<S> for InTransaction<'_, S> {
    async fn send(&mut self, envelope: Envelope) -> Result<Result<(), String>, HandlerError> {
        match self.tx()?.publish_as_it_is(&envelope).await {
            Ok(_) => Ok(Ok(())),
            Err(
                error @ (PublishError::Database(_)
                | PublishError::MissingTable { .. }
                | PublishError::Schema(_)),
            ) => Err(error.into()),
            // The error was found before a statement was sent, so the transaction remains usable.
            Err(error) => Ok(Err(with_causes(&error))),
        }
    }

    async fn call(
        &mut self,
        run: &SagaInstance<S>,
        step: &str,
        _: bool,
        local: &Local<S>,
    ) -> Result<Result<S, CallFailed>, HandlerError> {
        let timeout = self.saga.timeout_of(step).unwrap_or(LOCAL_TIMEOUT);
        // The rollback waits until the server has ended the step's running statement.
        let millis = (timeout + SERVER_LATER).as_millis().min(i32::MAX as u128);
        self.execute(format!(
            "savepoint {SAVEPOINT}; set local statement_timeout = {millis}"
        ))
        .await?;
        let mut tx = self.tx.take().ok_or_else(kept)?;
        tx.carry(run.headers());
        let (lent, state) = (tx.lent_again(), run.state.clone());
        let called = AssertUnwindSafe(async { local(state, tx).await }).catch_unwind();
        let result = tokio::time::timeout(timeout, called).await;
        self.tx = lent.take();
        let failed = match result {
            Ok(Ok(Ok(state))) => {
                self.execute(format!(
                    "release savepoint {SAVEPOINT}; set local statement_timeout to default"
                ))
                .await?;
                return Ok(Ok(state));
            }
            // An unavailable database is not a failure of the step.
            Ok(Ok(Err(error))) if error.verdict() == Verdict::Unavailable => return Err(error),
            Ok(Ok(Err(error))) => CallFailed {
                last: error.verdict() == Verdict::DeadLetter,
                error: error.chain(),
                late: false,
            },
            Ok(Err(panic)) => CallFailed {
                last: false,
                error: format!("it panicked: {}", panic_text(&*panic)),
                late: false,
            },
            Err(_) => CallFailed {
                last: false,
                error: format!("it did not finish within {timeout:?}"),
                late: true,
            },
        };
        let roll_back = format!("rollback to savepoint {SAVEPOINT}");
        if failed.late {
            // The first response read is the error of the step's abandoned statement, so it fails
            // this rollback. The second rollback then takes effect.
            let _ = self.execute(roll_back.clone()).await;
        }
        self.execute(format!("{roll_back}; release savepoint {SAVEPOINT}"))
            .await?;
        Ok(Err(failed))
    }

    fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}
