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
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::holder::{ForeignHolder, Holder, holder};
use crate::relay::{
    RelayOptions,
    error::Interruption,
    monitor::{
        metrics::{Observer, Part},
        readiness::Cause,
    },
};

/// How often the leader shows that it is there.
const PING_EVERY: Duration = Duration::from_secs(2);

/// After this much silence the server takes the lease away: five pings.
const SILENCE: &str = "10s";

/// A ping without answer for this long means that the lease may be lost: less than [`SILENCE`], so that the leader knows first.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a standby tries.
const TRY_EVERY: Duration = Duration::from_secs(1);

/// How often a foreign holder of the lock is reported in the log.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// How long giving the lease back may take: the server takes it away after [`SILENCE`] in any case.
const RELEASE_WITHIN: Duration = Duration::from_secs(1);

/// The lease, while it is held. Dropped, it is given back in the background.
pub(crate) struct Lease {
    lost: CancellationToken,
    released: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl Lease {
    /// Waits until this relay leads. The lease is given back when `dropped` is cancelled.
    ///
    /// # Errors
    /// When the database cannot be reached or asked.
    pub(crate) async fn acquire(
        options: &RelayOptions,
        observer: &Observer,
        dropped: &CancellationToken,
    ) -> Result<Self, Interruption> {
        observer.pulse().step("connecting to the database");
        let mut session =
            crate::relay::leadership::relay_store::connect(options, "relay lease").await?;
        // By this name a standby is seen, whatever name the URL gives to sessions.
        let name = session_name(
            &options.name,
            &crate::relay::leadership::relay_store::hostname(),
            std::process::id(),
        );
        let named = sqlx::query("select set_config('application_name', $1, false)")
            .bind(name)
            .execute(&mut session);
        crate::relay::leadership::relay_store::within("preparing the session", named).await?;
        observer.note(Part::Database, "connected");
        let mut standby = Standby::default();
        while !crate::relay::leadership::relay_store::within(
            "trying for the lease",
            try_lock(&mut session, options),
        )
        .await?
        {
            let looked = holder(&mut session, &options.schema, &options.name);
            match crate::relay::leadership::relay_store::within(
                "looking for the holder of the lease",
                looked,
            )
            .await?
            {
                Holder::Relay => standby.behind_a_relay(options, observer),
                Holder::Foreign(foreign) => standby.behind(&foreign, options, observer),
                // It was given back in between.
                Holder::None => {}
            }
            observer.pulse().step("waiting for the lease");
            tokio::time::sleep(TRY_EVERY).await;
        }
        observer.clear(Part::Lease, Cause::LockHolder);
        observer.leader(true);
        observer.pulse().leads();
        let (lost, released) = (CancellationToken::new(), dropped.child_token());
        let task = tokio::spawn(hold(session, lost.clone(), released.clone()));
        Ok(Self {
            lost,
            released,
            task: Some(task),
        })
    }

    /// Cancelled once the lease is not certain any more.
    pub(crate) fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Gives the lease back, so that a standby takes over at once.
    pub(crate) async fn release(mut self) {
        self.released.cancel();
        if let Some(task) = self.task.take() {
            let _ = timeout(RELEASE_WITHIN, task).await;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.released.cancel();
    }
}

/// What a relay that does not lead has reported.
#[derive(Default)]
struct Standby {
    reported: bool,
    warned: Option<Instant>,
}

impl Standby {
    /// Another relay of this name leads, or a command works on it: as it should be.
    fn behind_a_relay(&mut self, options: &RelayOptions, observer: &Observer) {
        observer.stands_by();
        if !std::mem::replace(&mut self.reported, true) {
            tracing::info!(
                relay = options.name,
                "standing by: another relay of this name leads"
            );
        }
        self.warned = None;
    }

    /// The lock is held by a session that is no relay: nothing is published as long as it is.
    fn behind(&mut self, holder: &ForeignHolder, options: &RelayOptions, observer: &Observer) {
        let text = format!(
            "the lock of the lease of relay `{}` is held by {holder}, which is no relay of a role that may write the table of relays: nothing is published. Wait for it, or end it with select pg_terminate_backend({}); revoke CONNECT from a role that should not be in this database",
            options.name, holder.pid
        );
        observer.waits_for_the_lock();
        observer.raise(Part::Lease, Cause::LockHolder, text.clone());
        if self.warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            tracing::warn!("{text}");
            self.warned = Some(Instant::now());
        }
        self.reported = false;
    }
}

/// What a relay's lease is a lock on, before hashing.
pub(crate) fn lock_name(schema: &str, relay: &str) -> String {
    format!("tidings relay {schema}.{relay}")
}

/// What the sessions of leaders and standbys begin with in `pg_stat_activity`.
pub(crate) const SESSION_PREFIX: &str = "tidings lease ";

/// Longest name of a session (NAMEDATALEN - 1): the server cuts off the rest.
const SESSION_NAME_MAX: usize = 63;

/// The name of the session that holds or waits for a relay's lease: the relay, and the process as `host:pid`.
pub(crate) fn session_name(relay: &str, host: &str, pid: u32) -> String {
    let (head, tail) = (format!("{SESSION_PREFIX}{relay} "), format!(":{pid}"));
    // The server replaces what is not ASCII.
    let host: String = host
        .chars()
        .filter(char::is_ascii_graphic)
        .take(SESSION_NAME_MAX.saturating_sub(head.len() + tail.len()))
        .collect();
    format!("{head}{host}{tail}")
}

/// One try: opens the transaction and asks for the lock; closes it again if another holds it.
async fn try_lock(session: &mut PgConnection, options: &RelayOptions) -> Result<bool, sqlx::Error> {
    // Read committed holds no snapshot between statements, whatever the role's default: a lease must not keep vacuum from its work.
    let begin = format!(
        "begin isolation level read committed; set local idle_in_transaction_session_timeout = '{SILENCE}'"
    );
    sqlx::raw_sql(AssertSqlSafe(begin))
        .execute(&mut *session)
        .await?;
    // 17 and later: a role's transaction_timeout would end the lease again and again.
    let untimed = "select set_config('transaction_timeout', '0', true) where current_setting('server_version_num')::int >= 170000";
    sqlx::query(untimed).execute(&mut *session).await?;
    let lock = sqlx::query_scalar(
        "select pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended($1, 0::bigint))",
    )
    .bind(lock_name(&options.schema, &options.name));
    let locked: bool = lock.fetch_one(&mut *session).await?;
    if !locked {
        sqlx::raw_sql("rollback").execute(session).await?;
    }
    Ok(locked)
}

/// Keeps the transaction alive until the lease is released or lost.
async fn hold(mut session: PgConnection, lost: CancellationToken, released: CancellationToken) {
    // However this ends, also by a panic of the client library: the lease is not certain any more.
    let lost = lost.drop_guard();
    loop {
        tokio::select! {
            () = released.cancelled() => break,
            () = tokio::time::sleep(PING_EVERY) => {}
        }
        let ping = sqlx::raw_sql("select 1").execute(&mut session);
        let pinged = tokio::select! {
            pinged = timeout(PING_TIMEOUT, ping) => pinged,
            () = released.cancelled() => return,
        };
        if !matches!(pinged, Ok(Ok(_))) {
            return;
        }
    }
    let _ = timeout(PING_TIMEOUT, session.close()).await;
    drop(lost);
}
