//! Help: commands grouped by purpose, the flags that apply to a command, and examples.
//!
//! Each configuration flag is accepted before and after every command. The help of a command lists
//! only those that it uses.

mod examples;

use std::ffi::OsString;

use clap::{Arg, Command, CommandFactory, FromArgMatches};

use super::args::{Cli, flag, property_flag};
use super::config::{KEYS, PROPERTY_FLAG};
use super::confirm::{self, Use};
use examples::EXAMPLES;

/// Purposes of commands, and the commands of each, in display order.
const GROUPS: [(&str, &[&str]); 4] = [
    ("Run", RUN),
    (
        "Look",
        &["status", "where", "tail", "verify", "subscribers", "health"],
    ),
    ("Repair", &["parked", "dead-letters", "sagas", "topics"]),
    (
        "Set up",
        &[
            "init",
            "migrate",
            "grants",
            "check",
            "config",
            "completions",
            "man",
        ],
    ),
];

#[cfg(feature = "try")]
const RUN: &[&str] = &["try", "relay", "console", "publish"];
#[cfg(not(feature = "try"))]
const RUN: &[&str] = &["relay", "console", "publish"];

/// Settings that the help without a command lists.
const ROOT: &[&str] = &["database.url", "kafka.brokers"];
const DATABASE: &[&str] = &["schema", "database.url"];
const RELAY: &[&str] = &["name", "schema", "database.url"];
const BOTH: &[&str] = &["schema", "database.url", "kafka.brokers", PROPERTY_FLAG];

/// Parses a command line.
///
/// # Errors
///
/// Returns the usage error, or the requested help as an error.
pub(super) fn parse_for(
    arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    usage: Use,
) -> Result<Cli, clap::Error> {
    let mut command = command();
    let mut matches = command.try_get_matches_from_mut(arguments)?;
    confirm::require(&mut command, &matches, usage)?;
    Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

/// Parses a command line as that of an operator on a terminal.
#[cfg(test)]
pub(super) fn parse(
    arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>,
) -> Result<Cli, clap::Error> {
    parse_for(arguments, Use::Interactive)
}

/// Returns the command line with its help.
pub(super) fn command() -> Command {
    let root = described(Cli::command(), "");
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{}{}\n{{options}}{{after-help}}",
        groups(&root),
        heading("Options")
    );
    root.help_template(template)
}

/// Adds the examples and the flags to a command and its subcommands. `path` is the words between
/// `tidings` and the subcommands.
fn described(command: Command, path: &str) -> Command {
    let inner = |sub: Command| {
        let name = format!("{path} {}", sub.get_name());
        let name = name.trim_start().to_owned();
        let flags = KEYS.iter().map(|key| (key.path, flag(key)));
        let flags = flags.chain([(PROPERTY_FLAG, property_flag())]);
        let sub = flags.fold(sub, |sub, (id, arg)| sub.arg(shown(arg, &name, id)));
        described(sub, &name)
    };
    let command = command.mut_subcommands(inner);
    let command = match path {
        "" => command.mut_args(|arg| {
            let id = arg.get_id().to_string();
            let is_setting = id == PROPERTY_FLAG || KEYS.iter().any(|key| key.path == id);
            if is_setting { shown(arg, "", &id) } else { arg }
        }),
        _ => command,
    };
    match examples(path) {
        "" => command,
        text if path.is_empty() => {
            let codes = super::exit::HELP;
            command.after_long_help(format!("{}\n{text}\n\n{codes}", heading("Examples")))
        }
        text => command.after_long_help(format!("{}\n{text}", heading("Examples"))),
    }
}

/// Hides a flag that the command does not use. A global flag that exists in a subcommand replaces
/// the one of the root.
fn shown(flag: Arg, path: &str, id: &str) -> Arg {
    let flag = match (path, id) {
        ("console", "admin.listen") => super::console::listen_flag(flag),
        _ => flag,
    };
    flag.global(true).hide(!applies(path, id))
}

/// Returns `true` if a command uses a setting, or uses a librdkafka property for
/// [`PROPERTY_FLAG`].
pub(super) fn applies(path: &str, id: &str) -> bool {
    let used = match path {
        "" => return ROOT.contains(&id),
        "relay" | "check" => return true,
        "init" | "config" | "config schema" | "completions" | "man" => return false,
        "migrate" | "status" | "relay list" => DATABASE,
        "relay forget" => {
            return RELAY.contains(&id) || BOTH.contains(&id) || id.starts_with("log.");
        }
        "relay rewind" | "relay adopt" | "relay skip" => {
            return RELAY.contains(&id) || id.starts_with("outbox.") || id.starts_with("log.");
        }
        "verify" | "console" => {
            return RELAY.contains(&id)
                || BOTH.contains(&id)
                || id.starts_with("log.")
                || id == "admin.listen"
                || path == "verify" && id.starts_with("routing.");
        }
        "health" => return id == "admin.listen",
        "publish" => DATABASE,
        "try" => &["database.url", "kafka.brokers", PROPERTY_FLAG],
        _ => match path.split(' ').next().unwrap_or_default() {
            "parked" => RELAY,
            "grants" => return grants_use(path, id),
            "subscribers" | "sagas" => DATABASE,
            "dead-letters" => &["kafka.brokers", "kafka.max_message_bytes", PROPERTY_FLAG],
            _ => BOTH,
        },
    };
    used.contains(&id) || id.starts_with("log.")
}

/// Returns `true` if the rights of a role depend on a setting, or the command prints it.
fn grants_use(path: &str, id: &str) -> bool {
    let of_relay = [
        "name",
        "source",
        "delivery",
        "outbox.table",
        "outbox.publication",
        "topics.create",
        "routing.topic",
        "undeliverable.policy",
        "undeliverable.dead_letter_topic",
        "retention.enabled",
    ];
    let of_all = ["schema", "database.url", "kafka.brokers"];
    of_all.contains(&id) || path == "grants relay" && of_relay.contains(&id)
}

/// Formats the groups, one line per command.
fn groups(root: &Command) -> String {
    let mut text = String::new();
    for (group, names) in GROUPS {
        text.push_str(&heading(group));
        text.push('\n');
        for name in names {
            let command = root.find_subcommand(name);
            let about = command.and_then(Command::get_about);
            let about = about.map_or_else(String::new, ToString::to_string);
            text.push_str(&format!("  \u{1b}[1m{name:<13}\u{1b}[0m {about}\n"));
        }
    }
    text
}

/// Formats a heading as clap does. clap removes the escape sequences where they are not wanted.
fn heading(text: &str) -> String {
    format!("\u{1b}[1m\u{1b}[4m{text}:\u{1b}[0m")
}

/// Returns the examples of a command, one per line.
fn examples(path: &str) -> &'static str {
    let mut all = EXAMPLES.iter();
    all.find(|(command, _)| *command == path)
        .map_or("", |(_, text)| text)
}

#[cfg(test)]
mod tests;
