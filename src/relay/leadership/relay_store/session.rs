//! Sessions of the relay on its database: connecting, and the time limit of their statements.

use std::{future::Future, time::Duration};

use sqlx::{AssertSqlSafe, PgConnection};
use tokio::time::timeout;

use crate::{
    postgres::session,
    relay::{RelayOptions, error::Interruption},
};

/// Time limit of one statement. Each touches only a few rows.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(20);

/// Opens a session of the relay on its database.
///
/// # Errors
///
/// Returns an error if the server is unreachable within the settings' `connect_timeout`.
pub(crate) async fn connect(
    options: &RelayOptions,
    role: &str,
) -> Result<PgConnection, Interruption> {
    session::open(&options.database, role)
        .await
        .map_err(Interruption::connecting(&options.database))
}

/// Sets the level of durability of the session's commits.
pub(super) async fn set_synchronous_commit(
    session: &mut PgConnection,
    level: &'static str,
) -> Result<(), Interruption> {
    let sql = AssertSqlSafe(format!("set synchronous_commit = {level}"));
    within("preparing the session", sqlx::raw_sql(sql).execute(session))
        .await
        .map(|_| ())
}

/// Waits for a statement for a limited time: a connection that was cut off silently never answers.
pub(crate) async fn within<T>(
    doing: &'static str,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, Interruption> {
    match timeout(STATEMENT_TIMEOUT, statement).await {
        Ok(done) => done.map_err(Interruption::sql(doing)),
        Err(_) => Err(Interruption::sql(doing)(sqlx::Error::Io(
            std::io::ErrorKind::TimedOut.into(),
        ))),
    }
}

/// Returns the machine's name, which identifies the leader to operators.
pub(crate) fn hostname() -> String {
    let named = std::env::var("HOSTNAME")
        .ok()
        .or_else(|| std::fs::read_to_string("/etc/hostname").ok());
    named
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "unknown".into())
}
