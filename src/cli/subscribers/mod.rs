//! `tidings subscribers`: shows, pauses and resumes the subscribers whose inbox is in the database,
//! and decides about their parked events.
//!
//! The commands only read and mark. The members of the subscriber act within seconds.

mod parked;
mod pause;
mod text;

use std::process::ExitCode;

use clap::Subcommand;

use super::{
    args::ListingArgs,
    config::Config,
    database,
    escape::escaped,
    exit::{DONE, Failure},
    output,
    table::{self, Align},
};
use crate::inspect::{
    Database,
    subscribers::{Instance, InstanceState, SubscriberStatus, subscribers},
    units::{grouped, time},
};
use crate::operator::OperatorError;
pub(super) use parked::SubscribersParkedCommand;
use pause::{PauseArgs, ResumeArgs};

#[derive(Debug, Subcommand)]
pub(super) enum SubscribersCommand {
    /// List every subscriber with its pause, its instances and the number of its parked events
    List(ListingArgs),
    /// Make every instance of a subscriber stop handling events, until `resume`
    Pause(PauseArgs),
    /// End the pause of a subscriber
    Resume(ResumeArgs),
    /// List, show, retry or discard the parked events of subscribers
    #[command(subcommand)]
    Parked(SubscribersParkedCommand),
}

/// Runs a subcommand.
pub(super) async fn run(
    config: &Config,
    command: &SubscribersCommand,
) -> Result<ExitCode, Failure> {
    let database = database::open(config, "subscribers").await?;
    match command {
        SubscribersCommand::List(args) => list(config, &database, args.output.json).await,
        SubscribersCommand::Pause(args) => pause::pause(config, &database, args).await,
        SubscribersCommand::Resume(args) => pause::resume(config, &database, args).await,
        SubscribersCommand::Parked(command) => parked::run(config, &database, command).await,
    }?;
    Ok(ExitCode::from(DONE))
}

/// Returns the user and the machine that run this command, for the record of a decision.
fn operator_name() -> String {
    let user = ["USER", "LOGNAME"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()));
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok());
    format!(
        "{}@{}",
        user.as_deref().unwrap_or("unknown"),
        host.as_deref().map_or("unknown", str::trim)
    )
}

/// Maps an error of a decision to a failure with its remedy.
fn undecided(config: &Config, error: OperatorError) -> Failure {
    let (doing, source) = match error {
        OperatorError::Refused(text) => return Failure::Refused(text),
        OperatorError::Sql { doing, source } => (doing, source),
    };
    let code = source
        .as_database_error()
        .and_then(|error| error.code())
        .unwrap_or_default();
    let schema = &config.schema;
    match &*code {
        // undefined_table, invalid_schema_name, undefined_column
        "42P01" | "3F000" | "42703" => Failure::Refused(format!(
            "the tables of subscribers in schema {schema} are missing or of an earlier version\n  \
             -> run `tidings migrate`"
        )),
        // insufficient_privilege
        "42501" => Failure::Refused(format!(
            "{doing}: the role lacks a right\n  -> grant it select, insert and delete on \
             {schema}.subscriber_control, select and update (action, decided_by) on \
             {schema}.subscriber_parked, and select on {schema}.subscriber, {schema}.saga_code and \
             {schema}.inbox"
        )),
        _ => Failure::failed(doing, &source),
    }
}

async fn list(config: &Config, database: &Database, json: bool) -> Result<(), Failure> {
    let subscribers = subscribers(database)
        .await
        .map_err(|error| database::unreadable(config, error, "the subscribers"))?;
    if json {
        return output::json(&subscribers);
    }
    output::lines(&text(&subscribers));
    Ok(())
}

fn text(subscribers: &[SubscriberStatus]) -> String {
    if subscribers.is_empty() {
        return "no subscriber has its inbox in this database\n".into();
    }
    let head = [
        "subscriber",
        "instance",
        "version",
        "state",
        "seen",
        "types",
        "parked",
    ];
    let mut rows = vec![head.map(String::from).to_vec()];
    for subscriber in subscribers {
        let parked: i64 = subscriber.parked.iter().map(|topic| topic.events).sum();
        let (name, parked) = (subscriber.name.clone(), grouped(parked));
        let first = subscriber.instances.first();
        rows.push(row(name, first, parked));
        let others = subscriber.instances.iter().skip(1);
        rows.extend(others.map(|instance| row(String::new(), Some(instance), String::new())));
    }
    use Align::{Left, Right, Status, Text};
    let mut text = table::list(&[Left, Left, Left, Status, Right, Text, Right], &rows);
    for subscriber in subscribers {
        if let Some(pause) = &subscriber.pause {
            let name = escaped(&subscriber.name);
            text.push_str(&format!(
                "\n{}\n  -> `tidings subscribers resume {name}`\n",
                text::paused(&subscriber.name, pause)
            ));
        }
    }
    text
}

fn row(name: String, instance: Option<&Instance>, parked: String) -> Vec<String> {
    let dash = || "-".to_owned();
    let state = |instance: &Instance| match instance.state {
        InstanceState::Running if instance.paused_since.is_some() => "paused",
        InstanceState::Running => "running",
        InstanceState::Silent => "silent",
        InstanceState::Stopped => "stopped",
    };
    vec![
        name,
        instance.map_or_else(dash, |instance| instance.host.clone()),
        instance.map_or_else(dash, |instance| instance.version.clone()),
        instance.map_or_else(dash, |instance| state(instance).to_owned()),
        instance.map_or_else(dash, |instance| {
            format!("{} ago", time(instance.seen_seconds))
        }),
        instance.map_or_else(dash, |instance| instance.types.join(", ")),
        parked,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::subscribers::ParkedTopic;

    #[test]
    fn each_instance_is_a_row_and_parked_events_are_counted_once() {
        let instance = |host: &str, state| Instance {
            id: uuid::Uuid::nil(),
            host: host.into(),
            version: "2".into(),
            state,
            types: vec!["OrderPlaced".into()],
            topics: vec!["order".into()],
            escalation: "park".into(),
            started_at: chrono::DateTime::UNIX_EPOCH,
            seen_seconds: 3.0,
            paused_since: None,
        };
        let stock = SubscriberStatus {
            name: "stock".into(),
            pause: None,
            instances: vec![
                instance("a:1", InstanceState::Running),
                instance("b:2", InstanceState::Silent),
            ],
            parked: vec![ParkedTopic {
                topic: "order".into(),
                events: 1_200,
                aggregates: 3,
                runs: true,
                is_read: true,
            }],
        };
        let expected = "\
subscriber  instance  version  state         seen  types        parked
stock       a:1       2        running  3.0 s ago  OrderPlaced   1,200
            b:2       2        silent   3.0 s ago  OrderPlaced
";
        assert_eq!(text(&[stock]), expected);
        assert_eq!(text(&[]), "no subscriber has its inbox in this database\n");
    }
}
