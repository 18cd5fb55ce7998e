//! Connections that run one inbox transaction after another with few round trips.
//!
//! With a pool, each transaction costs three extra messages: one to begin it, one to commit it, and
//! one with which the pool tests the returned connection. Here, a connection stays with the inbox
//! for [`LEASE`]. Each transaction costs two messages in addition to those of the handler: one
//! begins it and inserts the inbox row, one verifies that it can still commit and commits it.
//!
//! If another transaction waits for a connection, it begins in the message that commits the current
//! one. The result of that commit is then known only after the beginning has been processed.
//! Therefore such a beginning waits for locks only briefly ([`Form::waits`]). If that is not
//! enough, it is repeated alone. Until the response arrives, the new transaction depends on the one
//! that commits.
//!
//! sqlx counts the open transactions of a connection, so that `tx.begin()` in a handler becomes a
//! savepoint. A connection therefore keeps the sqlx transaction with which it came from the pool,
//! whether a transaction is open on the server or not. sqlx is not involved when transactions begin
//! and end on the server. If the connection is dropped at any point, sqlx rolls back. A connection
//! for which sqlx counts no transaction is not kept: sqlx rolls back everything if a handler's
//! savepoint cannot begin.
//!
//! | file | content |
//! |---|---|
//! | `tx_queue` | the transactions that wait for a connection. Pure |
//! | `tx_lease` | the end of a transaction, with the beginning of the next one |
//! | `statement` | statements that each connection prepares once |
//! | `sqlstate` | the errors that decide about a transaction and its connection |

mod sqlstate;
mod statement;
mod tx_lease;
mod tx_queue;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::postgres::{begin, session_fault};
use sqlx::{AssertSqlSafe, Executor as _, PgPool, PgTransaction};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;

pub(crate) use sqlstate::could_not;
use sqlstate::{LOCKED, NO_SUCH_STATEMENT, code, is_over};
use statement::Prepared;
pub(crate) use statement::Statement;
pub(crate) use tx_lease::TxLease;
use tx_queue::{Acquired, Joined, Released, TxQueue};

/// Time for which a connection stays before tasks that wait for one of the pool get their chance.
const LEASE: Duration = Duration::from_millis(200);

/// Time for which a connection may stay unused.
const IDLE: Duration = Duration::from_millis(100);

/// The connections of one inbox.
#[derive(Debug)]
pub(crate) struct TxPipeline {
    pool: PgPool,
    /// The statements that are prepared on each connection. They remain when the connection returns
    /// to the pool.
    statements: Vec<Statement>,
    /// True while prepared statements are found again. This is not the case behind a pooler that
    /// assigns connections per transaction.
    prepares: AtomicBool,
    queue: TxQueue<TxConnection, BegunTx, sqlx::Error>,
    /// The runtime of the connections. The last owner of this value may be dropped on a thread
    /// without a runtime.
    runtime: Mutex<Option<Handle>>,
}

/// Variant of the message that begins a transaction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    /// The message may execute the prepared statements.
    pub(crate) prepared: bool,
    /// The message may wait for a lock for the full configured time. If false, another
    /// transaction's commit is known only after this message, so the wait must be short.
    pub(crate) waits: bool,
}

/// A connection without an open transaction on the server, although sqlx counts one.
#[derive(Debug)]
struct TxConnection {
    transaction: PgTransaction<'static>,
    leased: Instant,
}

/// A transaction that has begun, and the number of rows that its first message has changed.
#[derive(Debug)]
pub(crate) struct BegunTx {
    pub(crate) transaction: PgTransaction<'static>,
    pub(crate) lease: TxLease,
    pub(crate) rows: u64,
}

impl TxPipeline {
    pub(crate) fn new(pool: PgPool, statements: Vec<Statement>) -> Self {
        Self {
            queue: TxQueue::new(pool.options().get_max_connections() as usize),
            pool,
            statements,
            prepares: AtomicBool::new(true),
            runtime: Mutex::default(),
        }
    }

