//! `tidings parked`: shows, retries and discards events that cannot be delivered, and the events
//! that wait behind them.
//!
//! The commands only read and mark. The leading relay acts within seconds, which keeps the order of
//! each aggregate. `rows` has the SQL, `progress` waits for the leader, `text` prints.

mod progress;
mod rows;
mod text;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;
use sqlx::PgPool;

use super::{
    config::Config,
    database,
    escape::escaped,
    exit::{DONE, Failure},
    output,
};
use rows::{Decision, Elsewhere, Event, Waiting, What};

/// Lists, shows, retries and discards parked events.
#[derive(Debug, Subcommand)]
pub(super) enum ParkedCommand {
    /// Show every aggregate that waits, with its blocking event and the reason
    List(ListArgs),
    /// Show every event that waits, of one aggregate or of all
    Show(ShowArgs),
    /// Make the relay retry events: those of an aggregate are published in order
    Retry(DecideArgs),
    /// Discard events: they are never published, and the relay logs each
    Discard(DecideArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
    /// Maximum number of aggregates to show
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000)]
    limit: u32,
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// Id of an event, or an aggregate as TYPE/ID. Defaults to all
    what: Option<String>,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
    /// Maximum number of events to show
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000)]
    limit: u32,
}

#[derive(Debug, Args)]
pub(super) struct DecideArgs {
    /// Id of an event, or an aggregate as TYPE/ID
    #[arg(required_unless_present = "all")]
    what: Option<String>,
    /// Every parked event
    #[arg(long, conflicts_with = "what")]
    all: bool,
    /// Print the events without marking them
    #[arg(long)]
    dry_run: bool,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// JSON output of `list` and `show`.
#[derive(Serialize)]
struct Listed<'a, T> {
    relay: &'a str,
    parked: &'a [T],
    /// Parked events of other relays. Empty unless this relay has none.
    elsewhere: &'a [Elsewhere],
}

/// JSON output of `retry` and `discard`.
#[derive(Serialize)]
struct Decided<'a> {
    relay: &'a str,
    decision: &'a str,
    dry_run: bool,
    events: &'a [Event],
}

/// Runs a subcommand for the relay that the configuration names.
pub(super) async fn run(config: &Config, command: &ParkedCommand) -> Result<ExitCode, Failure> {
    let settings = database::settings(config)?;
    let pool = database::connect(settings, "parked")
        .await
        .map_err(|error| Failure::Failed(database::unreachable(settings, &error)))?;
    match command {
        ParkedCommand::List(args) => list(config, &pool, args).await,
        ParkedCommand::Show(args) => show(config, &pool, args).await,
        ParkedCommand::Retry(args) => decide(config, &pool, args, Decision::Retry).await,
        ParkedCommand::Discard(args) => decide(config, &pool, args, Decision::Discard).await,
    }
}

async fn list(config: &Config, pool: &PgPool, args: &ListArgs) -> Result<ExitCode, Failure> {
    let waiting: Vec<Waiting> = rows::waiting(pool, config, args.limit)
        .await
        .map_err(|error| unreadable(config, &error))?;
    let elsewhere = elsewhere(config, pool, waiting.is_empty()).await?;
    if args.json {
        output::json(&Listed {
            relay: &config.name,
            parked: &waiting,
            elsewhere: &elsewhere,
        })?;
    } else {
        output::lines(&text::waiting(&config.name, &waiting, &elsewhere));
    }
    Ok(ExitCode::from(DONE))
}

async fn show(config: &Config, pool: &PgPool, args: &ShowArgs) -> Result<ExitCode, Failure> {
    let what = what(args.what.as_deref())?;
    let events = rows::events(pool, config, &what, args.limit)
        .await
        .map_err(|error| unreadable(config, &error))?;
    if events.is_empty() && what != What::All {
        return Err(nothing(config, args.what.as_deref()));
    }
    let elsewhere = elsewhere(config, pool, events.is_empty()).await?;
    if args.json {
        output::json(&Listed {
            relay: &config.name,
            parked: &events,
            elsewhere: &elsewhere,
        })?;
    } else {
        output::lines(&text::events(&config.name, &events, &elsewhere));
    }
    Ok(ExitCode::from(DONE))
}

