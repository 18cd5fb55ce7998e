//! A database of the console: its pool, its latest sample and its history.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::PgPool;
use tokio::sync::{Notify, watch};

use super::error::ConsoleError;
use super::sampler::{History, Sample};
use crate::inspect::Database;
use crate::postgres::{DatabaseSettings, certificate, errors, session};

/// Sessions per database: one for the sampler, and three for pages.
const SESSIONS_MAX: u32 = 4;

/// Time limit of a statement. Statements read by index and count up to a bound, so a longer one
/// waits for a lock or an overloaded server.
const STATEMENT_TIMEOUT: &str = "5s";

/// Time limit of connecting to a server that accepts connections and does not respond.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A database of the console.
#[derive(Debug)]
pub(super) struct Source {
    settings: DatabaseSettings,
    schema: String,
    /// Database name and address, without a password.
    pub(super) label: String,
    pool: Mutex<Option<PgPool>>,
    pub(super) samples: watch::Sender<Sample>,
    pub(super) history: Mutex<History>,
    /// Wakes the sampler when the first tab opens.
    pub(super) opened: Notify,
}

impl Source {
    pub(super) fn new(settings: DatabaseSettings, schema: &str) -> Self {
        Self {
            label: format!("{} on {}", settings.database(), settings.address()),
            schema: schema.to_owned(),
            settings,
            pool: Mutex::default(),
            samples: watch::Sender::new(Sample::default()),
            history: Mutex::default(),
            opened: Notify::new(),
        }
    }

    /// Returns access to the database, with read-only sessions. Connects at the first use.
    ///
    /// # Errors
    ///
    /// Returns the reason why no session can be opened.
    pub(super) async fn database(&self) -> Result<Database, ConsoleError> {
        let pool = self
            .pool
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(pool) = pool {
            return Ok(Database::new(pool, &self.schema));
        }
        let options = [
            ("statement_timeout", STATEMENT_TIMEOUT),
            ("default_transaction_read_only", "on"),
        ];
        let pool = self.connect(&options, SESSIONS_MAX).await?;
        *self.pool.lock().unwrap_or_else(PoisonError::into_inner) = Some(pool.clone());
        Ok(Database::new(pool, &self.schema))
    }

    /// Opens a session that may write, for one action.
    ///
    /// # Errors
    ///
    /// Returns the reason why no session can be opened.
    pub(super) async fn writable(&self) -> Result<Database, ConsoleError> {
        let pool = self.connect(&[("statement_timeout", "30s")], 1).await?;
        Ok(Database::new(pool, &self.schema))
    }

    async fn connect(
        &self,
        options: &[(&str, &str)],
        sessions: u32,
    ) -> Result<PgPool, ConsoleError> {
        let connecting = session::command_pool(&self.settings, "console", options, sessions);
        let pool = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await;
        pool.unwrap_or_else(|_| Err(sqlx::Error::PoolTimedOut))
            .map_err(|error| self.unreachable(&error))
    }

    /// Describes a failed connection.
    fn unreachable(&self, error: &sqlx::Error) -> ConsoleError {
        let reason = match (certificate::refusal(error), error) {
            (Some(refusal), _) => refusal.text.to_owned(),
            (None, sqlx::Error::PoolTimedOut) => "no response in time".to_owned(),
            (None, error) => errors::with_causes(error),
        };
        let server = self.settings.redacted();
        ConsoleError::new(format!("cannot connect to {server}: {reason}"))
    }
}