    /// Begins a transaction. `message` returns a text that ends with `begin`, in the requested
    /// form.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the transaction is rolled back.
    ///
    /// # Errors
    ///
    /// Returns the database's error. There is no transaction then.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        message: impl Fn(Form) -> String,
    ) -> Result<BegunTx, sqlx::Error> {
        loop {
            let prepared = self.prepares.load(Ordering::Relaxed);
            let by_itself = |permit| {
                self.begin_by(
                    permit,
                    message(Form {
                        prepared,
                        waits: true,
                    }),
                )
            };
            let begun = match self.queue.try_permit() {
                Some(permit) => by_itself(permit).await,
                None => match self
                    .queue
                    .join_commit(message(Form {
                        prepared,
                        waits: false,
                    }))
                    .await
                {
                    Joined::Answered(Err(error)) if code(&error).as_deref() == Some(LOCKED) => {
                        by_itself(self.queue.permit().await).await
                    }
                    Joined::Answered(begun) => begun,
                    Joined::Free(permit) => by_itself(permit).await,
                    Joined::Nothing => continue,
                },
            };
            match begun {
                Err(error) if prepared && code(&error).as_deref() == Some(NO_SUCH_STATEMENT) => {
                    self.prepares.store(false, Ordering::Relaxed)
                }
                begun => return begun,
            }
        }
    }

    /// Begins on a free connection.
    async fn begin_by(
        self: &Arc<Self>,
        permit: OwnedSemaphorePermit,
        message: String,
    ) -> Result<BegunTx, sqlx::Error> {
        let TxConnection {
            mut transaction,
            leased,
        } = self.connection().await?;
        let lease = TxLease {
            began: leased,
            home: self.clone(),
            _permit: permit,
        };
        match transaction.execute(AssertSqlSafe(message)).await {
            Ok(done) => Ok(BegunTx {
                transaction,
                lease,
                rows: done.rows_affected(),
            }),
            Err(error) => {
                if is_over(&error) {
                    lease.end(transaction);
                } else if session_fault::ends_session(&error) {
                    lease.close(transaction).await;
                }
                Err(error)
            }
        }
    }

    /// Returns an idle connection, or the first that is released or that the pool returns.
    async fn connection(self: &Arc<Self>) -> Result<TxConnection, sqlx::Error> {
        match self.queue.acquire() {
            Acquired::Idle(connection) => Ok(connection),
            Acquired::Waits { connection, open } => {
                if open {
                    // In its own task, because a connection whose `begin` is cancelled would return
                    // to its pool with an open transaction.
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "ends with `begin`, and the queue takes the connection"
                    )]
                    tokio::spawn(self.clone().open());
                }
                connection.await.unwrap_or(Err(sqlx::Error::PoolClosed))
            }
        }
    }

    /// Requests one more connection from the pool.
    async fn open(self: Arc<Self>) {
        let opening = self.queue.opening(sqlx::Error::WorkerCrashed);
        match self.opened().await {
            Ok(connection) => {
                opening.succeeded();
                self.release(connection);
            }
            Err(error) => opening.failed(error),
        }
    }

    async fn opened(&self) -> Result<TxConnection, sqlx::Error> {
        let mut transaction = begin(&self.pool).await?;
        transaction.execute("rollback").await?;
        if self.prepares.load(Ordering::Relaxed)
            && statement::prepare(&self.statements, &mut transaction).await? == Prepared::Elsewhere
        {
            self.prepares.store(false, Ordering::Relaxed);
        }
        Ok(TxConnection {
            transaction,
            leased: Instant::now(),
        })
    }

    /// Passes on a connection whose transaction has ended, or keeps it.
    fn release(self: &Arc<Self>, connection: TxConnection) {
        match self.queue.release(connection, tokio::time::Instant::now()) {
            Released::Passed | Released::Kept { sweep: false } => {}
            Released::Surplus(connection) => connection.give_back(),
            Released::Kept { sweep: true } => {
                *self.runtime.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(Handle::current());
                #[expect(
                    clippy::disallowed_methods,
                    reason = "ends with the pipeline, or without idle connections"
                )]
                tokio::spawn(sweep(Arc::downgrade(self)));
            }
        }
    }
}

/// Returns unused connections to the pool until there are none.
async fn sweep(pipeline: Weak<TxPipeline>) {
    loop {
        tokio::time::sleep(IDLE).await;
        let Some(pipeline) = pipeline.upgrade() else {
            return;
        };
        let now = tokio::time::Instant::now();
        let unused = pipeline.queue.take_unused(now, IDLE);
        unused
            .connections
            .into_iter()
            .for_each(TxConnection::give_back);
        if !unused.sweeps_again {
            return;
        }
    }
}

impl TxConnection {
    /// Returns the connection to the pool in its original state.
    fn give_back(mut self) {
        #[expect(
            clippy::disallowed_methods,
            reason = "ends with the rollback; the pool takes the connection"
        )]
        tokio::spawn(async move {
            // A rollback without a transaction would cause a warning in the server's log.
            if self.transaction.execute("begin").await.is_ok() {
                let _ = self.transaction.rollback().await;
            }
        });
    }
}

impl Drop for TxPipeline {
    fn drop(&mut self) {
        let runtime = self.runtime.get_mut();
        let runtime = runtime.unwrap_or_else(PoisonError::into_inner);
        let _entered = runtime.as_ref().map(Handle::enter);
        self.queue.take_idle().for_each(TxConnection::give_back);
    }
}
