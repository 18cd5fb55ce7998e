//! Command line arguments.

mod settings;

use std::time::Duration;

use clap::{Args, Parser, Subcommand};

pub(super) use self::settings::{Settings, flag, property_flag};
use super::config::parse_duration;
use super::confirm::Confirm;
use super::console::{ConsoleArgs, RelayConsoleArgs};
use super::dead_letters::DeadLettersCommand;
use super::grants::GrantsCommand;
use super::health::HealthArgs;
use super::parked::ParkedCommand;
use super::path::WhereArgs;
use super::publish::PublishArgs;
use super::sagas::SagasCommand;
use super::setup::{CompletionsArgs, ConfigCommand, InitArgs, ManArgs};
use super::subscribers::{SubscribersCommand, SubscribersParkedCommand};
use super::tail::TailArgs;
use super::terminal::Color;
#[cfg(feature = "try")]
use super::trial::TryArgs;
use super::verify::VerifyArgs;
use super::watch::{Rounds, WatchArgs};

/// Last line of the short help.
const MORE: &str =
    "`tidings COMMAND --help` shows settings and examples; `relay` has all settings.";

/// Moves events from a transactional outbox in Postgres to Kafka.
#[derive(Debug, Parser)]
#[command(
    name = "tidings",
    version,
    after_help = MORE,
    max_term_width = 120
)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) settings: Settings,
    /// Color the output
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        value_enum,
        default_value_t,
        hide_short_help = true
    )]
    pub(super) color: Color,
    #[command(subcommand)]
    pub(super) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Start Postgres and Kafka, publish example events, print them
    #[cfg(feature = "try")]
    Try(TryArgs),
    /// Create or upgrade the tables of Tidings in the database
    Migrate(MigrateArgs),
    /// Publish committed events until a signal; administer relays
    Relay(RelayArgs),
    /// Show the partitions of topics; add partitions to a topic
    #[command(subcommand)]
    Topics(TopicsCommand),
    /// Check configuration, database and brokers; print the settings
    Check(OutputArgs),
    /// Show lag, slot and topics of every relay of the database
    Status(ListingArgs),
    /// Show the path of an event, or the events of an aggregate
    Where(WhereArgs),
    /// Prove that the topics equal the committed events, in order
    Verify(VerifyArgs),
    /// Print the events of topics as they arrive
    Tail(TailArgs),
    /// Publish one event
    Publish(PublishArgs),
    /// List, show, replay or discard the dead letters of subscribers
    #[command(subcommand)]
    DeadLetters(DeadLettersCommand),
    /// List, show, retry or discard events that cannot be delivered
    #[command(subcommand)]
    Parked(ParkedCommand),
    /// List, pause and resume subscribers; decide about parked events
    #[command(subcommand)]
    Subscribers(SubscribersCommand),
    /// List, show, retry or abort sagas
    #[command(subcommand)]
    Sagas(SagasCommand),
    /// Serve a web page that shows the state and offers actions
    Console(ConsoleArgs),
    /// Check that the relay on this machine is ready, for probes
    Health(HealthArgs),
    /// Print the SQL and the Kafka ACLs that a role needs
    #[command(subcommand)]
    Grants(GrantsCommand),
    /// Write a configuration file with every setting and its default
    Init(InitArgs),
    /// Print the JSON Schema of the configuration file
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the completions of a shell
    Completions(CompletionsArgs),
    /// Print the manual page of a command
    Man(ManArgs),
}

#[derive(Debug, Args)]
pub(super) struct MigrateArgs {
    /// Wait this long for Postgres to become available, e.g. 30s
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(super) wait: Option<Duration>,
}

#[derive(Debug, Args)]
pub(super) struct RelayArgs {
    #[command(flatten)]
    pub(super) console: RelayConsoleArgs,
    #[command(subcommand)]
    pub(super) command: Option<RelayCommand>,
}

#[derive(Debug, Subcommand)]
pub(super) enum RelayCommand {
    /// Show every relay of the database with its leader, standbys and last heartbeat
    List(ListingArgs),
    /// Remove a relay that will not run again: its row, slot and publication. Retention no longer
    /// waits for it
    Forget(ForgetArgs),
    /// Make the relay --name publish events again from its next start. It must be stopped
    Rewind(RewindArgs),
    /// Make the relay --name continue the outbox of the database that this one replaces, after
    /// pg_upgrade or a restore. It must be stopped
    Adopt(AdoptArgs),
    /// Make the relay --name skip events from its next start. It must be stopped
    Skip(SkipArgs),
}

