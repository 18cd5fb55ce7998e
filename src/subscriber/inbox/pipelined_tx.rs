//! Connections on which one transaction of the inbox follows another.
//!
//! A transaction of a pool costs a message to begin, one to commit, and one by which the pool tests the connection that comes back. Here a connection stays with the inbox for
//! [`LEASE`]. A transaction begins by the message that remembers its events and ends by one that also asks whether it still is one: two messages beside the handler's own.
//! If another one waits for a connection, it begins by the message that commits the one before. Then a commit is known only when that beginning is, which therefore waits for a lock for a moment only
//! ([`Form::waits`]), and begins by itself if that was not enough. Until the answer is here, who begins depends on who commits.
//!
//! sqlx counts the transactions of a connection, so that `tx.begin()` of a handler becomes a savepoint. Therefore a connection that is here keeps the sqlx transaction it came
//! with, whether the server is in one or not, and what begins and ends on the server is not told to sqlx. If it is dropped anywhere, sqlx rolls back. One of which sqlx counts
//! none any more is not kept: a handler's savepoint that failed at once has had sqlx roll back everything.

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

/// How long a connection may stay before those who wait for one of the pool have their chance.
const LEASE: Duration = Duration::from_millis(200);

/// How long a connection may stay unused.
const IDLE: Duration = Duration::from_millis(100);

/// Ends a transaction, if it is one that can be committed. After a statement that failed, which a handler may think nothing of, Postgres answers `commit` by a rollback, and without a
/// transaction by a warning: the event would count as handled. A savepoint it refuses in both cases.
const COMMIT: &str = "savepoint tidings; commit";
const COMMIT_STATEMENTS: usize = 2;

/// What it says then.
const HAD_FAILED: &str = "25P02";
const HAD_ENDED: &str = "25P01";

/// What the server says when a lock is not to be had in time.
const LOCKED: &str = "55P03";

/// What the server says of a prepared statement that it does not know, or knows already.
const NO_SUCH_STATEMENT: &str = "26000";
const STATEMENT_EXISTS: &str = "42P05";

/// The connections.
#[derive(Debug)]
pub(crate) struct Sessions {
    pool: PgPool,
    /// What each connection has prepared. It stays when the connection goes back.
    statements: Vec<Statement>,
    /// Statements that were prepared are found again: not so behind a pooler that gives each transaction another connection.
    prepares: AtomicBool,
    /// As many as the pool can have: who waits for one that is in use here does not ask the pool for more.
    permits: Arc<Semaphore>,
    kept: Mutex<Kept>,
}

/// What is prepared once a connection.
#[derive(Debug)]
pub(crate) struct Statement {
    name: String,
    /// The types of its parameters.
    parameters: &'static str,
    text: String,
}

#[derive(Debug, Default)]
struct Kept {
    /// Used last, used next.
    idle: Vec<Idle>,
    /// Who begins next, as soon as something is committed, and how many there have been.
    next: VecDeque<Request>,
    requests: u64,
    /// Who takes what is free next, from the pool or from here.
    waiting: VecDeque<oneshot::Sender<Result<Session, sqlx::Error>>>,
    /// How many connections the pool is asked for.
    opening: usize,
    /// Somebody gives back what stays unused.
    tended: bool,
    /// Where the connections are at home: the last owner of all this may be a thread without a runtime.
    runtime: Option<Handle>,
}

/// How the message that begins a transaction is to be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    /// It may execute the prepared statements.
    pub(crate) prepared: bool,
    /// It may wait for a lock as long as the inbox says. Otherwise somebody's commit is known only when it has ended, and it has to end soon.
    pub(crate) waits: bool,
}

/// What has become of a transaction that was to begin by the message that commits another one.
enum Next {
    Answered(Result<Begun, sqlx::Error>),
    /// A connection is free, by which it can begin by itself.
    Free(OwnedSemaphorePermit),
    /// That commit came to nothing.
    Nothing,
}

