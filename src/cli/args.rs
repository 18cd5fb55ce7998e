//! Command line arguments. The configuration flags are generated from its table of keys.

use std::path::PathBuf;
use std::time::Duration;

use clap::{
    Arg, ArgAction, ArgMatches, Args, FromArgMatches, Parser, Subcommand, parser::ValueSource,
};

use super::config::{CONFIG_ENV, KEYS, Key, Kind, Layer, PROPERTY_FLAG, parse_duration};
use super::dead_letters::DeadLettersCommand;
use super::parked::ParkedCommand;
use super::sagas::SagasCommand;

/// Last line of the short help.
const MORE: &str =
    "--help shows every setting and the exit codes. `tidings check` prints the effective values.";

/// Settings that every command needs. The short help lists only these.
const USUAL: [&str; 5] = [
    "name",
    "schema",
    "database.url",
    "kafka.brokers",
    "log.level",
];

/// Moves events from a transactional outbox in Postgres to Kafka.
#[derive(Debug, Parser)]
#[command(
    name = "tidings",
    version,
    after_help = MORE,
    after_long_help = super::exit::HELP,
    max_term_width = 120
)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) settings: Settings,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create or upgrade the tables of Tidings in the database
    Migrate(MigrateArgs),
    /// Publish committed events until SIGTERM or SIGINT; subcommands administer relays
    Relay(RelayArgs),
    /// Show the partitions of topics; add partitions to a topic
    #[command(subcommand)]
    Topics(TopicsCommand),
    /// Check configuration, database and brokers; print the effective settings and their sources
    Check(OutputArgs),
    /// Show lag, slot and per-topic counts of every relay of the database
    Status(OutputArgs),
    /// List, show, replay or discard the dead letters of subscribers
    #[command(subcommand)]
    DeadLetters(DeadLettersCommand),
    /// List, retry or discard events that cannot be delivered, and the events that wait behind them
    #[command(subcommand)]
    Parked(ParkedCommand),
    /// List, show, retry or abort sagas
    #[command(subcommand)]
    Sagas(SagasCommand),
}

#[derive(Debug, Args)]
pub(super) struct MigrateArgs {
    /// Wait this long for Postgres to become available, e.g. 30s
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(super) wait: Option<Duration>,
}

#[derive(Debug, Args)]
pub(super) struct RelayArgs {
    #[command(subcommand)]
    pub(super) command: Option<RelayCommand>,
}

#[derive(Debug, Subcommand)]
pub(super) enum RelayCommand {
    /// Show every relay of the database with its leader, standbys and last heartbeat
    List(OutputArgs),
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
    List(OutputArgs),
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
}

#[derive(Debug, Args)]
pub(super) struct ForgetArgs {
    /// Name of the relay. Defaults to --name if that is set
    #[arg(value_name = "RELAY")]
    pub(super) relay: Option<String>,
    /// Also delete the Kafka topic of its positions; requires the brokers
    #[arg(long)]
    pub(super) delete_topic: bool,
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
}

