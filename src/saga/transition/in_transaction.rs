//! Effects of a transition: events and local steps, in the transaction that stores the saga.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use sqlx::AssertSqlSafe;

use crate::event::{Envelope, EventId, Payload};
use crate::outbox::PublishError;
use crate::postgres::encodable::{ascii_json, is_of_value};
use crate::postgres::errors::with_causes;
use crate::saga::definition::{Local, Saga, SagaState};
use crate::saga::drive::{Effects, SagaInstance, Unpublishable};
use crate::saga::machine::CallFailed;
use crate::saga::store::Store;
use crate::subscriber::{HandlerError, Tx, panic_text};

/// Default time limit of a local step. Its transaction keeps the saga's row locked.
const LOCAL_TIMEOUT: Duration = Duration::from_secs(60);

/// Additional time after which the server cancels a statement of a local step. The limit of this
/// process expires first, so the process knows that the step timed out.
const SERVER_LATER: Duration = Duration::from_secs(1);

/// Savepoint for the rollback of a failed local step.
const SAVEPOINT: &str = "tidings_saga_step";

/// Savepoint for the rollback of an event that the database refuses.
const EVENT_SAVEPOINT: &str = "tidings_saga_event";

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

    /// Publishes an event that the encoding of the database may not be able to represent. A
    /// database that refuses the text of the payload gets the equal JSON in ASCII. If it refuses
    /// that too, the event can never be published.
    async fn send_encodable(
        &mut self,
        mut envelope: Envelope,
    ) -> Result<Result<(), Unpublishable>, HandlerError> {
        loop {
            self.execute(format!("savepoint {EVENT_SAVEPOINT}")).await?;
            let error = match self.tx()?.publish_as_it_is(&envelope).await {
                Err(error) if error.as_sqlx().is_some_and(is_of_value) => error,
                result => {
                    let sent = sent(result)?;
                    self.execute(format!("release savepoint {EVENT_SAVEPOINT}"))
                        .await?;
                    return Ok(sent);
                }
            };
            self.execute(format!(
                "rollback to savepoint {EVENT_SAVEPOINT}; release savepoint {EVENT_SAVEPOINT}"
            ))
            .await?;
            let Some(ascii) = envelope.payload.as_json().and_then(ascii_json) else {
                return Ok(Err(Unpublishable(format!(
                    "the database cannot store the event: {}",
                    with_causes(&error)
                ))));
            };
            envelope.payload = Payload::json_text(ascii)?;
        }
    }
}

/// Returns the result of publishing. The outer error is a failure of the database.
fn sent(result: Result<EventId, PublishError>) -> Result<Result<(), Unpublishable>, HandlerError> {
    match result {
        Ok(_) => Ok(Ok(())),
        Err(
            error @ (PublishError::Database { .. }
            | PublishError::MissingTable { .. }
            | PublishError::Schema(_)),
        ) => Err(error.into()),
        // The error was found before a statement was sent, so the transaction remains usable.
        Err(error) => Ok(Err(Unpublishable(with_causes(&error)))),
    }
}

/// Returns `true` if every database can store the texts of the event. The names of topics and
/// aggregate types are ASCII.
fn is_ascii(envelope: &Envelope) -> bool {
    envelope.payload.as_json().is_none_or(str::is_ascii)
        && envelope.event_type.is_ascii()
        && envelope.aggregate_id.as_str().is_ascii()
        && envelope.headers.iter().all(|(_, value)| value.is_ascii())
}

fn kept() -> HandlerError {
    HandlerError::dead_letter(
        "a local step kept its `Tx` after it returned, so nothing can be committed",
    )
}

impl<S: SagaState> Effects<S> for InTransaction<'_, S> {
    async fn send(
        &mut self,
        envelope: Envelope,
    ) -> Result<Result<(), Unpublishable>, HandlerError> {
        match is_ascii(&envelope) {
            true => sent(self.tx()?.publish_as_it_is(&envelope).await),
            false => self.send_encodable(envelope).await,
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
            Ok(Ok(Err(error))) => CallFailed::of(error)?,
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