/// A transaction that is to begin.
#[derive(Debug)]
struct Request {
    number: u64,
    message: String,
    answer: oneshot::Sender<Result<Begun, sqlx::Error>>,
}

#[derive(Debug)]
struct Idle {
    session: Session,
    since: tokio::time::Instant,
}

/// A connection that is in no transaction, but for sqlx.
#[derive(Debug)]
struct Session {
    transaction: PgTransaction<'static>,
    leased: Instant,
}

/// What a transaction is to be ended by.
#[derive(Debug)]
pub(crate) struct Lease {
    began: Instant,
    home: Arc<Sessions>,
    _permit: OwnedSemaphorePermit,
}

/// A transaction that has begun, and how many rows its first message has changed.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) transaction: PgTransaction<'static>,
    pub(crate) lease: Lease,
    pub(crate) rows: u64,
}

impl Sessions {
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

    /// Begins a transaction by a message that ends in `begin` and is asked for in the form that is needed.
    ///
    /// # Cancel safety
    /// Dropping the future rolls back.
    ///
    /// # Errors
    /// What the server says: there is no transaction then.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        message: impl Fn(Form) -> String,
    ) -> Result<Begun, sqlx::Error> {
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

    /// Begins on a connection that is free.
    async fn begin_by(
        self: &Arc<Self>,
        permit: OwnedSemaphorePermit,
        message: String,
    ) -> Result<Begun, sqlx::Error> {
        let Session {
            mut transaction,
            leased,
        } = self.session().await?;
        let lease = Lease {
            began: leased,
            home: self.clone(),
            _permit: permit,
        };
        match transaction.execute(AssertSqlSafe(message)).await {
            Ok(done) => Ok(Begun {
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

    /// Begins behind the next transaction that is committed, by the same message; unless a connection is free before.
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

    /// Takes back what nobody has taken.
    fn withdraw(&self, number: u64) -> Option<Request> {
        let mut kept = self.kept();
        let at = kept
            .next
            .iter()
            .position(|request| request.number == number)?;
        kept.next.remove(at)
    }

    /// One that is idle, or the first that is free or that the pool gives.
    async fn session(self: &Arc<Self>) -> Result<Session, sqlx::Error> {
        let free = {
            let mut kept = self.kept();
            if let Some(idle) = kept.idle.pop() {
                return Ok(idle.session);
            }
            let (for_it, free) = oneshot::channel();
            kept.waiting.push_back(for_it);
            if kept.opening < kept.waiting.len() {
                kept.opening += 1;
                // By a task of its own: a connection whose `begin` is cut off would go back to its pool within a transaction that nobody knows of.
                tokio::spawn(self.clone().open());
            }
            free
        };
        free.await.unwrap_or(Err(sqlx::Error::PoolClosed))
    }

    /// One more connection of the pool.
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

    async fn opened(&self) -> Result<Session, sqlx::Error> {
        let mut transaction = self.pool.begin().await?;
        transaction.execute("rollback").await?;
        if self.prepares.load(Ordering::Relaxed) {
            self.prepare(&mut transaction).await?;
        }
        Ok(Session {
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
            // The pooler has asked one connection and told another.
            Err(error) if code(&error).as_deref() == Some(STATEMENT_EXISTS) => {
                self.prepares.store(false, Ordering::Relaxed)
            }
            prepared => {
                prepared?;
            }
        }
        Ok(())
    }

    /// Tells one who waits that the pool gives nothing.
    fn tell(&self, mut error: sqlx::Error) {
        let mut kept = self.kept();
        while let Some(waiting) = kept.waiting.pop_front() {
            match waiting.send(Err(error)) {
                Err(Err(back)) => error = back,
                _ => return,
            }
        }
    }

    /// Takes a connection whose transaction is over.
    fn keep(self: &Arc<Self>, mut session: Session) {
        let mut kept = self.kept();
        let mut gone = false;
        while let Some(waiting) = kept.waiting.pop_front() {
            match waiting.send(Ok(session)) {
                Err(Ok(back)) => session = back,
                _ => return,
            }
            gone = true;
        }
        // Those for whom it was asked for wait no more: others may.
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
    /// A statement with parameters of these types. Its name comes from its text: several subscribers may have the same pool, and a pooler may have the same connection for several versions of the code.
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

/// Gives back what stays unused, as long as anything is here.
async fn tend(sessions: Weak<Sessions>) {
    loop {
        tokio::time::sleep(IDLE).await;
        let Some(sessions) = sessions.upgrade() else {
            return;
        };
        let mut kept = sessions.kept();
        // Those that were used last are behind.
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

impl Session {
    /// Back to the pool, as it came.
    fn give_back(mut self) {
        tokio::spawn(async move {
            // A rollback without a transaction would be a warning in the server's log.
            if self.transaction.execute("begin").await.is_ok() {
                let _ = self.transaction.rollback().await;
            }
        });
    }
}

impl Lease {
    /// Commits.
    ///
    /// # Cancel safety
    /// Dropping the future commits or rolls back.
    ///
    /// # Errors
    /// What the server says, also that there was nothing that can be committed ([`could_not`]). Nothing is committed then.
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
                // Who has gone meanwhile has it rolled back.
                let _ = next.answer.send(Ok(Begun {
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
                // It begins by itself.
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

    /// Rolls back. A connection by which that is not possible is left to the pool.
    pub(crate) async fn roll_back(self, mut transaction: PgTransaction<'static>) {
        if settle(&mut transaction).await.is_ok()
            && transaction.is_in_transaction()
            && transaction.execute("rollback").await.is_ok()
        {
            self.end(transaction);
        }
    }

    /// Closes a connection whose session can do no more work, and the idle ones, which may be like it.
    pub(crate) async fn close(self, transaction: PgTransaction<'static>) {
        let idle = std::mem::take(&mut self.home.kept().idle);
        drop(idle);
        session_fault::close(transaction, &self.home.pool).await;
    }

    /// Leaves the connection, whose transaction is over, to the next, or to the pool.
    fn end(self, transaction: PgTransaction<'static>) {
        if !transaction.is_in_transaction() {
            return;
        }
        let over = self.is_over();
        let session = Session {
            transaction,
            leased: self.began,
        };
        if over {
            session.give_back()
        } else {
            self.home.keep(session)
        }
    }

    /// Whether others have their chance now.
    fn is_over(&self) -> bool {
        self.began.elapsed() > LEASE
    }
}

/// What a message of several statements has come to.
#[derive(Debug, Default)]
struct Answers {
    /// How many were executed.
    statements: usize,
    /// How many rows they have changed.
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

/// Waits for the answers that nobody has waited for: the handler has left a statement alone, or dropped a savepoint. If one of them is an error, it is not the one of what comes next;
/// whether it matters, the commit tells.
async fn settle(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    while let Err(error) = connection.flush().await {
        if error.as_database_error().is_none() {
            return Err(error);
        }
    }
    Ok(())
}

/// Whether a commit was refused because there was nothing that can be committed: the transaction had failed, or was over, before the handler's end.
pub(crate) fn could_not(error: &sqlx::Error) -> bool {
    matches!(code(error).as_deref(), Some(HAD_FAILED | HAD_ENDED))
}

/// Whether the server has ended the transaction at its beginning or its end, and thinks well of the connection: a constraint, a conflict with another one, a lock, or nothing to
/// end or to execute.
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

/// A request whose owner may go.
struct Withdrawn<'a> {
    sessions: &'a Sessions,
    number: u64,
}

impl Drop for Withdrawn<'_> {
    fn drop(&mut self) {
        let _ = self.sessions.withdraw(self.number);
    }
}

/// A connection that is asked for; if none comes, somebody who waits is told.
struct Opening<'a> {
    sessions: &'a Sessions,
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

impl Drop for Sessions {
    fn drop(&mut self) {
        let kept = self.kept.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _entered = kept.runtime.as_ref().map(Handle::enter);
        kept.idle
            .drain(..)
            .for_each(|idle| idle.session.give_back());
    }
}