#[derive(Debug, Args)]
pub(super) struct AdoptArgs {
    /// Only report whether it is possible
    #[arg(long)]
    pub(super) dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct OutputArgs {
    /// Print JSON instead of text
    #[arg(long)]
    pub(super) json: bool,
}

/// The flags of the configuration.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) config: Option<PathBuf>,
    flags: Vec<(&'static Key, String)>,
    properties: Vec<String>,
}

impl Settings {
    /// Returns the flags as a layer of the configuration.
    pub(super) fn layer(&self) -> Layer {
        Layer::of_flags(&self.flags, &self.properties)
    }
}

// === impl Args ===

impl Args for Settings {
    fn augment_args(command: clap::Command) -> clap::Command {
        let file = Arg::new("config")
            .long("config")
            .short('c')
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help(format!("Configuration file, TOML [env: {CONFIG_ENV}]"));
        let property = Arg::new(PROPERTY_FLAG)
            .long(PROPERTY_FLAG)
            .short('X')
            .value_name("NAME=VALUE")
            .action(ArgAction::Append)
            .hide_short_help(true)
            .help(
                "Any librdkafka property; may be repeated. \
                 For passwords, prefer the environment or the file",
            );
        let keys = KEYS.iter().map(|key| flag(key));
        let last = [property.help_heading(heading(&super::config::BROKERS))];
        let args = [file.help_heading("Configuration")]
            .into_iter()
            .chain(keys)
            .chain(last);
        args.fold(command, |command, arg| command.arg(arg.global(true)))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Settings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let typed = |key: &Key| matches.value_source(key.path) == Some(ValueSource::CommandLine);
        let flags = KEYS
            .iter()
            .filter(|key| typed(key))
            .filter_map(|key| Some((*key, matches.get_one::<String>(key.path)?.clone())))
            .collect();
        let properties = matches
            .get_many::<String>(PROPERTY_FLAG)
            .unwrap_or_default()
            .cloned()
            .collect();
        Ok(Self {
            config: matches.get_one::<PathBuf>("config").cloned(),
            flags,
            properties,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Returns the flag of a key. It accepts any text: the value is checked with the rest of the
/// configuration, so that all errors are reported together.
fn flag(key: &'static Key) -> Arg {
    let variables = key
        .env_shared
        .map_or_else(|| key.env(), |shared| format!("{shared}, {}", key.env()));
    let default = key
        .default
        .map(|default| format!(" [default: {default}]"))
        .unwrap_or_default();
    let choices = match key.kind {
        Kind::Choice(words) => format!(" [one of: {}]", words.join(", ")),
        _ => String::new(),
    };
    let whole = format!("{}{choices}{default} [env: {variables}]", key.help);
    let first = key.help.split([':', ';']).next().unwrap_or(key.help);
    let arg = Arg::new(key.path)
        .long(key.flag)
        .long_help(whole)
        .help(format!("{first}{default}"));
    let arg = arg
        .hide_short_help(!USUAL.contains(&key.path))
        .help_heading(heading(key))
        .value_name(value_name(key));
    match key.kind {
        Kind::Boolean => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
        _ => arg,
    }
}

/// Returns the heading of a setting in `--help`: its section of the file.
fn heading(key: &Key) -> &'static str {
    match key.path.split_once('.').map_or("", |(section, _)| section) {
        "outbox" => "Debezium outbox table",
        "kafka" => "Kafka",
        "topics" | "routing" => "Topics and records",
        "undeliverable" => "Undeliverable events",
        "limits" | "retention" => "Limits and retention",
        "admin" | "log" => "Health, metrics and logging",
        _ => "Configuration",
    }
}

/// Returns the placeholder for a value in `--help`.
fn value_name(key: &Key) -> &'static str {
    match (key.path, key.kind) {
        ("admin.listen", _) => "ADDRESS:PORT",
        ("kafka.brokers", _) => "HOST:PORT,…",
        ("log.level", _) => "LEVEL",
        ("outbox.table", _) => "SCHEMA.TABLE",
        ("outbox.columns", _) => "FIELD=COLUMN,…",
        ("outbox.additional", _) => "COLUMN:PLACE[:ALIAS],…",
        ("outbox.takes_over", _) => "SLOT",
        ("outbox.taken_offset", _) => "JSON",
        ("routing.topic" | "undeliverable.dead_letter_topic", _) => "TEMPLATE",
        ("routing.regex", _) => "REGEX",
        ("routing.event_source", _) => "URI",
        ("name" | "schema" | "outbox.publication", _) => "NAME",
        (_, Kind::Boolean) => "BOOL",
        (_, Kind::Choice(_)) => "WORD",
        (_, Kind::Text | Kind::List) => "TEXT",
        (_, Kind::Url) => "URL",
        (_, Kind::Integer(..)) => "NUMBER",
        (_, Kind::Duration(..)) => "DURATION",
        (_, Kind::Bytes(..)) => "SIZE",
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    /// Calls `seen` with the help of the command and of each of its subcommands.
    fn each_help(command: &mut clap::Command, long: bool, seen: &mut impl FnMut(&str, &str)) {
        let text = if long {
            command.render_long_help()
        } else {
            command.render_help()
        };
        seen(command.get_name(), &text.to_string());
        let commands = command
            .get_subcommands_mut()
            .filter(|command| command.get_name() != "help");
        commands.for_each(|command| each_help(command, long, seen));
    }

    fn built() -> clap::Command {
        // The usual terminal width.
        let mut command = Cli::command().term_width(100);
        command.build();
        command
    }

    #[test]
    fn the_short_help_of_each_command_fits_a_screen() {
        each_help(&mut built(), false, &mut |name, text| {
            assert!(text.lines().count() <= 36, "{name}: {text}")
        });
    }

    #[test]
    fn the_long_help_of_each_command_has_every_setting_with_its_own_form_of_value() {
        each_help(&mut built(), true, &mut |name, text| {
            assert!(
                KEYS.iter()
                    .all(|key| text.contains(&format!("--{}", key.flag))),
                "{name}"
            );
            assert_eq!(
                (
                    text.matches("<HOST:PORT").count(),
                    text.matches("<TEXT").count()
                ),
                (1, 1),
                "{name}: {text}"
            );
        });
    }

    #[test]
    fn a_flag_may_stand_before_or_after_the_command() {
        for line in [
            "tidings --name a -X x=y --create-topics relay",
            "tidings relay --name a -X x=y --create-topics",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).expect(line);
            let flags: Vec<_> = cli
                .settings
                .flags
                .iter()
                .map(|(key, value)| (key.path, value.as_str()))
                .collect();
            assert_eq!(flags, [("name", "a"), ("topics.create", "true")], "{line}");
            assert_eq!(cli.settings.properties, ["x=y"], "{line}");
        }
        let cli =
            Cli::try_parse_from(["tidings", "relay", "--create-topics=false"]).expect("a value");
        assert_eq!(cli.settings.flags[0].1, "false");
    }
}
