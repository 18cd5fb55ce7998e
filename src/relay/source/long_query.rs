//! Statements that may take arbitrarily long: waited for as long as the server works on them.
//!
//! Creating a slot waits for every open transaction of the server, and decoding or counting takes as long as there is much of
//! it. A time limit would only repeat such work. A session of its own looks whether the server still has it instead.

use std::time::Duration;

use sqlx::{PgConnection, Row as _};

use crate::relay::{
    RelayOptions,
    error::Interruption,
    leadership::relay_store::{connect, within},
};

/// How often is looked.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// So many looks in a row without a sign of the work end the wait: a look itself may fail, and an answer be under way.
const IDLE_MAX: u32 = 4;

/// The process of the server that serves a session.
///
/// # Errors
/// A lost connection.
pub(crate) async fn backend(session: &mut PgConnection) -> Result<i32, Interruption> {
    within(
        "asking for the session's process",
        sqlx::query_scalar("select pg_catalog.pg_backend_pid()").fetch_one(session),
    )
    .await
}

/// Waits for `work` of the server's process `backend`. With `blocked`, reports each open transaction that may keep it waiting,
/// and what to do about it.
///
/// # Errors
/// The error of the work, or that the server does not work on it any more.
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
        // The work may end while is looked.
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
                "the server does not work on it any more and has not answered",
            );
            return Err(Interruption::sql(doing)(sqlx::Error::Io(gone)));
        }
    }
}

/// Whether the process is busy. The state of another role's process may be hidden: then it counts as busy while it exists.
async fn is_working(session: &mut PgConnection, backend: i32) -> Result<bool, Interruption> {
    let sql = "select exists (select from pg_catalog.pg_stat_activity where pid = $1 and coalesce(state, 'active') = 'active')";
    within(
        "looking whether the server works",
        sqlx::query_scalar(sql).bind(backend).fetch_one(session),
    )
    .await
}

/// Says which transactions something waits for.
async fn say_what_blocks(session: &mut PgConnection, blocked: &'static str) {
    let sql = "select pid, coalesce(usename, '?')::text as role, coalesce(application_name, '')::text as application, (now() - xact_start)::text as age
               from pg_stat_activity where backend_xid is not null and pid <> pg_backend_pid() order by xact_start limit 5";
    let Ok(rows) = within(
        "looking for what blocks",
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
