//! `tidings topics`: shows and changes the number of partitions that keys are spread over.

mod grow;
mod list;

use std::process::ExitCode;

use super::args::TopicsCommand;
use super::config::Config;
use super::exit::Failure;
use crate::kafka;

/// Runs a subcommand.
pub(super) async fn dispatch(
    config: &Config,
    command: &TopicsCommand,
) -> Result<ExitCode, Failure> {
    match command {
        TopicsCommand::List(args) => list::run(config, args.json).await,
        TopicsCommand::Grow(args) => grow::run(config, args).await,
    }
}

fn brokers(config: &Config) -> Result<&kafka::Settings, Failure> {
    config.kafka.as_ref().ok_or_else(|| {
        Failure::Failed("no brokers are configured: set --brokers or KAFKA_BROKERS".into())
    })
}
