//! `tidings grants`: least-privilege SQL and Kafka ACLs per role.

#[cfg(test)]
mod pages;
mod text;

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};

use super::config::{Config, Need, Needs};
use super::database;
use super::escape::escaped;
use super::exit::{DONE, Failure};
use super::output;
use crate::event::{check_topic_name, is_reserved_topic};
use crate::inspect::grants::{Duty, Grantee, Grants, Place, RelayDuty};
use crate::relay::startup::names::unmarked;
use crate::relay::{DeliveryGuarantee, OnUndeliverable, SourceKind};

/// Bytes of a Postgres identifier.
const IDENTIFIER_MAX: usize = 63;

#[derive(Debug, Subcommand)]
pub(super) enum GrantsCommand {
    /// The owner of the tables, which runs `tidings migrate`
    Migrator(Output),
    /// A service that publishes
    Publisher(PublisherArgs),
    /// The relay with the given settings
    Relay(RelayGrantsArgs),
    /// A service that subscribes; if its handlers publish, it is also a publisher
    Subscriber(SubscriberArgs),
    /// A person or program that looks at the state and decides about failed events
    Operator(OperatorArgs),
}

/// Arguments of every role.
#[derive(Debug, Args)]
pub(super) struct Output {
    /// Name of the Postgres role. Defaults to the word after `grants`
    #[arg(long, value_name = "NAME")]
    role: Option<String>,
    /// Principal in Kafka. Defaults to User: and the name of the role
    #[arg(long, value_name = "TYPE:NAME")]
    principal: Option<String>,
    /// Print the rights of one system only
    #[arg(long, value_name = "SYSTEM", value_enum, conflicts_with = "json")]
    only: Option<System>,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// Part of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum System {
    /// SQL
    Postgres,
    /// Commands of kafka-acls.sh
    Kafka,
}

