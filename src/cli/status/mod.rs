//! `tidings status`: every relay of the database, its slot, its lag and its topics.

mod foreign;
mod read;
mod text;

use std::process::ExitCode;

use super::config::Config;
use super::database;
use super::escape::escaped;
use super::exit::{DONE, Failure};
use super::output;
use super::time_limit;
use crate::postgres::Settings;
use read::{Status, StatusError};

/// Prints the full status of every relay.
pub(super) async fn run(config: &Config, json: bool) -> Result<ExitCode, Failure> {
    print(config, json, text::text).await
}

/// Prints one line per relay.
pub(super) async fn list(config: &Config, json: bool) -> Result<ExitCode, Failure> {
    print(config, json, text::list).await
}

async fn print(
    config: &Config,
    json: bool,
    text: fn(&Status) -> String,
) -> Result<ExitCode, Failure> {
    let settings = database::settings(config)?;
    let status = time_limit::within(settings, read(config, settings)).await?;
    if json {
        output::json(&status)?;
    } else {
        output::lines(&text(&status));
    }
    Ok(ExitCode::from(DONE))
}

async fn read(config: &Config, settings: &Settings) -> Result<Status, Failure> {
    let pool = database::connect(settings, "status")
        .await
        .map_err(|error| Failure::Failed(database::unreachable(settings, &error)))?;
    Status::read(&pool, &config.schema)
        .await
        .map_err(|error| match error {
            StatusError::Missing => Failure::Refused(format!(
                "the tables of Tidings are not in schema {} of {}\n  \
             -> run `tidings migrate`, or set another schema with --schema",
                config.schema,
                settings.redacted()
            )),
            StatusError::Denied(text) => Failure::Refused(format!(
                "{}\n  -> grant usage on schema {1} and select on its tables",
                escaped(&text),
                config.schema
            )),
            StatusError::Database(error) => {
                Failure::failed("cannot read the state of the relays", &error)
            }
        })
}