async fn decide(
    config: &Config,
    pool: &PgPool,
    args: &DecideArgs,
    decision: Decision,
) -> Result<ExitCode, Failure> {
    let what = what(args.what.as_deref())?;
    let events = rows::decide(pool, config, &what, decision, args.dry_run)
        .await
        .map_err(|error| unreadable(config, &error))?;
    if events.is_empty() && decision == Decision::Discard && matches!(what, What::Event(_)) {
        let around = rows::events(pool, config, &what, 1)
            .await
            .map_err(|error| unreadable(config, &error))?;
        if let Some(range) = around.first() {
            return Err(part_of_range(config, range));
        }
    }
    if events.is_empty() && what != What::All {
        return Err(nothing(config, args.what.as_deref()));
    }
    if args.json {
        output::json(&Decided {
            relay: &config.name,
            decision: decision.word(),
            dry_run: args.dry_run,
            events: &events,
        })?;
    } else {
        let elsewhere = elsewhere(config, pool, events.is_empty()).await?;
        output::lines(&text::decided(
            &config.name,
            &events,
            &elsewhere,
            decision,
            args.dry_run,
        ));
        let marked: i64 = events.iter().map(|event| event.events).sum();
        if decision == Decision::Discard && !args.dry_run {
            progress::watch(config, pool, decision, marked)
                .await
                .map_err(|error| unreadable(config, &error))?;
        }
    }
    Ok(ExitCode::from(DONE))
}

/// Returns the parked events of other relays if this relay has `nothing`.
async fn elsewhere(
    config: &Config,
    pool: &PgPool,
    nothing: bool,
) -> Result<Vec<Elsewhere>, Failure> {
    if !nothing {
        return Ok(Vec::new());
    }
    rows::elsewhere(pool, config)
        .await
        .map_err(|error| unreadable(config, &error))
}

/// Parses the selection on the command line.
fn what(text: Option<&str>) -> Result<What, Failure> {
    text.map_or(Ok(What::All), |text| {
        text.parse().map_err(|()| {
            Failure::Options(format!(
                "`{}` is neither an event id nor an aggregate\n  \
                 -> write a UUID, or TYPE/ID, for instance order/17",
                escaped(text)
            ))
        })
    })
}

fn part_of_range(config: &Config, range: &Event) -> Failure {
    let (kind, id, name) = (&range.aggregate_type, &range.aggregate_id, &config.name);
    Failure::Refused(format!(
        "the event is in a range of {} that wait behind an earlier event of {kind}/{id}, and \
         cannot be discarded by itself yet\n  \
         -> retry or discard the earlier event (`tidings parked show {kind}/{id} --name {name}`), \
         or discard all of them with `tidings parked discard {kind}/{id} --name {name}`",
        range.events
    ))
}

fn nothing(config: &Config, what: Option<&str>) -> Failure {
    let (what, name) = (escaped(what.unwrap_or_default()), &config.name);
    Failure::Refused(format!(
        "relay {name} has no parked event for {what}\n  \
         -> `tidings parked list --name {name}` shows its parked events"
    ))
}

fn unreadable(config: &Config, error: &sqlx::Error) -> Failure {
    let code = error
        .as_database_error()
        .and_then(|error| error.code())
        .unwrap_or_default();
    match &*code {
        // undefined_table, invalid_schema_name
        "42P01" | "3F000" => Failure::Refused(format!(
            "table {}.parked does not exist\n  -> run `tidings migrate`",
            config.schema
        )),
        // insufficient_privilege
        "42501" => Failure::Refused(format!(
            "the role may not read or mark parked events\n  \
             -> grant it select and update on {}.parked, and select on the relay's tables",
            config.schema
        )),
        _ => Failure::failed("cannot read the parked events", error),
    }
}
