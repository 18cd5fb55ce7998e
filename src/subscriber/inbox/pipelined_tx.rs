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

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::postgres::session_fault;
use futures_util::StreamExt as _;
use sqlx::{
    AssertSqlSafe, Connection as _, Either, Executor as _, PgConnection, PgPool, PgTransaction,
};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Time for which a connection stays before tasks that wait for one of the pool get their chance.
const LEASE: Duration = Duration::from_millis(200);

/// Time for which a connection may stay unused.
const IDLE: Duration = Duration::from_millis(100);

/// Ends a transaction if it can be committed. After a failed statement, which a handler may have
/// ignored, Postgres responds to `commit` with a rollback. Without a transaction, it responds with
/// a warning. In both cases the event would count as handled. `savepoint` fails in both cases.
const COMMIT: &str = "savepoint tidings; commit";
const COMMIT_STATEMENTS: usize = 2;

/// SQLSTATEs of `savepoint` in a failed transaction and outside of a transaction.
const HAD_FAILED: &str = "25P02";
const HAD_ENDED: &str = "25P01";

/// SQLSTATE of a lock that was not acquired in time.
const LOCKED: &str = "55P03";

/// SQLSTATEs of a prepared statement that does not exist, or exists already.
const NO_SUCH_STATEMENT: &str = "26000";
const STATEMENT_EXISTS: &str = "42P05";

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
    /// One permit for each connection that the pool can have. A task that waits for a connection in
    /// use here does not request another one from the pool.
    permits: Arc<Semaphore>,
    kept: Mutex<Kept>,
}

/// A statement that is prepared once per connection.
#[derive(Debug)]
pub(crate) struct Statement {
    name: String,
    /// The types of its parameters.
    parameters: &'static str,
    text: String,
}

