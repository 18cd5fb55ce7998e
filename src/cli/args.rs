//! What may be typed. The flags of the configuration come from its table of keys.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches, Parser, Subcommand, parser::ValueSource};

use super::config::{CONFIG_ENV, KEYS, Key, Kind, Layer, PROPERTY_FLAG, parse_duration};
use super::dead_letters::DeadLettersCommand;
use super::parked::ParkedCommand;
use super::sagas::SagasCommand;

/// The end of the short help.
const MORE: &str = "--help shows every setting and the exit codes. `tidings check` prints the values that hold.";

/// Settings that every command needs: the short help shows these.
const USUAL: [&str; 5] = ["name", "schema", "database.url", "kafka.brokers", "log.level"];

/// Moves events from a transactional outbox in Postgres to Kafka.
#[derive(Debug, Parser)]
#[command(name = "tidings", version, after_help = MORE, after_long_help = super::exit::HELP, max_term_width = 120)]
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
    /// Publish committed events until SIGTERM or SIGINT; with a subcommand, look after relays
    Relay(RelayArgs),
    /// Show over how many partitions keys are spread; give a topic more
    #[command(subcommand)]
    Topics(TopicsCommand),
    /// Check configuration, database and brokers; print what holds and where it comes from
    Check(OutputArgs),
    /// Show lag, slot and per-topic counts of every relay of the database
    Status(OutputArgs),
    /// List, show, replay or discard what subscribers could not handle
    #[command(subcommand)]
    DeadLetters(DeadLettersCommand),
    /// List, retry or give up events that cannot be delivered, and what waits behind them
    #[command(subcommand)]
    Parked(ParkedCommand),
    /// List, show, retry or abort sagas
    #[command(subcommand)]
    Sagas(SagasCommand),
}

#[derive(Debug, Args)]
pub(super) struct MigrateArgs {
    /// Wait this long for Postgres to answer, e.g. 30s
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
    /// Show every relay of the database: who leads, who stands by, when it was last heard of
    List(OutputArgs),
    /// Remove a relay that will not run again: its row, slot and publication. Retention does not wait for it any more
    Forget(ForgetArgs),
    /// Have the relay --name publish events once more, from its next start on. It must not run
    Rewind(RewindArgs),
    /// Have the relay --name continue the outbox of the database that this one replaces, after pg_upgrade or a restore. It must not run
    Adopt(AdoptArgs),
    /// Have the relay --name leave events out, from its next start on. It must not run
    Skip(SkipArgs),
}

#[derive(Debug, Subcommand)]
pub(super) enum TopicsCommand {
    /// Show every topic that relays have published to, and how many of its partitions they use
    List(OutputArgs),
    /// Give a topic more partitions without misordering an aggregate: holds it back until consumers have read what is there
    Grow(GrowArgs),
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("end").required(true).args(["partitions", "abort"])))]
pub(super) struct GrowArgs {
    /// The topic
    #[arg(value_name = "TOPIC")]
    pub(super) topic: String,
    /// How many it shall have
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i32).range(1..=100_000))]
    pub(super) partitions: Option<i32>,
    /// End the hold of an attempt that was interrupted
    #[arg(long)]
    pub(super) abort: bool,
    /// Do not wait for this consumer group, one that does not read the topic any more; may be repeated
    #[arg(long, value_name = "GROUP")]
    pub(super) no_wait_for: Vec<String>,
    /// Wait for no consumer group at all: events of one aggregate may overtake each other
    #[arg(long)]
    pub(super) force: bool,
    /// Give up, and publish on as before, after this long
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_duration)]
    pub(super) timeout: Duration,
    /// Have the relays hold back for this long at most, once consumers are near the end
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = parse_duration)]
    pub(super) hold: Duration,
}

#[derive(Debug, Args)]
pub(super) struct ForgetArgs {
    /// The relay's name; that of --name unless given
    #[arg(value_name = "RELAY")]
    pub(super) relay: Option<String>,
    /// Also delete the Kafka topic of its positions; needs the brokers
    #[arg(long)]
    pub(super) delete_topic: bool,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("to").required(true).args(["all", "since", "to_mirror"])))]
pub(super) struct RewindArgs {
    /// Everything that the outbox holds
    #[arg(long)]
    pub(super) all: bool,
    /// What is younger than this: 2026-11-24T18:00:00Z, or 2h for two hours ago. All of a transaction of which one event is
    #[arg(long, value_name = "TIME", value_parser = super::relay::parse_time)]
    pub(super) since: Option<chrono::DateTime<chrono::Utc>>,
    /// Go on from the position that the database has, whatever the positions in Kafka say
    #[arg(long)]
    pub(super) to_mirror: bool,
    /// Only say how many events that would repeat
    #[arg(long)]
    pub(super) dry_run: bool,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["all", "event"])))]
