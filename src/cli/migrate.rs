//! `tidings migrate`: creates or upgrades the tables.

use std::process::ExitCode;
use std::time::Duration;

use super::config::Config;
use super::database;
use super::exit::{DONE, Failure, with_causes};
use super::output;
use crate::postgres::{MigrateError, MigrationStep, Migrations};

/// Creates or upgrades the tables.
pub(super) async fn run(config: &Config, wait: Option<Duration>) -> Result<ExitCode, Failure> {
    let settings = database::settings(config)?;
    let applied = apply(config, wait).await?;
    let place = format!("schema {} of {}", config.schema, settings.redacted());
    if applied.is_empty() {
        output::line(format_args!("{place} is up to date"));
    } else {
        let steps: Vec<String> = applied.iter().map(ToString::to_string).collect();
        output::line(format_args!("{place} is migrated: {}", steps.join(", ")));
    }
    Ok(ExitCode::from(DONE))
}

/// Creates or upgrades the tables, and prints nothing. Returns the migrations that were applied.
pub(super) async fn apply(
    config: &Config,
    wait: Option<Duration>,
) -> Result<Vec<MigrationStep>, Failure> {
    let settings = database::settings(config)?;
    let pool = database::connect_within(settings, "migrate", wait.unwrap_or_default()).await?;
    let migrations = Migrations::new().schema(&config.schema);
    migrations.run(&pool).await.map_err(failure)
}

/// Maps an error to a failure. Only a lost connection may succeed on a retry; every other error
/// needs the operator.
fn failure(error: MigrateError) -> Failure {
    let text = format!("cannot migrate: {}", with_causes(&error));
    match error {
        MigrateError::Database(_) => Failure::Failed(text),
        _ => Failure::Refused(text),
    }
}