#[derive(Debug, Subcommand)]
pub(super) enum TopicsCommand {
    /// Show every topic that relays have published to, and the number of partitions in use
    List(ListingArgs),
    /// Add partitions to a topic and keep the order per aggregate: holds its events back until
    /// consumers have read the backlog
    Grow(GrowArgs),
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("end").required(true).args(["partitions", "abort"])))]
pub(super) struct GrowArgs {
    /// The topic
    #[arg(value_name = "TOPIC")]
    pub(super) topic: String,
    /// New number of partitions
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i32).range(1..=100_000))]
    pub(super) partitions: Option<i32>,
    /// End the hold of an interrupted attempt
    #[arg(long)]
    pub(super) abort: bool,
    /// Do not wait for this consumer group, which no longer reads the topic; may be repeated
    #[arg(long, value_name = "GROUP")]
    pub(super) no_wait_for: Vec<String>,
    /// Wait for no consumer group: events of one aggregate may be consumed out of order
    #[arg(long)]
    pub(super) force: bool,
    /// Give up after this long, and continue to publish as before
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_duration)]
    pub(super) timeout: Duration,
    /// Maximum time that relays hold events back, once consumers are near the end
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = parse_duration)]
    pub(super) hold: Duration,
    #[command(flatten)]
    pub(super) confirm: Confirm,
}

#[derive(Debug, Args)]
pub(super) struct ForgetArgs {
    /// Name of the relay. Defaults to --name if that is set
    #[arg(value_name = "RELAY")]
    pub(super) relay: Option<String>,
    /// Also delete the Kafka topic of its positions; requires the brokers
    #[arg(long)]
    pub(super) delete_topic: bool,
    #[command(flatten)]
    pub(super) confirm: Confirm,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("to").required(true).args(["all", "since", "to_mirror"])))]
pub(super) struct RewindArgs {
    /// Every event in the outbox
    #[arg(long)]
    pub(super) all: bool,
    /// Events younger than this, and the rest of their transactions: 2026-11-24T18:00:00Z, or 2h
    /// for two hours ago
    #[arg(long, value_name = "TIME", value_parser = super::relay::parse_time)]
    pub(super) since: Option<chrono::DateTime<chrono::Utc>>,
    /// Continue from the position in the database and ignore the positions in Kafka
    #[arg(long)]
    pub(super) to_mirror: bool,
    /// Only print the number of events that would be repeated
    #[arg(long)]
    pub(super) dry_run: bool,
    #[command(flatten)]
    pub(super) confirm: Confirm,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["all", "event"])))]
pub(super) struct SkipArgs {
    /// Every event that is committed now and not published
    #[arg(long)]
    pub(super) all: bool,
    /// Only the event with this id
    #[arg(long, value_name = "ID")]
    pub(super) event: Option<uuid::Uuid>,
    /// Only print the number of events that would be skipped
    #[arg(long)]
    pub(super) dry_run: bool,
    #[command(flatten)]
    pub(super) confirm: Confirm,
}

#[derive(Debug, Args)]
pub(super) struct AdoptArgs {
    /// Only report whether it is possible
    #[arg(long)]
    pub(super) dry_run: bool,
    #[command(flatten)]
    pub(super) confirm: Confirm,
}

#[derive(Debug, Args)]
pub(super) struct OutputArgs {
    /// Print JSON instead of text
    #[arg(long)]
    pub(super) json: bool,
}

/// Output of a list.
#[derive(Debug, Args)]
pub(super) struct ListingArgs {
    #[command(flatten)]
    pub(super) output: OutputArgs,
    #[command(flatten)]
    pub(super) watch: WatchArgs,
}

impl ListingArgs {
    /// Returns the rounds of `--watch`.
    pub(super) fn rounds(&self) -> Option<Rounds> {
        self.watch.rounds(self.output.json)
    }
}

impl Command {
    /// Returns the rounds of `--watch`. `None` if the command runs once.
    pub(super) fn rounds(&self) -> Option<Rounds> {
        match self {
            Command::Status(args)
            | Command::Topics(TopicsCommand::List(args))
            | Command::Subscribers(SubscribersCommand::List(args)) => args.rounds(),
            Command::Relay(RelayArgs {
                command: Some(RelayCommand::List(args)),
                ..
            }) => args.rounds(),
            Command::Subscribers(SubscribersCommand::Parked(SubscribersParkedCommand::List(
                args,
            ))) => args.rounds(),
            Command::Parked(ParkedCommand::List(args)) => args.rounds(),
            Command::Sagas(SagasCommand::List(args)) => args.rounds(),
            Command::DeadLetters(DeadLettersCommand::List { listing, .. }) => listing.rounds(),
            _ => None,
        }
    }
}
