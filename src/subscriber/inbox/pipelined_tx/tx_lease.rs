//! End of a transaction on its connection.
//!
//! The message that commits a transaction can also begin the next one. The connection is then
//! passed on without a round trip.

use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt as _;
use sqlx::{AssertSqlSafe, Connection as _, Either, Executor as _, PgConnection, PgTransaction};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    BegunTx, LEASE, TxConnection, TxPipeline,
    sqlstate::{HAD_FAILED, code, is_over},
};
use crate::postgres::session_fault;

/// Ends a transaction if it can be committed. After a failed statement, which a handler may have
/// ignored, Postgres responds to `commit` with a rollback. Without a transaction, it responds with
/// a warning. In both cases the event would count as handled. `savepoint` fails in both cases.
const COMMIT: &str = "savepoint tidings; commit";
const COMMIT_STATEMENTS: usize = 2;

/// Ends a transaction that was begun here.
#[derive(Debug)]
pub(crate) struct TxLease {
    pub(super) began: Instant,
    pub(super) home: Arc<TxPipeline>,
    pub(super) _permit: OwnedSemaphorePermit,
}

impl TxLease {
    /// Commits the transaction.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the transaction is committed or rolled back.
    ///
    /// # Errors
    ///
    /// Returns the database's error, including the one for a transaction that cannot be committed
    /// ([`could_not`](super::could_not)). Nothing is committed then.
    pub(crate) async fn commit(
        self,
        mut transaction: PgTransaction<'static>,
    ) -> Result<(), sqlx::Error> {
        settle(&mut transaction).await?;
        let next = if self.is_over() || !transaction.is_in_transaction() {
            None
        } else {
            self.home.queue.take_request()
        };
        let message = next.as_ref().map_or_else(
            || COMMIT.to_owned(),
            |next| format!("{COMMIT}; {}", next.message),
        );
        let answers = answers(&mut transaction, message).await;
        match (answers.failed, next) {
            (None, None) => self.end(transaction),
            (None, Some(next)) => {
                // If the receiver has been dropped, the transaction is rolled back.
                next.answer(Ok(BegunTx {
                    transaction,
                    lease: self,
                    rows: answers.rows,
                }));
            }
            (Some(error), Some(next)) if answers.statements >= COMMIT_STATEMENTS => {
                if is_over(&error) {
                    self.end(transaction);
                } else if session_fault::ends_session(&error) {
                    self.close(transaction).await;
                }
                next.answer(Err(error));
            }
            (Some(error), next) => {
                // The waiting transaction begins alone.
                drop(next);
                if code(&error).as_deref() == Some(HAD_FAILED) {
                    self.roll_back(transaction).await;
                } else if is_over(&error) {
                    self.end(transaction);
                } else if session_fault::ends_session(&error) {
                    self.close(transaction).await;
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Rolls back the transaction. If that fails, the connection is left to the pool.
    pub(crate) async fn roll_back(self, mut transaction: PgTransaction<'static>) {
        if settle(&mut transaction).await.is_ok()
            && transaction.is_in_transaction()
            && transaction.execute("rollback").await.is_ok()
        {
            self.end(transaction);
        }
    }

    /// Closes a connection whose session cannot be used any more, and the idle connections, which
    /// may have the same fault.
    pub(crate) async fn close(self, transaction: PgTransaction<'static>) {
        self.home.queue.take_idle().for_each(drop);
        session_fault::close(transaction, &self.home.pool).await;
    }

    /// Leaves a connection whose transaction has ended to the next transaction, or returns it to
    /// the pool.
    pub(super) fn end(self, transaction: PgTransaction<'static>) {
        if !transaction.is_in_transaction() {
            return;
        }
        let over = self.is_over();
        let connection = TxConnection {
            transaction,
            leased: self.began,
        };
        if over {
            connection.give_back()
        } else {
            self.home.release(connection)
        }
    }

    /// Returns `true` if the lease has expired, so that others get their chance.
    fn is_over(&self) -> bool {
        self.began.elapsed() > LEASE
    }
}

/// Result of a message with several statements.
#[derive(Debug, Default)]
struct Answers {
    /// Number of executed statements.
    statements: usize,
    /// Number of rows that they have changed.
    rows: u64,
    failed: Option<sqlx::Error>,
}

async fn answers(connection: &mut PgConnection, message: String) -> Answers {
    let mut answers = Answers::default();
    let mut results = connection.fetch_many(AssertSqlSafe(message));
    while let Some(result) = results.next().await {
        match result {
            Ok(Either::Left(done)) => {
                answers.statements += 1;
                answers.rows += done.rows_affected();
            }
            Ok(Either::Right(_)) => {}
            Err(error) => {
                answers.failed = Some(error);
                break;
            }
        }
    }
    answers
}

/// Reads pending responses, which exist if the handler cancelled a statement or dropped a
/// savepoint. An error among them does not belong to the next statement. The commit shows whether
/// it matters.
async fn settle(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    while let Err(error) = connection.flush().await {
        if error.as_database_error().is_none() {
            return Err(error);
        }
    }
    Ok(())
}
