//! The binary `tidings`.
//!
//! ```text
//! args (command line) ─▶ config (effective settings and their sources) ─▶ a command ─▶ exit (code)
//! ```
//!
//! The commands are `migrate`, `relay`, `topics`, `check`, `status`, `parked`, `dead-letters` and
//! `sagas`. Results go to stdout, everything else to stderr.

mod args;
mod check;
mod config;
mod database;
mod dead_letters;
mod escape;
mod exit;
mod logging;
mod migrate;
mod output;
mod parked;
mod relay;
mod sagas;
mod status;
mod stderr;
mod table;
mod time_limit;
mod topics;
mod usage;

use std::process::ExitCode;

use args::{Cli, Command, RelayArgs, Settings};
use clap::Parser;
use config::{Config, Faults, Needs};
use exit::Failure;
use time_limit::{reported, within};

/// Runs the binary with the arguments and environment of the process.
pub fn main() -> ExitCode {
    stderr::report_panics();
    let code = match Cli::try_parse().map(run) {
        Ok(Ok(code)) => code,
        Ok(Err(failure)) => {
            output::failure(&failure);
            failure.code()
        }
        Err(error) => usage::print(error),
    };
    let code = output::finish(code);
    stderr::flush();
    code
}

fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let needs = match cli.command {
        Command::Relay(ref args) => args.needs(),
        Command::Check(_) | Command::Topics(_) => Needs {
            database: true,
            brokers: true,
        },
        Command::DeadLetters(_) => Needs {
            database: false,
            brokers: true,
        },
        Command::Migrate(_) | Command::Status(_) | Command::Parked(_) | Command::Sagas(_) => {
            Needs {
                database: true,
                brokers: false,
            }
        }
    };
    let config = load(&cli.settings, needs).map_err(Failure::Configuration)?;
    logging::start(
        &config,
        matches!(cli.command, Command::Relay(RelayArgs { command: None })),
    );
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed("cannot start", &error))?;
    let code = runtime.block_on(dispatch(&cli, &config));
    // A blocking request to an unresponsive cluster must not keep the process alive.
    runtime.shutdown_background();
    code
}

/// Reads the file, the environment and the flags.
fn load(settings: &Settings, needs: Needs) -> Result<Config, Faults> {
    // A variable that is not UTF-8 cannot be one of Tidings.
    let environment: Vec<_> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    config::load(
        settings.config.as_deref(),
        &environment,
        settings.layer(),
        needs,
    )
}

async fn dispatch(cli: &Cli, config: &Config) -> Result<ExitCode, Failure> {
    let database = config.database.as_ref();
    match &cli.command {
        Command::Relay(args @ RelayArgs { command: None }) => {
            relay::dispatch(config, &cli.settings, args).await
        }
        // These commands have no time limit, because their work may take arbitrarily long.
        Command::Migrate(args) => reported(database, migrate::run(config, args.wait)).await,
        Command::Topics(command) => reported(database, topics::dispatch(config, command)).await,
        Command::DeadLetters(command) => reported(None, dead_letters::run(config, command)).await,
        Command::Parked(command) => reported(database, parked::run(config, command)).await,
        Command::Relay(args) => {
            within(
                database::settings(config)?,
                relay::dispatch(config, &cli.settings, args),
            )
            .await
        }
        Command::Check(args) => check::run(config, args.json).await,
        Command::Status(args) => status::run(config, args.json).await,
        Command::Sagas(command) => {
            within(database::settings(config)?, sagas::run(config, command)).await
        }
    }
}
