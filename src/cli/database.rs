//! One connection for one command.

use std::time::Duration;

use sqlx::PgPool;

use super::config::Config;
use super::exit::{Failure, with_causes};
use crate::postgres::{Settings, certificate, session};

/// How long a command's statements may take. They read catalogs and count up to a bound.
const STATEMENT_TIMEOUT: &str = "30s";

/// The settings of a command that cannot do without a database.
pub(super) fn settings(config: &Config) -> Result<&Settings, Failure> {
    config.database.as_ref().ok_or_else(|| {
        Failure::Failed("no database is configured: give --database-url or DATABASE_URL".into())
    })
}

/// Connects once and keeps one connection; `role` is what `pg_stat_activity` shows.
pub(super) async fn connect(settings: &Settings, role: &str) -> Result<PgPool, sqlx::Error> {
    session::command(settings, role, &[("statement_timeout", STATEMENT_TIMEOUT)]).await
}

/// How long a server that is not there yet is left alone.
const PAUSE: Duration = Duration::from_millis(500);

/// Connects, trying again for as long as `wait` says while nobody answers.
pub(super) async fn connect_within(
    settings: &Settings,
    role: &str,
    wait: Duration,
) -> Result<PgPool, Failure> {
    let deadline = tokio::time::Instant::now() + wait;
    loop {
        match connect(settings, role).await {
            Ok(pool) => return Ok(pool),
            Err(error) if is_absence(&error) && tokio::time::Instant::now() + PAUSE < deadline => {
                tokio::time::sleep(PAUSE).await
            }
            Err(error) => return Err(Failure::Failed(unreachable(settings, &error))),
        }
    }
}

/// The server is not there or not ready, as opposed to refusing us.
fn is_absence(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut => true,
        // 57P03 cannot_connect_now: starting up or shutting down.
        sqlx::Error::Database(error) => matches!(error.code().as_deref(), Some("57P03" | "08001")),
        _ => false,
    }
}

fn is_timeout(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::PoolTimedOut => true,
        sqlx::Error::Io(error) => error.kind() == std::io::ErrorKind::TimedOut,
        _ => false,
    }
}

/// What is wrong and what to do, for a connection that failed.
pub(super) fn unreachable(settings: &Settings, error: &sqlx::Error) -> String {
    let refused = certificate::refusal(error).map(|refusal| refusal.text);
    let remedy = match error {
        _ if refused.is_some() => refused.unwrap_or_default(),
        sqlx::Error::Database(error) => match error.code().as_deref() {
            Some("28P01" | "28000") => "check user and password of --database-url, and pg_hba.conf",
            Some("3D000") => "create the database, or name another in --database-url",
            Some("53300") => "the server has no connection left: raise max_connections",
            Some("57P03") => "wait until the server has started (tidings migrate --wait 30s)",
            _ => "check --database-url",
        },
        sqlx::Error::Tls(_) => "check sslmode and sslrootcert of --database-url",
        _ => "is the server running, and are host and port of --database-url right?",
    };
    let reason = match error {
        sqlx::Error::PoolTimedOut | sqlx::Error::Io(_) if is_timeout(error) => {
            format!(
                "no answer within {} s",
                settings.connect_timeout().as_secs()
            )
        }
        error => with_causes(error),
    };
    format!(
        "cannot connect to {}: {reason}\n  -> {remedy}",
        settings.redacted()
    )
}
