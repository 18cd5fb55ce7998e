//! Which of several relays of one name works: a lease in Postgres.
//!
//! ```text
//!            try lock                    ping fails, or the server ends the session
//! STANDBY ──────────────▶ LEADER(epoch) ───────────────────────────────────────────▶ LOST
//!    ▲  once a second        │ every 2 s: a ping in the transaction that holds the lock
//!    └───────────────────────┘ dropped
//! ```
//!
//! The lock lives as long as one transaction of one session. The server ends that transaction if it hears nothing for
//! [`SILENCE`]: a leader that is stopped, cut off or gone frees the lock within that time. A leader that wakes up after
//! that still believes that it leads until its next ping, so each of its writes also checks the *epoch*, a number in
//! `relay` that each take-over raises. Kafka is not fenced by any of this (a Kafka transactional id is the only fence it
//! knows): such a leader may still send what it had read, which delivery at least once allows.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    RelayOptions,
    error::Interruption,
    observe::{Observer, Part},
};

/// How often the leader shows that it is there.
const PING_EVERY: Duration = Duration::from_secs(2);

/// After this much silence the server takes the lease away: five pings.
const SILENCE: &str = "10s";

/// A ping without answer for this long means that the lease may be lost: less than [`SILENCE`], so that the leader knows first.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a standby tries.
const TRY_EVERY: Duration = Duration::from_secs(1);

/// The lease, while it is held.
pub(super) struct Lease {
    lost: CancellationToken,
    released: CancellationToken,
    task: JoinHandle<()>,
}

impl Lease {
    /// Waits until this relay leads.
    ///
    /// # Errors
    /// When the database cannot be reached or asked.
    pub(super) async fn acquire(options: &RelayOptions, observer: &Observer) -> Result<Self, Interruption> {
        let mut session = super::ledger::connect(options, "relay lease").await?;
        // By this name a standby is seen, whatever name the URL gives to sessions.
        let name = session_name(&options.name, &super::ledger::hostname(), std::process::id());
        let named = sqlx::query("select set_config('application_name', $1, false)").bind(name).execute(&mut session);
        super::ledger::within("preparing the session", named).await?;
        observer.note(Part::Database, "connected");
        let mut said = false;
        while !super::ledger::within("trying for the lease", try_lock(&mut session, options)).await? {
            observer.stands_by();
            if !said {
                tracing::info!(relay = options.name, "standing by: another relay of this name leads");
                said = true;
            }
            tokio::time::sleep(TRY_EVERY).await;
        }
        observer.leader(true);
        observer.pulse().leads();
        let (lost, released) = (CancellationToken::new(), CancellationToken::new());
        let task = tokio::spawn(hold(session, lost.clone(), released.clone()));
        Ok(Self { lost, released, task })
    }

    /// Cancelled once the lease is not certain any more.
    pub(super) fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Gives the lease back, so that a standby takes over at once.
    pub(super) async fn release(self) {
        self.released.cancel();
        let _ = self.task.await;
    }
}

/// What a relay's lease is a lock on, before hashing.
pub(super) fn lock_name(schema: &str, relay: &str) -> String {
    format!("tidings relay {schema}.{relay}")
}

/// What the sessions of leaders and standbys begin with in `pg_stat_activity`.
pub(super) const SESSION_PREFIX: &str = "tidings lease ";

/// Longest name of a session (NAMEDATALEN - 1): the server cuts off the rest.
const SESSION_NAME_MAX: usize = 63;

/// The name of the session that holds or waits for a relay's lease: the relay, and the process as `host:pid`.
pub(super) fn session_name(relay: &str, host: &str, pid: u32) -> String {
    let (head, tail) = (format!("{SESSION_PREFIX}{relay} "), format!(":{pid}"));
    // The server replaces what is not ASCII.
    let host: String = host.chars().filter(char::is_ascii_graphic).take(SESSION_NAME_MAX.saturating_sub(head.len() + tail.len())).collect();
    format!("{head}{host}{tail}")
}

/// One try: opens the transaction and asks for the lock; closes it again if another holds it.
async fn try_lock(session: &mut PgConnection, options: &RelayOptions) -> Result<bool, sqlx::Error> {
    // Read committed holds no snapshot between statements, whatever the role's default: a lease must not keep vacuum from its work.
    let begin = format!("begin isolation level read committed; set local idle_in_transaction_session_timeout = '{SILENCE}'");
    sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut *session).await?;
    // 17 and later: a role's transaction_timeout would end the lease again and again.
    let untimed = "select set_config('transaction_timeout', '0', true) where current_setting('server_version_num')::int >= 170000";
    sqlx::query(untimed).execute(&mut *session).await?;
    let lock =
        sqlx::query_scalar("select pg_try_advisory_xact_lock(hashtextextended($1, 0))").bind(lock_name(&options.schema, &options.name));
    let locked: bool = lock.fetch_one(&mut *session).await?;
    if !locked {
        sqlx::raw_sql("rollback").execute(session).await?;
    }
    Ok(locked)
}

/// Keeps the transaction alive until the lease is released or lost.
async fn hold(mut session: PgConnection, lost: CancellationToken, released: CancellationToken) {
    loop {
        tokio::select! {
            () = released.cancelled() => break,
            () = tokio::time::sleep(PING_EVERY) => {}
        }
        let ping = sqlx::raw_sql("select 1").execute(&mut session);
        if !matches!(timeout(PING_TIMEOUT, ping).await, Ok(Ok(_))) {
            lost.cancel();
            return;
        }
    }
    let _ = timeout(PING_TIMEOUT, session.close()).await;
}
