//! Database connection of a command.

use std::time::Duration;

use sqlx::PgPool;

use super::config::Config;
use super::escape::escaped;
use super::exit::{Failure, with_causes};
use crate::inspect::{Database, InspectError};
use crate::postgres::{DatabaseSettings, certificate, session};

/// Time limit of a statement. Statements read catalogs and count up to a bound.
const STATEMENT_TIMEOUT: &str = "30s";

/// Returns the database settings of a command that requires them.
pub(super) fn settings(config: &Config) -> Result<&DatabaseSettings, Failure> {
    config.database.as_ref().ok_or_else(|| {
        Failure::Failed("no database is configured: set --database-url or DATABASE_URL".into())
    })
}

/// Connects and keeps a single connection. `role` appears in `pg_stat_activity`.
pub(super) async fn connect(
    settings: &DatabaseSettings,
    role: &str,
) -> Result<PgPool, sqlx::Error> {
    session::command(settings, role, &[("statement_timeout", STATEMENT_TIMEOUT)]).await
}

/// Connects a command to the configured database. `role` appears in `pg_stat_activity`.
///
/// # Errors
///
/// Returns a failure with its remedy if no database is configured or it cannot be reached.
pub(super) async fn open(config: &Config, role: &str) -> Result<Database, Failure> {
    let settings = settings(config)?;
    let pool = connect(settings, role)
        .await
        .map_err(|error| Failure::Failed(unreachable(settings, &error)))?;
    Ok(Database::new(pool, &config.schema))
}

/// Pause between attempts to connect to a server that is not available yet.
const PAUSE: Duration = Duration::from_millis(500);

/// Connects, and retries for up to `wait` while the server is not available.
pub(super) async fn connect_within(
    settings: &DatabaseSettings,
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

/// Returns `true` if the server is unavailable or starting, as opposed to refusing the connection.
fn is_absence(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut => true,
        // 57P03 cannot_connect_now: the server is starting up or shutting down.
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

/// Maps an error of a read to a failure with its remedy. `what` completes "cannot read".
pub(super) fn unreadable(config: &Config, error: InspectError, what: &str) -> Failure {
    match error {
        InspectError::Missing { schema } => {
            let server = config
                .database
                .as_ref()
                .map_or_else(String::new, |settings| {
                    format!(" of {}", settings.redacted())
                });
            Failure::Refused(format!(
                "the tables of Tidings are not in schema {schema}{server}\n  \
                 -> run `tidings migrate`, or set another schema with --schema"
            ))
        }
        InspectError::Denied { text } => Failure::Refused(format!(
            "{}\n  -> grant usage on schema {} and select on its tables",
            escaped(&text),
            config.schema
        )),
        InspectError::Kafka { text } => {
            Failure::Failed(format!("cannot read {what}: {}", escaped(&text)))
        }
        InspectError::Database(error) => Failure::failed(&format!("cannot read {what}"), &error),
    }
}

/// Describes a failed connection and its remedy.
pub(super) fn unreachable(settings: &DatabaseSettings, error: &sqlx::Error) -> String {
    let refused = certificate::refusal(error).map(|refusal| refusal.text);
    let remedy = match error {
        _ if refused.is_some() => refused.unwrap_or_default(),
        sqlx::Error::Database(error) => match error.code().as_deref() {
            Some("28P01" | "28000") => {
                "check the user and password of --database-url, and pg_hba.conf"
            }
            Some("3D000") => "create the database, or name another in --database-url",
            Some("53300") => "the server is out of connections: raise max_connections",
            Some("57P03") => "wait until the server has started (tidings migrate --wait 30s)",
            _ => "check --database-url",
        },
        sqlx::Error::Tls(_) => "check sslmode and sslrootcert of --database-url",
        _ => "check that the server is running, and check the host and port of --database-url",
    };
    let reason = match error {
        sqlx::Error::PoolTimedOut | sqlx::Error::Io(_) if is_timeout(error) => {
            format!(
                "no response within {} s",
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
