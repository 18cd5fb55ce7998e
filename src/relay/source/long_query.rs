//! Statements of unlimited duration. The caller waits as long as the server works on them.
//!
//! The creation of a slot waits for every open transaction of the server. Decoding and counting
//! take time in proportion to the amount of data. A time limit would only repeat such work.
//! Instead, a second session checks that the server still works on the statement.

use std::time::Duration;

use sqlx::{PgConnection, Row as _};

use crate::relay::{
    RelayOptions,
    error::Interruption,
    leadership::relay_store::{connect, within},
};

/// Interval between two checks.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Number of consecutive checks without a sign of work that end the wait. A single check may fail,
/// or the answer may be in transit.
const IDLE_MAX: u32 = 4;

/// Returns the process id of the server process that serves a session.
///
/// # Errors
///
/// Returns an interruption if the connection is lost.
pub(crate) async fn backend(session: &mut PgConnection) -> Result<i32, Interruption> {
    within(
        "reading the session's process id",
        sqlx::query_scalar("select pg_catalog.pg_backend_pid()").fetch_one(session),
    )
    .await
}

/// Waits for `work` that the server process `backend` does. With `blocked`, logs this text for each
/// open transaction that may delay the work.
///
/// # Errors
///
/// Returns the error of the work, or an interruption if the server no longer works on it.
pub(crate) async fn watched<T>(
    options: &RelayOptions,
    doing: &'static str,
    backend: i32,
    work: impl Future<Output = Result<T, Interruption>>,
    blocked: Option<&'static str>,
) -> Result<T, Interruption> {
    let mut work = std::pin::pin!(work);
    let (mut looking, mut idle) = (None, 0);
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        // The work may end during the check.
        let looked = async {
            let mut session = match looking.take() {
                Some(session) => session,
                None => connect(options, "relay watch").await.ok()?,
            };
            let works = is_working(&mut session, backend).await.ok()?;
            if let Some(blocked) = blocked.filter(|_| works) {
                say_what_blocks(&mut session, blocked).await;
            }
            looking = Some(session);
            Some(works)
        };
        let looked = tokio::select! {
            done = &mut work => return done,
            looked = looked => looked,
        };
        idle = if looked == Some(true) { 0 } else { idle + 1 };
        if idle >= IDLE_MAX {
            let gone = std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                "the server no longer works on the statement and has not answered",
            );
            return Err(Interruption::sql(doing)(sqlx::Error::Io(gone)));
        }
    }
}

/// Returns `true` if the process is busy. The state of another role's process may be hidden; such a
/// process counts as busy while it exists.
async fn is_working(session: &mut PgConnection, backend: i32) -> Result<bool, Interruption> {
    let sql = "select exists (select from pg_catalog.pg_stat_activity
                              where pid = $1 and coalesce(state, 'active') = 'active')";
    within(
        "checking that the server works",
        sqlx::query_scalar(sql).bind(backend).fetch_one(session),
    )
    .await
}

/// Logs the open transactions that a statement may wait for.
async fn say_what_blocks(session: &mut PgConnection, blocked: &'static str) {
    let sql = "select pid, coalesce(usename, '?')::text as role,
                      coalesce(application_name, '')::text as application,
                      (now() - xact_start)::text as age
               from pg_stat_activity
               where backend_xid is not null and pid <> pg_backend_pid()
               order by xact_start limit 5";
    let Ok(rows) = within(
        "looking for open transactions",
        sqlx::query(sql).fetch_all(session),
    )
    .await
    else {
        return;
    };
    for row in rows {
        let text = |column: &str| row.try_get::<String, _>(column).unwrap_or_default();
        let pid: i32 = row.try_get("pid").unwrap_or_default();
        tracing::warn!(
            pid,
            role = text("role"),
            application = text("application"),
            open_for = text("age"),
            "{blocked}"
        );
    }
}
