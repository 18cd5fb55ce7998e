//! Sessions of tidings itself: the relay's and the commands'.
//!
//! Such a session may have the rights of an operator or of a superuser. With the usual `search_path` of `"$user", public`, any role that may create functions
//! in `public` could make one that fits a call better than the server's own, and it would run with those rights. So the session's `search_path` is
//! `pg_catalog` alone, and everything else is named with its schema.
//!
//! A relay sets it by a statement, once it has found that no pooler shares its sessions: set through such a pooler, it would be another client's next. A
//! command sets it when it connects; if a pooler has dropped that, it looks for one that shares sessions before it sets anything.

use sqlx::postgres::PgPoolOptions;
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, PgPool, Row as _};
use tokio::time::timeout;

use super::Settings;

/// The first statement of a session. `set` resolves no function.
pub(crate) const PREPARE: &str = "set search_path = pg_catalog";

/// A pooler may take another idle backend than the last one: so often is looked.
#[cfg(feature = "cli")]
const LOOKS: usize = 3;

/// Opens a session of the relay, under the application name `tidings <role>`.
///
/// # Errors
/// When the server cannot be reached within the settings' `connect_timeout`, or refuses.
pub(crate) async fn open(settings: &Settings, role: &str) -> Result<PgConnection, sqlx::Error> {
    within(settings, async {
        let mut session = settings.connect_options_as(role).connect().await?;
        sqlx::raw_sql(PREPARE).execute(&mut session).await?;
        Ok(session)
    })
    .await
}

/// Opens a session that sets nothing, for a look at what is between.
///
/// # Errors
/// When the server cannot be reached within the settings' `connect_timeout`, or refuses.
pub(crate) async fn unprepared(
    settings: &Settings,
    role: &str,
) -> Result<PgConnection, sqlx::Error> {
    within(settings, settings.connect_options_as(role).connect()).await
}

/// Keeps one session of the relay, opened when it is first needed.
pub(crate) fn pool(settings: &Settings, role: &str) -> PgPool {
    pool_of(settings, role, &[])
}

/// Connects for a command and keeps one session with these server settings. Statements are not logged.
///
/// # Errors
/// When the server cannot be reached within the settings' `connect_timeout`, or refuses; a pooler that shares sessions and drops their settings.
#[cfg(feature = "cli")]
pub(crate) async fn command(
    settings: &Settings,
    role: &str,
    options: &[(&str, &str)],
) -> Result<PgPool, sqlx::Error> {
    let options = [options, &[("search_path", "pg_catalog")]].concat();
    // Not by the pool, which tries again until its time-out and then reports the time-out alone.
    let connect = settings
        .connect_options_as(role)
        .options(options.iter().copied())
        .disable_statement_logging();
    let mut first = within(settings, connect.connect()).await?;
    let row = sqlx::Executor::fetch_one(&mut first, sqlx::raw_sql("show search_path")).await?;
    let kept = row.try_get::<String, _>(0)? == "pg_catalog";
    first.close().await?;
    if !kept && is_shared(settings).await? {
        let text = "a pooler that shares sessions drops their settings: name Postgres itself in the database URL (docs/managed-postgres.md)";
        return Err(sqlx::Error::Configuration(text.into()));
    }
    Ok(pool_of(settings, role, &options))
}

/// Whether a pooler shares sessions, as far as a command must know: two connections that are open at once have the same backend, which no server does. Sets nothing.
///
/// # Errors
/// A lost connection.
#[cfg(feature = "cli")]
async fn is_shared(settings: &Settings) -> Result<bool, sqlx::Error> {
    let mut sessions = Vec::with_capacity(LOOKS);
    let mut backends: Vec<i32> = Vec::with_capacity(LOOKS);
    for _ in 0..LOOKS {
        let mut session = unprepared(settings, "look").await?;
        // The simple protocol: nothing is prepared that another session could meet.
        let asking = sqlx::Executor::fetch_one(
            &mut session,
            sqlx::raw_sql("select pg_catalog.pg_backend_pid()"),
        );
        let backend = within(settings, asking).await?.try_get(0)?;
        if backends.contains(&backend) {
            return Ok(true);
        }
        backends.push(backend);
        sessions.push(session);
    }
    for session in sessions {
        let _ = session.close().await;
    }
    Ok(false)
}

fn pool_of(settings: &Settings, role: &str, options: &[(&str, &str)]) -> PgPool {
    let connect = settings
        .connect_options_as(role)
        .options(options.iter().copied())
        .disable_statement_logging();
    PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(settings.connect_timeout())
        .after_connect(|session, _| {
            Box::pin(async move {
                sqlx::raw_sql(PREPARE).execute(session).await?;
                Ok(())
            })
        })
        .connect_lazy_with(connect)
}

async fn within<T>(
    settings: &Settings,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    timeout(settings.connect_timeout(), work)
        .await
        .unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))
}
