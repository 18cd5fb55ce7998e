//! `tidings topics`: shows and changes the number of partitions that keys are spread over.

mod grow;
mod list;

use std::process::ExitCode;

use super::args::TopicsCommand;
use super::config::Config;
use super::exit::Failure;

/// Runs a subcommand.
pub(super) async fn dispatch(
    config: &Config,
    command: &TopicsCommand,
) -> Result<ExitCode, Failure> {
    match command {
        TopicsCommand::List(args) => list::run(config, args.output.json).await,
        TopicsCommand::Grow(args) => grow::run(config, args).await,
    }
}
