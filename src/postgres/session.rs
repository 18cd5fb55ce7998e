//! Sessions of Tidings itself: those of the relay and of the commands.
//!
//! Such a session may have the rights of an operator or a superuser. With the usual `search_path`
//! of `"$user", public`, a role that may create functions in `public` could create one that matches
//! a call better than the server's own, and it would run with those rights. Therefore the
//! `search_path` of the session is `pg_catalog` alone, and all other objects are qualified with
//! their schema.
//!
//! A relay sets it with a statement, after it has verified that no pooler shares its sessions. With
//! such a pooler, the setting would apply to another client's session. A command sets it when it
//! connects. If a pooler has discarded the setting, the command checks whether sessions are shared
//! before it sets anything.

// The command line and subscribers call the rest.
#![cfg_attr(not(feature = "cli"), allow(unused_imports))]

use sqlx::postgres::PgPoolOptions;
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, PgPool, Row as _};
use tokio::time::timeout;

use super::DatabaseSettings;

/// The first statement of a session. `set` resolves no function.
pub(crate) const PREPARE: &str = "set search_path = pg_catalog";

/// Number of connections to compare. A pooler may assign another idle backend to the second one, so
/// two connections are not enough.
#[cfg(feature = "cli")]
const LOOKS: usize = 3;

/// Opens a session of the relay with the application name `tidings <role>`.
///
/// # Errors
///
/// Returns an error if the server is unreachable within the settings' `connect_timeout`, or
/// refuses.
pub(crate) async fn open(
    settings: &DatabaseSettings,
    role: &str,
) -> Result<PgConnection, sqlx::Error> {
    within(settings, async {
        let mut session = settings.connect_options_as(role).connect().await?;
        sqlx::raw_sql(PREPARE).execute(&mut session).await?;
        Ok(session)
    })
    .await
}

/// Opens a session without setting anything, to check for a pooler between client and server.
///
/// # Errors
///
/// Returns an error if the server is unreachable within the settings' `connect_timeout`, or
/// refuses.
pub(crate) async fn unprepared(
    settings: &DatabaseSettings,
    role: &str,
) -> Result<PgConnection, sqlx::Error> {
    within(settings, settings.connect_options_as(role).connect()).await
}

/// Creates a pool of one session for the relay, which is opened at the first use.
pub(crate) fn pool(settings: &DatabaseSettings, role: &str) -> PgPool {
    pool_of(settings, role, &[], 1)
}

/// Connects for a command and creates a pool of one session with these server settings. Statements
/// are not logged.
///
/// # Errors
///
/// Returns an error if the server is unreachable within the settings' `connect_timeout` or refuses,
/// or if a pooler shares sessions and discards their settings.
#[cfg(feature = "cli")]
pub(crate) async fn command(
    settings: &DatabaseSettings,
    role: &str,
    options: &[(&str, &str)],
) -> Result<PgPool, sqlx::Error> {
    command_pool(settings, role, options, 1).await
}

/// Connects as [`command`] does, with a pool of up to `sessions` sessions.
///
/// # Errors
///
/// See [`command`].
#[cfg(feature = "cli")]
pub(crate) async fn command_pool(
    settings: &DatabaseSettings,
    role: &str,
    options: &[(&str, &str)],
    sessions: u32,
) -> Result<PgPool, sqlx::Error> {
    let options = [options, &[("search_path", "pg_catalog")]].concat();
    // Connects without the pool, which would retry until its timeout and then report only the
    // timeout.
    let connect = settings
        .connect_options_as(role)
        .options(options.iter().copied())
        .disable_statement_logging();
    let mut first = within(settings, connect.connect()).await?;
    let row = sqlx::Executor::fetch_one(&mut first, sqlx::raw_sql("show search_path")).await?;
    let kept = row.try_get::<String, _>(0)? == "pg_catalog";
    first.close().await?;
    if !kept && is_shared(settings).await? {
        let text = "a pooler that shares sessions discards their settings: name Postgres itself in \
                    the database URL (docs/managed-postgres.md)";
        return Err(sqlx::Error::Configuration(text.into()));
    }
    Ok(pool_of(settings, role, &options, sessions))
}

/// Returns `true` if a pooler shares sessions in a way that matters to a command: two open
/// connections have the same backend, which a server never does. Sets nothing.
///
/// # Errors
///
/// Returns an error if the connection is lost.
#[cfg(feature = "cli")]
async fn is_shared(settings: &DatabaseSettings) -> Result<bool, sqlx::Error> {
    let mut sessions = Vec::with_capacity(LOOKS);
    let mut backends: Vec<i32> = Vec::with_capacity(LOOKS);
    for _ in 0..LOOKS {
        let mut session = unprepared(settings, "look").await?;
        // Uses the simple protocol, so that no prepared statement is left for another session.
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

fn pool_of(
    settings: &DatabaseSettings,
    role: &str,
    options: &[(&str, &str)],
    sessions: u32,
) -> PgPool {
    let connect = settings
        .connect_options_as(role)
        .options(options.iter().copied())
        .disable_statement_logging();
    PgPoolOptions::new()
        .max_connections(sessions)
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
    settings: &DatabaseSettings,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    timeout(settings.connect_timeout(), work)
        .await
        .unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))
}
