//! Registration at the start of a subscriber.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::registry::{Registration, Registry, version_of};
use super::run::{Plan, RunError, START_PAUSE};
use crate::postgres::errors::with_causes;

/// SQLSTATEs of a table, schema or permission that is missing.
const NOT_SET_UP: [&str; 4] = ["42P01", "3F000", "42703", "42501"];

impl Plan {
    /// Registers this instance in the inbox's database, and waits until no member skips the types it handles. Without an inbox
    /// there is nowhere to register. `None` if the subscriber is shut down before.
    ///
    /// # Errors
    /// When the table cannot be used.
    pub(super) async fn register(&self, stop: &CancellationToken) -> Result<Option<Option<Arc<Registry>>>, RunError> {
        let Some(inbox) = &self.core.inbox else { return Ok(Some(None)) };
        let registry = Registry::new(inbox, self.registration());
        let pause = loop {
            let registered = tokio::select! {
                () = stop.cancelled() => return Ok(None),
                registered = registry.register() => registered,
            };
            match registered {
                Ok(pause) => break pause,
                Err(error) if is_not_set_up(&error) => {
                    let schema = &inbox.schema;
                    return Err(RunError::Settings(vec![format!(
                        "the instance cannot be registered in the table `{schema}.subscriber`: {}; run `tidings migrate`, and grant \
                         select, insert, update, delete on {schema}.subscriber to this role",
                        with_causes(&error)
                    )]));
                }
                Err(error) => tracing::warn!(
                    subscriber = self.name,
                    error = with_causes(&error),
                    "the instance cannot be registered in its database yet"
                ),
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(START_PAUSE) => {}
            }
        };
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(pause) => {}
        }
        Ok(Some(Some(Arc::new(registry))))
    }

    fn registration(&self) -> Registration {
        let types = self.core.router.types();
        let mut topics: Vec<String> = self.topics.keys().cloned().collect();
        topics.sort_unstable();
        // Versions of one name that handle other types are told apart.
        let derived = version_of(&types, &topics);
        let version = self.code_version.as_ref().map_or_else(|| derived.clone(), |version| format!("{version} {derived}"));
        Registration {
            version,
            escalation: self.options.escalation(true).name(),
            waits_for_newer_code: self.options.wait_for_newer_code,
            types,
            topics,
        }
    }
}

pub(super) fn is_not_set_up(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| NOT_SET_UP.contains(&&*code))
}
