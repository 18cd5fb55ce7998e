//! Writers, which act as services: each uses its own session and works until it is stopped. Writers
//! keep working through all faults of Postgres.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Failure;
use super::plan::Plan;
use super::random::Random;
use super::transaction::{ACCOUNTS, Contract, Transaction, execute};

/// Limits the time for which a writer waits for a lock or a response. A prepared transaction whose
/// writer lost its session keeps its locks until this writer reconnects.
const LIMITS: &str = "set lock_timeout = '3s'; set statement_timeout = '10s'; \
                      set idle_in_transaction_session_timeout = '10s'";

/// The interval of connection attempts while Postgres is unavailable.
const CONNECT_EVERY: Duration = Duration::from_millis(100);
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// All writers of a history.
pub(crate) struct Writers {
    stop: CancellationToken,
    tasks: JoinSet<()>,
    url: String,
}

/// Creates the accounts.
///
/// # Errors
///
/// Returns an error if Postgres refuses.
pub(crate) async fn create_accounts(session: &mut PgConnection) -> Result<(), Failure> {
    execute(session, super::committed::TABLES).await?;
    for prefix in ["a", super::checker::EARLY] {
        execute(
            session,
            &format!(
                "insert into account (id) select '{prefix}-' || n \
                                   from generate_series(0, {ACCOUNTS} - 1) n"
            ),
        )
        .await?;
    }
    Ok(())
}

/// Starts the writers. One in three breaks the contract.
pub(crate) fn start(plan: &Plan, url: &str) -> Writers {
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    for number in 0..plan.writers.max(2) {
        let contract = if number % 3 == 1 {
            Contract::Broken
        } else {
            Contract::Kept
        };
        let random = Random::new(plan.seed, number + 1);
        let wait_for_slot = contract == Contract::Broken && plan.source == "wal";
        let writer = Writer {
            number,
            contract,
            random,
            wait_for_slot,
            prepared: 0,
        };
        tasks.spawn(serve(writer, url.to_owned(), stop.clone()));
    }
    Writers {
        stop,
        tasks,
        url: url.to_owned(),
    }
}

impl Writers {
    /// Waits until each writer has finished its transaction, and finishes orphaned prepared
    /// transactions.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        let settle = async {
            let mut session = PgConnection::connect(&self.url).await?;
            forget_prepared(&mut session, "chaos-%").await
        };
        if let Err(error) = settle.await {
            eprintln!("prepared transactions remain: {error}");
        }
    }
}

/// The work of one writer, whose session may end at any time.
pub(crate) trait Work: Send {
    /// Prepares a new session.
    fn open(
        &mut self,
        session: &mut PgConnection,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Runs one transaction. The transaction may still be open after an error.
    fn transact(
        &mut self,
        session: &mut PgConnection,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// The time between two transactions.
    fn pause(&mut self) -> Duration;
}

/// Works until `stop` is cancelled, and opens a new session whenever one fails.
pub(crate) async fn serve(mut work: impl Work, url: String, stop: CancellationToken) {
    let mut session = None;
    while !stop.is_cancelled() {
        let worked = match session.take() {
            Some(mut open) => transact(&mut work, &mut open).await.then_some(open),
            None => connect(&mut work, &url).await,
        };
        let pause = if worked.is_some() {
            work.pause()
        } else {
            CONNECT_EVERY
        };
        session = worked;
        tokio::time::sleep(pause).await;
    }
}

/// Runs one transaction. Returns true if the session can be reused.
async fn transact(work: &mut impl Work, session: &mut PgConnection) -> bool {
    match tokio::time::timeout(ANSWER_LIMIT, work.transact(session)).await {
        Ok(Ok(())) => true,
        // A session that started while the database was read-only stays read-only.
        Ok(Err(error)) if is_read_only(&error) => false,
        // A conflict counts as a rollback. The rollback fails on a broken session.
        Ok(Err(_)) => matches!(
            tokio::time::timeout(ANSWER_LIMIT, execute(session, "rollback")).await,
            Ok(Ok(()))
        ),
        Err(_) => false,
    }
}

fn is_read_only(error: &Failure) -> bool {
    const READ_ONLY_SQL_TRANSACTION: &str = "25006";
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error.as_ref());
    while let Some(error) = cause {
        if let Some(sqlx::Error::Database(error)) = error.downcast_ref() {
            return error
                .code()
                .is_some_and(|code| code == READ_ONLY_SQL_TRANSACTION);
        }
        cause = error.source();
    }
    false
}

async fn connect(work: &mut impl Work, url: &str) -> Option<PgConnection> {
    let connecting = async {
        let mut session = PgConnection::connect(url).await?;
        execute(&mut session, LIMITS).await?;
        work.open(&mut session).await?;
        Ok::<_, Failure>(session)
    };
    tokio::time::timeout(ANSWER_LIMIT, connecting)
        .await
        .ok()?
        .ok()
}

struct Writer {
    number: u64,
    contract: Contract,
    random: Random,
    /// Only the WAL gives the order of commits. Rows from before the slot was created are read in
    /// the order of `seq`.
    wait_for_slot: bool,
    prepared: u64,
}

impl Work for Writer {
    async fn open(&mut self, session: &mut PgConnection) -> Result<(), Failure> {
        // No other session finishes the prepared transactions that this writer left behind.
        forget_prepared(session, &format!("chaos-{}-%", self.number)).await?;
        let slot = "select exists (select from pg_replication_slots \
                    where confirmed_flush_lsn is not null)";
        if self.wait_for_slot
            && !sqlx::query_scalar::<_, bool>(slot)
                .fetch_one(session)
                .await?
        {
            return Err("the slot does not exist yet".into());
        }
        self.wait_for_slot = false;
        Ok(())
    }

    async fn transact(&mut self, session: &mut PgConnection) -> Result<(), Failure> {
        let transaction = Transaction::draw(&mut self.random, self.contract);
        self.prepared += 1;
        let name = format!("chaos-{}-{}", self.number, self.prepared);
        transaction.run(session, self.contract, &name).await
    }

    fn pause(&mut self) -> Duration {
        self.random.millis(0, 40)
    }
}

async fn forget_prepared(session: &mut PgConnection, names: &str) -> Result<(), Failure> {
    let forgotten =
        "select gid from pg_prepared_xacts where gid like $1 and database = current_database()";
    for name in sqlx::query_scalar::<_, String>(forgotten)
        .bind(names)
        .fetch_all(&mut *session)
        .await?
    {
        // Another session may finish it at the same time.
        let ending = if name.ends_with(['1', '3', '5', '7', '9']) {
            "commit"
        } else {
            "rollback"
        };
        let _ = sqlx::raw_sql(AssertSqlSafe(format!("{ending} prepared '{name}'")))
            .execute(&mut *session)
            .await;
    }
    Ok(())
}
