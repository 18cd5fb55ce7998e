//! The binary `tidings`.
//!
//! ```text
//! args (command line) ─▶ config (effective settings and their sources) ─▶ a command ─▶ exit (code)
//! ```
//!
//! The commands are `migrate`, `relay`, `topics`, `check`, `status`, `where`, `verify`, `tail`,
//! `publish`, `parked`, `dead-letters`, `subscribers`, `sagas`, `console`, `health`, `grants`,
//! `init`, `config`, `completions` and `man`, and `try` with the feature `try`. Without one, the
//! state is printed.
//! Results go to stdout, everything else to stderr.

mod args;
mod brokers;
mod check;
mod config;
mod confirm;
mod console;
mod database;
mod dead_letters;
mod exit;
mod grants;
mod health;
mod help;
mod logging;
mod migrate;
mod output;
mod parked;
mod path;
mod printer;
mod progress;
mod publish;
mod relay;
mod sagas;
mod setup;
mod status;
mod stderr;
mod subscribers;
mod table;
mod tail;
mod terminal;
mod time_limit;
mod topics;
#[cfg(feature = "try")]
mod trial;
mod usage;
mod verify;
mod watch;

use std::process::ExitCode;

use crate::escape;
use args::{Cli, Command, RelayArgs, Settings};
use config::{Config, Faults, Need, Needs};
use confirm::Use;
use exit::Failure;
use grants::GrantsCommand;
use status::overview;
use subscribers::SubscribersCommand;
use time_limit::{reported, within, within_of_brokers};

/// Runs the binary with the arguments and environment of the process.
pub fn main() -> ExitCode {
    stderr::report_panics();
    let code = match help::parse_for(std::env::args_os(), Use::of_process()).map(run) {
        Ok(Ok(code)) => code,
        Ok(Err(failure)) => {
            output::failure(&failure);
            failure.code()
        }
        Err(error) => usage::print(error),
    };
    let code = output::finish(code);
    stderr::flush();
    progress::flush();
    code
}

fn run(cli: Cli) -> Result<ExitCode, Failure> {
    terminal::start(cli.color);
    if let Some(ended) = cli.command.as_ref().and_then(without_services) {
        return ended;
    }
    if !matches!(cli.command, Some(Command::Console(_))) {
        cli.settings.require_one_database()?;
    }
    let config = match load(&cli.settings, needs(cli.command.as_ref())) {
        Err(faults) if cli.command.is_none() && overview::is_unconfigured(&faults) => {
            return Ok(overview::unconfigured());
        }
        config => config.map_err(Failure::Configuration)?,
    };
    logging::start(
        &config,
        cli.color,
        matches!(
            cli.command,
            Some(Command::Relay(RelayArgs { command: None, .. }) | Command::Console(_))
        ),
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

/// Returns the settings that a command requires.
fn needs(command: Option<&Command>) -> Needs {
    match command {
        Some(Command::Relay(args)) => args.needs(),
        Some(Command::Check(_) | Command::Topics(_) | Command::Verify(_)) => Needs {
            database: Need::Required,
            brokers: Need::Required,
        },
        Some(Command::DeadLetters(_)) => Needs {
            database: Need::Unused,
            brokers: Need::Required,
        },
        Some(
            Command::Where(_)
            | Command::Init(_)
            | Command::Config(_)
            | Command::Completions(_)
            | Command::Man(_),
        )
        | None => Needs {
            database: Need::Required,
            brokers: Need::Optional,
        },
        Some(Command::Console(args)) => args.needs(),
        Some(Command::Grants(_)) => GrantsCommand::NEEDS,
        Some(Command::Health(_)) => Needs {
            database: Need::Unused,
            brokers: Need::Unused,
        },
        #[cfg(feature = "try")]
        Some(Command::Try(_)) => trial::TryArgs::NEEDS,
        Some(Command::Tail(args)) => Needs {
            database: match args.needs_database() {
                true => Need::Required,
                false => Need::Unused,
            },
            brokers: Need::Required,
        },
        Some(
            Command::Migrate(_)
            | Command::Status(_)
            | Command::Parked(_)
            | Command::Publish(_)
            | Command::Subscribers(_)
            | Command::Sagas(_),
        ) => Needs {
            database: Need::Required,
            brokers: Need::Unused,
        },
    }
}

/// Runs a command that uses neither the configuration nor a service. Returns `None` for any other.
fn without_services(command: &Command) -> Option<Result<ExitCode, Failure>> {
    Some(match command {
        Command::Init(args) => setup::init(args),
        Command::Config(command) => setup::config(command),
        Command::Completions(args) => Ok(setup::completions(args)),
        Command::Man(args) => setup::man(args),
        _ => return None,
    })
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
    match cli.command.as_ref().and_then(Command::rounds) {
        Some(rounds) => watch::repeat(rounds, async || once(cli, config).await).await,
        None => once(cli, config).await,
    }
}

async fn once(cli: &Cli, config: &Config) -> Result<ExitCode, Failure> {
    let database = config.database.as_ref();
    let Some(command) = &cli.command else {
        return overview::run(config).await;
    };
    match command {
        Command::Relay(args @ RelayArgs { command: None, .. }) => {
            relay::dispatch(config, &cli.settings, args).await
        }
        // These commands have no time limit, because their work may take arbitrarily long.
        Command::Migrate(args) => reported(database, migrate::run(config, args.wait)).await,
        Command::Topics(command) => reported(database, topics::dispatch(config, command)).await,
        Command::DeadLetters(command) if command.reads_all_topics() => {
            let brokers = brokers::settings(config)?;
            within_of_brokers(brokers, dead_letters::run(config, command)).await
        }
        Command::DeadLetters(command) => reported(None, dead_letters::run(config, command)).await,
        Command::Verify(args) if args.follow => verify::run(config, args).await,
        Command::Verify(args) => reported(database, verify::run(config, args)).await,
        Command::Tail(args) => tail::run(config, args).await,
        Command::Publish(args) => {
            within(database::settings(config)?, publish::run(config, args)).await
        }
        Command::Parked(command) => reported(database, parked::run(config, command)).await,
        Command::Relay(args) => {
            within(
                database::settings(config)?,
                relay::dispatch(config, &cli.settings, args),
            )
            .await
        }
        Command::Console(args) => console::run(config, &cli.settings, args).await,
        Command::Health(args) => health::run(config, args).await,
        Command::Grants(command) => grants::run(config, command),
        #[cfg(feature = "try")]
        Command::Try(args) => trial::run(config, args).await,
        Command::Check(args) => check::run(config, args.json).await,
        Command::Status(args) => status::run(config, args.output.json).await,
        Command::Where(args) => reported(database, path::run(config, args)).await,
        // A decision about many parked events waits for the members while they make progress.
        Command::Subscribers(command @ SubscribersCommand::Parked(_)) => {
            reported(database, subscribers::run(config, command)).await
        }
        Command::Subscribers(command) => {
            let settings = database::settings(config)?;
            within(settings, subscribers::run(config, command)).await
        }
        Command::Sagas(command) => {
            within(database::settings(config)?, sagas::run(config, command)).await
        }
        local @ (Command::Init(_)
        | Command::Config(_)
        | Command::Completions(_)
        | Command::Man(_)) => without_services(local).unwrap_or(Ok(ExitCode::from(exit::DONE))),
    }
}
