//! `tidings status`: every relay of the database, its slot, its lag and its topics. `tidings`
//! without a command prints the `overview`.

pub(super) mod overview;
mod text;

use std::process::ExitCode;

use super::config::Config;
use super::database;
use super::exit::{DONE, Failure};
use super::output;
use super::time_limit;
use crate::inspect::relays::Status;

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
    let status = time_limit::within(settings, read(config)).await?;
    if json {
        output::json(&status)?;
    } else {
        output::lines(&text(&status));
    }
    Ok(ExitCode::from(DONE))
}

async fn read(config: &Config) -> Result<Status, Failure> {
    let database = database::open(config, "status").await?;
    Status::read(&database)
        .await
        .map_err(|error| database::unreadable(config, error, "the state of the relays"))
}