pub(super) struct SkipArgs {
    /// Everything that is committed now and not published
    #[arg(long)]
    pub(super) all: bool,
    /// This event alone, by its id
    #[arg(long, value_name = "ID")]
    pub(super) event: Option<uuid::Uuid>,
    /// Only say how many events that would leave out
    #[arg(long)]
    pub(super) dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct AdoptArgs {
    /// Only say whether it is possible
    #[arg(long)]
    pub(super) dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct OutputArgs {
    /// Print JSON instead of text
    #[arg(long)]
    pub(super) json: bool,
}

/// The flags that belong to the configuration.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) config: Option<PathBuf>,
    flags: Vec<(&'static Key, String)>,
    properties: Vec<String>,
}

impl Settings {
    /// The flags as a layer of the configuration.
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
            .help("Any librdkafka property; may be repeated. Passwords are safer in the environment or the file");
        let keys = KEYS.iter().map(|key| flag(key));
        let last = [property.help_heading(heading(&super::config::BROKERS))];
        let args = [file.help_heading("Configuration")].into_iter().chain(keys).chain(last);
        args.fold(command, |command, arg| command.arg(arg.global(true)))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Settings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let typed = |key: &Key| matches.value_source(key.path) == Some(ValueSource::CommandLine);
        let flags =
            KEYS.iter().filter(|key| typed(key)).filter_map(|key| Some((*key, matches.get_one::<String>(key.path)?.clone()))).collect();
        let properties = matches.get_many::<String>(PROPERTY_FLAG).unwrap_or_default().cloned().collect();
        Ok(Self { config: matches.get_one::<PathBuf>("config").cloned(), flags, properties })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// A flag takes any text: what it means is checked with the rest of the configuration, so that all faults come at once.
fn flag(key: &'static Key) -> Arg {
    let variables = key.env_shared.map_or_else(|| key.env(), |shared| format!("{shared}, {}", key.env()));
    let default = key.default.map(|default| format!(" [default: {default}]")).unwrap_or_default();
    let choices = match key.kind {
        Kind::Choice(words) => format!(" [one of: {}]", words.join(", ")),
        _ => String::new(),
    };
    let whole = format!("{}{choices}{default} [env: {variables}]", key.help);
    let first = key.help.split([':', ';']).next().unwrap_or(key.help);
    let arg = Arg::new(key.path).long(key.flag).long_help(whole).help(format!("{first}{default}"));
    let arg = arg.hide_short_help(!USUAL.contains(&key.path)).help_heading(heading(key)).value_name(value_name(key));
    match key.kind {
        Kind::Boolean => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        _ => arg,
    }
}

/// The heading under which `--help` lists a setting: its section of the file.
fn heading(key: &Key) -> &'static str {
    match key.path.split_once('.').map_or("", |(section, _)| section) {
        "outbox" => "A table made for Debezium",
        "kafka" => "Kafka",
        "topics" | "routing" => "Topics and records",
        "undeliverable" => "Undeliverable events",
        "limits" | "retention" => "Limits and retention",
        "admin" | "log" => "Health, metrics and logging",
        _ => "Configuration",
    }
}

/// The form of a value in help.
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

    /// Calls with the help of the command and of each of its subcommands.
    fn each_help(command: &mut clap::Command, long: bool, seen: &mut impl FnMut(&str, &str)) {
        let text = if long { command.render_long_help() } else { command.render_help() };
        seen(command.get_name(), &text.to_string());
        let commands = command.get_subcommands_mut().filter(|command| command.get_name() != "help");
        commands.for_each(|command| each_help(command, long, seen));
    }

    fn built() -> clap::Command {
        // A terminal of the usual width.
        let mut command = Cli::command().term_width(100);
        command.build();
        command
    }

    #[test]
    fn the_short_help_of_each_command_fits_a_screen() {
        each_help(&mut built(), false, &mut |name, text| assert!(text.lines().count() <= 36, "{name}: {text}"));
    }

    #[test]
    fn the_long_help_of_each_command_has_every_setting_with_its_own_form_of_value() {
        each_help(&mut built(), true, &mut |name, text| {
            assert!(KEYS.iter().all(|key| text.contains(&format!("--{}", key.flag))), "{name}");
            assert_eq!((text.matches("<HOST:PORT").count(), text.matches("<TEXT").count()), (1, 1), "{name}: {text}");
        });
    }

    #[test]
    fn a_flag_may_stand_before_or_after_the_command() {
        for line in ["tidings --name a -X x=y --create-topics relay", "tidings relay --name a -X x=y --create-topics"] {
            let cli = Cli::try_parse_from(line.split(' ')).expect(line);
            let flags: Vec<_> = cli.settings.flags.iter().map(|(key, value)| (key.path, value.as_str())).collect();
            assert_eq!(flags, [("name", "a"), ("topics.create", "true")], "{line}");
            assert_eq!(cli.settings.properties, ["x=y"], "{line}");
        }
        let cli = Cli::try_parse_from(["tidings", "relay", "--create-topics=false"]).expect("a value");
        assert_eq!(cli.settings.flags[0].1, "false");
    }
}
