//! Lease in Postgres that decides which of several relays of one name leads.
//!
//! ```text
//!            try lock                    ping fails, or the server ends the session
//! STANDBY ──────────────▶ LEADER(epoch) ───────────────────────────────────────────▶ LOST
//!    ▲  once a second        │ every 2 s: a ping on the session that holds the lock
//!    └───────────────────────┘ dropped
//! ```
//!
//! The lock lives as long as one session. The server ends that session after [`SILENCE`] without a
//! statement, so a leader that is stopped, cut off or dead frees the lock within that time. No
//! transaction is open meanwhile: a session that is "idle in transaction" for days looks like a
//! fault, and tools that end such sessions would end the lease.
//!
//! A leader that resumes after that still acts as the leader until its next ping. Each of its
//! writes therefore also checks the *epoch*, a number in `relay` that each takeover raises. The
//! lease does not fence Kafka, which only a transactional id can do. Such a leader may still send
//! events that it had read, which delivery at least once allows.

use std::time::Duration;

use sqlx::{Connection as _, PgConnection};
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    holder::{ForeignHolder, Holder, holder},
    relay_store::{connect, hostname, within},
};
use crate::relay::{
    RelayOptions,
    error::Interruption,
    monitor::{
        metrics::{Component, RelayMetrics},
        readiness::Cause,
    },
};

/// Interval between the leader's pings.
const PING_EVERY: Duration = Duration::from_secs(2);

/// Silence after which the server ends the lease: five pings.
const SILENCE: &str = "10s";

/// Time limit of a ping. After it, the lease may be lost. It is shorter than [`SILENCE`], so that
/// the leader notices the loss first.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Interval between the attempts of a standby.
const TRY_EVERY: Duration = Duration::from_secs(1);

/// Interval between log entries about a foreign holder of the lock.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Time limit of a release. The server ends the lease after [`SILENCE`] in any case.
const RELEASE_WITHIN: Duration = Duration::from_secs(1);

/// A held lease. Dropping it releases the lease in the background.
pub(crate) struct Lease {
    lost: CancellationToken,
    released: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl Lease {
    /// Waits until this relay leads. Cancelling `dropped` releases the lease.
    ///
    /// # Errors
    ///
    /// Returns an error if the database is unreachable or a statement fails.
    pub(crate) async fn acquire(
        options: &RelayOptions,
        observer: &RelayMetrics,
        dropped: &CancellationToken,
    ) -> Result<Self, Interruption> {
        observer.pulse().step("connecting to the database");
        let mut session = connect(options, "relay lease").await?;
        within("preparing the session", prepare(&mut session, options)).await?;
        observer.note(Component::Database, "connected");
        let mut standby = Standby::default();
        while !within("trying for the lease", try_lock(&mut session, options)).await? {
            let looked = holder(&mut session, &options.schema, &options.name);
            match within("looking for the holder of the lease", looked).await? {
                Holder::Relay => standby.behind_a_relay(options, observer),
                Holder::Foreign(foreign) => standby.behind(&foreign, options, observer),
                // The holder released the lock between the two statements.
                Holder::None => {}
            }
            observer.pulse().step("waiting for the lease");
            tokio::time::sleep(TRY_EVERY).await;
        }
        observer.clear(Component::Lease, Cause::LockHolder);
        observer.leader(true);
        observer.pulse().leads();
        let (lost, released) = (CancellationToken::new(), dropped.child_token());
        #[expect(
            clippy::disallowed_methods,
            reason = "ends with `released`, which `Drop` cancels; it must release the lock"
        )]
        let task = tokio::spawn(hold(session, lost.clone(), released.clone()));
        Ok(Self {
            lost,
            released,
            task: Some(task),
        })
    }

    /// Returns a token that is cancelled once the lease is no longer certain.
    pub(crate) fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Releases the lease, so that a standby takes over at once.
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

/// Reports of a relay that does not lead.
#[derive(Default)]
struct Standby {
    reported: bool,
    warned: Option<Instant>,
}

impl Standby {
    /// Reports that another relay of this name leads, or that a command works on it. This is the
    /// normal state of a standby.
    fn behind_a_relay(&mut self, options: &RelayOptions, observer: &RelayMetrics) {
        observer.stands_by();
        if !std::mem::replace(&mut self.reported, true) {
            tracing::info!(
                relay = options.name,
                "standing by: another relay of this name leads"
            );
        }
        self.warned = None;
    }

    /// Reports that a session other than a relay holds the lock. Nothing is published in this
    /// state.
    fn behind(&mut self, holder: &ForeignHolder, options: &RelayOptions, observer: &RelayMetrics) {
        let text = format!(
            "the lock of the lease of relay `{}` is held by {holder}, which is not a relay with a \
             role that may write the table of relays: nothing is published. Wait for its end, or \
             end it with select pg_terminate_backend({}); revoke CONNECT from a role that should \
             not use this database",
            options.name, holder.pid
        );
        observer.waits_for_the_lock();
        observer.raise(Component::Lease, Cause::LockHolder, text.clone());
        if self.warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            tracing::warn!("{text}");
            self.warned = Some(Instant::now());
        }
        self.reported = false;
    }
}

/// Returns the name that the lock of a relay's lease is derived from by hashing.
pub(crate) fn lock_name(schema: &str, relay: &str) -> String {
    format!("tidings relay {schema}.{relay}")
}

/// Prefix of the session names of leaders and standbys in `pg_stat_activity`.
pub(crate) const SESSION_PREFIX: &str = "tidings lease ";

/// Maximum length of a session name (NAMEDATALEN - 1). The server truncates longer names.
const SESSION_NAME_MAX: usize = 63;

/// Returns the name of the session that holds or awaits a relay's lease: the relay, and the process
/// as `host:pid`.
pub(crate) fn session_name(relay: &str, host: &str, pid: u32) -> String {
    let (head, tail) = (format!("{SESSION_PREFIX}{relay} "), format!(":{pid}"));
    // The server replaces characters that are not ASCII.
    let host: String = host
        .chars()
        .filter(char::is_ascii_graphic)
        .take(SESSION_NAME_MAX.saturating_sub(head.len() + tail.len()))
        .collect();
    format!("{head}{host}{tail}")
}

/// Sets the name of the session, and the time limit after which the server ends it. Both override
/// the URL's and the role's settings.
async fn prepare(session: &mut PgConnection, options: &RelayOptions) -> Result<(), sqlx::Error> {
    // `tidings status` recognizes a standby by this name. The time limit precedes the lock, so that
    // no session ever holds the lock without it. A standby is never silent for as long.
    let prepared = sqlx::query(
        "select set_config('application_name', $1, false),
             set_config('idle_session_timeout', $2, false)",
    )
    .bind(session_name(&options.name, &hostname(), std::process::id()))
    .bind(SILENCE);
    prepared.execute(session).await.map(|_| ())
}

/// Tries once to take the lease, as a lock of the session.
async fn try_lock(session: &mut PgConnection, options: &RelayOptions) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "select pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended($1, 0::bigint))",
    )
    .bind(lock_name(&options.schema, &options.name))
    .fetch_one(session)
    .await
}

/// Keeps the session alive until the lease is released or lost.
async fn hold(mut session: PgConnection, lost: CancellationToken, released: CancellationToken) {
    // Cancels `lost` however this function ends, including a panic of the client library.
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
