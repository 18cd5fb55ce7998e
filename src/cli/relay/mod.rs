//! `tidings relay`: runs a relay, or administers relays.
//!
//! | file | content |
//! |---|---|
//! | `run` | runs a relay until a signal, then drains |
//! | `signals` | the signals, as requests |
//! | `reload` | SIGHUP |
//! | `moves`, `forget` | commands on a stopped relay, carried out by `operator` |

mod forget;
mod moves;
mod reload;
mod run;
pub(in crate::cli) mod signals;
mod traces;

use std::process::ExitCode;

use chrono::{DateTime, Utc};
use sqlx::pool::PoolConnection;

#[cfg(feature = "try")]
pub(super) use self::run::ended_by;
use super::{
    args::{RelayArgs, RelayCommand, Settings},
    config::{Config, Need, Needs, parse_duration},
    database,
    escape::escaped,
    exit::{Failure, with_causes},
    status,
};
use crate::operator::OperatorError;

/// Separator between a problem and its remedy.
const REMEDY: &str = "\n  -> ";

/// Settings that a running relay requires.
const NEEDS: Needs = Needs {
    database: Need::Required,
    brokers: Need::Required,
};

impl RelayArgs {
    /// Returns the settings that the command requires.
    pub(super) fn needs(&self) -> Needs {
        match &self.command {
            None => NEEDS,
            Some(RelayCommand::Forget(args)) => Needs {
                brokers: match args.delete_topic {
                    true => Need::Required,
                    false => Need::Unused,
                },
                ..NEEDS
            },
            Some(_) => Needs {
                brokers: Need::Unused,
                ..NEEDS
            },
        }
    }
}

/// Runs the command.
pub(super) async fn dispatch(
    config: &Config,
    settings: &Settings,
    args: &RelayArgs,
) -> Result<ExitCode, Failure> {
    match &args.command {
        None => run::run(config, settings, &args.console).await,
        Some(RelayCommand::List(args)) => status::list(config, args.output.json).await,
        Some(RelayCommand::Forget(args)) => forget::run(config, args).await,
        Some(RelayCommand::Rewind(args)) => moves::rewind(config, args).await,
        Some(RelayCommand::Adopt(args)) => moves::adopt(config, args).await,
        Some(RelayCommand::Skip(args)) => moves::skip(config, args).await,
    }
}

/// An argument is not a point in time.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("write a time with its zone, 2026-11-24T18:00:00Z, or a duration before now, 90m")]
pub(super) struct TimeError;

/// Parses a point in time: RFC 3339, or a duration before now.
pub(super) fn parse_time(text: &str) -> Result<DateTime<Utc>, TimeError> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.to_utc());
    }
    let ago = parse_duration(text).map_err(|_| TimeError)?;
    Ok(Utc::now() - ago)
}

/// Opens a database session for one command.
pub(super) async fn session(
    config: &Config,
    role: &str,
) -> Result<PoolConnection<sqlx::Postgres>, Failure> {
    let settings = database::settings(config)?;
    let failed = |error: sqlx::Error| Failure::Failed(database::unreachable(settings, &error));
    let database = database::open(config, role).await?;
    database.pool.acquire().await.map_err(failed)
}

/// Maps an operator error to a failure with a remedy.
pub(super) fn failure(config: &Config, error: OperatorError) -> Failure {
    let code = match &error {
        OperatorError::Refused(text) => {
            let lines: Vec<_> = text.split(REMEDY).map(escaped).collect();
            return Failure::Refused(lines.join(REMEDY));
        }
        OperatorError::Sql { source, .. } => source
            .as_database_error()
            .and_then(|error| error.code())
            .unwrap_or_default()
            .into_owned(),
    };
    let text = with_causes(&error);
    match code.as_str() {
        "42P01" | "3F000" | "42703" => Failure::Refused(format!(
            "{text}\n  -> run `tidings migrate`, or set another schema with --schema"
        )),
        "42501" => Failure::Refused(format!(
            "{text}\n  -> run it as the owner of schema {}, or grant the missing privilege",
            config.schema
        )),
        _ => Failure::Failed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_with_its_zone_or_as_how_long_ago() {
        assert_eq!(
            parse_time("2026-11-24T18:00:00+01:00")
                .expect("a time")
                .to_rfc3339(),
            "2026-11-24T17:00:00+00:00"
        );
        let ago = Utc::now() - parse_time("2h").expect("a duration");
        assert!((119..=121).contains(&ago.num_minutes()), "{ago}");
        assert!(
            parse_time("yesterday")
                .is_err_and(|error| error.to_string().contains("2026-11-24T18:00:00Z"))
        );
    }
}