#[derive(Debug, Default)]
struct Kept {
    /// Idle connections. The one that was used last is used next.
    idle: Vec<Idle>,
    /// Transactions that will begin in the message of the next commits, and the number of requests
    /// so far.
    next: VecDeque<Request>,
    requests: u64,
    /// Tasks that wait for a connection, from the pool or from here.
    waiting: VecDeque<oneshot::Sender<Result<TxConnection, sqlx::Error>>>,
    /// Number of connections that are being requested from the pool.
    opening: usize,
    /// True while a task returns unused connections to the pool.
    tended: bool,
    /// The runtime of the connections. The last owner of this value may be dropped on a thread
    /// without a runtime.
    runtime: Option<Handle>,
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

/// Outcome of a request to begin in the message of another transaction's commit.
enum Next {
    Answered(Result<BegunTx, sqlx::Error>),
    /// A connection is free, so the transaction can begin alone.
    Free(OwnedSemaphorePermit),
    /// The commit failed, so the message was not processed.
    Nothing,
}

/// A transaction that waits to begin.
#[derive(Debug)]
struct Request {
    number: u64,
    message: String,
    answer: oneshot::Sender<Result<BegunTx, sqlx::Error>>,
}

#[derive(Debug)]
struct Idle {
    session: TxConnection,
    since: tokio::time::Instant,
}

/// A connection without an open transaction on the server, although sqlx counts one.
#[derive(Debug)]
struct TxConnection {
    transaction: PgTransaction<'static>,
    leased: Instant,
}

/// Ends a transaction that was begun here.
#[derive(Debug)]
pub(crate) struct TxLease {
    began: Instant,
    home: Arc<TxPipeline>,
    _permit: OwnedSemaphorePermit,
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
        let permits = Arc::new(Semaphore::new(pool.options().get_max_connections() as usize));
        Self {
            pool,
            statements,
            prepares: AtomicBool::new(true),
            permits,
            kept: Mutex::default(),
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
            let begun = match self.permits.clone().try_acquire_owned() {
                Ok(permit) => by_itself(permit).await,
                Err(_) => match self
                    .begin_next(message(Form {
                        prepared,
                        waits: false,
                    }))
                    .await
                {
                    Next::Answered(Err(error)) if code(&error).as_deref() == Some(LOCKED) => {
                        by_itself(self.permit().await).await
                    }
                    Next::Answered(begun) => begun,
                    Next::Free(permit) => by_itself(permit).await,
                    Next::Nothing => continue,
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

    async fn permit(&self) -> OwnedSemaphorePermit {
        self.permits
            .clone()
            .acquire_owned()
            .await
            .expect("never closed")
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
        } = self.session().await?;
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

    /// Begins in the message of the next commit, unless a connection becomes free first.
    async fn begin_next(self: &Arc<Self>, message: String) -> Next {
        let (answer, mut begun) = oneshot::channel();
        let number = {
            let mut kept = self.kept();
            kept.requests += 1;
            let number = kept.requests;
            kept.next.push_back(Request {
                number,
                message,
                answer,
            });
            number
        };
        let _withdrawn = Withdrawn {
            sessions: self,
            number,
        };
        let answer = tokio::select! {
            begun = &mut begun => begun,
            permit = self.permit() => match self.withdraw(number) {
                Some(_) => return Next::Free(permit),
                None => {
                    drop(permit);
                    begun.await
                }
            }
        };
        answer.map_or(Next::Nothing, Next::Answered)
    }

    /// Removes a request that has not been taken yet.
    fn withdraw(&self, number: u64) -> Option<Request> {
        let mut kept = self.kept();
        let at = kept
            .next
            .iter()
            .position(|request| request.number == number)?;
        kept.next.remove(at)
    }

    /// Returns an idle connection, or the first that becomes free or that the pool returns.
    async fn session(self: &Arc<Self>) -> Result<TxConnection, sqlx::Error> {
        let free = {
            let mut kept = self.kept();
            if let Some(idle) = kept.idle.pop() {
                return Ok(idle.session);
            }
            let (for_it, free) = oneshot::channel();
            kept.waiting.push_back(for_it);
            if kept.opening < kept.waiting.len() {
                kept.opening += 1;
                // In its own task, because a connection whose `begin` is cancelled would return to
                // its pool with an open transaction.
                tokio::spawn(self.clone().open());
            }
            free
        };
        free.await.unwrap_or(Err(sqlx::Error::PoolClosed))
    }

    /// Requests one more connection from the pool.
    async fn open(self: Arc<Self>) {
        let mut opening = Opening {
            sessions: &self,
            failed: Some(sqlx::Error::WorkerCrashed),
        };
        let opened = self.opened().await;
        let (session, failed) = match opened {
            Ok(session) => (Some(session), None),
            Err(error) => (None, Some(error)),
        };
        opening.failed = failed;
        drop(opening);
        session.into_iter().for_each(|session| self.keep(session));
    }

    async fn opened(&self) -> Result<TxConnection, sqlx::Error> {
        let mut transaction = self.pool.begin().await?;
        transaction.execute("rollback").await?;
        if self.prepares.load(Ordering::Relaxed) {
            self.prepare(&mut transaction).await?;
        }
        Ok(TxConnection {
            transaction,
            leased: Instant::now(),
        })
    }

    async fn prepare(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let names = self
            .statements
            .iter()
            .map(|statement| format!("'{}'", statement.name))
            .collect::<Vec<_>>()
            .join(", ");
        let known =
            format!("select from pg_catalog.pg_prepared_statements where name in ({names})");
        if connection.fetch_all(AssertSqlSafe(known)).await?.len() == self.statements.len() {
            return Ok(());
        }
        let prepare = |statement: &Statement| {
            format!(
                "prepare {} ({}) as {};",
                statement.name, statement.parameters, statement.text
            )
        };
        match connection
            .execute(AssertSqlSafe(
                self.statements.iter().map(prepare).collect::<String>(),
            ))
            .await
        {
            // The pooler used two different connections for the query and for `prepare`.
            Err(error) if code(&error).as_deref() == Some(STATEMENT_EXISTS) => {
                self.prepares.store(false, Ordering::Relaxed)
            }
            prepared => {
                prepared?;
            }
        }
        Ok(())
    }

    /// Reports to one waiting task that the pool returned an error.
    fn tell(&self, mut error: sqlx::Error) {
        let mut kept = self.kept();
        while let Some(waiting) = kept.waiting.pop_front() {
            match waiting.send(Err(error)) {
                Err(Err(back)) => error = back,
                _ => return,
            }
        }
    }

    /// Passes on a connection whose transaction has ended, or keeps it.
    fn keep(self: &Arc<Self>, mut session: TxConnection) {
        let mut kept = self.kept();
        let mut gone = false;
        while let Some(waiting) = kept.waiting.pop_front() {
            match waiting.send(Ok(session)) {
                Err(Ok(back)) => session = back,
                _ => return,
            }
            gone = true;
        }
        // The tasks for which it was requested do not wait any more, so it returns to the pool.
        if gone {
            session.give_back();
            return;
        }
        kept.idle.push(Idle {
            session,
            since: tokio::time::Instant::now(),
        });
        if !std::mem::replace(&mut kept.tended, true) {
            kept.runtime = Some(Handle::current());
            tokio::spawn(tend(Arc::downgrade(self)));
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Statement {
    /// Creates a statement with parameters of these types. Its name is derived from its text,
    /// because several subscribers may share a pool, and a pooler may use one connection for
    /// several versions of the code.
    pub(crate) fn new(parameters: &'static str, text: String) -> Self {
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        Self {
            name: format!("tidings_{:016x}", hasher.finish()),
            parameters,
            text,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

/// Returns unused connections to the pool until there are none.
async fn tend(sessions: Weak<TxPipeline>) {
    loop {
        tokio::time::sleep(IDLE).await;
        let Some(sessions) = sessions.upgrade() else {
            return;
        };
        let mut kept = sessions.kept();
        // Connections that were used last are at the end.
        let used = kept
            .idle
            .partition_point(|idle| idle.since.elapsed() >= IDLE);
        kept.idle
            .drain(..used)
            .for_each(|idle| idle.session.give_back());
        kept.tended = !kept.idle.is_empty();
        if !kept.tended {
            return;
        }
    }
}

impl TxConnection {
    /// Returns the connection to the pool in its original state.
    fn give_back(mut self) {
        tokio::spawn(async move {
            // A rollback without a transaction would cause a warning in the server's log.
            if self.transaction.execute("begin").await.is_ok() {
                let _ = self.transaction.rollback().await;
            }
        });
    }
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
    /// ([`could_not`]). Nothing is committed then.
    pub(crate) async fn commit(
        self,
        mut transaction: PgTransaction<'static>,
    ) -> Result<(), sqlx::Error> {
        settle(&mut transaction).await?;
        let next = if self.is_over() || !transaction.is_in_transaction() {
            None
        } else {
            self.home.kept().next.pop_front()
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
                let _ = next.answer.send(Ok(BegunTx {
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
                let _ = next.answer.send(Err(error));
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
        let idle = std::mem::take(&mut self.home.kept().idle);
        drop(idle);
        session_fault::close(transaction, &self.home.pool).await;
    }

    /// Leaves a connection whose transaction has ended to the next transaction, or returns it to
    /// the pool.
    fn end(self, transaction: PgTransaction<'static>) {
        if !transaction.is_in_transaction() {
            return;
        }
        let over = self.is_over();
        let session = TxConnection {
            transaction,
            leased: self.began,
        };
        if over {
            session.give_back()
        } else {
            self.home.keep(session)
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

/// Returns `true` if a commit was rejected because the transaction had failed, or had ended before
/// the end of the handler.
pub(crate) fn could_not(error: &sqlx::Error) -> bool {
    matches!(code(error).as_deref(), Some(HAD_FAILED | HAD_ENDED))
}

/// Returns `true` if the server has ended the transaction at its beginning or end and the
/// connection is still usable. Causes are a constraint, a conflict with another transaction, a
/// lock, or that there was nothing to end or to execute.
fn is_over(error: &sqlx::Error) -> bool {
    code(error).is_some_and(|code| {
        [HAD_ENDED, NO_SUCH_STATEMENT, "23", "40", "55"]
            .iter()
            .any(|class| code.starts_with(class))
    })
}

fn code(error: &sqlx::Error) -> Option<std::borrow::Cow<'_, str>> {
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
}

/// Withdraws a request when its future is dropped.
struct Withdrawn<'a> {
    sessions: &'a TxPipeline,
    number: u64,
}

impl Drop for Withdrawn<'_> {
    fn drop(&mut self) {
        let _ = self.sessions.withdraw(self.number);
    }
}

/// A pending request for a connection. If it fails, one waiting task gets the error.
struct Opening<'a> {
    sessions: &'a TxPipeline,
    failed: Option<sqlx::Error>,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.sessions.kept().opening -= 1;
        if let Some(error) = self.failed.take() {
            self.sessions.tell(error);
        }
    }
}

impl Drop for TxPipeline {
    fn drop(&mut self) {
        let kept = self.kept.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _entered = kept.runtime.as_ref().map(Handle::enter);
        kept.idle
            .drain(..)
            .for_each(|idle| idle.session.give_back());
    }
}
