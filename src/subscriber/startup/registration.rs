//! Registration at the start of a subscriber.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::PgPool;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::database_check::silent;
use crate::{
    postgres::{SchemaName, encodable::is_of_value, errors::with_causes, session_fault},
    subscriber::{
        companion::NotAdmitted,
        deployment::instances::{Registration, Registry, version_of},
        run::{Plan, RunError, pause},
        telemetry::log_limit::LogLimit,
    },
};

/// SQLSTATEs of a missing table, schema, column or permission.
const NOT_SET_UP: [&str; 4] = ["42P01", "3F000", "42703", "42501"];

/// Time limit for one attempt to register: more than a lock or a checkpoint takes.
const REGISTER_WITHIN: Duration = Duration::from_secs(30);

/// An entry that is registered in the inbox's database at the start.
pub(crate) struct Entry<'e> {
    pub(crate) subscriber: &'e str,
    /// The entry as the subject of a message.
    pub(crate) what: String,
    pub(crate) schema: &'e SchemaName,
    pub(crate) pool: &'e PgPool,
    /// The table of the entry, followed by other tables that it needs.
    pub(crate) tables: &'e [&'e str],
}

impl Entry<'_> {
    /// Registers the entry and retries until that succeeds. Returns `None` if the subscriber is
    /// shut down first.
    ///
    /// # Errors
    ///
    /// Returns an error if the registration is refused, if a table or a permission is missing, or
    /// if the database cannot store a name.
    pub(crate) async fn until_registered<T, F>(
        &self,
        stop: &CancellationToken,
        mut register: impl FnMut() -> F,
    ) -> Result<Option<T>, RunError>
    where
        F: Future<Output = Result<T, NotAdmitted>>,
    {
        let Self {
            subscriber,
            what,
            schema,
            pool,
            tables,
        } = self;
        let reports = LogLimit::default();
        loop {
            let attempt = timeout(REGISTER_WITHIN, register());
            let Some(registered) = stop.run_until_cancelled(attempt).await else {
                return Ok(None);
            };
            let error = match registered.unwrap_or_else(|_| Err(NotAdmitted::Database(silent()))) {
                Ok(registered) => return Ok(Some(registered)),
                Err(NotAdmitted::Refused(reason)) => return Err(RunError::Settings(vec![reason])),
                Err(NotAdmitted::Database(error)) => error,
            };
            if is_not_set_up(&error) {
                let all: Vec<String> = tables
                    .iter()
                    .map(|table| format!("{schema}.{table}"))
                    .collect();
                return Err(RunError::Settings(vec![format!(
                    "{what} cannot be registered in the table `{}`: {}; run `tidings migrate`, and \
                     grant select, insert, update, delete on {} to this role",
                    all[0],
                    with_causes(&error),
                    all.join(" and ")
                )]));
            }
            if is_of_value(&error) {
                return Err(RunError::Settings(vec![format!(
                    "{what} cannot be registered, because the database cannot store one of its \
                     names: {}; rename the event type, topic or step, or use a database whose \
                     encoding is UTF8",
                    with_causes(&error)
                )]));
            }
            session_fault::close_after(&error, pool);
            if reports.admit(Instant::now()).is_some() {
                tracing::warn!(
                    subscriber,
                    error = with_causes(&error),
                    "{what} cannot be registered in its database yet"
                );
            }
            if !pause(stop).await {
                return Ok(None);
            }
        }
    }
}

impl Plan {
    /// Registers this instance in the inbox's database and waits until no member skips the types
    /// that this instance handles. Without an inbox, there is no registration. Returns `None` if
    /// the subscriber is shut down first.
    ///
    /// # Errors
    ///
    /// Returns an error if the table cannot be used.
    pub(crate) async fn register(
        &self,
        stop: &CancellationToken,
    ) -> Result<Option<Option<Arc<Registry>>>, RunError> {
        let Some(inbox) = &self.core.inbox else {
            return Ok(Some(None));
        };
        let registry = Registry::new(inbox, self.registration());
        let entry = Entry {
            subscriber: &self.name,
            what: "the instance".to_owned(),
            schema: &inbox.schema,
            pool: &inbox.pool,
            tables: &["subscriber"],
        };
        let registered = entry
            .until_registered(stop, || async { Ok(registry.register().await?) })
            .await?;
        let Some(pause) = registered else {
            return Ok(None);
        };
        let paused = stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        Ok(paused.map(|()| Some(Arc::new(registry))))
    }

    fn registration(&self) -> Registration {
        let types = self.core.router.types();
        let mut topics: Vec<String> = self.topics.keys().cloned().collect();
        topics.sort_unstable();
        // The suffix distinguishes versions with one name that handle different types.
        let derived = version_of(&types, &topics);
        let version = self
            .code_version
            .as_ref()
            .map_or_else(|| derived.clone(), |version| format!("{version} {derived}"));
        Registration {
            version,
            escalation: self.options.escalation(true).name(),
            waits_for_newer_code: self.options.wait_for_newer_code,
            types,
            topics,
        }
    }
}

fn is_not_set_up(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(|error| error.code())
        .is_some_and(|code| NOT_SET_UP.contains(&&*code))
}
