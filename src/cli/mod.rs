//! The binary `tidings`: a configuration, and a command that uses it.
//!
//! `args` (what was typed) → `config` (what holds, and where it comes from) → one of `migrate`, `relay`, `check`, `status`, `parked`, `dead-letters`, `sagas`
//! → `exit` (the code a script reads). Results go to stdout, everything else to stderr.

mod args;
mod check;
mod config;
mod database;
mod dead_letters;
mod exit;
mod logging;
mod migrate;
mod parked;
mod relay;
mod sagas;
mod status;
mod table;
mod topics;

use std::process::ExitCode;

use args::{Cli, Command, RelayArgs};
use clap::Parser;
use config::{Config, Needs};
use exit::Failure;

/// Runs the binary with the process's arguments and environment.
pub fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("error: {failure}");
            failure.code()
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let needs = match cli.command {
        Command::Relay(ref args) => Needs { database: true, brokers: args.needs_brokers() },
        Command::Check(_) | Command::Topics(_) => Needs { database: true, brokers: true },
        Command::DeadLetters(_) => Needs { database: false, brokers: true },
        Command::Migrate(_) | Command::Status(_) | Command::Parked(_) | Command::Sagas(_) => Needs { database: true, brokers: false },
    };
    // A name or value that is not UTF-8 cannot be one of ours.
    let environment: Vec<_> =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect();
    let config = config::load(cli.settings.config.as_deref(), &environment, cli.settings.layer(), needs).map_err(Failure::Configuration)?;
    logging::start(&config, matches!(cli.command, Command::Relay(RelayArgs { command: None })));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| Failure::failed("cannot start", &error))?;
    let code = runtime.block_on(dispatch(&cli.command, &config));
    // A blocking question to a cluster that does not answer must not keep the process.
    runtime.shutdown_background();
    code
}

async fn dispatch(command: &Command, config: &Config) -> Result<ExitCode, Failure> {
    match command {
        Command::Migrate(args) => migrate::run(config, args.wait).await,
        Command::Relay(args) => relay::dispatch(config, args).await,
        Command::Topics(command) => topics::dispatch(config, command).await,
        Command::Check(args) => check::run(config, args.json).await,
        Command::Status(args) => status::run(config, args.json).await,
        Command::DeadLetters(command) => dead_letters::run(config, command).await,
        Command::Parked(command) => parked::run(config, command).await,
        Command::Sagas(command) => sagas::run(config, command).await,
    }
}
