//! The flags of the configuration, generated from its table of keys.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches, parser::ValueSource};

use crate::cli::config::{
    BROKERS, CONFIG_ENV, DATABASE_URL, KEYS, Key, Kind, LISTEN, Layer, PROPERTY_FLAG,
};
use crate::cli::exit::Failure;

/// Settings that every command needs. The short help lists only these.
const USUAL: [&str; 5] = [
    "name",
    "schema",
    "database.url",
    "kafka.brokers",
    "log.level",
];

/// The flags of the configuration.
#[derive(Debug)]
pub(in crate::cli) struct Settings {
    pub(in crate::cli) config: Option<PathBuf>,
    flags: Vec<(&'static Key, String)>,
    pub(in crate::cli) properties: Vec<String>,
    /// Every --database-url; only the console accepts more than one.
    database_urls: Vec<String>,
}

impl Settings {
    /// Returns the flags as a layer of the configuration.
    pub(in crate::cli) fn layer(&self) -> Layer {
        Layer::of_flags(&self.flags, &self.properties)
    }

    /// Returns every --database-url.
    pub(in crate::cli) fn database_urls(&self) -> &[String] {
        &self.database_urls
    }

    /// Returns --listen if it is given as a flag.
    pub(in crate::cli) fn listen(&self) -> Option<&str> {
        let is_listen = |(key, _): &&(&Key, String)| key.path == LISTEN.path;
        Some(self.flags.iter().find(is_listen)?.1.as_str())
    }

    /// Refuses a second --database-url.
    pub(in crate::cli) fn require_one_database(&self) -> Result<(), Failure> {
        match self.database_urls.len() {
            0 | 1 => Ok(()),
            _ => Err(Failure::Options(
                "--database-url is given more than once\n  -> name one database; only \
                 `tidings console` shows several"
                    .into(),
            )),
        }
    }
}

#[cfg(test)]
impl Settings {
    /// Returns the keys and values of the given flags.
    pub(in crate::cli) fn given(&self) -> Vec<(&'static str, &str)> {
        let given = self.flags.iter();
        given
            .map(|(key, value)| (key.path, value.as_str()))
            .collect()
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
        let keys = KEYS.iter().map(|key| flag(key));
        let last = [property_flag()];
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
            database_urls: matches
                .get_many::<String>(DATABASE_URL.path)
                .unwrap_or_default()
                .cloned()
                .collect(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Returns the flag that sets a librdkafka property.
pub(in crate::cli) fn property_flag() -> Arg {
    Arg::new(PROPERTY_FLAG)
        .long(PROPERTY_FLAG)
        .short('X')
        .value_name("NAME=VALUE")
        .action(ArgAction::Append)
        .hide_short_help(true)
        .help(
            "Any librdkafka property; may be repeated. \
             For passwords, prefer the environment or the file",
        )
        .help_heading(heading(&BROKERS))
}

/// Returns the flag of a key. It accepts any text: the value is checked with the rest of the
/// configuration, so that all errors are reported together.
pub(in crate::cli) fn flag(key: &'static Key) -> Arg {
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
        // The console shows several databases.
        Kind::Url => arg.action(ArgAction::Append),
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