#[derive(Debug, Args)]
pub(super) struct PublisherArgs {
    /// The service schedules and cancels events
    #[arg(long)]
    scheduling: bool,
    /// The service calls `tidings::migrate` at its start
    #[arg(long)]
    migrates: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(super) struct RelayGrantsArgs {
    /// Topics of the events. A name that ends with * is a prefix. Defaults to the topic setting if
    /// it has no placeholders
    #[arg(value_name = "TOPIC")]
    topics: Vec<String>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(super) struct SubscriberArgs {
    /// Topics that the service subscribes to
    #[arg(value_name = "TOPIC", required = true)]
    topics: Vec<String>,
    /// Name of the subscriber: its consumer group
    #[arg(long, value_name = "GROUP")]
    group: String,
    /// The subscriber has no inbox, so it needs no database
    #[arg(long, conflicts_with = "sagas")]
    no_inbox: bool,
    /// Failed events go to retry topics (`Escalation::retry_topics`)
    #[arg(long)]
    retry_topics: bool,
    /// The service runs sagas
    #[arg(long)]
    sagas: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(super) struct OperatorArgs {
    /// Topics of the events
    #[arg(value_name = "TOPIC")]
    topics: Vec<String>,
    /// Subscriber whose dead letters the operator replays; may be repeated
    #[arg(long, value_name = "GROUP")]
    group: Vec<String>,
    #[command(flatten)]
    output: Output,
}

impl GrantsCommand {
    /// The command reads the name of the database, and connects to nothing.
    pub(super) const NEEDS: Needs = Needs {
        database: Need::Required,
        brokers: Need::Optional,
    };

    /// Returns the word of the role, and the output.
    fn parts(&self) -> (&'static str, &Output) {
        match self {
            Self::Migrator(output) => ("migrator", output),
            Self::Publisher(args) => ("publisher", &args.output),
            Self::Relay(args) => ("relay", &args.output),
            Self::Subscriber(args) => ("subscriber", &args.output),
            Self::Operator(args) => ("operator", &args.output),
        }
    }

    /// Returns the work of the role.
    fn duty(&self, config: &Config) -> Result<Duty, Failure> {
        Ok(match self {
            Self::Migrator(_) => Duty::Migrator,
            Self::Publisher(args) => Duty::Publisher {
                schedules: args.scheduling,
                migrates: args.migrates,
            },
            Self::Relay(args) => Duty::Relay(relay(config, &args.topics)?),
            Self::Subscriber(args) => {
                check_topics(&args.topics)?;
                check_groups(std::slice::from_ref(&args.group))?;
                Duty::Subscriber {
                    group: args.group.clone(),
                    topics: args.topics.clone(),
                    has_inbox: !args.no_inbox,
                    has_retry_topics: args.retry_topics,
                    has_sagas: args.sagas,
                }
            }
            Self::Operator(args) => {
                check_topics(&args.topics)?;
                check_groups(&args.group)?;
                Duty::Operator {
                    topics: args.topics.clone(),
                    groups: args.group.clone(),
                }
            }
        })
    }
}

/// Prints the rights of a role.
pub(super) fn run(config: &Config, command: &GrantsCommand) -> Result<ExitCode, Failure> {
    let (_, out) = command.parts();
    let grants = grants(config, command)?;
    if out.json {
        output::json(&grants)?;
    } else {
        let brokers = config.kafka.as_ref().map(|kafka| kafka.brokers.as_str());
        output::lines(&text::text(&grants, brokers, out.only));
    }
    Ok(ExitCode::from(DONE))
}

/// Returns the rights of a role.
fn grants(config: &Config, command: &GrantsCommand) -> Result<Grants, Failure> {
    let (word, output) = command.parts();
    let role = output.role.clone().unwrap_or_else(|| word.to_owned());
    let principal = output.principal.clone();
    let principal = principal.unwrap_or_else(|| format!("User:{role}"));
    check_role(&role)?;
    check_principal(&principal)?;
    let place = Place {
        database: database::settings(config)?.database().to_owned(),
        schema: config.schema.clone(),
    };
    let grantee = Grantee { role, principal };
    Ok(Grants::new(grantee, &place, &command.duty(config)?))
}

/// Returns the settings of the configured relay that decide about its rights.
fn relay(config: &Config, topics: &[String]) -> Result<RelayDuty, Failure> {
    let topics = match topics {
        [] => vec![topic_of(config)?],
        topics => topics.to_vec(),
    };
    let names: Vec<String> = topics
        .iter()
        .map(|topic| topic.strip_suffix('*').unwrap_or(topic).to_owned())
        .collect();
    check_topics(&names)?;
    let template = &config.undeliverable.dead_letter_topic;
    let dead_letter_topics = match config.undeliverable.policy {
        OnUndeliverable::DeadLetter => dead_letter_topics(template, &topics),
        _ => Vec::new(),
    };
    let debezium = config.debezium.as_ref();
    let publication = debezium.and_then(|outbox| outbox.publication.clone());
    Ok(RelayDuty {
        name: config.name.clone(),
        streams: config.source != SourceKind::Poll,
        is_exactly_once: config.delivery == DeliveryGuarantee::ExactlyOnce,
        has_retention: config.retention.enabled,
        publication: publication.unwrap_or_else(|| unmarked(&config.name)),
        debezium: debezium.map(|outbox| (outbox.schema.clone(), outbox.table.clone())),
        topics,
        dead_letter_topics,
        creates_topics: config.topics.create,
    })
}

/// Returns the only topic of the configured relay.
fn topic_of(config: &Config) -> Result<String, Failure> {
    if config.topic_rewrite.is_some() || config.topic.contains('{') {
        return Err(Failure::Options(
            "the topics of the relay depend on its events\n  -> name them: \
             `tidings grants relay order payment`, or a prefix: `tidings grants relay 'shop.*'`"
                .into(),
        ));
    }
    Ok(config.topic.clone())
}

/// Returns the dead letter topic of each topic, once.
fn dead_letter_topics(template: &str, topics: &[String]) -> Vec<String> {
    let mut all: Vec<String> = topics
        .iter()
        .map(|topic| match topic.strip_suffix('*') {
            // The suffix follows the rest of the name, so only the part before it is known.
            Some(prefix) if template.contains("{topic}") => {
                let before = template.split("{topic}").next().unwrap_or_default();
                format!("{before}{prefix}*")
            }
            _ => template.replace("{topic}", topic),
        })
        .filter(|dead| !topics.contains(dead))
        .collect();
    all.sort();
    all.dedup();
    all
}

fn check_topics(topics: &[String]) -> Result<(), Failure> {
    topics.iter().try_for_each(|topic| {
        let wrong = |reason: String| {
            let topic = escaped(topic);
            Failure::Options(format!("`{topic}` is not a topic of events: {reason}"))
        };
        check_topic_name(topic).map_err(|error| wrong(error.to_string()))?;
        match is_reserved_topic(topic) {
            true => Err(wrong("it belongs to Kafka or to relays".into())),
            false => Ok(()),
        }
    })
}

fn check_groups(groups: &[String]) -> Result<(), Failure> {
    // The group is a part of the names of topics.
    groups.iter().try_for_each(|group| {
        check_topic_name(group).map_err(|error| {
            let group = escaped(group);
            Failure::Options(format!(
                "`{group}` is not the name of a subscriber: {error}"
            ))
        })
    })
}

fn check_role(role: &str) -> Result<(), Failure> {
    if role.is_empty() || role.len() > IDENTIFIER_MAX {
        return Err(Failure::Options(format!(
            "--role has {} bytes\n  -> use 1 to {IDENTIFIER_MAX} bytes, the limit of Postgres",
            role.len()
        )));
    }
    if role.contains("$$") || escaped(role) != role {
        return Err(Failure::Options(format!(
            "--role `{}` contains $$ or an unprintable character\n  -> use another name",
            escaped(role)
        )));
    }
    Ok(())
}

fn check_principal(principal: &str) -> Result<(), Failure> {
    let is_complete = principal
        .split_once(':')
        .is_some_and(|(kind, name)| !kind.is_empty() && !name.is_empty());
    if is_complete && escaped(principal) == principal {
        return Ok(());
    }
    Err(Failure::Options(format!(
        "--principal `{}` is not a principal\n  -> write it as Kafka does, for example User:relay",
        escaped(principal)
    )))
}
